//! The counters under the names that metrics have them by: each one that `--stats` writes, under a
//! name that follows from its own. None has a label that a process could choose.

use std::collections::BTreeMap;

use serde_json::{Number, Value};

/// Of the counters, those that tell how much there is now, and those that are no sum.
const GAUGES: [&str; 16] = [
    "agent_max_rss_bytes",
    "config_last_reload_successful",
    "endpoint_queued_samples",
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
];
/// And all that begin like this: files by what they are walked by now.
const GAUGES_PREFIX: &str = "unwind_files_";

/// What a metric counts, by its label if it has one.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// How much there is now, not how often something happened since the start.
    pub is_gauge: bool,
    /// More than one only with labels: name and value.
    pub counts: Vec<(Option<(&'static str, String)>, Number)>,
}

/// The metrics of these counters by name, without a prefix and without `_total`.
#[must_use]
pub fn metrics(books: &Value) -> BTreeMap<String, Metric> {
    let mut metrics = Metrics(BTreeMap::new());
    for (part, counters) in books.as_object().into_iter().flatten() {
        match part.as_str() {
            // They follow from the others; and a service is a name that a process chooses.
            "balances" | "services" => {}
            "kernel" | "samples" => {
                for (name, count) in counters.as_object().into_iter().flatten() {
                    match (name.strip_prefix("lost_"), count) {
                        (Some(reason), Value::Number(count)) => {
                            metrics.add("samples_lost", Some(("reason", reason)), count);
                        }
                        (None, Value::Number(count)) => metrics.add(name, None, count),
                        _ => {}
                    }
                }
            }
            "endpoints" => {
                // Whoever runs the agent has given them their names.
                for (endpoint, counters) in counters.as_object().into_iter().flatten() {
                    for (name, count) in counters.as_object().into_iter().flatten() {
                        let Value::Number(count) = count else { continue };
                        let name = format!("endpoint_{name}");
                        metrics.add(&name, Some(("endpoint", endpoint)), count);
                    }
                }
            }
            "queued" => metrics.each("export_queued_samples", counters),
            part => metrics.each(part, counters),
        }
    }
    metrics.0
}

struct Metrics(BTreeMap<String, Metric>);

impl Metrics {
    fn add(&mut self, name: &str, label: Option<(&'static str, &str)>, count: &Number) {
        let fits = |character: char| character.is_ascii_alphanumeric() || character == '_';
        let name = name.replace(|character| !fits(character), "_");
        let is_gauge = GAUGES.contains(&&*name) || name.starts_with(GAUGES_PREFIX);
        let metric = self.0.entry(name).or_insert(Metric { is_gauge, counts: Vec::new() });
        let label = label.map(|(name, value)| (name, value.to_owned()));
        metric.counts.push((label, count.clone()));
    }

    /// A number, or each number below.
    fn each(&mut self, name: &str, counters: &Value) {
        match counters {
            Value::Number(number) => self.add(name, None, number),
            Value::Object(counters) => {
                for (of, counters) in counters {
                    self.each(&format!("{name}_{of}"), counters);
                }
            }
            Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_counter_has_its_metric() {
        let books = json!({
            "kernel": {"samples_taken": 12, "lost_ring_full": 2},
            "samples": {"lost_malformed": 1},
            "queued": 3,
            "endpoints": {"eu": {"queued_samples": 2}, "us": {"queued_samples": 0}},
            "process": {"looked": 4, "delays": {"sum ms": 1.5}, "no": null},
            "unwind": {"files_without": {"too large": 6}},
            "services": [{"service": "evil\n"}],
            "balances": [{"stage": "kernel"}],
        });
        let found = metrics(&books);
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        let expected = [
            "endpoint_queued_samples",
            "export_queued_samples",
            "process_delays_sum_ms",
            "process_looked",
            "samples_lost",
            "samples_taken",
            "unwind_files_without_too_large",
        ];
        assert_eq!(names, expected);
        let label = |name, value: &str| Some((name, value.to_owned()));
        let lost = &found["samples_lost"];
        assert!(!lost.is_gauge);
        let of_reason = |reason: &str, count: u64| (label("reason", reason), Number::from(count));
        assert_eq!(lost.counts, [of_reason("ring_full", 2), of_reason("malformed", 1)]);
        let queued = &found["endpoint_queued_samples"];
        assert!(queued.is_gauge && found["unwind_files_without_too_large"].is_gauge);
        assert_eq!(queued.counts[1], (label("endpoint", "us"), 0.into()));
        assert_eq!(found["process_delays_sum_ms"].counts[0].1.as_f64(), Some(1.5));
    }

    #[test]
    fn hostile_shapes_are_no_metrics() {
        for books in
            [json!(null), json!([]), json!({"kernel": 3, "samples": {"x": {}}, "queued": "x"})]
        {
            assert!(metrics(&books).is_empty(), "{books}");
        }
    }
}
