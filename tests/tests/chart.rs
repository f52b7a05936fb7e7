//! The chart and the rendered manifests of `k8s/`: they are the overlays in another form, and hold
//! before schemas and policies that others wrote.

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output};

    use serde_json::{Value, json};
    use spanprof_tests::kustomize::kustomize;
    use spanprof_tests::require;

    const OVERLAYS: [&str; 2] = ["minimal", "debian-ubuntu"];
    /// The versions of Kubernetes that are asked whether they know every field.
    const VERSIONS: [&str; 5] = ["1.30", "1.32", "1.34", "1.36", "1.37"];
    /// What checkov has against the `DaemonSet`, and why it stays so.
    const EXCEPTIONS: [(&str, &str); 9] = [
        ("CKV_K8S_11", "no CPU limit: a throttled agent loses samples"),
        ("CKV_K8S_15", "an image of a fixed version need not be asked for again"),
        ("CKV_K8S_17", "the host's processes are what it is about"),
        ("CKV_K8S_23", "root, with six capabilities"),
        ("CKV_K8S_25", "the six capabilities"),
        ("CKV_K8S_29", "the security context is the container's, of which there is one"),
        ("CKV_K8S_38", "it watches pods"),
        ("CKV_K8S_40", "root, with six capabilities"),
        ("CKV_K8S_43", "the digest is known to whoever makes the image"),
    ];

    fn k8s(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../k8s").join(path)
    }

    fn text(output: Output) -> Result<String, String> {
        let [out, error] =
            [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
        if output.status.success() { Ok(out) } else { Err(out + &error) }
    }

    /// Python with the packages beside this program of theirs.
    fn python(tools: &Path) -> Command {
        let mut python = Command::new("python3");
        let packages = tools.parent().and_then(Path::parent).unwrap();
        python.env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1");
        python
    }

    fn manifests(tools: &Path, arguments: &[&str]) -> Result<Value, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifest-tools/manifests.py");
        let output = python(tools).arg(script).args(arguments).output().unwrap();
        text(output).map(|json| serde_json::from_str(&json).unwrap())
    }

    fn chart(tools: &Path, values: &Value) -> Result<Vec<Value>, String> {
        let values = values.to_string();
        let objects = manifests(tools, &["chart", k8s("chart").to_str().unwrap(), &values])?;
        Ok(objects.as_array().unwrap().clone())
    }

    fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
        objects.iter().find(|it| it["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
    }

    fn rendered(name: &str) -> PathBuf {
        k8s(&format!("rendered/{name}.yaml"))
    }

    #[test]
    fn rendered_manifests_are_the_overlays() {
        let kubernetes = require!(Kubernetes);
        for name in OVERLAYS {
            let overlay = k8s(&format!("overlays/{name}"));
            let expected = kustomize(&kubernetes, &overlay).unwrap();
            let found = fs::read_to_string(rendered(name)).unwrap();
            assert!(
                found == expected,
                "kubectl kustomize k8s/overlays/{name} > k8s/rendered/{name}.yaml"
            );
        }
    }

    /// What Helm adds, and what is the user's own there: the namespace.
    fn without_what_is_helms(mut object: Value) -> Value {
        if let Some(labels) = object["metadata"]["labels"].as_object_mut() {
            let helms =
                ["helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/version"];
            labels.retain(|name, _| !helms.contains(&&**name));
            if object["kind"] != "DaemonSet" {
                object["metadata"].as_object_mut().unwrap().remove("labels");
            }
        }
        if let Some(pod) = object.pointer_mut("/spec/template/metadata") {
            let checksum = pod["annotations"]["checksum/config"].take();
            assert_eq!(checksum.as_str().map(str::len), Some(64));
            assert_eq!(pod["annotations"], json!({"checksum/config": null}));
            pod.as_object_mut().unwrap().remove("annotations");
        }
        object
    }

    #[test]
    fn the_chart_is_the_overlays_too() {
        let tools = require!(ManifestTools);
        let name = |object: &Value| object["kind"].as_str().unwrap().to_owned();
        for (overlay, values) in
            [("minimal", json!({})), ("debian-ubuntu", json!({"sysAdmin": true}))]
        {
            let path = rendered(overlay);
            let expected = manifests(&tools, &["objects", path.to_str().unwrap()]).unwrap();
            let mut expected = expected.as_array().unwrap().clone();
            expected.retain(|it| it["kind"] != "Namespace");
            expected.sort_by_key(name);
            let mut found = chart(&tools, &values).unwrap();
            found.sort_by_key(name);
            let found: Vec<_> = found.into_iter().map(without_what_is_helms).collect();
            assert_eq!(found.len(), 6);
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found, expected, "{overlay}");
            }
        }
    }

    #[test]
    fn helm_has_nothing_against_the_chart() {
        let tools = require!(ManifestTools);
        let lint = manifests(&tools, &["lint", k8s("chart").to_str().unwrap()]).unwrap();
        assert_eq!((&lint["total_charts_linted"], &lint["errors"]), (&json!(1), &json!([])));
        let messages = lint["messages"].as_array().unwrap();
        assert!(messages.iter().all(|it| it["error"] == "icon is recommended"), "{lint}");
    }

    /// Options that the manifests set themselves, or that write to a file system that is read-only.
    const NOT_IN_VALUES: [&str; 4] = ["host", "listen", "node_name", "stats"];

    #[test]
    fn the_schema_has_every_option_and_refuses_what_is_none() {
        let (tools, spanprof) = (require!(ManifestTools), require!(Spanprof));
        let printed =
            Command::new(spanprof).args(["config", "print"]).env_clear().output().unwrap();
        let printed = text(printed).unwrap();
        let key = |line: &str| line.trim_start_matches("# ").split(':').next().unwrap().to_owned();
        let mut options: BTreeSet<String> = printed.lines().map(key).collect();
        for key in NOT_IN_VALUES {
            assert!(options.remove(key), "{key}");
        }
        let schema = fs::read_to_string(k8s("chart/values.schema.json")).unwrap();
        let schema: Value = serde_json::from_str(&schema).unwrap();
        let known = schema["properties"]["options"]["properties"].as_object().unwrap();
        assert_eq!(known.keys().cloned().collect::<BTreeSet<_>>(), options);

        for (values, because) in [
            (json!({"sysadmin": true}), "'sysadmin' not allowed"),
            (json!({"options": {"frequenzy": 19}}), "'frequenzy' not allowed"),
            (json!({"options": {"frequency": "often"}}), "want integer"),
            (json!({"options": {"pyroscope_url": "profiles.example.com"}}), "does not match"),
            (json!({"resources": {"limit": {}}}), "'limit' not allowed"),
        ] {
            let error = chart(&tools, &values).unwrap_err();
            assert!(error.contains(because), "{error}");
        }
    }

    #[test]
    fn values_arrive_as_they_were_meant() {
        let (tools, spanprof) = (require!(ManifestTools), require!(Spanprof));
        let rules = json!([{"source_labels": ["pod"], "regex": "a<b>&\"c\", d", "action": "drop"}]);
        let values = json!({"options": {
            "frequency": 19, "inline": true, "window": "15s", "span_scope": "active",
            "span_attribute": ["http.route", "tenant"],
            "keep": ["namespace=a{1,2}", "exe=/x,y"],
            "relabel_configs": rules,
        }});
        let objects = chart(&tools, &values).unwrap();
        let data = of_kind(&objects, "ConfigMap")["data"].as_object().unwrap();
        let mut print = Command::new(spanprof);
        print.args(["config", "print"]).env_clear();
        print.envs(data.iter().map(|(name, value)| (name, value.as_str().unwrap())));
        let printed = text(print.output().unwrap()).unwrap();
        for line in [
            "frequency: 19 # variable",
            "inline: true # variable",
            "window: \"15s\" # variable",
            "span_scope: \"active\" # variable",
            "span_attribute: [\"http.route\", \"tenant\"] # variable",
            "keep: [\"namespace=a{1,2}\", \"exe=/x,y\"] # variable",
            "pyroscope_url: \"http://pyroscope.pyroscope.svc:4040\" # variable",
        ] {
            assert!(printed.lines().any(|it| it == line), "{line} is not in\n{printed}");
        }
        let found = data["SPANPROF_RELABEL_CONFIGS"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(found).unwrap(), rules);
    }

    #[test]
    fn values_that_are_not_options_are_where_they_belong() {
        let tools = require!(ManifestTools);
        let objects = chart(
            &tools,
            &json!({
                "image": {"repository": "r.example/s", "digest": format!("sha256:{}", "0".repeat(64))},
                "priorityClassName": "system-node-critical", "podLabels": {"team": "x"},
                "networkPolicy": {"enabled": false}, "podMonitor": {"enabled": true},
                "secretName": "keys",
            }),
        )
        .unwrap();
        let pod = &of_kind(&objects, "DaemonSet")["spec"]["template"];
        let image = pod["spec"]["containers"][0]["image"].as_str().unwrap();
        assert!(image.starts_with("r.example/s@sha256:000"), "{image}");
        assert_eq!(pod["spec"]["priorityClassName"], "system-node-critical");
        assert_eq!(pod["metadata"]["labels"]["team"], "x");
        assert_eq!(pod["spec"]["volumes"][0]["secret"]["secretName"], "keys");
        assert!(!objects.iter().any(|it| it["kind"] == "NetworkPolicy"));
        let endpoint = &of_kind(&objects, "PodMonitor")["spec"]["podMetricsEndpoints"][0];
        let ports = &pod["spec"]["containers"][0]["ports"];
        assert_eq!((&endpoint["port"], &endpoint["path"]), (&ports[0]["name"], &json!("/metrics")));
    }

    #[test]
    fn every_field_is_known_to_five_versions() {
        let tools = require!(ManifestTools);
        let files = OVERLAYS.map(rendered);
        for version in VERSIONS {
            let mut validate = python(&tools);
            validate.arg(&tools).args(["--strict", "-k", version]).args(&files);
            let said = text(validate.output().unwrap()).unwrap_or_else(|error| panic!("{error}"));
            let passed = said.lines().filter(|line| line.contains(" passed for resource ")).count();
            assert_eq!(passed, 14, "{version}: {said}");
        }
        // And it says so where one is not.
        let folder = tempfile::tempdir().unwrap();
        let wrong = folder.path().join("wrong.yaml");
        let right = fs::read_to_string(&files[0]).unwrap();
        fs::write(&wrong, right.replace("hostPID: true", "hostPid: true")).unwrap();
        let validate =
            python(&tools).arg(&tools).args(["--strict", "-k", "1.34"]).arg(wrong).output();
        let error = text(validate.unwrap()).unwrap_err();
        assert!(error.contains("hostPid"), "{error}");
    }

    #[test]
    fn the_policy_gate_has_only_known_exceptions() {
        let tools = require!(ManifestTools);
        for overlay in OVERLAYS {
            let mut checkov = python(&tools);
            checkov.args(["-m", "checkov.main", "--framework", "kubernetes", "--skip-download"]);
            checkov.args(["--output", "json", "--soft-fail", "--file"]).arg(rendered(overlay));
            let report = text(checkov.output().unwrap()).unwrap_or_else(|error| panic!("{error}"));
            let report: Value = serde_json::from_str(&report).unwrap();
            assert!(report["summary"]["passed"].as_u64() > Some(80), "{report}");
            let failed = report["results"]["failed_checks"].as_array().unwrap();
            let ids = failed.iter().map(|it| it["check_id"].as_str().unwrap());
            let more = (overlay == "debian-ubuntu").then_some("CKV_K8S_39");
            let expected = EXCEPTIONS.iter().map(|(id, _)| *id).chain(more);
            assert_eq!(ids.collect::<BTreeSet<_>>(), expected.collect(), "{overlay}");
        }
    }
}
