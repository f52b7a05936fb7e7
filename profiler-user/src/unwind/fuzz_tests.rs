//! Files that are nearly right: those that were kept, and others made of them by chance.
//!
//! `tests/data/fuzz/unwind` holds files whose names begin with what is to come of them: `table`, or
//! the reason for there being none. `PROPTEST_CASES` says how many others are tried.

use std::{cell::Cell, collections::BTreeSet, fs, io, path::PathBuf, sync::OnceLock};

use profiler_common::unwind::{END_WORDS, GRANULE_SHIFT, GRANULE_WORDS, PAGE_SHIFT, Rule};
use proptest::{prelude::*, sample::Index};

use super::{Limits, ReadAt, UnwindTable, build};

/// As small as the files, so that they meet them.
const LIMITS: Limits = Limits { section_bytes: 1 << 14, rows: 1 << 10 };

/// Headers, the names of sections, and each section that is looked for.
const READ_MAX: u64 = 3 * (1 << 20);

struct Counted {
    bytes: Vec<u8>,
    read: Cell<u64>,
}

impl ReadAt for Counted {
    fn size(&self) -> io::Result<u64> {
        self.bytes.size()
    }

    fn read_exact_at(&self, to: &mut [u8], offset: u64) -> io::Result<()> {
        self.read.set(self.read.get() + u64::try_from(to.len()).unwrap());
        self.bytes.read_exact_at(to, offset)
    }
}

/// Makes the table of a file, and checks that it is one. What came of it.
fn exercise(bytes: &[u8]) -> &'static str {
    let file = Counted { bytes: bytes.to_vec(), read: Cell::new(0) };
    let built = build(&file, &LIMITS);
    assert!(file.read.get() < READ_MAX, "{} bytes read", file.read.get());
    match built {
        Ok(table) => {
            check(&table);
            "table"
        }
        Err(error) => error.reason(),
    }
}

/// So many pages are looked at: a file of some bytes can say that it has 4 GiB of text.
const PAGES_MAX: usize = 32;

/// Rows ascend, are found, and are what the BPF program is given.
fn check(table: &UnwindTable) {
    assert!(table.rules().len() <= usize::from(u16::MAX) + 1);
    let first = table.layout().first_address();
    assert_eq!(table.lookup(first.wrapping_sub(1)), Rule::NONE);
    let numbers: Vec<u16> = (0..table.rules().len()).map(|at| at.try_into().unwrap()).collect();
    let mut words = Vec::new();
    let mut rows = table.rows();
    let mut last = None;
    for page in 0..table.page_count().min(PAGES_MAX) {
        table.block(page, &numbers, &mut words);
        assert_eq!(words.len(), table.block_len(page));
        let (index, block) = words.split_at(GRANULE_WORDS);
        let (block, end) = block.split_at(block.len() - END_WORDS);
        assert_eq!((block.len(), end), (table.rows_in(page).into(), &[u32::MAX; END_WORDS][..]));
        let begin = first + (u64::try_from(page).unwrap() << PAGE_SHIFT);
        for word in block {
            let row = rows.next().unwrap();
            let rule = table.rules()[usize::try_from(*word & 0xffff).unwrap()];
            assert_eq!(row, (begin + u64::from(*word >> PAGE_SHIFT), rule));
            assert_eq!(table.lookup(row.0), rule);
            assert!(last < Some(row.0));
            last = Some(row.0);
        }
        // Each granule begins in the row that holds there.
        let entries = index.iter().flat_map(|word| [word & 0xffff, word >> 16]);
        for (granule, entry) in entries.enumerate() {
            let start = u32::try_from(granule << GRANULE_SHIFT).unwrap();
            let behind = block.partition_point(|word| word >> PAGE_SHIFT <= start);
            assert_eq!(usize::try_from(entry).unwrap() + 1, behind, "{page} {granule}");
        }
    }
    assert!(table.page_count() > PAGES_MAX || rows.next().is_none());
    for segment in table.layout().segments() {
        let (offset, len) = (segment.file_offset, segment.file_size);
        // What is mapped of the file there is text of it.
        let is_text = segment.executable && len != 0 && offset.checked_add(len).is_some();
        assert!(table.layout().bias(0, len, offset).is_some() || !is_text);
    }
}

fn kept() -> &'static [(String, Vec<u8>)] {
    static KEPT: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    KEPT.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/fuzz/unwind");
        let mut kept: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
            })
            .collect();
        kept.sort();
        kept
    })
}

#[test]
fn files_that_were_kept_come_to_what_their_names_say() {
    let kept = kept();
    let reasons: BTreeSet<&str> = kept
        .iter()
        .map(|(name, bytes)| {
            let outcome = exercise(bytes);
            assert_eq!(name.split('-').next(), Some(outcome), "{name}");
            outcome
        })
        .collect();
    let every = [
        "compressed",
        "malformed",
        "no_unwind_information",
        "other_machine",
        "table",
        "too_large",
        "unreadable",
    ];
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), every);
}

/// A change to a file, at a place.
#[derive(Clone, Debug)]
enum Change {
    Byte(u8),
    /// What is at the limits of types.
    Long(u64),
    /// As much as to the second place goes to the first.
    Copy(Index),
    Cut,
}

fn change() -> impl Strategy<Value = (Index, Change)> {
    let longs = [0, 1, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX, 1 << 47];
    let change = prop_oneof![
        6 => any::<u8>().prop_map(Change::Byte),
        3 => prop::sample::select(longs.to_vec()).prop_map(Change::Long),
        2 => any::<Index>().prop_map(Change::Copy),
        1 => Just(Change::Cut),
    ];
    (any::<Index>(), change)
}

fn apply(file: &mut Vec<u8>, (place, change): &(Index, Change)) {
    if file.is_empty() {
        return;
    }
    let at = place.index(file.len());
    match change {
        Change::Byte(byte) => file[at] = *byte,
        Change::Long(long) => {
            for (to, byte) in file[at..].iter_mut().zip(long.to_le_bytes()) {
                *to = byte;
            }
        }
        Change::Copy(from) => {
            let from = from.index(file.len());
            let len = 32.min(file.len() - at.max(from));
            file.copy_within(from..from + len, at);
        }
        Change::Cut => file.truncate(at),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(2000),
        ..ProptestConfig::default()
    })]

    #[test]
    fn files_that_are_nearly_right(
        which in any::<Index>(),
        changes in prop::collection::vec(change(), 1..8),
    ) {
        let kept = kept();
        let mut file = kept[which.index(kept.len())].1.clone();
        changes.iter().for_each(|change| apply(&mut file, change));
        exercise(&file);
    }
}
