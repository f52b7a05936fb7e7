//! One service's samples by the name of their span.

use std::{collections::HashMap, sync::Arc};

use indexmap::IndexSet;

use super::admitted::{AdmittedValues, OTHER};
use crate::aggregate::{Group, Row};

/// Splits a group by span name: first the samples without a name, or an empty one, then the names in
/// alphabetical order.
///
/// Names that were admitted before keep their own part; of the others, those with the most CPU time
/// (of equal ones, the first by alphabet) are admitted while there is room. The rest goes together,
/// as [`OTHER`], into one that has them all, also a span of that very name. No sample is in
/// two of them or in none.
#[must_use]
pub fn split_by_span_name(
    group: &Group,
    admitted: &mut AdmittedValues,
) -> Vec<(Option<Arc<str>>, Group)> {
    let mut weights: HashMap<Arc<str>, u64> = HashMap::new();
    for row in &group.rows {
        if let Some(name) = name_of(group, row) {
            let weight = weights.entry(Arc::clone(name)).or_default();
            *weight = weight.saturating_add(row.cpu_ns);
        }
    }
    let known = admitted.admit(&group.service, weights);
    let other: Arc<str> = Arc::from(OTHER);
    let mut parts: HashMap<Option<Arc<str>>, GroupPart> = HashMap::new();
    for row in &group.rows {
        let name = name_of(group, row);
        let kept_as = name.map(|name| if known.contains(name) { name } else { &other });
        parts.entry(kept_as.cloned()).or_insert_with(|| GroupPart::of(group)).add(group, row);
    }
    let mut parts: Vec<_> = parts.into_iter().map(|(name, part)| (name, part.finish())).collect();
    parts.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    parts
}

fn name_of<'g>(group: &'g Group, row: &Row) -> Option<&'g Arc<str>> {
    group.spans[row.span?].name.as_ref().filter(|name| !name.is_empty())
}

struct GroupPart {
    group: Group,
    /// Old index to new.
    stacks: HashMap<usize, usize>,
    spans: HashMap<usize, usize>,
}

impl GroupPart {
    fn of(group: &Group) -> Self {
        let group = Group {
            service: Arc::clone(&group.service),
            main_elf: group.main_elf,
            stacks: IndexSet::new(),
            spans: IndexSet::new(),
            rows: Vec::new(),
        };
        Self { group, stacks: HashMap::new(), spans: HashMap::new() }
    }

    fn add(&mut self, whole: &Group, row: &Row) {
        let stack = *self
            .stacks
            .entry(row.stack)
            .or_insert_with(|| self.group.stacks.insert_full(whole.stacks[row.stack].clone()).0);
        let span = row.span.map(|span| {
            *self
                .spans
                .entry(span)
                .or_insert_with(|| self.group.spans.insert_full(whole.spans[span].clone()).0)
        });
        self.group.rows.push(Row { stack, span, ..*row });
    }

    fn finish(mut self) -> Group {
        // The order that a group promises.
        self.group.rows.sort_unstable();
        self.group
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::encode::test_window::{any_seen, checkout, rename_spans, window};

    fn samples(group: &Group, cap: usize) -> Vec<(Option<String>, u64)> {
        split_by_span_name(group, &mut AdmittedValues::new(cap))
            .into_iter()
            .map(|(name, part)| (name.map(|name| name.to_string()), part.samples()))
            .collect()
    }

    #[track_caller]
    fn check(cap: usize, expected: &[(Option<&str>, u64)]) {
        let (window, _) = checkout();
        let expected: Vec<_> =
            expected.iter().map(|(name, samples)| (name.map(str::to_owned), *samples)).collect();
        assert_eq!(samples(&window.groups[0], cap), expected);
    }

    #[test]
    fn the_heaviest_names_keep_their_own() {
        check(2, &[(None, 8), (Some("GET /cart"), 15), (Some("POST /pay"), 35)]);
        check(1, &[(None, 8), (Some("POST /pay"), 35), (Some("other"), 15)]);
        check(0, &[(None, 8), (Some("other"), 50)]);
    }

    #[test]
    fn a_name_that_was_admitted_keeps_its_own_and_none_is_added_beyond_the_cap() {
        let (mut window, _) = checkout();
        let group = &mut window.groups[0];
        let mut admitted = AdmittedValues::new(1);
        let names = |group: &Group, admitted: &mut AdmittedValues| -> Vec<Option<String>> {
            let parts = split_by_span_name(group, admitted).into_iter();
            parts.map(|(name, _)| name.map(|name| name.to_string())).collect()
        };
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(names(group, &mut admitted), [None, some("POST /pay"), some("other")]);
        rename_spans(group, |name| match name {
            Some("POST /pay") => Some("POST /new".to_owned()),
            _ => name.map(str::to_owned),
        });
        assert_eq!(names(group, &mut admitted), [None, some("other")]);
    }

    #[test]
    fn a_span_called_other_is_not_a_second_group() {
        let (mut window, _) = checkout();
        let group = &mut window.groups[0];
        rename_spans(group, |name| match name {
            Some("POST /pay") => Some(OTHER.to_owned()),
            _ => name.map(str::to_owned),
        });
        assert_eq!(samples(group, 1), [(None, 8), (Some("other".to_owned()), 50)]);
    }

    proptest! {
        #[test]
        fn every_row_is_in_one_part(seen in any_seen(), cap in 0_usize..5) {
            let (window, _) = window(&seen, [1, 2]);
            for group in &window.groups {
                let row_of = |group: &Group, row: &Row| {
                    let span = row.span.map(|span| group.spans[span].clone());
                    (group.stacks[row.stack].clone(), span, row.samples, row.cpu_ns)
                };
                let mut whole: Vec<_> = group.rows.iter().map(|row| row_of(group, row)).collect();
                let parts = split_by_span_name(group, &mut AdmittedValues::new(cap));
                let mut split = Vec::new();
                for (name, part) in &parts {
                    prop_assert!(name.as_ref().is_none_or(|name| !name.is_empty()));
                    prop_assert!(part.rows.is_sorted());
                    split.extend(part.rows.iter().map(|row| row_of(part, row)));
                }
                whole.sort_unstable();
                split.sort_unstable();
                prop_assert_eq!(whole, split);
                prop_assert!(parts.len() <= cap + 2);
            }
        }
    }
}
