//! The counters as `OpenMetrics`, under the names of [`metric`](crate::metric).

use std::sync::Arc;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use serde_json::{Number, Value};

use crate::metric::{Metric, metrics};

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
        for (name, Metric { is_gauge, counts }) in metrics(&self.0) {
            // The counters' own names say what they count; their documentation is that of the
            // statistics.
            let help = name.replace('_', " ");
            let kind = if is_gauge { MetricType::Gauge } else { MetricType::Counter };
            let name = format!("spanprof_{name}");
            let mut family = encoder.encode_descriptor(&name, &help, None, kind)?;
            if let [(None, count)] = &*counts {
                number(count, is_gauge).encode(family)?;
                continue;
            }
            for (label, count) in counts {
                let labels: Vec<(&str, String)> = label.into_iter().collect();
                number(&count, is_gauge).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn number(number: &Number, is_gauge: bool) -> Box<dyn EncodeMetric> {
    match (number.as_u64(), is_gauge) {
        (Some(count), true) => Box::new(ConstGauge::new(count)),
        (Some(count), false) => Box::new(ConstCounter::new(count)),
        (None, true) => Box::new(ConstGauge::new(number.as_f64().unwrap_or_default())),
        (None, false) => Box::new(ConstCounter::new(number.as_f64().unwrap_or_default())),
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
