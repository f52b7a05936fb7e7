//! What a process had mapped at one time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::ElfId;
use crate::decode::{Addr, BootTime, CodeMapping, FileNumber, Pid};

/// The executable mappings of a process, as they were read at one time. Never changed: a process
/// that maps something else gets another snapshot, of another epoch.
#[derive(Debug)]
pub struct MappingSnapshot {
    epoch: u64,
    /// Just before they were read: what was mapped later can be missing.
    read_at: BootTime,
    mappings: Box<[Mapping]>,
    /// The file of each.
    files: Box<[FileNumber]>,
    truncated: bool,
}

/// One executable mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// The first address.
    pub start: u64,
    /// The address behind the last one.
    pub end: u64,
    /// Where in the file `start` is.
    pub file_offset: u64,
    /// What is mapped.
    pub backing: Backing,
}

/// What is behind a mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// An ELF file; the vDSO is one.
    Elf(ElfId),
    /// No ELF file: code made at run time.
    Anonymous,
    /// The kernel's own, such as `[vsyscall]`.
    Special(Box<str>),
}

impl Mapping {
    /// Whether it is at this address.
    #[must_use]
    pub fn holds(&self, addr: Addr) -> bool {
        self.start <= addr.0 && addr.0 < self.end
    }

    /// The offset in the file of an address in this mapping.
    #[must_use]
    pub fn file_offset_of(&self, addr: Addr) -> u64 {
        addr.0.wrapping_sub(self.start).wrapping_add(self.file_offset)
    }
}

impl MappingSnapshot {
    /// A snapshot of which the time and the numbers of the files are not known.
    #[must_use]
    pub fn new(mappings: Vec<Mapping>, truncated: bool) -> Self {
        let of_no_file = |mapping| (mapping, FileNumber::default());
        Self::read(BootTime(0), mappings.into_iter().map(of_no_file).collect(), truncated)
    }

    /// A snapshot of an epoch of its own. Sorts; of mappings that overlap, which a process that
    /// maps while it is read can show, the lower one stays.
    pub(super) fn read(
        read_at: BootTime,
        mut mappings: Vec<(Mapping, FileNumber)>,
        truncated: bool,
    ) -> Self {
        mappings.retain(|(mapping, _)| mapping.start < mapping.end);
        mappings.sort_by_key(|(mapping, _)| mapping.start);
        let mut end = 0;
        mappings.retain(|(mapping, _)| {
            let apart = mapping.start >= end;
            if apart {
                end = mapping.end;
            }
            apart
        });
        let (mappings, files): (Vec<_>, Vec<_>) = mappings.into_iter().unzip();
        let (mappings, files) = (mappings.into(), files.into());
        Self { epoch: next_epoch(), read_at, mappings, files, truncated }
    }

    /// A snapshot without mappings.
    #[must_use]
    pub fn empty() -> Arc<Self> {
        Arc::new(Self::new(Vec::new(), false))
    }

    /// Stands for this snapshot; never given to another.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What was mapped before this time, and is there still, is in it.
    pub(super) fn read_at(&self) -> BootTime {
        self.read_at
    }

    /// The mappings, by address; they do not overlap.
    #[must_use]
    pub fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    /// There were more mappings than are kept: an address that is in none may be in one of those.
    #[must_use]
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// The mapping that holds an address.
    #[must_use]
    pub fn find(&self, addr: Addr) -> Option<&Mapping> {
        self.mappings.get(self.index_of(addr)?)
    }

    /// Whether something else is in it anywhere in the place of a mapping that a process made.
    pub(super) fn has_another_in_place_of(&self, made: &CodeMapping) -> bool {
        let first = self.mappings.partition_point(|mapping| mapping.end <= made.begin.0);
        let last = self.mappings.partition_point(|mapping| mapping.start < made.end.0);
        (first..last).any(|index| !self.is_same(index, made))
    }

    /// Whether something else is in it at an address that a process made a mapping of.
    pub(super) fn has_another_at(&self, addr: Addr, made: &CodeMapping) -> bool {
        self.index_of(addr).is_some_and(|index| !self.is_same(index, made))
    }

    /// The mappings as if a process had made them at a time.
    pub(super) fn as_made(&self, pid: Pid, at: BootTime) -> impl Iterator<Item = CodeMapping> {
        self.mappings.iter().zip(&self.files).map(move |(mapping, file)| CodeMapping {
            at,
            pid,
            begin: Addr(mapping.start),
            end: Addr(mapping.end),
            file_offset: mapping.file_offset,
            file: *file,
        })
    }

    fn index_of(&self, addr: Addr) -> Option<usize> {
        let behind = self.mappings.partition_point(|mapping| mapping.start <= addr.0);
        let index = behind.checked_sub(1)?;
        self.mappings.get(index).filter(|mapping| mapping.holds(addr)).map(|_| index)
    }

    /// Whether a mapping that was made says the same of its addresses.
    fn is_same(&self, index: usize, made: &CodeMapping) -> bool {
        let (Some(mapping), Some(file)) = (self.mappings.get(index), self.files.get(index)) else {
            return false;
        };
        // The kernel gives memory without a file an offset of its own, and what is in it changes as
        // its process likes.
        let same_place = mapping.file_offset.wrapping_sub(mapping.start)
            == made.file_offset.wrapping_sub(made.begin.0);
        *file == made.file && (same_place || mapping.backing == Backing::Anonymous)
    }
}

fn next_epoch() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mapping(start: u64, end: u64) -> Mapping {
        Mapping { start, end, file_offset: 0x40, backing: Backing::Anonymous }
    }

    #[test]
    fn finds_by_address() {
        let snapshot = MappingSnapshot::new(
            vec![mapping(0x5000, 0x6000), mapping(0x1000, 0x2000), mapping(0x2000, 0x3000)],
            false,
        );
        let found = |addr| snapshot.find(Addr(addr)).map(|mapping| mapping.start);
        assert_eq!(found(0xfff), None);
        assert_eq!(found(0x1000), Some(0x1000));
        assert_eq!(found(0x1fff), Some(0x1000));
        assert_eq!(found(0x2000), Some(0x2000));
        assert_eq!(found(0x3000), None);
        assert_eq!(found(0x5fff), Some(0x5000));
        assert_eq!(found(u64::MAX), None);
        assert_eq!(MappingSnapshot::empty().find(Addr(0)), None);
    }

    #[test]
    fn knows_the_offset_in_the_file() {
        assert_eq!(mapping(0x1000, 0x2000).file_offset_of(Addr(0x1234)), 0x274);
    }

    #[test]
    fn an_epoch_is_never_used_twice() {
        assert_ne!(MappingSnapshot::empty().epoch(), MappingSnapshot::empty().epoch());
    }

    #[test]
    fn knows_what_is_in_the_place_of_something_else() {
        let file = FileNumber { device: (8, 1), inode: 7 };
        let elf = Mapping { backing: Backing::Elf(ElfId(1)), ..mapping(0x2000, 0x4000) };
        let code = (mapping(0x5000, 0x6000), FileNumber::default());
        let snapshot = MappingSnapshot::read(BootTime(9), vec![(elf, file), code], false);
        let made = |begin, end, file_offset, file| CodeMapping {
            at: BootTime(10),
            pid: Pid(1),
            begin: Addr(begin),
            end: Addr(end),
            file_offset,
            file,
        };
        let (other, none) = (FileNumber { inode: 8, ..file }, FileNumber::default());
        let is_another = |begin, end, file_offset, file| {
            let made = made(begin, end, file_offset, file);
            let at_begin = snapshot.has_another_at(made.begin, &made);
            assert!(!at_begin || snapshot.has_another_in_place_of(&made));
            (snapshot.has_another_in_place_of(&made), at_begin)
        };
        // The same again, a part of it, and from another offset on.
        assert_eq!(is_another(0x2000, 0x4000, 0x40, file), (false, false));
        assert_eq!(is_another(0x3000, 0x4000, 0x1040, file), (false, false));
        assert_eq!(is_another(0x2000, 0x4000, 0x1040, file), (true, true));
        assert_eq!(is_another(0x1000, 0x2001, 0x40, other), (true, false));
        assert_eq!(is_another(0x3fff, 0x4001, 0x40, other), (true, true));
        // Where nothing was, nothing is replaced.
        assert_eq!(is_another(0x4000, 0x5000, 0x40, other), (false, false));
        assert_eq!(is_another(0, 0x2000, 0x40, other), (false, false));
        // The kernel gives memory without a file an offset of its own.
        assert_eq!(is_another(0x5000, 0x6000, 0x5000, none), (false, false));
        assert_eq!(is_another(0x5000, 0x6000, 0, file), (true, true));
        assert_eq!(is_another(0x2000, 0x3000, 0x2000, none), (true, true));
    }

    proptest! {
        #[test]
        fn any_mappings_end_up_apart(ranges in prop::collection::vec(any::<(u64, u64)>(), 0..50)) {
            let mappings = ranges.iter().map(|(start, end)| mapping(*start, *end)).collect();
            let snapshot = MappingSnapshot::new(mappings, false);
            let apart = |pair: &[Mapping]| pair[0].end <= pair[1].start;
            prop_assert!(snapshot.mappings().windows(2).all(apart));
            for mapping in snapshot.mappings() {
                prop_assert_eq!(snapshot.find(Addr(mapping.start)), Some(mapping));
                prop_assert_eq!(snapshot.find(Addr(mapping.end - 1)), Some(mapping));
            }
        }
    }
}
