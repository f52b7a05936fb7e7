//! What the client remembers of the ELF files that it was asked about.

use std::collections::HashMap;
use std::sync::Arc;

use super::stats::Unsymbolized;
use crate::process::ElfId;
use crate::symbolize::protocol::Segment;

/// How often a file may end the worker before it is not tried again.
const DEATHS_MAX: u8 = 2;

/// The most files that are remembered; the one not used for longest is forgotten.
const FILES_MAX: usize = 4096;

/// The most files that a worker has open: each is up to four descriptors of its 1024.
const OPEN_FILES_MAX: usize = 128;

/// One file.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownFile {
    /// How often it ended a worker.
    pub(super) deaths: u8,
    /// Why it has no names, for good.
    pub(super) refused: Option<Unsymbolized>,
    /// What is loaded where, once a worker has said so.
    pub(super) segments: Arc<[Segment]>,
    /// The worker has it open.
    pub(super) is_open: bool,
    used: u64,
}

impl KnownFile {
    /// Why it is not asked about.
    pub(super) fn excluded(&self) -> Option<Unsymbolized> {
        self.refused.or((self.deaths >= DEATHS_MAX).then_some(Unsymbolized::Quarantined))
    }
}

/// The files by id.
#[derive(Debug, Default)]
pub(super) struct KnownFiles {
    files: HashMap<ElfId, KnownFile>,
    clock: u64,
}

impl KnownFiles {
    /// The file, as used now.
    pub(super) fn touch(&mut self, elf: ElfId) -> &mut KnownFile {
        if self.files.len() >= FILES_MAX && !self.files.contains_key(&elf) {
            // One that is open would stay open in the worker, unknown to us.
            let closed = self.files.iter().filter(|(_, file)| !file.is_open);
            if let Some(oldest) = closed.min_by_key(|(_, file)| file.used).map(|(elf, _)| *elf) {
                self.files.remove(&oldest);
            }
        }
        self.clock += 1;
        let file = self.files.entry(elf).or_default();
        file.used = self.clock;
        file
    }

    /// The file, if it is known.
    pub(super) fn get(&self, elf: ElfId) -> Option<&KnownFile> {
        self.files.get(&elf)
    }

    /// The file that the worker is to close before it opens another one.
    pub(super) fn to_close(&self) -> Option<ElfId> {
        let open = || self.files.iter().filter(|(_, file)| file.is_open);
        let oldest = open().min_by_key(|(_, file)| file.used).map(|(elf, _)| *elf);
        oldest.filter(|_| open().count() >= OPEN_FILES_MAX)
    }

    /// The worker is gone, and with it what it had open.
    pub(super) fn all_closed(&mut self) {
        for file in self.files.values_mut() {
            file.is_open = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_not_used_for_longest_is_forgotten() {
        let mut files = KnownFiles::default();
        for id in 0..10_000 {
            files.touch(ElfId(id));
            files.touch(ElfId(0));
        }
        assert_eq!(files.files.len(), FILES_MAX);
        assert!(files.get(ElfId(0)).is_some());
        assert!(files.get(ElfId(1)).is_none());
    }

    #[test]
    fn the_open_file_not_used_for_longest_is_closed() {
        let mut files = KnownFiles::default();
        for id in 0..128 {
            assert_eq!(files.to_close(), None);
            files.touch(ElfId(id)).is_open = true;
        }
        files.touch(ElfId(0));
        assert_eq!(files.to_close(), Some(ElfId(1)));
        files.all_closed();
        assert_eq!(files.to_close(), None);
    }
}
