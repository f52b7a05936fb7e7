//! The counters as `OpenMetrics`: each one that `--stats` writes, under a name that follows from its
//! own. None has a label that a process could choose.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use serde_json::Value;

/// Of the counters, those that go up and down, or that are no sum: by the end of their name.
const GAUGES: [&str; 22] = [
    "pods_pods",
    "pods_containers",
    "watch_last_event_timestamp_seconds",
    "export_queued_samples",
    "containers_waiting",
    "_bytes",
    "_mib",
    "_percent",
    "_seconds",
    "_ms",
    "_us",
    "_ns",
    "_max",
    "_p50",
    "_p90",
    "_p99",
    "_files",
    "_tables",
    "_rows",
    "_rules",
    "_pages",
    "_known",
];

/// The text of `/metrics`.
///
/// # Errors
///
/// Writing to a string fails: it does not.
pub fn encode_metrics(books: &Value) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Books(books.clone())));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Books(Value);

impl Collector for Books {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        let name = "spanprof_build_info";
        let help = "The program that tells this";
        let mut build = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(1_u64).encode(build.encode_family(&version)?)?;
        let mut lost: Vec<(&str, u64)> = Vec::new();
        for (part, counters) in self.0.as_object().into_iter().flatten() {
            match part.as_str() {
                // They follow from the others; and a service is a name that a process chooses.
                "balances" | "services" => {}
                "kernel" | "samples" => {
                    for (name, count) in counters.as_object().into_iter().flatten() {
                        let count = count.as_u64().unwrap_or_default();
                        if let Some(reason) = name.strip_prefix("lost_") {
                            lost.push((reason, count));
                        } else {
                            let name = name.strip_prefix("samples_").map_or_else(
                                || format!("spanprof_{name}"),
                                |name| format!("spanprof_samples_{name}"),
                            );
                            one(&mut encoder, &name, count)?;
                        }
                    }
                }
                "queued" => {
                    let queued = counters.as_u64().unwrap_or_default();
                    one(&mut encoder, "spanprof_export_queued_samples", queued)?;
                }
                part => each(&mut encoder, &format!("spanprof_{part}"), counters)?,
            }
        }
        let name = "spanprof_samples_lost";
        let help = "Samples that were taken and did not come out, by reason";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (reason, count) in lost {
            ConstCounter::new(count).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }
}

/// A number, or each number below.
fn each(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    counters: &Value,
) -> Result<(), std::fmt::Error> {
    match counters {
        Value::Number(number) => match number.as_u64() {
            Some(count) => one(encoder, name, count),
            None => {
                let gauge = ConstGauge::new(number.as_f64().unwrap_or_default());
                single(encoder, name, &gauge)
            }
        },
        Value::Object(counters) => counters
            .iter()
            .try_for_each(|(of, counters)| each(encoder, &format!("{name}_{of}"), counters)),
        Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) => Ok(()),
    }
}

fn one(encoder: &mut DescriptorEncoder<'_>, name: &str, count: u64) -> Result<(), std::fmt::Error> {
    if GAUGES.iter().any(|end| name.ends_with(end)) {
        single(encoder, name, &ConstGauge::new(count))
    } else {
        single(encoder, name, &ConstCounter::new(count))
    }
}

/// The counters' own names say what they count; their documentation is that of the statistics.
fn single(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    metric: &impl EncodeMetric,
) -> Result<(), std::fmt::Error> {
    let help = name.strip_prefix("spanprof_").unwrap_or(name).replace('_', " ");
    metric.encode(encoder.encode_descriptor(name, &help, None, metric.metric_type())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_counter_has_its_metric() {
        let books = json!({
            "kernel": {"samples_taken": 12, "lost_ring_full": 2, "span_valid": 5},
            "samples": {"samples_exported": 9, "lost_malformed": 1},
            "queued": 3,
            "process": {"looked": 4, "delays": {"p50_ms": 1.5}, "no": null},
            "services": [{"service": "evil\n"}],
            "balances": [{"stage": "kernel"}],
        });
        let text = encode_metrics(&books).unwrap();
        for line in [
            "spanprof_samples_taken_total 12",
            "spanprof_span_valid_total 5",
            "spanprof_samples_exported_total 9",
            "spanprof_samples_lost_total{reason=\"ring_full\"} 2",
            "spanprof_samples_lost_total{reason=\"malformed\"} 1",
            "spanprof_export_queued_samples 3",
            "spanprof_process_looked_total 4",
            "spanprof_process_delays_p50_ms 1.5",
            "# TYPE spanprof_export_queued_samples gauge",
            "# TYPE spanprof_samples_lost counter",
            "# EOF",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("evil") && text.contains("spanprof_build_info{version="));
    }
}
