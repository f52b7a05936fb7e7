//! What the BPF program makes of a thread's labels.

use std::sync::Arc;

use profiler_common::span::{LABEL_NAME_MAX, LabelRecord};
use zerocopy::FromBytes as _;

use super::{DecodeError, NoSpan, SpanId, SpanRecord, TraceId};

/// The span that labels name. `span_id` counts before `profile_id`; a trace may be absent, as it
/// is with Grafana's SDK for Go before 0.6.
pub(super) fn span(bytes: &[u8]) -> Result<Result<SpanRecord, NoSpan>, DecodeError> {
    let (record, rest) =
        LabelRecord::read_from_prefix(bytes).map_err(|_size| DecodeError::Short)?;
    let name = rest.get(..usize::from(record.name_len)).ok_or(DecodeError::Short)?;
    Ok(named(&record, name))
}

fn named(record: &LabelRecord, name: &[u8]) -> Result<SpanRecord, NoSpan> {
    let span_id = text(&record.span_id.value)
        .or_else(|| text(&record.profile_id.value))
        .ok_or(NoSpan::NoneActive)?;
    let span_id = hex(span_id).and_then(SpanId::from_hex).ok_or(NoSpan::LabelsMalformed)?;
    let trace_id = match text(&record.trace_id.value) {
        Some(text) => hex(text).and_then(TraceId::from_hex).ok_or(NoSpan::LabelsMalformed)?,
        None => TraceId::UNKNOWN,
    };
    Ok(SpanRecord {
        trace_id,
        span_id,
        label_name: (!name.is_empty()).then(|| Arc::from(String::from_utf8_lossy(whole(name)))),
        trace_flags: record.header.trace_flags,
        attributes: Vec::new(),
    })
}

/// Without the zeros that fill its place up; `None` if there is nothing else.
fn text(value: &[u8]) -> Option<&[u8]> {
    let last = value.iter().rposition(|byte| *byte != 0)?;
    value.get(..=last)
}

fn hex(text: &[u8]) -> Option<&str> {
    str::from_utf8(text).ok()
}

/// Without a character of which a cut has left the first bytes only.
fn whole(name: &[u8]) -> &[u8] {
    match str::from_utf8(name) {
        Err(error) if name.len() == LABEL_NAME_MAX && error.error_len().is_none() => {
            name.get(..error.valid_up_to()).unwrap_or(name)
        }
        _ => name,
    }
}

#[cfg(test)]
#[path = "labels_tests.rs"]
mod tests;
