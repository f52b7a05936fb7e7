//! How labels are laid out in a process, and which of them name a span.

use core::mem::offset_of;

use profiler_common::span::{LABEL_NAME_MAX, LABELS_MAX, LabelRecord};

/// A slice of Go's runtime: pairs of strings, each a pointer and a length.
pub const GO_SLICE: u64 = 1;
/// A map of Go's runtime before 1.24: groups of eight keys and eight values.
pub const GO_MAP: u64 = 2;
/// A label set of custom-labels v1: pairs of strings, each a length and a pointer.
pub const CUSTOM: u64 = 3;

/// Where the pairs are, and how many.
#[derive(Debug, PartialEq, Eq)]
pub struct Pairs {
    /// The address of the first, or of the first group.
    pub at: u64,
    /// How many places there are to look at.
    pub count: u64,
    /// There may be more.
    pub cut: bool,
}

/// What the first three words of a list say: `runtime.slice`, `custom_labels_labelset_t`
/// (`storage`, `count`, `capacity`), or `runtime.hmap` (`count`; `flags` and `B` in bytes 8 and 9;
/// `buckets`).
///
/// A map with more than eight pairs may keep some in overflow buckets, which are not looked at.
#[inline(always)]
#[must_use]
pub fn pairs(form: u64, words: [u64; 3]) -> Pairs {
    let [first, second, third] = words;
    let is_map = form == GO_MAP;
    let places = 8 << ((second >> 8) & 3);
    let (at, count) = if is_map { (third, places) } else { (first, second) };
    let most = LABELS_MAX as u64;
    let cut = if is_map { first > 8 } else { second > most };
    Pairs { at, count: if count < most { count } else { most }, cut }
}

/// The address of a pair's key, and the distance to its value, both strings of two words.
#[inline(always)]
#[must_use]
pub fn pair(form: u64, at: u64, index: u64) -> (u64, u64) {
    /// A bucket is eight bytes of hashes, eight keys, eight values and a pointer.
    const BUCKET: u64 = 8 + 8 * 16 + 8 * 16 + 8;
    if form == GO_MAP {
        let bucket = at.wrapping_add((index >> 3) * BUCKET);
        (bucket.wrapping_add(8 + (index & 7) * 16), 8 * 16)
    } else {
        (at.wrapping_add(index * 32), 16)
    }
}

/// A string's address and length.
#[inline(always)]
#[must_use]
pub fn string(form: u64, words: [u64; 2]) -> (u64, u64) {
    let [first, second] = words;
    if form == CUSTOM { (second, first) } else { (first, second) }
}

/// The shortest and the longest key of a span's labels.
pub const KEY_LEN: core::ops::RangeInclusive<u64> = 7..=10;

/// Where a label's value belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The offset in the [`LabelRecord`].
    pub at: usize,
    /// The most bytes that are copied there.
    pub most: u64,
    /// A bit of its own.
    pub bit: u64,
}

/// The span's id.
pub const SPAN_ID: Place = Place { at: offset_of!(LabelRecord, span_id) + 2, most: 17, bit: 1 };
/// The trace's id.
pub const TRACE_ID: Place = Place { at: offset_of!(LabelRecord, trace_id) + 2, most: 33, bit: 2 };
/// The span's id, as it was called before.
pub const PROFILE_ID: Place =
    Place { at: offset_of!(LabelRecord, profile_id) + 2, most: 17, bit: 4 };
/// The span's name.
pub const NAME: Place = Place { at: size_of::<LabelRecord>(), most: LABEL_NAME_MAX as u64, bit: 8 };

/// The place of the label with this key, given as its length and its bytes with zeros behind them.
#[inline(always)]
#[must_use]
pub fn place(len: u64, key: [u64; 2]) -> Option<Place> {
    /// Eight bytes of a text with zeros behind it.
    const fn word(text: &[u8], from: usize) -> u64 {
        let mut bytes = [0; 8];
        let mut at = 0;
        while at < 8 && from + at < text.len() {
            bytes[at] = text[from + at];
            at += 1;
        }
        u64::from_ne_bytes(bytes)
    }
    macro_rules! is {
        ($text:literal) => {
            len == $text.len() as u64 && key == const { [word($text, 0), word($text, 8)] }
        };
    }
    if is!(b"span_id") {
        Some(SPAN_ID)
    } else if is!(b"trace_id") {
        Some(TRACE_ID)
    } else if is!(b"span_name") {
        Some(NAME)
    } else if is!(b"profile_id") {
        Some(PROFILE_ID)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place_of(key: &[u8]) -> Option<Place> {
        let mut bytes = [0; 16];
        bytes[..key.len()].copy_from_slice(key);
        let [first, second] =
            [&bytes[..8], &bytes[8..]].map(|half| u64::from_ne_bytes(half.try_into().unwrap()));
        place(key.len() as u64, [first, second])
    }

    #[test]
    fn a_key_has_its_place() {
        assert_eq!(place_of(b"span_id"), Some(SPAN_ID));
        assert_eq!(place_of(b"trace_id"), Some(TRACE_ID));
        assert_eq!(place_of(b"span_name"), Some(NAME));
        assert_eq!(place_of(b"profile_id"), Some(PROFILE_ID));
        for other in [&b"span_id\0"[..], b"span_ie", b"span_namf", b"trace_i", b"profile_i", b""] {
            assert_eq!(place_of(other), None, "{other:?}");
        }
        for key in [&b"span_id"[..], b"trace_id", b"span_name", b"profile_id"] {
            assert!(KEY_LEN.contains(&(key.len() as u64)));
        }
    }

    #[test]
    fn a_slice_has_its_pairs_one_after_the_other() {
        assert_eq!(pairs(GO_SLICE, [0x1000, 3, 4]), Pairs { at: 0x1000, count: 3, cut: false });
        assert_eq!(pairs(CUSTOM, [0x1000, 33, 64]), Pairs { at: 0x1000, count: 32, cut: true });
        assert_eq!(pairs(CUSTOM, [0, u64::MAX, 0]), Pairs { at: 0, count: 32, cut: true });
        assert_eq!(pair(GO_SLICE, 0x1000, 2), (0x1040, 16));
        assert_eq!(string(GO_SLICE, [0x77, 5]), (0x77, 5));
        assert_eq!(string(CUSTOM, [5, 0x77]), (0x77, 5));
    }

    #[test]
    fn a_map_has_its_pairs_in_buckets() {
        let map = |count: u64, log: u64| pairs(GO_MAP, [count, log << 8 | 1, 0x1000]);
        assert_eq!(map(3, 0), Pairs { at: 0x1000, count: 8, cut: false });
        assert_eq!(map(9, 1), Pairs { at: 0x1000, count: 16, cut: true });
        assert_eq!(map(40, 3), Pairs { at: 0x1000, count: 32, cut: true });
        assert_eq!(pair(GO_MAP, 0x1000, 1), (0x1018, 128));
        assert_eq!(pair(GO_MAP, 0x1000, 9), (0x1000 + 272 + 24, 128));
    }
}
