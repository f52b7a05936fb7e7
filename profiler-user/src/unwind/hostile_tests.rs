//! Files that are made to cost much. Each is small; what it costs is bounded by counting, which is
//! what these tests look at, and not by a clock.

use std::io;

use profiler_common::unwind::{END_WORDS, GRANULE_WORDS, Rule};

use super::made_elf::{Form, MadeElf, MadeFrames, TEXT, X86_64_START};
use super::{BuildError, Limits, ReadAt, build};

fn frames() -> MadeFrames {
    MadeFrames::new(Form::Eh).common("", 16, &X86_64_START)
}

#[track_caller]
fn check_too_large(file: &MadeElf, limits: Limits, expected: &str) {
    match build(&file.bytes(), &limits) {
        Err(BuildError::TooLarge(what)) => assert_eq!(what, expected),
        other => panic!("{other:?}"),
    }
}

const REMEMBER_RESTORE: [u8; 2] = [0x0a, 0x0b];
const WORK: &str = "work";

#[test]
fn rows_that_are_copied_over_and_over_are_too_much_work() {
    let copies = REMEMBER_RESTORE.repeat(1 << 20);
    let frames = frames().function(TEXT, 0x100, &copies);
    check_too_large(
        &MadeElf::new(0x1000).section(".eh_frame", frames.bytes),
        Limits::default(),
        WORK,
    );
}

#[test]
fn a_large_common_entry_that_many_functions_share_is_too_much_work() {
    let nothing = vec![0; 1 << 16];
    let mut frames = MadeFrames::new(Form::Eh).common("", 16, &nothing);
    for function in 0..100 {
        frames = frames.function(TEXT + function * 32, 16, &[]);
    }
    check_too_large(
        &MadeElf::new(0x1000).section(".eh_frame", frames.bytes),
        Limits::default(),
        WORK,
    );
}

#[test]
fn rows_of_one_function_are_limited_as_they_are_made() {
    // Each step of one byte has another CFA.
    let steps = [0x41, 0x0e, 16, 0x41, 0x0e, 8].repeat(1000);
    let frames = frames().function(TEXT, 0x1000, &steps);
    let file = MadeElf::new(0x1000).section(".eh_frame", frames.bytes);
    let limits = Limits { rows: 1500, ..Limits::default() };
    check_too_large(&file, limits, "rows");
    let table = build(&file.bytes(), &Limits::default()).unwrap();
    assert_eq!(table.stats().fdes_skipped, 0);
    assert!(table.row_count() > 2000, "{}", table.row_count());
}

#[test]
fn functions_are_limited_though_they_have_no_rows_of_their_own() {
    let mut frames = frames();
    for _ in 0..100 {
        frames = frames.function(TEXT, 16, &[]);
    }
    let file = MadeElf::new(0x1000).section(".eh_frame", frames.bytes);
    check_too_large(&file, Limits { rows: 99, ..Limits::default() }, "functions");
}

#[test]
fn more_registers_than_code_has_make_one_function_unsupported() {
    use profiler_common::unwind::{CFA_SP, CFA_UNSUPPORTED};
    let registers: Vec<u8> = (20..90).flat_map(|register| [0x05, register, 2]).collect();
    let frames = frames().function(TEXT, 0x100, &registers).function(TEXT + 0x100, 0x100, &[]);
    let file = MadeElf::new(0x1000).section(".eh_frame", frames.bytes);
    let table = build(&file.bytes(), &Limits::default()).unwrap();
    assert_eq!(table.lookup(TEXT).cfa, CFA_UNSUPPORTED);
    assert_eq!(table.lookup(TEXT + 0x100).cfa, CFA_SP);
    assert_eq!(table.stats().fdes_skipped, 1);
}

#[test]
fn steps_beyond_the_last_address_end_their_function() {
    // DW_CFA_advance_loc4 by 2^32 - 1, from a few addresses before the last.
    let steps = [4, 0xff, 0xff, 0xff, 0xff, 0x0e, 16, 4, 0xff, 0xff, 0xff, 0xff, 0x0e, 24];
    let frames = frames().function(u64::MAX - 16, 16, &steps).function(TEXT, 0x100, &steps);
    let file = MadeElf::new(0x1000).section(".eh_frame", frames.bytes);
    let table = build(&file.bytes(), &Limits::default()).unwrap();
    assert_eq!(table.lookup(TEXT + 0xff).cfa_offset, 8);
}

#[test]
fn functions_that_point_to_themselves_or_nowhere_are_counted() {
    let mut frames = frames().function(TEXT, 0x100, &[]).bytes;
    frames.extend(20_u32.to_le_bytes());
    // The distance from this field to the entry's beginning, which is no common entry.
    frames.extend(4_u32.to_le_bytes());
    frames.extend((TEXT + 0x200).to_le_bytes());
    frames.extend(0x100_u64.to_le_bytes());
    frames.extend(20_u32.to_le_bytes());
    // And one whose common entry would be before the section: nothing after it is believed.
    frames.extend(u32::MAX.to_le_bytes());
    frames.extend((TEXT + 0x300).to_le_bytes());
    frames.extend(0x100_u64.to_le_bytes());
    let file = MadeElf::new(0x1000).section(".eh_frame", frames);
    let table = build(&file.bytes(), &Limits::default()).unwrap();
    let stats = table.stats();
    assert_eq!((stats.fdes, stats.fdes_skipped, stats.damaged), (1, 1, true));
}

/// One function, and the rest says nothing.
fn with_text(claimed: usize) -> MadeElf {
    let frames = frames().function(TEXT, 0x100, &[]);
    MadeElf::new(0x1000).text_claimed(claimed).section(".eh_frame", frames.bytes)
}

#[test]
fn text_that_is_not_in_the_file_does_not_count() {
    let table = build(&with_text(4 << 30).bytes(), &Limits::default()).unwrap();
    assert_eq!(table.page_count(), 1);
    assert_ne!(table.lookup(TEXT), Rule::NONE);
    let [segment, ..] = table.layout().segments() else { panic!("no segment") };
    assert!((0x1000..0x2000).contains(&segment.file_size), "{segment:?}");
}

/// A file with a hole at its end.
struct Sparse {
    bytes: Vec<u8>,
    size: u64,
}

impl ReadAt for Sparse {
    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read_exact_at(&self, to: &mut [u8], offset: u64) -> io::Result<()> {
        if offset.checked_add(to.len().try_into().unwrap()).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.fill(0);
        let begin = self.bytes.len().min(usize::try_from(offset).unwrap());
        let there = &self.bytes[begin..];
        let len = there.len().min(to.len());
        to[..len].copy_from_slice(&there[..len]);
        Ok(())
    }
}

#[test]
fn gigabytes_of_text_that_are_a_hole_in_the_file_cost_two_blocks() {
    const MOST: usize = 2 << 30;
    let sparse = |claimed| Sparse { bytes: with_text(claimed).bytes(), size: 8 << 30 };
    let table = build(&sparse(MOST - 0x1000), &Limits::default()).unwrap();
    assert_eq!(table.page_count(), MOST >> 16);
    let block = |rows| 4 * (GRANULE_WORDS + rows + END_WORDS);
    // What is before the function, the function, what is behind it.
    assert_eq!(table.block_bytes(), u64::try_from(block(3) + block(1)).unwrap());
    assert_eq!([0, 1, 2].map(|page| table.only_rule(page).is_some()), [false, true, true]);
    match build(&sparse(MOST), &Limits::default()) {
        Err(BuildError::TooLarge(what)) => assert_eq!(what, "text"),
        other => panic!("{other:?}"),
    }
}
