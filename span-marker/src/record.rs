//! A thread context record: built once per span, immutable afterwards.

use std::fmt;

use crate::abi::{RECORD_ATTRIBUTES_MAX, RECORD_HEADER_LEN};
use crate::keys::{self, Index};
use crate::{process_context, stats, thread};

/// The longest value of an attribute: its length is one byte of the record.
pub const ATTRIBUTE_VALUE_MAX: usize = u8::MAX as usize;

/// Whose work a thread is doing: the identity of a span, in W3C byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SpanIds {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The span.
    pub span_id: [u8; 8],
    /// W3C trace flags; bit 0 is "sampled".
    pub trace_flags: u8,
}

impl SpanIds {
    /// Both ids are set, as the standard wants them: together or not at all.
    fn is_valid(&self) -> bool {
        self.trace_id != [0; 16] && self.span_id != [0; 8]
    }
}

/// What a thread publishes while it works for a span, in the layout of OTEP 4947.
///
/// Immutable: a reader may look at it at any moment. Build it once per span and keep it as long as
/// the span may be entered.
pub struct Record {
    /// The record, then zeros up to whole words: the standard wants its start aligned to two bytes.
    words: Box<[u64]>,
    /// In bytes.
    len: usize,
}

const WORD: usize = size_of::<u64>();
const RECORD_MAX: usize = RECORD_HEADER_LEN + RECORD_ATTRIBUTES_MAX;
/// Where `valid` and the length of the attributes are in a record; the flags are between them.
const VALID: usize = 24;
const ATTRIBUTES_LEN: usize = 26;

const _: () = assert!(RECORD_MAX.is_multiple_of(WORD));

impl Record {
    /// Starts a record for a span. If one of its ids is all zero, the record has no span.
    #[must_use]
    #[inline]
    pub fn builder(ids: SpanIds) -> RecordBuilder {
        let mut bytes = [0; RECORD_MAX];
        if ids.is_valid() {
            let (trace_id, rest) = bytes.split_at_mut(ids.trace_id.len());
            let (span_id, rest) = rest.split_at_mut(ids.span_id.len());
            trace_id.copy_from_slice(&ids.trace_id);
            span_id.copy_from_slice(&ids.span_id);
            rest[ATTRIBUTES_LEN - 1 - VALID] = ids.trace_flags;
        }
        RecordBuilder { bytes, len: RECORD_HEADER_LEN }
    }

    /// What the slot points to while this record is entered.
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.words.as_ptr().cast()
    }

    /// The bytes as a reader sees them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: the words hold `len` bytes or more, and live as long as the borrow.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) }
    }
}

impl Drop for Record {
    /// For a record that some thread publishes still, because a guard was leaked: see
    /// [`enter`](crate::enter).
    fn drop(&mut self) {
        thread::forget(self.as_ptr());
        if let Some(valid) = self.words.get_mut(VALID / WORD) {
            // SAFETY: a word of the record. Volatile, because nothing in this process reads it.
            unsafe { std::ptr::write_volatile(valid, 0) };
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Record({} bytes)", self.as_bytes().len())
    }
}

/// Attributes in the order in which they were given.
///
/// A value longer than 255 bytes is cut between two characters; an attribute that does not fit into
/// the record's 640 bytes, or whose key cannot be registered, is left out. Both are counted
/// ([`crate::stats()`]).
#[derive(Clone)]
pub struct RecordBuilder {
    /// The record so far, then zeros.
    bytes: [u8; RECORD_MAX],
    len: usize,
}

impl RecordBuilder {
    /// The span's name.
    #[must_use]
    #[inline]
    pub fn name(self, name: &str) -> Self {
        self.push(Index::SPAN_NAME, name)
    }

    /// The local root span: the first one that this process started for the trace. Its name only
    /// where it is not the span itself.
    #[must_use]
    #[inline]
    pub fn local_root(self, span_id: [u8; 8], name: Option<&str>) -> Self {
        let mut digits = [0; 16];
        let digits = hexadecimal(span_id, &mut digits);
        let this = self.push(Index::LOCAL_ROOT_SPAN_ID, digits);
        match name {
            Some(name) => this.push(Index::LOCAL_ROOT_SPAN_NAME, name),
            None => this,
        }
    }

    /// An attribute of the span. The first use of a key announces it to readers, for good: use a
    /// few fixed keys, there is room for 253.
    #[must_use]
    pub fn attr(self, key: &str, value: &str) -> Self {
        match keys::register(key) {
            Ok(index) => self.push(index, value),
            Err(_counted) => {
                stats::ATTRIBUTES_DROPPED.add();
                self
            }
        }
    }

    /// The finished record.
    ///
    /// The first one of a process, and of a forked child, publishes the process context, unless
    /// [`init`](crate::init) has.
    #[must_use]
    #[inline]
    pub fn build(mut self) -> Record {
        let len = self.len - RECORD_HEADER_LEN;
        let [low, high] = u16::try_from(len).unwrap_or(0).to_ne_bytes();
        self.bytes[VALID] = u8::from(process_context::ensure());
        self.bytes[ATTRIBUTES_LEN] = low;
        self.bytes[ATTRIBUTES_LEN + 1] = high;
        let (words, _rest) = self.bytes.as_chunks::<WORD>();
        let words = words.iter().take(self.len.div_ceil(WORD));
        Record { words: words.map(|word| u64::from_ne_bytes(*word)).collect(), len: self.len }
    }

    #[inline]
    fn push(mut self, key: Index, value: &str) -> Self {
        let whole = value.len();
        let value = value.get(..value.floor_char_boundary(ATTRIBUTE_VALUE_MAX)).unwrap_or(value);
        if value.len() < whole {
            stats::VALUES_CUT.add();
        }
        match self.write(key, value.as_bytes()) {
            Some(end) => self.len = end,
            None => stats::ATTRIBUTES_DROPPED.add(),
        }
        self
    }

    /// Appends one attribute; where it ends, or nothing if there is no room for it.
    #[inline]
    fn write(&mut self, key: Index, value: &[u8]) -> Option<usize> {
        let (fixed, rest) = self.bytes.get_mut(self.len..)?.split_at_mut_checked(2)?;
        let to = rest.get_mut(..value.len())?;
        fixed.copy_from_slice(&[key.get(), u8::try_from(value.len()).ok()?]);
        to.copy_from_slice(value);
        Some(self.len + 2 + value.len())
    }
}

impl fmt::Debug for RecordBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordBuilder({} bytes)", self.len)
    }
}

/// Sixteen lower-case digits.
fn hexadecimal(id: [u8; 8], digits: &mut [u8; 16]) -> &str {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in digits.chunks_exact_mut(2).zip(id) {
        for (digit, nibble) in pair.iter_mut().zip([byte >> 4, byte & 15]) {
            *digit = DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
        }
    }
    std::str::from_utf8(digits).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IDS: SpanIds = SpanIds { trace_id: [0x11; 16], span_id: [0x22; 8], trace_flags: 1 };

    /// The attributes of a record, read with nothing but the standard at hand.
    fn attributes(record: &Record) -> Vec<(u8, String)> {
        let bytes = record.as_bytes();
        assert_eq!(bytes[24], 1, "valid");
        let len = usize::from(u16::from_ne_bytes([bytes[26], bytes[27]]));
        let mut rest = &bytes[28..28 + len];
        let mut found = Vec::new();
        while let [key, len, tail @ ..] = rest {
            let (value, tail) = tail.split_at(usize::from(*len));
            found.push((*key, String::from_utf8(value.to_vec()).unwrap()));
            rest = tail;
        }
        assert!(rest.is_empty(), "an incomplete attribute");
        found
    }

    #[test]
    fn has_the_bytes_of_the_standard() {
        let root = [0x0a, 0xbc, 0xde, 0xf0, 0x12, 0x34, 0x56, 0x78];
        let record = Record::builder(IDS).local_root(root, Some("GET /")).name("price").build();
        let mut expected = [[0x11; 16].as_slice(), &[0x22; 8], &[1, 1]].concat();
        expected.extend(32_u16.to_ne_bytes());
        expected.extend(b"\x00\x100abcdef012345678\x02\x05GET /\x01\x05price");
        assert_eq!(record.as_bytes(), expected);
        assert_eq!(record.as_ptr().align_offset(2), 0);
    }

    #[test]
    fn ids_are_set_together_or_not_at_all() {
        for ids in [SpanIds { trace_id: [0; 16], ..IDS }, SpanIds { span_id: [0; 8], ..IDS }] {
            let record = Record::builder(ids).name("n").build();
            assert_eq!(&record.as_bytes()[..24], &[0; 24]);
            assert_eq!(record.as_bytes()[25], 0);
            assert_eq!(attributes(&record), [(1, "n".to_owned())]);
        }
    }

    #[test]
    fn cuts_a_value_between_two_characters() {
        let record = Record::builder(IDS).name(&"é".repeat(128)).build();
        assert_eq!(attributes(&record), [(1, "é".repeat(127))]);
        let record = Record::builder(IDS).name(&"n".repeat(255)).build();
        assert_eq!(attributes(&record), [(1, "n".repeat(255))]);
    }

    #[test]
    fn the_longest_names_fit_and_what_does_not_fit_is_left_out() {
        let long = "x".repeat(300);
        let record = Record::builder(IDS).local_root([1; 8], Some(&long)).name(&long);
        let record = record.attr("does.not.fit", &long).attr("fits", "yes").build();
        let found = attributes(&record);
        assert_eq!(found.len(), 4);
        assert_eq!(found[3].1, "yes");
        assert!(record.as_bytes().len() <= 640);
    }

    proptest! {
        #[test]
        fn is_never_malformed(
            trace_id: [u8; 16], span_id: [u8; 8], trace_flags: u8,
            name in ".{0,300}", root in proptest::option::of(".{0,300}"),
            values in proptest::collection::vec(".{0,300}", 0..8),
        ) {
            let ids = SpanIds { trace_id, span_id, trace_flags };
            let mut builder = Record::builder(ids).local_root(span_id, root.as_deref()).name(&name);
            for (index, value) in values.iter().enumerate() {
                builder = builder.attr(&format!("property.{index}"), value);
            }
            let record = builder.build();
            prop_assert!(record.as_bytes().len() <= 640);
            let found = attributes(&record);
            prop_assert!(found.iter().any(|(key, value)| *key == 1 && name.starts_with(value)));
        }
    }
}
