//! From an address to its unwind rule, in what user space published. The layout is that of
//! `profiler_common::unwind`.
//!
//! Searches take no branch that depends on what they compare: the verifier then follows one path
//! through them, not two for each step. Indices are masked, which costs an instruction and spares
//! the verifier a proof.

use profiler_common::unwind::{
    END_WORDS, GRANULE_SHIFT, GRANULE_WORDS, GRANULES, Mapping, PAGE_SHIFT, SEGMENT_WORDS,
    SLICE_ENTRIES_MAX,
};

use crate::bounded::bounded;

/// A segment of mappings.
pub type MappingSegment = [Mapping; SLICE_ENTRIES_MAX];
/// A segment of blocks.
pub type RowSegment = [u32; SEGMENT_WORDS];

/// Which mapping of a slice holds `pc`, if one does: the one that was hit last, or else the last
/// that begins at or below it.
///
/// The slice's mappings are the `len` entries from `first` on.
#[inline(always)]
pub fn mapping_index(segment: &MappingSegment, first: u64, len: u64, hint: u64, pc: u64) -> u64 {
    let hinted = entry(segment, first + hint);
    if pc >= hinted.begin && pc < hinted.end {
        return hint;
    }
    let begin = |index| entry(segment, first + index).begin;
    // One search for all lengths: a second one for short slices would be verified again with
    // everything that follows.
    search::<11>(len, pc, begin)
}

/// An entry of a segment.
#[inline(always)]
pub fn entry(segment: &MappingSegment, index: u64) -> &Mapping {
    &segment[bounded::<SLICE_ENTRIES_MAX>(index)]
}

/// The number of the rule that holds at `offset` in the page whose block begins at word `block` of
/// `segment`, and has `rows` rows.
#[inline(always)]
pub fn rule_number(segment: &RowSegment, block: u64, rows: u64, offset: u64) -> u64 {
    let word = |index: u64| u64::from(segment[bounded::<SEGMENT_WORDS>(index)]);
    let granule_entry = |granule: u64| {
        let pair = word(block + (granule >> 1));
        (pair >> ((granule & 1) << 4)) & 0xffff
    };
    // Between the row in effect where the granule begins and the one where the next begins.
    let granule = offset >> GRANULE_SHIFT;
    let low = granule_entry(granule);
    // Behind the last granule there is no entry: what is read there is not used.
    let is_last = less(GRANULES as u64 - 2, granule);
    let behind = (rows & is_last) | ((granule_entry(granule + 1) + 1) & !is_last);
    let len = behind.wrapping_sub(low) & 0xffff;
    let first = block + GRANULE_WORDS as u64 + low;
    // Above each row at this offset, and below the end of a block.
    let key = offset << PAGE_SHIFT | 0x7fff;
    let at = if len <= END_WORDS as u64 {
        count_up_to::<END_WORDS>(segment, first, key)
    } else {
        search::<9>(len, key, |index| word(first + index)) + 1
    };
    word(first + at.wrapping_sub(1)) & 0x7fff
}

/// How many of the next `N` rows are at most `key`; behind the granule's there are only larger ones.
///
/// All at once, because a search would wait for each row before it knows the next; more than these
/// are rare.
#[inline(always)]
fn count_up_to<const N: usize>(segment: &RowSegment, first: u64, key: u64) -> u64 {
    let first = bounded::<SEGMENT_WORDS>(first);
    let Some(rows) = segment.get(first..first + N) else { return 1 };
    let mut count = N as u64;
    let mut index = 0;
    while index < N {
        count = count.wrapping_add(less(key, u64::from(rows[index])));
        index += 1;
    }
    count
}

/// The last of `len` ascending values that is at most `key`, or the first. `len` is less than
/// 2^(`TOP` + 1) + 1.
#[inline(always)]
fn search<const TOP: u32>(len: u64, key: u64, value: impl Fn(u64) -> u64) -> u64 {
    let mut found = 0;
    let mut bit = TOP;
    loop {
        let candidate = found + (1 << bit);
        let inside = less(candidate, len);
        // Where the candidate is outside, the first value is read: a line that is in the cache.
        found += (1 << bit) & inside & !less(key, value(candidate & inside));
        if bit == 0 {
            return found;
        }
        bit -= 1;
    }
}

/// All ones if `a < b`, else zero; both below 2^63.
///
/// In assembly, because LLVM makes a comparison and a branch of it otherwise, and with a branch in
/// each step a search has 2^steps paths to verify.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn less(a: u64, b: u64) -> u64 {
    let mut difference = a;
    // SAFETY: two arithmetic instructions on registers.
    unsafe {
        core::arch::asm!("{0} -= {1}", "{0} s>>= 63", inout(reg) difference, in(reg) b,
            options(pure, nomem, nostack));
    }
    difference
}

#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
fn less(a: u64, b: u64) -> u64 {
    (a.wrapping_sub(b).cast_signed() >> 63).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use profiler_common::unwind::row;

    #[test]
    fn a_search_finds_the_last_value_that_is_not_larger() {
        for len in 1..=33_u64 {
            let value = |index: u64| {
                assert!(index < len);
                10 * (index + 1)
            };
            for key in 0..=10 * len + 11 {
                let expected = (key / 10).clamp(1, len) - 1;
                assert_eq!(search::<5>(len, key, value), expected, "{len} {key}");
            }
        }
    }

    fn mapping(begin: u64, end: u64) -> Mapping {
        Mapping { begin, end, bias: 0, first_page: 0, kind_and_pages: 0 }
    }

    #[test]
    fn mappings_are_found_from_any_hint() {
        for count in [1, 2, 63, 64, 65, 4000] {
            let mut segment = vec![mapping(0, 0); SLICE_ENTRIES_MAX];
            let first = 50;
            for index in 0..count {
                let begin = 0x1000 * (2 * index + 1);
                segment[usize::try_from(first + index).unwrap()] = mapping(begin, begin + 0x1000);
            }
            let segment: Box<MappingSegment> = segment.into_boxed_slice().try_into().unwrap();
            for index in 0..count {
                let begin = 0x1000 * (2 * index + 1);
                for hint in [0, count / 2, count - 1, index] {
                    for pc in [begin, begin + 0xfff] {
                        assert_eq!(mapping_index(&segment, first, count, hint, pc), index);
                    }
                }
            }
            let behind = mapping_index(&segment, first, count, 0, 0x1000 * 2 * count);
            assert!(entry(&segment, first + behind).end <= 0x1000 * 2 * count);
        }
    }

    /// Each offset of a page with rows here and there, looked up and counted by hand.
    #[test]
    fn every_offset_of_a_page_has_the_rule_of_the_row_before_it() {
        let offsets: Vec<u16> = (0..3000_u32)
            .map(|index| match index {
                0..1500 => index,
                _ => 1500 + (index - 1500) * 37 % 64_000,
            })
            .map(|offset| u16::try_from(offset).unwrap())
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        let block = 777;
        let mut segment = vec![0_u32; SEGMENT_WORDS];
        for (index, offset) in offsets.iter().enumerate() {
            segment[block + GRANULE_WORDS + index] = row(*offset, u16::try_from(index).unwrap());
        }
        let end = block + GRANULE_WORDS + offsets.len();
        segment[end..end + END_WORDS].fill(u32::MAX);
        for granule in 0..GRANULES {
            let start = granule << GRANULE_SHIFT;
            let at = offsets.partition_point(|offset| usize::from(*offset) <= start) - 1;
            segment[block + granule / 2] |= u32::try_from(at).unwrap() << (16 * (granule % 2));
        }
        let segment: Box<RowSegment> = segment.into_boxed_slice().try_into().unwrap();
        for offset in 0..=0xffff_u64 {
            let expected = offsets.partition_point(|at| u64::from(*at) <= offset) - 1;
            let found = rule_number(&segment, block as u64, offsets.len() as u64, offset);
            assert_eq!(found, expected as u64, "{offset:#x}");
        }
    }
}
