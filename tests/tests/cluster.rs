//! A real cluster, the manifests applied as a user would, and what comes of it in a real Pyroscope.

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::time::{Duration, SystemTime};

    use serde_json::{Value, json};
    use spanprof_tests::agent::poll_until;
    use spanprof_tests::cluster::{Cluster, NODE, NODE_ADDRESS, PRIVATE_CGROUP, Programs};
    use spanprof_tests::pushed::Pushed;
    use spanprof_tests::pyroscope::{Server, TimeRange};
    use spanprof_tests::relay::{Outcome, Relay};
    use spanprof_tests::require;

    /// The six of the overlay `minimal`, as `/proc/PID/status` has them: `DAC_READ_SEARCH` 2,
    /// `SYS_PTRACE` 19, `SYSLOG` 34, `PERFMON` 38, `BPF` 39, `CHECKPOINT_RESTORE` 40.
    const MINIMAL: u64 = 1 << 2 | 1 << 19 | 1 << 34 | 1 << 38 | 1 << 39 | 1 << 40;
    const TEAMS: [&str; 2] = ["team-a", "team-b"];
    /// The service says so of itself; the load beside it says nothing, and is called as what made
    /// the pod.
    const SERVICES: [&str; 2] = ["checkout", "web"];
    /// Of all pods together: enough that one percent is many.
    const SAMPLES: u64 = 1000;

    /// Two pods that serve and ask themselves, with no more CPU than leaves some to the cluster.
    fn deployment(image: &str) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {
                "replicas": 2, "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {
                        "terminationGracePeriodSeconds": 1,
                        "containers": [{
                            "name": "shop", "image": image, "imagePullPolicy": "Never",
                            "args": ["--demo", "--seconds", "3600", "--concurrency", "1"],
                            "resources": {"limits": {"cpu": "250m"}},
                        }],
                    },
                },
            },
        })
    }

    /// An overlay as a user writes one: where Pyroscope is, and shorter windows.
    fn overlay(folder: &Path, base: &str, url: &str, more: &str) -> PathBuf {
        let own = folder.join("own");
        fs::create_dir_all(&own).unwrap();
        // kustomize takes no absolute path.
        let k8s = Path::new(env!("CARGO_MANIFEST_DIR")).join("../k8s").canonicalize().unwrap();
        let up = "../".repeat(own.components().count() - 1);
        let text = format!(
            "resources: [\"{up}{}/overlays/{base}\"]\n\
             patches:\n  - target: {{kind: ConfigMap, name: spanprof}}\n    patch: |-\n      \
             - {{op: replace, path: /data/SPANPROF_PYROSCOPE_URL, value: \"{url}\"}}\n      \
             - {{op: add, path: /data/SPANPROF_WINDOW, value: 2s}}\n{more}",
            k8s.strip_prefix("/").unwrap().display()
        );
        fs::write(own.join("kustomization.yaml"), text).unwrap();
        own
    }

    fn names(cluster: &Cluster, namespace: &str) -> BTreeSet<String> {
        let path = "jsonpath={.items[*].metadata.name}";
        let pods = cluster.kubectl(&["get", "pods", "-n", namespace, "-o", path], None).unwrap();
        pods.split_whitespace().map(str::to_owned).collect()
    }

    fn rolled_out(cluster: &Cluster, namespace: &str, what: &str) {
        let arguments = ["rollout", "status", "-n", namespace, what, "--timeout=120s"];
        let done = cluster.kubectl(&arguments, None);
        if done.is_err() {
            let seen = ["describe pods", "get events", "logs -l app.kubernetes.io/name=spanprof"];
            for words in seen {
                let words: Vec<&str> = words.split(' ').chain(["-n", namespace]).collect();
                println!("{}", cluster.kubectl(&words, None).unwrap_or_else(|it| it.to_string()));
            }
        }
        done.unwrap();
    }

    fn is_ours(pushed: &Pushed) -> bool {
        let service = pushed.label("service_name").unwrap_or_default();
        SERVICES.contains(&service) || service.ends_with("checkout")
    }

    /// CPU time in nanoseconds of the workload by pod, and all of it.
    fn by_pod<'a>(
        pushes: &'a [Pushed],
        pods: &BTreeMap<String, &str>,
    ) -> (BTreeMap<&'a str, i64>, i64, i64) {
        let (mut found, mut right, mut all) = (BTreeMap::new(), 0, 0);
        for pushed in pushes.iter().filter(|pushed| is_ours(pushed)) {
            all += pushed.total();
            let pod = pushed.label("pod").unwrap_or_default();
            if pods.get(pod).copied() == pushed.label("namespace")
                && pushed.label("namespace").is_some()
                && pushed.label("container") == Some("shop")
                && pushed.label("node") == Some(NODE)
                && pushed.label("host") == Some(NODE)
                && SERVICES.contains(&pushed.label("service_name").unwrap_or_default())
            {
                right += pushed.total();
                *found.entry(pod).or_default() += pushed.total();
            }
        }
        (found, right, all)
    }

    fn stored(relay: &Relay) -> Vec<Pushed> {
        let pushes = relay.pushes().unwrap();
        pushes
            .into_iter()
            .filter(|(_, outcome)| *outcome == Outcome::Stored)
            .map(|(pushed, _)| pushed)
            .collect()
    }

    /// Waits until the workload has so many samples in pushes from `from` on, and gives those.
    fn samples_from(relay: &Relay, from: usize) -> Vec<Pushed> {
        poll_until("the workload's samples come", || {
            let mut pushes = stored(relay);
            let pushes = pushes.split_off(from.min(pushes.len()));
            let samples = pushes.iter().filter(|it| is_ours(it)).map(|it| it.samples().unwrap());
            Ok((samples.sum::<u64>() >= SAMPLES).then_some(pushes))
        })
        .unwrap()
    }

    fn all_pods(cluster: &Cluster) -> BTreeMap<String, &'static str> {
        let of = |team| names(cluster, team).into_iter().map(move |pod| (pod, team));
        TEAMS.into_iter().flat_map(of).collect()
    }

    /// The capabilities of the agent's threads, and whether they can get no others.
    fn privileges() -> Vec<(u64, bool)> {
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = fs::read_to_string(path.join("comm")).ok()?;
            let command = fs::read(path.join("cmdline")).ok()?;
            (name == "spanprof\n" && command == b"/spanprof\0run\0").then_some(path)
        });
        let threads = processes.flat_map(|path| fs::read_dir(path.join("task")).unwrap());
        threads
            .map(|thread| {
                let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
                let field = |name: &str| {
                    let line = status.lines().find_map(|line| line.strip_prefix(name));
                    line.unwrap().trim().to_owned()
                };
                let set = |name| u64::from_str_radix(&field(name), 16).unwrap();
                let sets = ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"].map(set);
                (sets.into_iter().fold(0, |all, set| all | set), field("NoNewPrivs:") == "1")
            })
            .collect()
    }

    /// No thread of the agent has or can get more than the table of `k8s/README.md` says.
    fn check_privileges() {
        let threads = privileges();
        assert!(threads.len() > 4, "{threads:?}");
        for (capabilities, cannot_get_more) in threads {
            assert_eq!(capabilities & !MINIMAL, 0, "{capabilities:x}");
            assert!(cannot_get_more);
        }
    }

    #[test]
    fn a_user_applies_the_manifests_and_every_pod_is_profiled() {
        require!(Root);
        let programs = Programs {
            kubernetes: require!(Kubernetes),
            containerd: require!(Containerd),
            runc: require!(Runc),
            cni: require!(Cni),
            runc_private_cgroup: env!("CARGO_BIN_EXE_runc-private-cgroup").into(),
            pause: env!("CARGO_BIN_EXE_pause").into(),
        };
        let (image, checkout) = (require!(Image), require!(Checkout));
        require!(Pyroscope);
        let cluster = Cluster::start(&programs).unwrap();
        cluster.import(&image).unwrap();
        let work = deployment(&cluster.import_program("checkout", &checkout).unwrap()).to_string();
        let server = Server::start().unwrap();
        let relay = Relay::start_at(server.url(), NODE_ADDRESS.parse().unwrap()).unwrap();

        // The agent first: what starts after it is known from its first sample on.
        let folder = cluster.path().join("overlays");
        let minimal = overlay(&folder, "minimal", &relay.url(), "");
        let apply = |folder: &Path| {
            cluster.kubectl(&["apply", "-k", folder.to_str().unwrap()], None).unwrap();
        };
        apply(&minimal);
        rolled_out(&cluster, "spanprof", "daemonset/spanprof");
        let log = cluster.path().join("agent.log");
        let follow = ["logs", "-f", "-n", "spanprof", "daemonset/spanprof"];
        let mut follower = cluster.follow(&follow, &log).unwrap();
        for team in TEAMS {
            cluster.kubectl(&["create", "namespace", team], None).unwrap();
            cluster.kubectl(&["apply", "-n", team, "-f", "-"], Some(&work)).unwrap();
        }
        for team in TEAMS {
            rolled_out(&cluster, team, "deployment/web");
        }
        let pods = all_pods(&cluster);
        assert_eq!(pods.len(), 4, "{pods:?}");

        let pushes = samples_from(&relay, 0);
        let (found, right, all) = by_pod(&pushes, &pods);
        assert!(right * 100 >= all * 99, "{right} of {all} ns are labelled right: {pushes:?}");
        assert_eq!(found.len(), 4, "every pod: {found:?}");

        // The heaviest span of one pod, on the server, is what was pushed of it.
        let (pod, _) = found.iter().max_by_key(|(_, ns)| **ns).unwrap();
        let mut spans: BTreeMap<&str, i64> = BTreeMap::new();
        for pushed in pushes.iter().filter(|pushed| pushed.label("pod") == Some(pod)) {
            for (span, ns) in &pushed.spans {
                *spans.entry(span).or_default() += ns;
            }
        }
        spans.remove("");
        let windows: BTreeSet<i64> = pushes.iter().map(|pushed| pushed.time_nanos).collect();
        let last = windows.last().copied().unwrap();
        let in_last = |span: &str| {
            let mut late = pushes.iter().filter(|it| it.time_nanos + 4_000_000_000 > last);
            late.any(|pushed| pushed.spans.contains_key(span))
        };
        // One that is over.
        let over = spans.iter().filter(|(span, _)| !in_last(span));
        let (span, ns) = over.max_by_key(|(_, ns)| **ns).unwrap();
        let range = TimeRange::last(Duration::from_secs(1800)).unwrap();
        let selector = format!(r#"{{service_name="checkout",pod="{pod}",node="{NODE}"}}"#);
        let profile = server.select_merge_span_profile(&selector, &[span], range).unwrap();
        assert_eq!(profile.total, *ns, "{span} of {pod}");
        let keys = ["service_name", "namespace", "pod", "container", "node"];
        let series = server.series(r#"{namespace=~"team-.*"}"#, &keys, range).unwrap();
        let expected: BTreeSet<Vec<String>> = pods
            .iter()
            .flat_map(|(pod, team)| SERVICES.map(|service| [service, team, pod, "shop", NODE]))
            .map(|values| keys.iter().zip(values).map(|(k, v)| format!("{k}={v}")).collect())
            .collect();
        assert_eq!(series, expected);

        check_privileges();

        // A pod goes away in the middle of a window, and another one comes.
        let gone = pods.keys().next().unwrap().clone();
        let team = pods[&gone];
        cluster.kubectl(&["delete", "pod", "-n", team, &gone, "--wait=true"], None).unwrap();
        let gone_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let before = stored(&relay).len();
        rolled_out(&cluster, team, "deployment/web");
        let new = all_pods(&cluster);
        let pushes = samples_from(&relay, before);
        let mut both = pods.clone();
        both.extend(new.clone());
        let (found, right, all) = by_pod(&pushes, &both);
        assert!(right * 100 >= all * 99, "{right} of {all} ns are labelled right");
        let came = new.keys().find(|pod| !pods.contains_key(*pod)).unwrap();
        assert!(found[came.as_str()] > 0, "{found:?}");
        let later =
            pushes.iter().filter(|it| u128::try_from(it.time_nanos).unwrap() > gone_at.as_nanos());
        assert!(later.clone().count() > 0);
        for pushed in later {
            assert_ne!(pushed.label("pod"), Some(gone.as_str()), "it is gone");
        }

        // The agent's pod is deleted under load: what it took is exported or counted.
        cluster
            .kubectl(&["delete", "pod", "-n", "spanprof", "--all", "--wait=true"], None)
            .unwrap();
        assert!(follower.wait().unwrap().success());
        let log = fs::read_to_string(&log).unwrap();
        let books = log.lines().rev().find(|line| line.contains("samples taken =")).unwrap();
        assert!(!books.contains("window:"), "the last word is the books: {books}");
        let words: Vec<&str> = books.split_whitespace().collect();
        let before = |word: &str| -> u64 {
            let at = words.iter().position(|it| it.trim_end_matches(',') == word).unwrap();
            words[at - 1].parse().unwrap()
        };
        assert_eq!(before("samples"), before("exported") + before("lost"), "{books}");
        assert!(!books.contains("queued") && !books.contains("uncertain"), "{books}");
        rolled_out(&cluster, "spanprof", "daemonset/spanprof");

        // The other overlay, and control group namespaces, as where there is only version 2. What it
        // was given more than the first one is gone.
        let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
            "metadata": {"name": PRIVATE_CGROUP}, "handler": PRIVATE_CGROUP});
        cluster.kubectl(&["apply", "-f", "-"], Some(&class.to_string())).unwrap();
        let runtime = format!(
            "  - target: {{kind: DaemonSet, name: spanprof}}\n    patch: |-\n      - {{op: add, \
             path: /spec/template/spec/runtimeClassName, value: {PRIVATE_CGROUP}}}\n"
        );
        apply(&overlay(&folder, "debian-ubuntu", &relay.url(), &runtime));
        rolled_out(&cluster, "spanprof", "daemonset/spanprof");
        check_privileges();
        let before = stored(&relay).len();
        let pushes = samples_from(&relay, before);
        let (found, right, all) = by_pod(&pushes, &all_pods(&cluster));
        assert!(right * 100 >= all * 99, "{right} of {all} ns are labelled right");
        assert_eq!(found.len(), 4, "{found:?}");

        // Nothing that the agents asked for was refused, and they asked for no more than they may.
        let asked: Vec<Value> = cluster
            .audit()
            .unwrap()
            .into_iter()
            .filter(|it| it["user"]["username"] == "system:serviceaccount:spanprof:spanprof")
            .collect();
        assert!(asked.len() >= 4, "{asked:?}");
        for request in asked {
            assert_eq!(request["objectRef"]["resource"], "pods", "{request}");
            assert!(["list", "watch"].contains(&request["verb"].as_str().unwrap()), "{request}");
            assert_eq!(request["annotations"]["authorization.k8s.io/decision"], "allow");
            assert!(request["responseStatus"]["code"].as_u64() < Some(400), "{request}");
            let uri = request["requestURI"].as_str().unwrap();
            assert!(uri.contains(&format!("spec.nodeName%3D{NODE}")), "{uri}");
        }
        drop(cluster);
        assert!(!Path::new("/sys/fs/cgroup/unified/kubepods").exists());
    }
}
