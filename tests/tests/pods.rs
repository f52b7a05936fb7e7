//! Samples of pods come under their pod: a real API server, control groups as a container runtime
//! makes them, and the real Pyroscope behind a relay that looks at what is pushed.

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, SocketAddr, TcpStream};
    use std::path::PathBuf;
    use std::process::Command;

    use serde_json::{Value, json};
    use spanprof_tests::agent::{Agent, poll_until};
    use spanprof_tests::api_server::{ApiServer, NODE};
    use spanprof_tests::ports::free_ports;
    use spanprof_tests::pyroscope::Server;
    use spanprof_tests::relay::Relay;
    use spanprof_tests::require;
    use spanprof_tests::workload::{Program, Workload};

    /// A control group, gone with the processes in it.
    struct ControlGroup {
        paths: Vec<PathBuf>,
    }

    impl ControlGroup {
        /// As the container runtime makes it for a container of a pod.
        fn of(pod_uid: &str, container_id: &str) -> Self {
            let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(PathBuf::from);
            let root = root.into_iter().find(|it| it.join("cgroup.procs").exists()).unwrap();
            let top = root.join(format!("spanprof-test-{}", std::process::id()));
            let pod = top.join(format!("pod{pod_uid}"));
            let paths = vec![pod.join(container_id), pod, top];
            fs::create_dir_all(&paths[0]).unwrap();
            Self { paths }
        }

        /// A program that is in it from its first instruction on.
        fn start(&self, program: &Program) -> Workload {
            let script = "echo $$ > \"$1/cgroup.procs\" && shift && exec \"$@\"";
            let mut command = Command::new("sh");
            command.args(["-c", script, "sh"]).arg(&self.paths[0]);
            Workload::start(command.arg(program.path()).args(["chain", "0"])).unwrap()
        }
    }

    impl Drop for ControlGroup {
        fn drop(&mut self) {
            drop(fs::write(self.paths[0].join("cgroup.kill"), "1"));
            let [group, parents @ ..] = &*self.paths else { return };
            let gone = poll_until("a control group is empty", || {
                Ok(fs::remove_dir(group).is_ok().then_some(()))
            });
            drop(gone);
            for parent in parents {
                // That is refused while another container of it is there.
                drop(fs::remove_dir(parent));
            }
        }
    }

    fn id(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    /// A pod of a Deployment, or with a name of its own for its service.
    fn pod(name: &str, labels: &Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "labels": labels},
            "spec": {"nodeName": NODE, "containers": [{"name": "main", "image": "i"}]},
        })
    }

    fn samples_by(relay: &Relay, labels: &[(&str, &str)]) -> u64 {
        let pushes = relay.pushes().unwrap();
        let is_it = |found: &BTreeMap<String, String>| {
            labels.iter().all(|(name, value)| found.get(*name).is_some_and(|it| it == value))
        };
        let found = pushes.iter().filter(|(pushed, _)| is_it(&pushed.labels));
        found.map(|(pushed, _)| pushed.samples().unwrap()).sum()
    }

    #[track_caller]
    fn wait_for(relay: &Relay, labels: &[(&str, &str)]) {
        poll_until(&format!("samples of {labels:?}"), || {
            Ok((samples_by(relay, labels) > 10).then_some(()))
        })
        .unwrap();
    }

    fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn metric(text: &str, name: &str) -> u64 {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} in {text}"))
    }

    #[test]
    fn samples_come_under_their_pod_whatever_the_api_server_does() {
        require!(Root);
        let (spanprof, kubernetes) = (require!(Spanprof), require!(Kubernetes));
        require!(Pyroscope);
        let mut api = ApiServer::start(&kubernetes).unwrap();
        api.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}))
            .unwrap();
        let first =
            api.run_pod(&pod("cart-0", &json!({"app.kubernetes.io/name": "first"})), &id('a'));
        let group_a = ControlGroup::of(&first.unwrap(), &id('a'));
        let program = Program::compile("unwind").unwrap();
        let a = group_a.start(&program);

        let server = Server::start().unwrap();
        let relay = Relay::start(server.url()).unwrap();
        let [port] = free_ports().unwrap();
        let (url, listen) = (relay.url(), SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let address = listen.to_string();
        let arguments = ["--pyroscope-url", &url, "--window", "1s", "--listen", &address];
        let arguments = [&arguments[..], &["--kubernetes", "on", "--node-name", NODE]].concat();
        let agent = api.in_cluster(&spanprof).unwrap();
        let agent = Agent::start(&agent, &arguments).unwrap();
        assert!(get(listen, "/readyz").starts_with("HTTP/1.1 200"));
        let of_pod = |service| {
            [
                ("service_name", service),
                ("namespace", "shop"),
                ("pod", "cart-0"),
                ("container", "main"),
                ("node", NODE),
            ]
        };
        wait_for(&relay, &of_pod("first"));

        // Deleted and made again under its name, while both run: neither is taken for the other.
        api.delete_pod("shop", "cart-0").unwrap();
        let second =
            api.run_pod(&pod("cart-0", &json!({"app.kubernetes.io/name": "second"})), &id('b'));
        let group_b = ControlGroup::of(&second.unwrap(), &id('b'));
        let b = group_b.start(&program);
        wait_for(&relay, &of_pod("second"));
        let before = samples_by(&relay, &of_pod("first"));
        poll_until("the first one's samples go on", || {
            Ok((samples_by(&relay, &of_pod("first")) > before).then_some(()))
        })
        .unwrap();

        // While the server is away, a container that nobody has told of leaves with its id.
        api.kill().unwrap();
        let group_c = ControlGroup::of("00000000-0000-0000-0000-000000000000", &id('c'));
        let c = group_c.start(&program);
        wait_for(
            &relay,
            &[("container_id", "cccccccccccc"), ("service_name", "unknown_service:unwind")],
        );
        assert!(get(listen, "/healthz").starts_with("HTTP/1.1 200"));
        // And a name below a known one does not make it another pod's.
        let group_d = ControlGroup::of("00000000-0000-0000-0000-000000000000", &id('a'));
        let d = group_d.start(&program);
        wait_for(&relay, &[("container_id", "aaaaaaaaaaaa")]);
        api.start_server().unwrap();
        let third = api.run_pod(&pod("pay-0", &json!({})), &id('e')).unwrap();
        let group_e = ControlGroup::of(&third, &id('e'));
        let e = group_e.start(&program);
        wait_for(&relay, &[("service_name", "ebpf/shop/main"), ("pod", "pay-0")]);

        let metrics = get(listen, "/metrics");
        assert!(metric(&metrics, "spanprof_pods_pods") >= 2, "{metrics}");
        assert!(metric(&metrics, "spanprof_pods_watch_errors_total") > 0, "{metrics}");
        assert!(metric(&metrics, "spanprof_containers_pod_contradicted_total") > 0, "{metrics}");
        assert!(metric(&metrics, "spanprof_samples_taken_total") > 0, "{metrics}");
        let targets = get(listen, "/debug/targets");
        assert!(targets.contains("\"pod\":\"pay-0\""), "{targets}");
        for workload in [a, b, c, d, e] {
            workload.end().unwrap();
        }
        agent.stop().unwrap();
        // Every sample of a program in a pod, from the first window on, has its pod's labels.
        for (pushed, _) in relay.pushes().unwrap() {
            if let Some(service) = pushed.label("service_name")
                && ["first", "second"].contains(&service)
            {
                assert_eq!(pushed.label("pod"), Some("cart-0"), "{:?}", pushed.labels);
            }
        }
    }
}
