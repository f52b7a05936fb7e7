//! CPU time by span, as data and as JSON.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;

use crate::aggregate::Window;
use crate::attribute::SpanLabel;

/// How much CPU time each span used.
///
/// As JSON, `schema_version` 1. Later versions may add members; they change or remove
/// none without a new number.
///
/// ```text
/// {
///   "schema_version": 1,
///   "start_unix_ns": 1760000000000000000,   when it began; beyond 2^53: read it as an integer
///   "duration_ns": 10000000000,
///   "period_ns": 10309278,                  CPU time that one sample stands for
///   "hz": 97.0,                             samples a second of CPU time: 1e9 / period_ns
///   "totals": {
///     "samples": 61, "cpu_ns": 610000000,             all services, in spans or not
///     "span_samples": 51, "span_cpu_ns": 510000000    of these, in spans
///   },
///   "services": [                           by CPU time, descending
///     { "service": "checkout", "service_namespace": null,
///       "samples": 58, "cpu_ns": 580000000, "span_samples": 51, "span_cpu_ns": 510000000 }
///   ],
///   "spans": [                              by CPU time, descending, then by ids
///     { "service": "checkout", "service_namespace": null,
///       "span_name": "POST /pay",           null where the process does not publish it
///       "trace_id": "…32 hex…", "span_id": "…16 hex…",
///       "samples": 30, "cpu_ns": 300000000,
///       "error": 0.1826 }                   relative standard error of cpu_ns: 1 / sqrt(samples)
///   ]
/// }
/// ```
///
/// `error` is that of a count of independent events: of many spans that truly used this much CPU
/// time, about two thirds are measured within `cpu_ns × (1 ± error)`. With one sample it is 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SpanTable {
    schema_version: u32,
    /// When it began, in nanoseconds since the Unix epoch.
    pub start_unix_ns: i64,
    /// How long it was, in nanoseconds.
    pub duration_ns: i64,
    /// How much CPU time one sample stands for, in nanoseconds.
    pub period_ns: u64,
    /// Samples a second of CPU time, rounded to a thousandth.
    pub hz: f64,
    /// All services together.
    pub totals: Totals,
    /// Those that used CPU time, by how much, descending; then by name.
    pub services: Vec<ServiceRow>,
    /// Those that were seen, by CPU time, descending; then by ids.
    pub spans: Vec<SpanRow>,
}

/// Samples, and which of them were in spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// All samples.
    pub samples: u64,
    /// Their CPU time.
    pub cpu_ns: u64,
    /// Those in spans.
    pub span_samples: u64,
    /// Their CPU time.
    pub span_cpu_ns: u64,
}

/// One service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceRow {
    /// Its name.
    pub service: String,
    /// Its namespace.
    pub service_namespace: Option<String>,
    /// What it used.
    #[serde(flatten)]
    pub totals: Totals,
}

/// One span.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SpanRow {
    /// The service's name.
    pub service: String,
    /// The service's namespace.
    pub service_namespace: Option<String>,
    /// The span's name, where the process publishes it.
    pub span_name: Option<String>,
    /// 32 hex digits.
    pub trace_id: String,
    /// 16 hex digits.
    pub span_id: String,
    /// How many samples.
    pub samples: u64,
    /// Their CPU time.
    pub cpu_ns: u64,
    /// Relative standard error of `cpu_ns`, rounded to four digits.
    pub error: f64,
}

/// Name and namespace.
type Service<'w> = (&'w str, Option<&'w str>);

impl SpanTable {
    /// Adds a window up by span.
    #[must_use]
    pub fn new(window: &Window) -> Self {
        let mut totals = Totals::default();
        let mut services: BTreeMap<Service<'_>, Totals> = BTreeMap::new();
        let mut spans: BTreeMap<(Service<'_>, &SpanLabel), (u64, u64)> = BTreeMap::new();
        for group in &window.groups {
            let service = (group.service.name.as_str(), group.service.namespace.as_deref());
            for row in group.rows.iter().filter(|row| row.samples > 0) {
                let span = row.span.map(|span| &group.spans[span]);
                totals.add(row.samples, row.cpu_ns, span.is_some());
                services.entry(service).or_default().add(row.samples, row.cpu_ns, span.is_some());
                if let Some(span) = span {
                    let (samples, cpu_ns) = spans.entry((service, span)).or_default();
                    *samples = samples.saturating_add(row.samples);
                    *cpu_ns = cpu_ns.saturating_add(row.cpu_ns);
                }
            }
        }

        let mut services: Vec<_> = services
            .into_iter()
            .map(|((service, namespace), totals)| ServiceRow {
                service: service.to_owned(),
                service_namespace: namespace.map(str::to_owned),
                totals,
            })
            .collect();
        // Stable: equal ones stay in the order of their names, and spans in that of their ids.
        services.sort_by_key(|row| Reverse(row.totals.cpu_ns));
        let mut spans: Vec<_> = spans
            .into_iter()
            .map(|(((service, namespace), span), (samples, cpu_ns))| SpanRow {
                service: service.to_owned(),
                service_namespace: namespace.map(str::to_owned),
                span_name: span.name.as_deref().map(str::to_owned),
                trace_id: span.trace_id.to_string(),
                span_id: span.span_id.to_string(),
                samples,
                cpu_ns,
                error: rounded(relative_error(samples), 1e4),
            })
            .collect();
        spans.sort_by(|a, b| {
            (b.cpu_ns.cmp(&a.cpu_ns))
                .then_with(|| (&a.trace_id, &a.span_id).cmp(&(&b.trace_id, &b.span_id)))
        });
        Self {
            schema_version: 1,
            start_unix_ns: window.start_unix_ns,
            duration_ns: window.duration_ns,
            period_ns: window.period_ns,
            hz: hz(window.period_ns),
            totals,
            services,
            spans,
        }
    }

    /// Writes the table as JSON. The same window gives the same bytes.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, self)?;
        writeln!(out)?;
        out.flush()
    }
}

impl Totals {
    fn add(&mut self, samples: u64, cpu_ns: u64, in_span: bool) {
        self.samples = self.samples.saturating_add(samples);
        self.cpu_ns = self.cpu_ns.saturating_add(cpu_ns);
        if in_span {
            self.span_samples = self.span_samples.saturating_add(samples);
            self.span_cpu_ns = self.span_cpu_ns.saturating_add(cpu_ns);
        }
    }
}

/// Of a count of `samples` independent events.
#[expect(clippy::cast_precision_loss, reason = "an error needs no more than 53 bits")]
pub(super) fn relative_error(samples: u64) -> f64 {
    1.0 / (samples as f64).sqrt()
}

#[expect(clippy::cast_precision_loss, reason = "a period is far below 2^53 ns, 104 days")]
fn hz(period_ns: u64) -> f64 {
    if period_ns == 0 { 0.0 } else { rounded(1e9 / period_ns as f64, 1e3) }
}

fn rounded(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::encode::test_window::{PERIOD_NS, any_seen, checkout, window};

    fn parsed(window: &Window) -> Value {
        let mut out = Vec::new();
        SpanTable::new(window).write_json(&mut out).unwrap();
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn the_whole_document() {
        let (window, _) = checkout();
        let span = |n: u8, name: Value, samples: u64, error: f64| {
            json!({
                "service": "checkout", "service_namespace": null, "span_name": name,
                "trace_id": format!("{n:02x}").repeat(16), "span_id": format!("{n:02x}").repeat(8),
                "samples": samples, "cpu_ns": samples * PERIOD_NS, "error": error,
            })
        };
        let service = |name: &str, samples: u64, in_spans: u64| {
            json!({
                "service": name, "service_namespace": null,
                "samples": samples, "cpu_ns": samples * PERIOD_NS,
                "span_samples": in_spans, "span_cpu_ns": in_spans * PERIOD_NS,
            })
        };
        let expected = json!({
            "schema_version": 1,
            "start_unix_ns": 1_760_000_000_000_000_000_u64,
            "duration_ns": 10_000_000_000_u64,
            "period_ns": 10_000_000,
            "hz": 100.0,
            "totals": {
                "samples": 61, "cpu_ns": 610_000_000, "span_samples": 51, "span_cpu_ns": 510_000_000,
            },
            "services": [service("checkout", 58, 51), service("unknown_service:sh", 3, 0)],
            "spans": [
                span(1, json!("POST /pay"), 35, 0.169),
                span(2, json!("GET /cart"), 12, 0.2887),
                span(3, json!("GET /cart"), 3, 0.5774),
                span(4, json!(null), 1, 1.0),
            ],
        });
        assert_eq!(parsed(&window), expected);
    }

    #[test]
    fn an_empty_window_is_a_document() {
        let document = parsed(&Window::default());
        assert_eq!((&document["spans"], &document["hz"]), (&json!([]), &json!(0.0)));
    }

    proptest! {
        #[test]
        fn sums_agree_in_any_order(
            (seen, shuffled) in
                any_seen().prop_flat_map(|seen| (Just(seen.clone()), Just(seen).prop_shuffle()))
        ) {
            let one = SpanTable::new(&window(&seen, [1, 2]).0);
            prop_assert_eq!(&one, &SpanTable::new(&window(&shuffled, [9, 4]).0));

            let all: u64 = seen.iter().map(|seen| seen.samples).sum();
            let in_spans = seen.iter().filter(|seen| seen.span.is_some());
            let in_spans: u64 = in_spans.map(|seen| seen.samples).sum();
            prop_assert_eq!((one.totals.samples, one.totals.span_samples), (all, in_spans));
            let services: u64 = one.services.iter().map(|row| row.totals.samples).sum();
            let spans: u64 = one.spans.iter().map(|row| row.samples).sum();
            prop_assert_eq!((services, spans), (all, in_spans));
            prop_assert!(one.spans.is_sorted_by_key(|row| Reverse(row.cpu_ns)));
            prop_assert!(one.spans.iter().all(|row| row.error > 0.0 && row.error <= 1.0));
        }
    }
}
