use profiler_common::span::VALID_FROM_LABELS;
use proptest::prelude::*;
use zerocopy::IntoBytes as _;

use super::*;

/// As the BPF program puts labels there: cut to their places.
fn record(span_id: &str, trace_id: &str, profile_id: &str, name: &[u8]) -> Vec<u8> {
    fn put(value: &mut [u8], text: &str) {
        let len = text.len().min(value.len());
        value[..len].copy_from_slice(&text.as_bytes()[..len]);
    }
    let mut record = LabelRecord::EMPTY;
    put(&mut record.span_id.value, span_id);
    put(&mut record.trace_id.value, trace_id);
    put(&mut record.profile_id.value, profile_id);
    record.name_len = u8::try_from(name.len()).unwrap();
    [record.as_bytes(), name].concat()
}

const SPAN: &str = "00000000000000ab";
const TRACE: &str = "000000000000000000000000000000cd";

fn ids(span_id: &str, trace_id: &str, profile_id: &str) -> Result<(String, String), NoSpan> {
    let found = span(&record(span_id, trace_id, profile_id, b"")).unwrap();
    found.map(|found| (found.span_id.to_string(), found.trace_id.to_string()))
}

#[test]
fn labels_name_a_span() {
    let found = span(&record(SPAN, TRACE, "", "GET /cart".as_bytes())).unwrap().unwrap();
    assert_eq!(found.span_id.to_string(), SPAN);
    assert_eq!(found.trace_id.to_string(), TRACE);
    assert_eq!(found.label_name.as_deref(), Some("GET /cart"));
    assert_eq!((found.trace_flags, found.attributes), (1, vec![]));
}

#[test]
fn a_trace_may_be_unknown_and_a_profile_id_is_a_span_id() {
    let unknown = TraceId::UNKNOWN.to_string();
    assert_eq!(ids(SPAN, "", ""), Ok((SPAN.into(), unknown.clone())));
    assert_eq!(ids("", "", SPAN), Ok((SPAN.into(), unknown)));
    let both = ids(SPAN, TRACE, "00000000000000ff");
    assert_eq!(both, Ok((SPAN.into(), TRACE.into())), "`span_id` counts");
}

#[test]
fn without_a_span_id_there_is_no_span() {
    assert_eq!(ids("", "", ""), Err(NoSpan::NoneActive));
    assert_eq!(ids("", TRACE, ""), Err(NoSpan::NoneActive));
}

#[test]
fn what_is_no_id_is_no_span_and_told_apart() {
    let zeros = "0".repeat(16);
    let longer = format!("{SPAN}0");
    for span_id in ["ab", "checkout", "00000000000000ag", "+0000000000000ab", &zeros, &longer] {
        assert_eq!(ids(span_id, TRACE, ""), Err(NoSpan::LabelsMalformed), "{span_id}");
    }
    for trace_id in [SPAN, "x", &"0".repeat(32), &format!("{TRACE}0")] {
        assert_eq!(ids(SPAN, trace_id, ""), Err(NoSpan::LabelsMalformed), "{trace_id}");
    }
}

#[test]
fn a_name_that_was_cut_has_whole_characters() {
    let name = |bytes: &[u8]| {
        span(&record(SPAN, "", "", bytes)).unwrap().unwrap().label_name.map(|name| name.to_string())
    };
    let cut = [&[b'a'; 254][..], "é".as_bytes()].concat();
    assert_eq!(name(&cut[..255]), Some("a".repeat(254)));
    // This one was not cut: it ends so.
    assert_eq!(name(b"a\xc3").as_deref(), Some("a\u{fffd}"));
    assert_eq!(name(b""), None);
}

#[test]
fn a_record_that_ends_early_is_an_error() {
    let whole = record(SPAN, TRACE, "", b"name");
    for len in 0..whole.len() {
        assert_eq!(span(&whole[..len]), Err(DecodeError::Short), "{len} bytes");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_span_or_none(
        bytes in proptest::collection::vec(any::<u8>(), 0..640),
        valid in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if let (true, Some(byte)) = (valid, bytes.get_mut(24)) {
            *byte = VALID_FROM_LABELS;
        }
        if let Ok(Ok(found)) = span(&bytes) {
            prop_assert!(found.span_id != SpanId([0; 8]));
        }
    }
}
