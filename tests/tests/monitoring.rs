//! The dashboard and the alert rules of `k8s/components/monitoring`: what they ask for is there.

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use serde_json::Value;
    use spanprof_tests::agent::Agent;
    use spanprof_tests::kustomize::kustomize;
    use spanprof_tests::ports::free_ports;
    use spanprof_tests::relay::{Act, Relay, STORED};
    use spanprof_tests::require;

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../k8s/components/monitoring")
    }

    fn dashboard() -> Value {
        serde_json::from_str(&fs::read_to_string(folder().join("dashboard.json")).unwrap()).unwrap()
    }

    fn alerts() -> Vec<Value> {
        let text = fs::read_to_string(folder().join("alerts.yaml")).unwrap();
        let rule: Value = serde_saphyr::from_str(&text).unwrap();
        rule["spec"]["groups"][0]["rules"].as_array().unwrap().clone()
    }

    /// Every query, with values in the place of Grafana's variables.
    fn queries() -> Vec<String> {
        let dashboard = dashboard();
        let panels = dashboard["panels"].as_array().unwrap();
        let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
        let of_panels = targets.map(|target| &target["expr"]);
        let alerts = alerts();
        let queries = of_panels.chain(alerts.iter().map(|alert| &alert["expr"]));
        queries.map(|query| query.as_str().unwrap().replace("$__rate_interval", "5m")).collect()
    }

    /// The metrics in a text, by their names.
    fn metrics(text: &str) -> BTreeSet<&str> {
        let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
        text.split(|character| !is_name(character))
            .filter(|word| word.starts_with("spanprof_"))
            .collect()
    }

    #[test]
    fn every_metric_is_one_that_the_agent_has() {
        require!(Root);
        let spanprof = require!(Spanprof);
        let relay = Relay::alone(Act::Answer(STORED)).unwrap();
        let [port] = free_ports().unwrap();
        let listen = format!("127.0.0.1:{port}");
        let arguments =
            ["--pyroscope-url", &relay.url(), "--window", "1s", "--listen", listen.as_str()];
        let agent = Agent::start(&spanprof, &arguments).unwrap();
        let answer = reqwest::blocking::get(format!("http://{listen}/metrics")).unwrap();
        let answer = answer.error_for_status().unwrap().text().unwrap();
        agent.stop().unwrap();
        let samples = answer.lines().filter(|line| !line.starts_with('#'));
        let there: BTreeSet<&str> =
            samples.filter_map(|line| line.split(['{', ' ']).next()).collect();

        let queries = queries().join("\n");
        let wanted = metrics(&queries);
        assert!(wanted.len() > 40, "{wanted:?}");
        let missing: Vec<_> = wanted.difference(&there).collect();
        assert!(missing.is_empty(), "{missing:?} are not in\n{answer}");
        // Also those that a variable of the dashboard is filled from.
        for variable in dashboard()["templating"]["list"].as_array().unwrap() {
            let query = variable["definition"].as_str().unwrap_or_default();
            assert!(metrics(query).is_subset(&there), "{query}");
        }
    }

    #[test]
    fn every_query_is_one() {
        for query in queries() {
            let parsed = promql_parser::parser::parse(&query);
            assert!(parsed.is_ok(), "{query}: {parsed:?}");
        }
        assert!(promql_parser::parser::parse("rate(x[5m]").is_err());
    }

    #[test]
    fn alerts_and_panels_can_be_told_apart_and_say_what_to_do() {
        let names: Vec<String> =
            alerts().iter().map(|alert| alert["alert"].as_str().unwrap().to_owned()).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
        for alert in alerts() {
            let severity = alert["labels"]["severity"].as_str();
            assert!(["info", "warning"].map(Some).contains(&severity), "{alert}");
            for text in ["summary", "description"] {
                assert!(
                    alert["annotations"][text].as_str().is_some_and(|it| it.len() > 20),
                    "{alert}"
                );
            }
        }
        let dashboard = dashboard();
        let panels = dashboard["panels"].as_array().unwrap();
        let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len());
    }

    /// An overlay with the component: what the operator finds is the agent's pods and their port.
    #[test]
    fn the_monitor_finds_the_pods() {
        let kubernetes = require!(Kubernetes);
        let parent = tempfile::tempdir().unwrap();
        let k8s = folder().join("../..").canonicalize().unwrap();
        let own = parent.path().join("own");
        fs::create_dir(&own).unwrap();
        let up = "../".repeat(own.components().count() - 1);
        let k8s = format!("{up}{}", k8s.strip_prefix("/").unwrap().display());
        let text = format!(
            "namespace: spanprof\nresources: [\"{k8s}/overlays/minimal\"]\n\
             components: [\"{k8s}/components/monitoring\"]\n"
        );
        fs::write(own.join("kustomization.yaml"), text).unwrap();
        let made = kustomize(&kubernetes, &own).unwrap();
        let objects: Vec<Value> = serde_saphyr::from_multiple(&made).unwrap();
        let of_kind = |kind: &str| {
            objects.iter().find(|it| it["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
        };
        let (monitor, set) = (of_kind("PodMonitor"), of_kind("DaemonSet"));
        let labels = &set["spec"]["template"]["metadata"]["labels"];
        for (name, value) in monitor["spec"]["selector"]["matchLabels"].as_object().unwrap() {
            assert_eq!(&labels[name], value);
        }
        let port = &set["spec"]["template"]["spec"]["containers"][0]["ports"][0]["name"];
        assert_eq!(&monitor["spec"]["podMetricsEndpoints"][0]["port"], port);
        for kind in ["PodMonitor", "PrometheusRule"] {
            assert_eq!(of_kind(kind)["metadata"]["namespace"], "spanprof");
        }
        let is_dashboard = |it: &&Value| it["metadata"]["labels"]["grafana_dashboard"] == "1";
        let config = objects.iter().find(is_dashboard).unwrap();
        let text = config["data"]["dashboard.json"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), dashboard());
    }
}
