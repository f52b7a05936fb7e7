//! Samples of pods come under their pod: a real API server, control groups as a container runtime
//! makes them, and the real Pyroscope behind a relay that looks at what is pushed. Those of Docker's
//! and Podman's containers come under their names.

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, SocketAddr, TcpStream};
    use std::path::Path;

    use serde_json::{Value, json};
    use spanprof_tests::agent::{Agent, AgentStats, poll_until};
    use spanprof_tests::api_server::{ApiServer, NODE};
    use spanprof_tests::control_group::ControlGroup;
    use spanprof_tests::own_mounts;
    use spanprof_tests::ports::free_ports;
    use spanprof_tests::pyroscope::Server;
    use spanprof_tests::relay::{Act, Relay, STORED};
    use spanprof_tests::require;
    use spanprof_tests::workload::{Program, Workload};

    fn start(group: &ControlGroup, program: &Program) -> Workload {
        Workload::start(group.command().arg(program.path()).args(["chain", "0"])).unwrap()
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
        let group_a = ControlGroup::of(&first.unwrap(), &id('a')).unwrap();
        let program = Program::compile("unwind").unwrap();
        let a = start(&group_a, &program);

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
        let group_b = ControlGroup::of(&second.unwrap(), &id('b')).unwrap();
        let b = start(&group_b, &program);
        wait_for(&relay, &of_pod("second"));
        let before = samples_by(&relay, &of_pod("first"));
        poll_until("the first one's samples go on", || {
            Ok((samples_by(&relay, &of_pod("first")) > before).then_some(()))
        })
        .unwrap();

        // While the server is away, a container that nobody has told of leaves with its id.
        api.kill().unwrap();
        let group_c = ControlGroup::of("00000000-0000-0000-0000-000000000000", &id('c')).unwrap();
        let c = start(&group_c, &program);
        wait_for(
            &relay,
            &[("container_id", "cccccccccccc"), ("service_name", "unknown_service:unwind")],
        );
        assert!(get(listen, "/healthz").starts_with("HTTP/1.1 200"));
        // And a name below a known one does not make it another pod's.
        let group_d = ControlGroup::of("00000000-0000-0000-0000-000000000000", &id('a')).unwrap();
        let d = start(&group_d, &program);
        wait_for(&relay, &[("container_id", "aaaaaaaaaaaa")]);
        api.forget_history().unwrap();
        api.start_server().unwrap();
        let third = api.run_pod(&pod("pay-0", &json!({})), &id('e')).unwrap();
        let group_e = ControlGroup::of(&third, &id('e')).unwrap();
        let e = start(&group_e, &program);
        wait_for(&relay, &[("service_name", "ebpf/shop/main"), ("pod", "pay-0")]);

        // The metrics of a window are told after its profiles are on their way.
        let metrics = poll_until("both pods are counted", || {
            let metrics = get(listen, "/metrics");
            Ok((metric(&metrics, "spanprof_pods_pods") >= 2).then_some(metrics))
        })
        .unwrap();
        assert!(metric(&metrics, "spanprof_pods_watch_errors_total") > 0, "{metrics}");
        // What the watch could go on from is forgotten: all is listed again.
        assert!(metric(&metrics, "spanprof_pods_watch_lists_total") > 1, "{metrics}");
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

    /// Docker and Podman are played by their files, which the agent alone sees.
    #[test]
    fn samples_of_other_containers_come_under_their_names() {
        require!(Root);
        let spanprof = require!(Spanprof);
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, content: &Value| {
            let path = folder.path().join("lib").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content.to_string()).unwrap();
        };
        let (docker, podman) = (id('1'), id('2'));
        let labels = json!({"com.docker.compose.service": "web"});
        let config = json!({"Name": "/shop-web-1", "Config": {"Image": "i", "Labels": labels}});
        write(&format!("docker/containers/{docker}/config.v2.json"), &config);
        let list = json!([{"id": podman, "names": ["job"], "metadata": "{}"}]);
        write("containers/storage/overlay-containers/containers.json", &list);
        let agent = folder.path().join("agent");
        let inside = format!("mount --bind {}/lib /var/lib", folder.path().display());
        own_mounts::write(&agent, &spanprof, "", &inside).unwrap();

        let program = Program::compile("unwind").unwrap();
        let groups = [&docker, &podman].map(|id| ControlGroup::of_docker(id).unwrap());
        let burning = groups.each_ref().map(|group| start(group, &program));
        let relay = Relay::alone(Act::Answer(STORED)).unwrap();
        let arguments = ["--pyroscope-url", &relay.url(), "--window", "1s", "--listen", "off"];
        let agent = Agent::start(&agent, &arguments).unwrap();
        wait_for(&relay, &[("service_name", "web"), ("container", "shop-web-1")]);
        wait_for(&relay, &[("service_name", "job"), ("container", "job")]);
        let stats = agent.stop().unwrap();
        let known = stats.json["containers"]["engine_known"].as_u64();
        assert!(known >= Some(20), "{}", stats.json);
        for workload in burning {
            workload.end().unwrap();
        }
    }

    /// An agent of the pods of the node, with the stores' answers to what it pushes.
    fn agent_of(program: &Path, relay: &Relay) -> Agent {
        let url = relay.url();
        let arguments = ["--pyroscope-url", &url, "--window", "1s", "--listen", "off"];
        let arguments = [&arguments[..], &["--kubernetes", "on", "--node-name", NODE]].concat();
        Agent::start(program, &arguments).unwrap()
    }

    #[test]
    fn a_thousand_pods_are_known_and_neither_a_silent_server_nor_a_refused_token_stops_anything() {
        require!(Root);
        let (spanprof, kubernetes) = (require!(Spanprof), require!(Kubernetes));
        let api = ApiServer::start(&kubernetes).unwrap();
        api.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}))
            .unwrap();
        let pods: Vec<Value> =
            (0..1000).map(|number| pod(&format!("many-{number}"), &json!({"n": "x"}))).collect();
        api.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods})).unwrap();
        let one = api.run_pod(&pod("one", &json!({})), &id('f')).unwrap();
        let group = ControlGroup::of(&one, &id('f')).unwrap();
        let program = Program::compile("unwind").unwrap();
        let burning = start(&group, &program);

        let relay = Relay::alone(Act::Answer(STORED)).unwrap();
        let in_cluster = api.in_cluster(&spanprof).unwrap();
        let mut agent = agent_of(&in_cluster, &relay);
        let pods = |stats: &AgentStats, count: &str| stats.json["pods"][count].as_u64();
        agent.wait_for("all pods are known", |it| pods(it, "pods") == Some(1001)).unwrap();
        wait_for(&relay, &[("pod", "one"), ("namespace", "shop")]);
        let stats = agent.stop().unwrap();
        assert_eq!(
            (pods(&stats, "pods_refused"), pods(&stats, "watch_errors")),
            (Some(0), Some(0))
        );

        api.pause().unwrap();
        let relay = Relay::alone(Act::Answer(STORED)).unwrap();
        let mut agent = agent_of(&in_cluster, &relay);
        wait_for(&relay, &[("container_id", "ffffffffffff")]);
        api.resume().unwrap();
        agent.wait_for("all pods are known", |it| pods(it, "pods") == Some(1001)).unwrap();
        wait_for(&relay, &[("pod", "one"), ("namespace", "shop")]);
        agent.stop().unwrap();

        let script = fs::read_to_string(&in_cluster).unwrap();
        let refused = script.replace("TOKEN=agent-token", "TOKEN=no-token");
        assert_ne!(refused, script);
        fs::write(&in_cluster, refused).unwrap();
        let relay = Relay::alone(Act::Answer(STORED)).unwrap();
        let mut agent = agent_of(&in_cluster, &relay);
        agent.wait_for("it is refused", |it| pods(it, "watch_errors") > Some(0)).unwrap();
        wait_for(&relay, &[("container_id", "ffffffffffff")]);
        let stats = agent.stop().unwrap();
        assert_eq!(pods(&stats, "pods"), Some(0));
        burning.end().unwrap();
    }
}
