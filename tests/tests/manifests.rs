//! The manifests of `k8s/`: a real API server takes them as they are, they ask for no more than they
//! say, and what they ask for is enough.

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;
    use std::path::Path;
    use std::process::Command;

    use serde_json::{Value, json};
    use spanprof_tests::api_server::ApiServer;
    use spanprof_tests::kustomize::kustomize;
    use spanprof_tests::require;
    use spanprof_tests::workload::{Program, Workload};

    const MINIMAL: [&str; 6] =
        ["BPF", "PERFMON", "SYS_PTRACE", "CHECKPOINT_RESTORE", "DAC_READ_SEARCH", "SYSLOG"];

    fn overlay(name: &str) -> String {
        format!("{}/../k8s/overlays/{name}", env!("CARGO_MANIFEST_DIR"))
    }

    /// Applies an overlay, and gives an object as the server has it then.
    fn applied(api: &ApiServer, name: &str, object: &str) -> Value {
        api.kubectl(&["apply", "--validate=strict", "-k", &overlay(name)], None).unwrap();
        let json = api.kubectl(&["get", "-n", "spanprof", "-o", "json", object, "spanprof"], None);
        serde_json::from_str(&json.unwrap()).unwrap()
    }

    fn texts(list: &Value) -> Vec<&str> {
        list.as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect()
    }

    #[test]
    fn a_server_takes_them_and_they_ask_for_no_more_than_they_say() {
        let kubernetes = require!(Kubernetes);
        let api = ApiServer::start(&kubernetes).unwrap();
        for (name, more) in [("minimal", &[][..]), ("debian-ubuntu", &["SYS_ADMIN"])] {
            let set = applied(&api, name, "daemonset");
            let spec = &set["spec"]["template"]["spec"];
            let containers = spec["containers"].as_array().unwrap();
            assert_eq!((containers.len(), spec.get("initContainers")), (1, None), "{spec}");
            let security = &containers[0]["securityContext"];
            assert_eq!(texts(&security["capabilities"]["drop"]), ["ALL"]);
            let capabilities = texts(&security["capabilities"]["add"]);
            assert_eq!(capabilities, [&MINIMAL[..], more].concat(), "{name}");
            for (field, value) in [
                ("privileged", false),
                ("allowPrivilegeEscalation", false),
                ("readOnlyRootFilesystem", true),
            ] {
                assert_eq!(security[field], value, "{field}");
            }
            assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
            assert_eq!(spec["hostPID"], true);
            assert!(spec.get("hostNetwork").is_none() && spec.get("hostIPC").is_none());
            for volume in spec["volumes"].as_array().unwrap() {
                assert!(volume.get("hostPath").is_none(), "{volume}");
            }
            // 30 s are what the agent takes at most to end.
            assert!(spec["terminationGracePeriodSeconds"].as_u64() > Some(30));
            assert!(containers[0]["resources"]["limits"].get("cpu").is_none());
            assert!(containers[0]["resources"]["limits"].get("memory").is_some());
            for (probe, path) in [
                ("startupProbe", "/readyz"),
                ("readinessProbe", "/readyz"),
                ("livenessProbe", "/healthz"),
            ] {
                let asked = &containers[0][probe]["httpGet"];
                assert_eq!((&asked["path"], &asked["port"]), (&json!(path), &json!("http")));
            }
        }
        let role = applied(&api, "minimal", "clusterrole");
        let pods = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]);
        assert_eq!(role["rules"], pods);
        let account = applied(&api, "minimal", "serviceaccount");
        assert_eq!(account["automountServiceAccountToken"], false);
        let policy = applied(&api, "minimal", "networkpolicy");
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]));
    }

    #[test]
    fn every_variable_is_one_that_run_knows() {
        let (kubernetes, spanprof) = (require!(Kubernetes), require!(Spanprof));
        let help = Command::new(&spanprof).args(["run", "--help"]).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let api = ApiServer::start(&kubernetes).unwrap();
        let config = applied(&api, "minimal", "configmap");
        let set = applied(&api, "minimal", "daemonset");
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        let variables = container["env"].as_array().unwrap().iter().map(|it| &it["name"]);
        let names = config["data"].as_object().unwrap().keys().map(String::as_str);
        let names: Vec<&str> = names.chain(variables.filter_map(Value::as_str)).collect();
        assert!(names.len() >= 4, "{names:?}");
        for name in names {
            assert!(help.contains(&format!("[env: {name}=")), "{name} is not in\n{help}");
        }
    }

    /// The whole host, with the names of another user's program, by the capabilities of the overlay
    /// that is for this machine.
    #[test]
    fn the_capabilities_are_enough() {
        require!(Root);
        let (kubernetes, spanprof) = (require!(Kubernetes), require!(Spanprof));
        let setpriv = require!(Setpriv);
        let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap();
        let strict = paranoid.trim().parse::<i32>().unwrap() > 2;
        let overlay = if strict { "debian-ubuntu" } else { "minimal" };
        let api = ApiServer::start(&kubernetes).unwrap();
        let set = applied(&api, overlay, "daemonset");
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        let added = texts(&container["securityContext"]["capabilities"]["add"]);
        let added: String = added.iter().map(|it| format!(",+{}", it.to_lowercase())).collect();

        let program = Program::compile("unwind").unwrap();
        let folder = program.path().parent().unwrap();
        fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(program.path());
        let workload =
            Workload::start(command.args(["chain", "0"]).uid(12_345).gid(12_345)).unwrap();
        let out = tempfile::tempdir().unwrap();
        let folded = out.path().join("host.folded");
        let status = Command::new(setpriv)
            .arg(format!("--bounding-set=-all{added}"))
            .args(["--inh-caps=-all", "--no-new-privs"])
            .arg(&spanprof)
            .args(["record", "-d", "3s", "-F", "199", "-o"])
            .arg(&folded)
            .output()
            .unwrap();
        assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
        assert_eq!(String::from_utf8_lossy(&status.stderr), "", "nothing is missing");
        workload.end().unwrap();
        let folded = fs::read_to_string(&folded).unwrap();
        let whole = ["main", "first", "second", "third", "leaf"];
        let found = folded.lines().any(|line| {
            let frames: Vec<&str> = line.split(';').collect();
            line.starts_with("unknown_service:unwind;")
                && whole
                    .iter()
                    .all(|name| frames.iter().any(|it| it.split(' ').next() == Some(name)))
        });
        assert!(found, "{folded}");
    }

    /// Nothing outside of `k8s/` is needed to apply them.
    #[test]
    fn an_overlay_of_ones_own_can_be_made_of_them() {
        let kubernetes = require!(Kubernetes);
        let folder = tempfile::tempdir().unwrap();
        let k8s = folder.path().join("k8s");
        copy(Path::new(&format!("{}/../k8s", env!("CARGO_MANIFEST_DIR"))), &k8s);
        let own = folder.path().join("own");
        fs::create_dir(&own).unwrap();
        let text = "resources: [../k8s/overlays/minimal]\n\
            images:\n  - {name: spanprof, newName: registry.example.com/spanprof, newTag: 1.2.3}\n\
            patches:\n  - target: {kind: ConfigMap, name: spanprof}\n    patch: |-\n      \
            - {op: replace, path: /data/SPANPROF_PYROSCOPE_URL, value: \"https://p.example\"}\n";
        fs::write(own.join("kustomization.yaml"), text).unwrap();
        let made = kustomize(&kubernetes, &own).unwrap();
        assert!(made.contains("image: registry.example.com/spanprof:1.2.3"), "{made}");
        assert!(made.contains("SPANPROF_PYROSCOPE_URL: https://p.example"), "{made}");
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let target = to.join(path.file_name().unwrap());
            if path.is_dir() {
                copy(&path, &target);
            } else {
                fs::copy(&path, target).unwrap();
            }
        }
    }
}
