//! Which values of a label a service may have series of, and which share one.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use indexmap::IndexSet;

use crate::aggregate::Group;
use crate::attribute::{SpanAttribute, SpanLabel};
use crate::process::ServiceIdentity;

/// The value that stands for all beyond the cap.
pub const OTHER: &str = "other";

/// How many services have values of their own; those that come later have only [`OTHER`].
const SERVICES_MAX: usize = 4096;

/// The values of one label that have a series of their own on the server, service by service. A
/// series lives on there: a value that had one keeps it, and none is added beyond the cap, in
/// whatever window.
#[derive(Clone, Debug)]
pub struct AdmittedValues {
    max: usize,
    values: HashMap<Arc<ServiceIdentity>, HashSet<Arc<str>>>,
}

impl AdmittedValues {
    /// At most so many values a service.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { max, values: HashMap::new() }
    }

    /// Admits values while there is room, those with the most weight first (of equal ones, the
    /// first by alphabet), and gives all that are admitted.
    pub(super) fn admit(
        &mut self,
        service: &Arc<ServiceIdentity>,
        weights: HashMap<Arc<str>, u64>,
    ) -> HashSet<Arc<str>> {
        let mut ranked: Vec<_> = weights.into_iter().collect();
        ranked.sort_unstable_by(|(a, a_ns), (b, b_ns)| (Reverse(a_ns), a).cmp(&(Reverse(b_ns), b)));
        if ranked.is_empty()
            || (self.values.len() >= SERVICES_MAX && !self.values.contains_key(service))
        {
            return HashSet::new();
        }
        let known = self.values.entry(Arc::clone(service)).or_default();
        for (value, _) in ranked {
            if known.len() < self.max {
                known.insert(value);
            }
        }
        known.clone()
    }
}

/// Replaces the values of span attributes that are beyond the cap by [`OTHER`]; `admitted` are those
/// of each label.
pub fn cap_attributes(
    group: &mut Group,
    max: usize,
    admitted: &mut HashMap<Arc<str>, AdmittedValues>,
) {
    let mut weights: HashMap<Arc<str>, HashMap<Arc<str>, u64>> = HashMap::new();
    for row in &group.rows {
        let span = row.span.map(|span| &group.spans[span]);
        for attribute in span.into_iter().flat_map(|span| span.attributes.iter()) {
            let weight = weights
                .entry(Arc::clone(&attribute.label))
                .or_default()
                .entry(Arc::clone(&attribute.value))
                .or_default();
            *weight = weight.saturating_add(row.cpu_ns);
        }
    }
    if weights.is_empty() {
        return;
    }
    let service = &group.service;
    let kept: HashMap<Arc<str>, HashSet<Arc<str>>> = weights
        .into_iter()
        .map(|(label, weights)| {
            let values = admitted
                .entry(Arc::clone(&label))
                .or_insert_with(|| AdmittedValues::new(max))
                .admit(service, weights);
            (label, values)
        })
        .collect();
    let other: Arc<str> = Arc::from(OTHER);
    let capped = |attribute: &SpanAttribute| {
        let is_kept =
            kept.get(&attribute.label).is_some_and(|values| values.contains(&attribute.value));
        let value = if is_kept { &attribute.value } else { &other };
        SpanAttribute { label: Arc::clone(&attribute.label), value: Arc::clone(value) }
    };
    let mut spans: IndexSet<SpanLabel> = IndexSet::new();
    let moved: Vec<usize> = group
        .spans
        .iter()
        .map(|span| {
            let attributes = span.attributes.iter().map(capped).collect();
            spans.insert_full(SpanLabel { attributes, ..span.clone() }).0
        })
        .collect();
    for row in &mut group.rows {
        row.span = row.span.map(|span| moved[span]);
    }
    group.spans = spans;
    group.sum_rows();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::test_window::checkout;

    /// The service's spans, each with its name as `http_route` too.
    fn with_routes() -> Group {
        let (window, _) = checkout();
        let mut group = window.groups[0].clone();
        group.spans = group
            .spans
            .iter()
            .map(|span| {
                let value = span.name.clone();
                let attribute =
                    value.map(|value| SpanAttribute { label: "http_route".into(), value });
                SpanLabel { attributes: attribute.into_iter().collect(), ..span.clone() }
            })
            .collect();
        group
    }

    fn routes(group: &Group) -> Vec<(Option<String>, u64)> {
        let mut found: HashMap<Option<String>, u64> = HashMap::new();
        for row in &group.rows {
            let span = row.span.map(|span| &group.spans[span]);
            let value = span.and_then(|span| span.attributes.first());
            *found.entry(value.map(|it| it.value.to_string())).or_default() += row.samples;
        }
        let mut found: Vec<_> = found.into_iter().collect();
        found.sort();
        found
    }

    #[test]
    fn values_beyond_the_cap_share_one_and_keep_what_they_had() {
        let some = |value: &str| Some(value.to_owned());
        let all = with_routes();
        for (max, expected) in [
            (2, vec![(None, 8), (some("GET /cart"), 15), (some("POST /pay"), 35)]),
            (1, vec![(None, 8), (some("POST /pay"), 35), (some("other"), 15)]),
            (0, vec![(None, 8), (some("other"), 50)]),
        ] {
            let mut group = all.clone();
            cap_attributes(&mut group, max, &mut HashMap::new());
            assert_eq!(routes(&group), expected);
            assert_eq!(group.samples(), all.samples());
            assert!(group.rows.is_sorted());
        }
        let mut admitted = HashMap::new();
        cap_attributes(&mut all.clone(), 1, &mut admitted);
        let mut later = all;
        later.rows.retain(|row| {
            row.span.is_none_or(|span| later.spans[span].name.as_deref() != Some("POST /pay"))
        });
        cap_attributes(&mut later, 1, &mut admitted);
        assert_eq!(
            routes(&later),
            [(None, 8), (some("other"), 15)],
            "the one that has a series is not there"
        );
    }

    #[test]
    fn a_service_beyond_the_most_has_no_values_of_its_own() {
        let mut admitted = AdmittedValues::new(10);
        let weights = || HashMap::from([(Arc::from("x"), 1)]);
        let service = |number: usize| Arc::new(ServiceIdentity::unknown(&number.to_string()));
        for number in 0..SERVICES_MAX {
            assert_eq!(admitted.admit(&service(number), weights()).len(), 1);
        }
        assert!(admitted.admit(&service(SERVICES_MAX), weights()).is_empty());
        assert_eq!(admitted.admit(&service(0), HashMap::from([(Arc::from("y"), 1)])).len(), 2);
    }
}
