//! What a process had mapped at one time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::ElfId;
use crate::decode::Addr;

/// The executable mappings of a process, as they were read at one time. Never changed: a process
/// that maps something else gets another snapshot, of another epoch.
#[derive(Debug)]
pub struct MappingSnapshot {
    epoch: u64,
    mappings: Box<[Mapping]>,
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
    /// The offset in the file of an address in this mapping.
    #[must_use]
    pub fn file_offset_of(&self, addr: Addr) -> u64 {
        addr.0.wrapping_sub(self.start).wrapping_add(self.file_offset)
    }
}

impl MappingSnapshot {
    /// A snapshot of an epoch of its own. Sorts; of mappings that overlap, which a process that
    /// maps while it is read can show, the lower one stays.
    #[must_use]
    pub fn new(mut mappings: Vec<Mapping>, truncated: bool) -> Self {
        mappings.retain(|mapping| mapping.start < mapping.end);
        mappings.sort_by_key(|mapping| mapping.start);
        let mut end = 0;
        mappings.retain(|mapping| {
            let apart = mapping.start >= end;
            if apart {
                end = mapping.end;
            }
            apart
        });
        Self { epoch: next_epoch(), mappings: mappings.into(), truncated }
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
        let behind = self.mappings.partition_point(|mapping| mapping.start <= addr.0);
        let mapping = self.mappings.get(behind.checked_sub(1)?)?;
        (addr.0 < mapping.end).then_some(mapping)
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
