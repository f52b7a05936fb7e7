//! The counters as `OpenMetrics`: each one that `--stats` writes, under a name that follows from its
//! own. None has a label that a process could choose.

use std::collections::BTreeMap;
use std::sync::Arc;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use serde_json::{Number, Value};

/// Of the counters, those that tell how much there is now, and those that are no sum.
const GAUGES: [&str; 16] = [
    "agent_max_rss_bytes",
    "config_last_reload_successful",
    "export_queued_samples",
    "pods_containers",
    "pods_pods",
    "pods_watch_last_event_timestamp_seconds",
    "unwind_map_bytes",
    "unwind_processes",
    "unwind_ready_files",
    "unwind_ready_ms_p50",
    "unwind_ready_ms_p99",
    "unwind_rows",
    "unwind_rules",
    "unwind_snapshots",
    "unwind_table_bytes",
    "build_info",
];
/// And all that begin like this: files by what they are walked by now.
const GAUGES_PREFIX: &str = "unwind_files_";

/// The text of `/metrics`.
///
/// # Errors
///
/// Writing to a string fails: it does not.
pub fn encode_metrics(books: Arc<Value>) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Books(books)));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Books(Arc<Value>);

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
                        let Value::Number(count) = count else { continue };
                        if let Some(reason) = name.strip_prefix("lost_") {
                            lost.push((reason, count.as_u64().unwrap_or_default()));
                        } else {
                            one(&mut encoder, &format!("spanprof_{name}"), count)?;
                        }
                    }
                }
                "endpoints" => endpoints(&mut encoder, counters)?,
                "queued" => each(&mut encoder, "spanprof_export_queued_samples", counters)?,
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

/// Counters of servers by their names, which whoever runs the agent has given them.
fn endpoints(
    encoder: &mut DescriptorEncoder<'_>,
    endpoints: &Value,
) -> Result<(), std::fmt::Error> {
    let mut families: BTreeMap<&str, Vec<(&str, u64)>> = BTreeMap::new();
    for (endpoint, counters) in endpoints.as_object().into_iter().flatten() {
        for (name, count) in counters.as_object().into_iter().flatten() {
            let count = count.as_u64().unwrap_or_default();
            families.entry(name).or_default().push((endpoint, count));
        }
    }
    for (name, counts) in families {
        let is_gauge = name == "queued_samples";
        let kind = if is_gauge { MetricType::Gauge } else { MetricType::Counter };
        let full = format!("spanprof_endpoint_{name}");
        let help = format!("{} of a server beside the first", name.replace('_', " "));
        let mut family = encoder.encode_descriptor(&full, &help, None, kind)?;
        for (endpoint, count) in counts {
            let label = [("endpoint", endpoint)];
            let one = family.encode_family(&label)?;
            if is_gauge {
                ConstGauge::new(count).encode(one)?;
            } else {
                ConstCounter::new(count).encode(one)?;
            }
        }
    }
    Ok(())
}

/// A number, or each number below.
fn each(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    counters: &Value,
) -> Result<(), std::fmt::Error> {
    match counters {
        Value::Number(number) => one(encoder, name, number),
        Value::Object(counters) => counters
            .iter()
            .try_for_each(|(of, counters)| each(encoder, &format!("{name}_{of}"), counters)),
        Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) => Ok(()),
    }
}

/// The counters' own names say what they count; their documentation is that of the statistics.
fn one(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    number: &Number,
) -> Result<(), std::fmt::Error> {
    let fits = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let name = name.replace(|character| !fits(character), "_");
    let own = name.strip_prefix("spanprof_").unwrap_or(&name);
    let help = own.replace('_', " ");
    let is_gauge = GAUGES.contains(&own) || own.starts_with(GAUGES_PREFIX);
    let mut write = |metric: &dyn EncodeMetric| {
        metric.encode(encoder.encode_descriptor(&name, &help, None, metric.metric_type())?)
    };
    match (number.as_u64(), is_gauge) {
        (Some(count), true) => write(&ConstGauge::new(count)),
        (Some(count), false) => write(&ConstCounter::new(count)),
        (None, true) => write(&ConstGauge::new(number.as_f64().unwrap_or_default())),
        (None, false) => write(&ConstCounter::new(number.as_f64().unwrap_or_default())),
    }
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
            "endpoints": {
                "eu": {"samples_exported": 4, "queued_samples": 2},
                "us": {"samples_exported": 5, "queued_samples": 0},
            },
            "process": {"looked": 4, "delays": {"sum ms": 1.5}, "no": null},
            "unwind": {"files_without": {"too large": 6}, "build_ms": 2.5},
            "services": [{"service": "evil\n"}],
            "balances": [{"stage": "kernel"}],
        });
        let text = encode_metrics(Arc::new(books)).unwrap();
        for line in [
            "spanprof_samples_taken_total 12",
            "spanprof_span_valid_total 5",
            "spanprof_samples_exported_total 9",
            "spanprof_samples_lost_total{reason=\"ring_full\"} 2",
            "spanprof_samples_lost_total{reason=\"malformed\"} 1",
            "spanprof_export_queued_samples 3",
            "spanprof_endpoint_samples_exported_total{endpoint=\"eu\"} 4",
            "spanprof_endpoint_samples_exported_total{endpoint=\"us\"} 5",
            "spanprof_endpoint_queued_samples{endpoint=\"eu\"} 2",
            "spanprof_process_looked_total 4",
            "spanprof_process_delays_sum_ms_total 1.5",
            "spanprof_unwind_build_ms_total 2.5",
            "spanprof_unwind_files_without_too_large 6",
            "# TYPE spanprof_export_queued_samples gauge",
            "# TYPE spanprof_samples_lost counter",
            "# EOF",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("evil") && text.contains("spanprof_build_info{version="));
    }
}
