//! What of a thread's span record is copied into a sample, and the C libraries' thread vectors.

use profiler_common::span::{GLIBC_DTV_ENTRY_SHIFT, SPAN_ATTRIBUTES_MAX, SPAN_HEADER_LEN};

/// The offset of `valid` in the record's header.
pub const VALID: usize = 24;
/// The offset of the attributes' length, a `u16`, in the record's header.
pub const ATTRIBUTES_LEN: usize = 26;

/// How many attribute bytes to copy of a record that claims `claimed`, and whether that is all.
#[inline(always)]
#[must_use]
pub fn attributes_to_copy(claimed: u16) -> (usize, bool) {
    let claimed = claimed as usize;
    if claimed > SPAN_ATTRIBUTES_MAX { (SPAN_ATTRIBUTES_MAX, false) } else { (claimed, true) }
}

/// The length of a record with that many attribute bytes, rounded up to whole words.
#[inline(always)]
#[must_use]
pub fn padded_len(attributes_len: usize) -> usize {
    (SPAN_HEADER_LEN + attributes_len).next_multiple_of(8)
}

/// Where the length of a thread's dynamic thread vector is, whose entries are `1 << shift` bytes:
/// glibc has it in the entry before (`dtv[-1].counter`), musl in the first one (`dtv[0]`).
#[inline(always)]
#[must_use]
pub fn length_of_dtv(dtv: u64, shift: u32) -> u64 {
    if shift == u32::from(GLIBC_DTV_ENTRY_SHIFT) { dtv.wrapping_sub(1 << shift) } else { dtv }
}

/// Whether an entry of a dynamic thread vector is a block: 0 and, in glibc, -1
/// (`TLS_DTV_UNALLOCATED`) say that the thread has not touched the module's variables.
#[inline(always)]
#[must_use]
pub fn has_block(entry: u64) -> bool {
    entry.wrapping_add(1) > 1
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use profiler_common::span::SpanHeader;

    use super::*;

    #[test]
    fn offsets_are_those_of_the_shared_layout() {
        assert_eq!(VALID, offset_of!(SpanHeader, valid));
        assert_eq!(ATTRIBUTES_LEN, offset_of!(SpanHeader, attributes_len));
    }

    #[test]
    fn a_record_is_cut_at_the_most_that_is_read() {
        assert_eq!(attributes_to_copy(0), (0, true));
        assert_eq!(attributes_to_copy(612), (612, true));
        assert_eq!(attributes_to_copy(613), (612, false));
        assert_eq!(attributes_to_copy(u16::MAX), (612, false));
    }

    #[test]
    fn a_thread_vector_tells_how_long_it_is() {
        assert_eq!(length_of_dtv(0x1000, 4), 0xff0);
        assert_eq!(length_of_dtv(0x1000, 3), 0x1000);
        assert_eq!(length_of_dtv(0, 4), u64::MAX - 15);
    }

    #[test]
    fn a_thread_may_have_no_block() {
        assert!(!has_block(0) && !has_block(u64::MAX));
        assert!(has_block(1) && has_block(u64::MAX - 1));
    }

    #[test]
    fn records_fill_whole_words() {
        assert_eq!(padded_len(0), 32);
        assert_eq!(padded_len(4), 32);
        assert_eq!(padded_len(5), 40);
        assert_eq!(padded_len(612), 640);
    }
}
