//! Which span a sample is charged to, and what is told of it.

use std::sync::Arc;

use profiler_common::span::{
    DATADOG_LOCAL_ROOT_SPAN_ID_KEY, LOCAL_ROOT_SPAN_ID_KEY, LOCAL_ROOT_SPAN_NAME_KEY, SPAN_NAME_KEY,
};

use crate::decode::{SpanId, SpanRecord, TraceId};
use crate::process::Process;

/// The span that a sample is charged to, as chosen by `--span-scope`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanLabel {
    /// The trace.
    pub trace_id: TraceId,
    /// The local root span or the active span.
    pub span_id: SpanId,
    /// That span's name, where the process publishes it.
    pub name: Option<Arc<str>>,
    /// The chosen attributes that the thread's record has, in the order of [`SpanPolicy`].
    pub attributes: Arc<[SpanAttribute]>,
}

/// An attribute of the active span that is to be a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanAttribute {
    /// The label's name.
    pub label: Arc<str>,
    /// Never empty.
    pub value: Arc<str>,
}

/// Which span of a trace a sample is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanScope {
    /// The first span of this process in the trace, as Grafana's own SDKs do.
    LocalRoot,
    /// The span that the thread works on.
    Active,
}

/// What becomes of a sample in a span that its trace does not keep (W3C trace flag `sampled`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsampled {
    /// It is charged to the span, as others are.
    Keep,
    /// It is charged to no span: no trace leads to it.
    Skip,
}

/// Which spans samples are charged to, and what is told of them.
#[derive(Clone, Debug)]
pub struct SpanPolicy {
    /// Which span of a trace.
    pub scope: SpanScope,
    /// Whether those count that are not sampled.
    pub unsampled: Unsampled,
    /// The record's attributes that become labels.
    pub attributes: Arc<[ChosenAttribute]>,
}

/// A record's attribute that becomes a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChosenAttribute {
    /// Its key, as the process context names it: `http.route`.
    pub key: String,
    /// The label's name: `http_route`.
    pub label: Arc<str>,
}

impl From<SpanScope> for SpanPolicy {
    /// Every span, without attributes.
    fn from(scope: SpanScope) -> Self {
        Self { scope, unsampled: Unsampled::Keep, attributes: Arc::default() }
    }
}

impl SpanPolicy {
    /// The span that a sample with this record is charged to, if it is to be charged to one.
    pub(super) fn label(&self, span: &SpanRecord, process: &Process) -> Option<SpanLabel> {
        let counts = self.unsampled == Unsampled::Keep || span.is_sampled();
        counts.then(|| span_label(span, process, self))
    }
}

/// The local root's id and name come as attributes, and are absent where the local root is the
/// active span itself or the writer does not know them.
fn span_label(span: &SpanRecord, process: &Process, policy: &SpanPolicy) -> SpanLabel {
    let attribute = |name: &str| {
        let index = process.attribute_keys.iter().position(|key| **key == *name)?;
        let (_, value) = span.attributes.iter().find(|(key, _)| usize::from(*key) == index)?;
        Some(value)
    };
    let text = |key: &str| attribute(key).filter(|text| !text.is_empty()).map(printable);
    let root = attribute(LOCAL_ROOT_SPAN_ID_KEY)
        .or_else(|| attribute(DATADOG_LOCAL_ROOT_SPAN_ID_KEY))
        .and_then(|hex| SpanId::from_hex(hex));
    let (span_id, name) = match (policy.scope, root) {
        (SpanScope::LocalRoot, Some(root)) if root != span.span_id => {
            (root, text(LOCAL_ROOT_SPAN_NAME_KEY))
        }
        _ => {
            let of_label = span.label_name.as_ref().map(printable);
            (span.span_id, of_label.or_else(|| text(SPAN_NAME_KEY)))
        }
    };
    let chosen = policy.attributes.iter().filter_map(|chosen| {
        Some(SpanAttribute { label: Arc::clone(&chosen.label), value: text(&chosen.key)? })
    });
    let attributes = if policy.attributes.is_empty() { Arc::default() } else { chosen.collect() };
    SpanLabel { trace_id: span.trace_id, span_id, name, attributes }
}

/// A name without control characters, which would break a line or a terminal further on.
fn printable(name: &Arc<str>) -> Arc<str> {
    if name.chars().any(char::is_control) {
        name.replace(char::is_control, "\u{fffd}").into()
    } else {
        Arc::clone(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::Pid;

    const KEYS: [&str; 5] = [
        LOCAL_ROOT_SPAN_ID_KEY,
        SPAN_NAME_KEY,
        LOCAL_ROOT_SPAN_NAME_KEY,
        "http.route",
        DATADOG_LOCAL_ROOT_SPAN_ID_KEY,
    ];

    fn label(policy: &SpanPolicy, trace_flags: u8, attributes: &[(u8, &str)]) -> Option<SpanLabel> {
        let process = Process {
            attribute_keys: KEYS.iter().map(|&key| Arc::from(key)).collect(),
            ..Process::not_read(Pid(1), None)
        };
        let record = SpanRecord {
            trace_id: TraceId([1; 16]),
            span_id: SpanId([2; 8]),
            label_name: None,
            trace_flags,
            attributes: attributes.iter().map(|&(key, text)| (key, Arc::from(text))).collect(),
        };
        policy.label(&record, &process)
    }

    #[track_caller]
    fn check_span(
        scope: SpanScope,
        attributes: &[(u8, &str)],
        expected_id: [u8; 8],
        expected_name: Option<&str>,
    ) {
        let label = label(&scope.into(), 1, attributes).unwrap();
        assert_eq!(label.trace_id, TraceId([1; 16]));
        assert_eq!((label.span_id, label.name.as_deref()), (SpanId(expected_id), expected_name));
    }

    #[test]
    fn a_sample_is_charged_to_the_span_that_the_scope_says() {
        let child = [(0, "0303030303030303"), (1, "child"), (2, "root")];
        check_span(SpanScope::LocalRoot, &child, [3; 8], Some("root"));
        check_span(SpanScope::Active, &child, [2; 8], Some("child"));
        let root = [(0, "0202020202020202"), (1, "root")];
        check_span(SpanScope::LocalRoot, &root, [2; 8], Some("root"));
        check_span(SpanScope::Active, &root, [2; 8], Some("root"));
    }

    #[test]
    fn a_writer_that_tells_less_still_has_a_span() {
        check_span(SpanScope::LocalRoot, &[], [2; 8], None);
        check_span(SpanScope::LocalRoot, &[(1, "child")], [2; 8], Some("child"));
        check_span(SpanScope::LocalRoot, &[(4, "0303030303030303")], [3; 8], None);
        check_span(SpanScope::LocalRoot, &[(0, "0303030303030303"), (1, "child")], [3; 8], None);
        check_span(
            SpanScope::LocalRoot,
            &[(0, "not hex digits!!"), (1, "child")],
            [2; 8],
            Some("child"),
        );
        check_span(SpanScope::Active, &[(1, "")], [2; 8], None);
        check_span(SpanScope::Active, &[(1, "a\n\u{1b}b")], [2; 8], Some("a\u{fffd}\u{fffd}b"));
    }

    #[test]
    fn chosen_attributes_of_the_record_are_labels_in_their_own_order() {
        let chosen =
            |key: &str, label: &str| ChosenAttribute { key: key.into(), label: label.into() };
        let policy = SpanPolicy {
            attributes: [chosen("rpc.method", "rpc_method"), chosen("http.route", "http_route")]
                .into(),
            ..SpanScope::LocalRoot.into()
        };
        let found = label(&policy, 1, &[(3, "/cart"), (1, "child")]).unwrap();
        let found: Vec<_> = found
            .attributes
            .iter()
            .map(|it| (it.label.to_string(), it.value.to_string()))
            .collect();
        assert_eq!(found, [("http_route".to_owned(), "/cart".to_owned())]);
        assert!(label(&policy, 1, &[(3, "")]).unwrap().attributes.is_empty());
        let others = SpanPolicy::from(SpanScope::LocalRoot);
        assert!(label(&others, 1, &[(3, "/cart")]).unwrap().attributes.is_empty());
    }

    #[test]
    fn spans_that_are_not_sampled_count_unless_they_are_skipped() {
        let keep = SpanPolicy::from(SpanScope::Active);
        let skip = SpanPolicy { unsampled: Unsampled::Skip, ..keep.clone() };
        assert!(label(&keep, 0, &[]).is_some());
        assert!(label(&skip, 0, &[]).is_none());
        // The other flags are not about it.
        assert!(label(&skip, 0xfe, &[]).is_none());
        assert!(label(&skip, 3, &[]).is_some());
    }
}
