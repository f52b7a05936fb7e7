//! How much of each service's CPU time is in spans: whether its spans reach the profiler.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::aggregate::Window;
use crate::process::ServiceIdentity;

/// How many services are told apart.
const SERVICES_MAX: usize = 1024;

/// Samples by service since the start.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    services: BTreeMap<Arc<ServiceIdentity>, Samples>,
    /// Those of services beyond the most.
    others: Samples,
}

#[derive(Clone, Copy, Debug, Default)]
struct Samples {
    all: u64,
    in_spans: u64,
}

impl Coverage {
    /// That of one window.
    #[must_use]
    pub fn of(window: &Window) -> Self {
        let mut coverage = Self::default();
        coverage.add(window);
        coverage
    }

    /// Adds a window.
    pub fn add(&mut self, window: &Window) {
        for group in &window.groups {
            let is_known = self.services.contains_key(&group.service);
            let samples = if is_known || self.services.len() < SERVICES_MAX {
                self.services.entry(Arc::clone(&group.service)).or_default()
            } else {
                &mut self.others
            };
            for row in &group.rows {
                samples.all = samples.all.saturating_add(row.samples);
                if row.span.is_some() {
                    samples.in_spans = samples.in_spans.saturating_add(row.samples);
                }
            }
        }
    }
}

/// One service in the counters.
#[derive(Serialize)]
struct Row<'a> {
    /// Null: all services beyond those that are told apart.
    service: Option<&'a str>,
    service_namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deployment_environment: Option<&'a str>,
    samples: u64,
    span_samples: u64,
    /// `span_samples / samples`, rounded to a thousandth.
    span_coverage: f64,
}

impl Serialize for Coverage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let known = self.services.iter().map(|(service, samples)| Row {
            service: Some(&service.name),
            service_namespace: service.namespace.as_deref(),
            service_version: service.version.as_deref(),
            deployment_environment: service.environment.as_deref(),
            ..samples.row()
        });
        let others = (self.others.all > 0).then(|| self.others.row());
        serializer.collect_seq(known.chain(others))
    }
}

impl Samples {
    fn row<'a>(self) -> Row<'a> {
        Row {
            service: None,
            service_namespace: None,
            service_version: None,
            deployment_environment: None,
            samples: self.all,
            span_samples: self.in_spans,
            span_coverage: share(self.in_spans, self.all),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share needs no more than 53 bits")]
fn share(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { (part as f64 / all as f64 * 1e3).round() / 1e3 }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::encode::test_window::checkout;

    #[test]
    fn every_service_has_its_share() {
        let (window, _) = checkout();
        let mut coverage = Coverage::of(&window);
        coverage.add(&window);
        let row = |service: &str, samples: u64, in_spans: u64, share: f64| {
            json!({
                "service": service, "service_namespace": null, "samples": samples,
                "span_samples": in_spans, "span_coverage": share,
            })
        };
        let expected =
            json!([row("checkout", 116, 102, 0.879), row("unknown_service:sh", 6, 0, 0.0)]);
        assert_eq!(serde_json::to_value(&coverage).unwrap(), expected);
    }

    #[test]
    fn services_beyond_the_most_are_one() {
        let (window, _) = checkout();
        let mut coverage = Coverage::default();
        for number in 0..=SERVICES_MAX {
            let mut window = window.clone();
            window.groups.truncate(1);
            window.groups[0].service = Arc::new(ServiceIdentity::unknown(&number.to_string()));
            coverage.add(&window);
        }
        let rows = serde_json::to_value(&coverage).unwrap();
        let rows = rows.as_array().unwrap();
        assert_eq!(rows.len(), SERVICES_MAX + 1);
        assert_eq!(
            (&rows[SERVICES_MAX]["service"], &rows[SERVICES_MAX]["samples"]),
            (&json!(null), &json!(58))
        );
    }
}
