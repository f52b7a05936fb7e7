//! What a process has mapped in the place of something else, and what follows for stacks.

use std::collections::VecDeque;

use super::MappingSnapshot;
use crate::decode::{Addr, BootTime, CodeMapping};

/// As many mappings are remembered: a library and half a hundred that it needs.
const MADE_MAX: usize = 64;

/// Mappings that a process made in the place of others, by time.
///
/// Nothing reports that a mapping is gone, and nothing needs to: where nothing is mapped no code
/// runs. So whatever is in the place of another mapping was made, and is here.
#[derive(Clone, Debug, Default)]
pub(super) struct Replaced {
    made: VecDeque<Made>,
    /// Those until then are forgotten.
    forgotten: BootTime,
}

#[derive(Clone, Copy, Debug)]
struct Made {
    mapping: CodeMapping,
    /// The snapshot of this epoch was seen to have it, though it may have a file of another number:
    /// some file systems have two for one file (overlayfs, Linux 6.8 to 6.17).
    is_in: Option<u64>,
}

impl Made {
    fn covers(&self, addr: Addr) -> bool {
        self.mapping.begin <= addr && addr < self.mapping.end
    }

    fn meets(&self, other: &CodeMapping) -> bool {
        self.mapping.begin < other.end && other.begin < self.mapping.end
    }

    fn spoils(&self, snapshot: &MappingSnapshot) -> bool {
        self.is_in != Some(snapshot.epoch()) && snapshot.has_another_in_place_of(&self.mapping)
    }
}

impl Replaced {
    /// Takes note of a mapping, if one of the snapshots has something else in its place; tells
    /// whether one has. In any order: each CPU reports what was made on it.
    #[must_use]
    pub(super) fn note<'a>(
        &mut self,
        mapping: CodeMapping,
        mut snapshots: impl Iterator<Item = &'a MappingSnapshot>,
    ) -> bool {
        let replaces = snapshots.any(|snapshot| {
            snapshot.read_at() < mapping.at && snapshot.has_another_in_place_of(&mapping)
        });
        // What is back where it was counts as well, because something else was there meanwhile.
        if !replaces && !self.made.iter().any(|made| made.meets(&mapping)) {
            return false;
        }
        if self.made.len() >= MADE_MAX
            && let Some(oldest) = self.made.pop_front()
        {
            self.forgotten = self.forgotten.max(oldest.mapping.at);
        }
        let later = self.made.partition_point(|made| made.mapping.at <= mapping.at);
        self.made.insert(later, Made { mapping, is_in: None });
        true
    }

    /// Whether a snapshot of a process, which it was found to have at a time, is wrong by now.
    pub(super) fn spoils(&self, snapshot: &MappingSnapshot, found_at: BootTime) -> bool {
        let since = |made: &&Made| made.mapping.at > found_at;
        self.forgotten > found_at || self.made.iter().filter(since).any(|it| it.spoils(snapshot))
    }

    /// The process was found to have the same mappings as before.
    pub(super) fn found_again(&mut self, snapshot: &MappingSnapshot, found_at: BootTime) {
        let before = self.made.partition_point(|made| made.mapping.at <= found_at);
        for index in 0..before {
            let mut later = self.made.range(index + 1..before);
            if let Some(made) = self.made.get(index).copied()
                && !later.any(|later| later.meets(&made.mapping))
                && let Some(made) = self.made.get_mut(index)
            {
                made.is_in = Some(snapshot.epoch());
            }
        }
    }

    /// Whether what a snapshot has at an address was there at a time.
    pub(super) fn was_there(&self, snapshot: &MappingSnapshot, addr: Addr, at: BootTime) -> bool {
        if self.forgotten > snapshot.read_at().min(at) {
            return false;
        }
        let (then, as_read) = (self.last(addr, at), self.last(addr, snapshot.read_at()));
        let made = then.and_then(|index| self.made.get(index));
        then == as_read
            || made.is_some_and(|made| {
                made.is_in == Some(snapshot.epoch())
                    || !snapshot.has_another_at(addr, &made.mapping)
            })
    }

    /// The last mapping until a time that has an address.
    fn last(&self, addr: Addr, until: BootTime) -> Option<usize> {
        self.made.iter().rposition(|made| made.mapping.at <= until && made.covers(addr))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{FileNumber, Pid};
    use crate::process::{Backing, ElfId, Mapping};

    const HERE: Addr = Addr(0x5010);

    fn file(inode: u64) -> FileNumber {
        FileNumber { device: (8, 1), inode }
    }

    fn made(at: u64, begin: u64, inode: u64) -> CodeMapping {
        CodeMapping {
            at: BootTime(at),
            pid: Pid(1),
            begin: Addr(begin),
            end: Addr(begin + 0x1000),
            file_offset: 0,
            file: file(inode),
        }
    }

    /// Read at a time, with this file at 0x5000.
    fn snapshot(read_at: u64, inode: u64) -> MappingSnapshot {
        let backing = Backing::Elf(ElfId(u32::try_from(inode).unwrap()));
        let mapping = Mapping { start: 0x5000, end: 0x6000, file_offset: 0, backing };
        MappingSnapshot::read(BootTime(read_at), vec![(mapping, file(inode))], false)
    }

    #[test]
    fn a_snapshot_is_right_until_something_else_is_mapped_and_again_when_it_is_back() {
        let (old, new) = (snapshot(10, 1), snapshot(60, 2));
        let mut replaced = Replaced::default();
        let mut note = |mapping| replaced.note(mapping, [&old, &new].into_iter());
        assert!(!note(made(20, 0x4000, 2)), "nothing was there");
        assert!(!note(made(20, 0x5000, 1)), "it is the same");
        assert!(!note(made(9, 0x5000, 2)), "it was read later");
        // What comes back, and what comes late.
        assert!(note(made(30, 0x5000, 2)) && note(made(50, 0x5000, 2)));
        assert!(note(made(40, 0x5000, 1)));
        let right = |snapshot, at| replaced.was_there(snapshot, HERE, BootTime(at));
        assert_eq!(
            [29, 30, 40, 50, 99].map(|at| right(&old, at)),
            [true, false, true, false, false]
        );
        assert_eq!(
            [29, 30, 40, 50, 99].map(|at| right(&new, at)),
            [false, true, false, true, true]
        );
        assert!(replaced.was_there(&old, Addr(0x6000), BootTime(99)));
        assert!(replaced.spoils(&old, BootTime(49)) && !replaced.spoils(&old, BootTime(50)));
    }

    #[test]
    fn a_mapping_that_is_found_to_be_in_a_snapshot_is_in_it_whatever_its_number() {
        let known = snapshot(10, 1);
        let mut replaced = Replaced::default();
        for at in [20, 30] {
            assert!(replaced.note(made(at, 0x5000, at), std::iter::once(&known)));
        }
        replaced.found_again(&known, BootTime(40));
        let right = |at| replaced.was_there(&known, HERE, BootTime(at));
        assert_eq!([19, 20, 30, 50].map(right), [true, false, true, true]);
    }

    #[test]
    fn what_is_forgotten_may_be_anything() {
        let known = snapshot(10, 1);
        let mut replaced = Replaced::default();
        for at in 20..=84 {
            assert!(replaced.note(made(at, 0x5000, 2), std::iter::once(&known)));
        }
        assert_eq!(replaced.made.len(), MADE_MAX);
        assert!(replaced.spoils(&known, BootTime(19)) && !replaced.spoils(&known, BootTime(84)));
        assert!(!replaced.was_there(&known, Addr(0x9000), BootTime(99)));
        assert!(replaced.was_there(&snapshot(90, 1), HERE, BootTime(99)));
    }
}
