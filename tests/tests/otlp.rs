//! The agent's own traces and metrics, at a collector.

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::process::Command;

    use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
    use opentelemetry_proto::tonic::metrics::v1::{metric::Data, number_data_point};
    use spanprof_tests::agent::{Agent, Process, poll_until};
    use spanprof_tests::collector::{Collected, Collector};
    use spanprof_tests::ports::free_ports;
    use spanprof_tests::relay::{Act, Relay, STORED};
    use spanprof_tests::require;

    fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
        let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
        match attribute.value.as_ref()?.value.as_ref()? {
            Value::StringValue(text) => Some(text),
            _ => None,
        }
    }

    /// The newest numbers by metric and label, and whether each only grows.
    fn numbers(collected: &Collected) -> BTreeMap<(String, Option<String>), (f64, bool)> {
        let mut found = BTreeMap::new();
        let resources = collected.metrics.iter().flat_map(|request| &request.resource_metrics);
        for metric in resources.flat_map(|it| &it.scope_metrics).flat_map(|it| &it.metrics) {
            let (points, grows) = match metric.data.as_ref().unwrap() {
                Data::Gauge(gauge) => (&gauge.data_points, false),
                Data::Sum(sum) => (&sum.data_points, sum.is_monotonic),
                other => panic!("{other:?}"),
            };
            for point in points {
                let label = text(&point.attributes, "reason").map(str::to_owned);
                if let Some(number_data_point::Value::AsDouble(number)) = point.value {
                    found.insert((metric.name.clone(), label), (number, grows));
                }
            }
        }
        found
    }

    #[test]
    fn what_the_agent_does_and_counts_arrives() {
        require!(Root);
        let spanprof = require!(Spanprof);
        let relay = Relay::alone(Act::Answer(STORED)).unwrap();
        let collector = Collector::start().unwrap();
        let _burning =
            Process::start(Command::new("sh").args(["-c", "while :; do :; done"])).unwrap();
        let mut agent = Agent::start(
            &spanprof,
            &[
                "--pyroscope-url",
                &relay.url(),
                "--window",
                "1s",
                "--listen",
                "off",
                "--host",
                "node-7",
                "--otlp-endpoint",
                &format!("{}/", collector.url()),
            ],
        )
        .unwrap();
        agent.wait_for_windows(2).unwrap();
        let stats = agent.stop().unwrap();
        let collected = collector.collected();
        assert_eq!(collected.others, [""; 0]);

        let spans = collected.traces.iter().flat_map(|request| &request.resource_spans);
        let mut by_name: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for resource in spans {
            let attributes = &resource.resource.as_ref().unwrap().attributes;
            assert_eq!(text(attributes, "service.name"), Some("spanprof"));
            assert_eq!(text(attributes, "host.name"), Some("node-7"));
            for span in resource.scope_spans.iter().flat_map(|it| &it.spans) {
                by_name.entry(&span.name).or_default().push(span);
            }
        }
        let windows = &by_name["window"];
        assert!(windows.len() >= 3, "{by_name:?}");
        for name in ["symbolize", "encode"] {
            assert!(!by_name[name].is_empty(), "{name}");
            for child in &by_name[name] {
                let is_parent = |window: &&_| {
                    let window: &opentelemetry_proto::tonic::trace::v1::Span = window;
                    window.span_id == child.parent_span_id && window.trace_id == child.trace_id
                };
                assert!(windows.iter().any(is_parent), "{name} of a window");
            }
        }

        let exact = |count: u64| f64::from(u32::try_from(count).unwrap());
        let numbers = numbers(&collected);
        let of = |name: &str| numbers.get(&(format!("spanprof.{name}"), None)).copied();
        // The last ones are those of the last window.
        let exported = of("samples_exported").unwrap();
        assert!(
            exported.1 && exported.0 <= exact(stats.samples("samples_exported")),
            "{numbers:?}"
        );
        assert_eq!(
            of("samples_aggregated"),
            Some((exact(stats.samples("samples_aggregated")), true))
        );
        assert!(!of("agent_max_rss_bytes").unwrap().1);
        let lost = ("spanprof.samples_lost".to_owned(), Some("ring_full".to_owned()));
        assert_eq!(numbers[&lost], (exact(stats.kernel("lost_ring_full")), true));
    }

    #[test]
    fn a_collector_that_is_away_is_no_reason_not_to_profile() {
        require!(Root);
        let spanprof = require!(Spanprof);
        let relay = Relay::alone(Act::Answer(STORED)).unwrap();
        let [away] = free_ports().unwrap();
        let arguments = ["--pyroscope-url", &relay.url(), "--window", "1s", "--listen", "off"];
        let endpoint = format!("http://127.0.0.1:{away}");
        let arguments = [&arguments[..], &["--otlp-endpoint", &endpoint]].concat();
        let mut agent = Agent::start(&spanprof, &arguments).unwrap();
        agent.wait_for_windows(1).unwrap();
        poll_until("the log says that nothing arrives", || {
            let said = agent.log_end();
            Ok(said.contains("the agent's own metrics and traces do not arrive").then_some(()))
        })
        .unwrap();
        agent.stop().unwrap();
        assert!(!relay.pushes().unwrap().is_empty());
        let wrong = Command::new(&spanprof)
            .args(["run", "--pyroscope-url", &relay.url(), "--otlp-endpoint", "collector:4318"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&wrong.stderr);
        assert!(!wrong.status.success() && said.contains("OTLP endpoint"), "{said}");
    }
}
