//! span-marker depends on nothing of ours, so it has names and numbers of its own: they are those
//! that the profiler reads.

#![cfg(test)]

use profiler_common::{span, span_note};
use span_marker::abi;

#[test]
fn the_writer_and_the_reader_mean_the_same() {
    assert_eq!(abi::SLOT_SYMBOL, span::THREAD_CONTEXT_SYMBOL);
    assert_eq!(abi::RECORD_HEADER_LEN, span::SPAN_HEADER_LEN);
    assert_eq!(abi::RECORD_ATTRIBUTES_MAX, span::SPAN_ATTRIBUTES_MAX);
    assert_eq!(abi::LOCAL_ROOT_SPAN_ID_KEY, span::LOCAL_ROOT_SPAN_ID_KEY);
    assert_eq!(abi::SPAN_NAME_KEY, span::SPAN_NAME_KEY);
    assert_eq!(abi::LOCAL_ROOT_SPAN_NAME_KEY, span::LOCAL_ROOT_SPAN_NAME_KEY);
    assert_eq!(abi::SCHEMA_VERSION_KEY, span::SCHEMA_VERSION_KEY);
    assert!(span::SCHEMA_VERSIONS.contains(&abi::SCHEMA_VERSION));
    assert_eq!(abi::ATTRIBUTE_KEY_MAP_KEY, span::ATTRIBUTE_KEY_MAP_KEY);
    assert_eq!(abi::TP_OFFSET_KEY, span::TP_OFFSET_KEY);
    assert_eq!(abi::NOTE_SECTION, span_note::NOTE_SECTION);
    assert_eq!(abi::NOTE_NAME, span_note::NOTE_NAME);
    assert_eq!(abi::NOTE_TYPE, span_note::NOTE_TYPE);
    assert_eq!(abi::INFO_MAGIC, span_note::INFO_MAGIC);
    assert_eq!(abi::INFO_ABI, span_note::INFO_ABI);
    assert_eq!(abi::INFO_STATIC, span_note::INFO_STATIC);
    assert_eq!(abi::HOOK_SYMBOL, span_note::HOOK_SYMBOL);
}
