//! The files that have span-marker's hook: which are to have a probe.

use std::{collections::BTreeMap, fs::File, sync::Arc};

use super::use_order::{Stamp, UseOrder};
use super::{ElfFile, ElfId};

/// A file whose processes are to be heard, or not any more.
#[derive(Clone, Debug)]
pub enum HookFact {
    /// It has a hook.
    Attach {
        /// The file.
        file: Arc<File>,
        /// What processes call it.
        path: Arc<str>,
        /// Where the hook is in it, as the file says.
        offset: u64,
    },
    /// It was forgotten.
    Detach {
        /// Others were used later, and as many have a probe as may.
        over_limit: bool,
    },
}

/// The files that have a probe, and what is to be told of them.
#[derive(Debug, Default)]
pub(super) struct HookFiles {
    by_use: UseOrder<ElfId>,
    /// At most one fact a file.
    facts: BTreeMap<ElfId, HookFact>,
}

impl HookFiles {
    /// A file with a hook was opened; gives its place among them.
    pub(super) fn add(&mut self, elf: &ElfFile, file: &Arc<File>, offset: u64) -> Stamp {
        let (file, path) = (Arc::clone(file), Arc::clone(&elf.path));
        self.facts.insert(elf.id, HookFact::Attach { file, path, offset });
        self.by_use.insert(elf.id)
    }

    pub(super) fn touch(&mut self, stamp: &mut Stamp) {
        self.by_use.touch(stamp);
    }

    /// The file was forgotten.
    pub(super) fn forget(&mut self, id: ElfId, stamp: Stamp, over_limit: bool) {
        self.by_use.remove(stamp);
        self.facts.insert(id, HookFact::Detach { over_limit });
    }

    /// The one used longest ago, where more than `max` have one.
    pub(super) fn over(&self, max: usize) -> Option<ElfId> {
        if self.by_use.len() > max { self.by_use.oldest() } else { None }
    }

    /// What is to be told since the last call.
    pub(super) fn take(&mut self) -> BTreeMap<ElfId, HookFact> {
        std::mem::take(&mut self.facts)
    }
}
