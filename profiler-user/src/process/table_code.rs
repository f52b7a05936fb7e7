//! What processes map in the place of something else while they run, a library that is loaded where
//! another one was above all: what is known of them is read again, and stacks that were walked in
//! between are told apart.

use std::sync::Arc;

use super::table_entry::{Entry, State};
use super::{Process, ProcessTable};
use crate::decode::{Addr, BootTime, CodeMapping, Pid};

/// How many mappings of a process are looked at in a second: a look takes a microsecond, or ten where
/// it has as many mappings as there can be.
pub(super) const MAPPED_PER_SECOND: u32 = 1000;

impl ProcessTable {
    /// With a clock that tells when processes are read. Without, that is the latest time that the
    /// table was told: earlier than it was, because samples and events come late.
    #[must_use]
    pub fn with_clock(mut self, clock: fn() -> BootTime) -> Self {
        self.clock = Some(clock);
        self
    }

    /// A process has mapped something to run it. Where nothing was, that is no news: samples ask.
    pub fn on_code_mapped(&mut self, mapping: CodeMapping) {
        self.now = self.now.max(mapping.at);
        let Some(entry) = self.processes.get_mut(&mapping.pid) else { return };
        if !entry.mapped_allowance.take(self.now) {
            return self.on_code_mappings_lost();
        }
        if entry.replaced.note(mapping, entry.images.snapshots()) {
            self.stats.code_replaced += 1;
            self.read_if_needed(mapping.pid, mapping.at, &[]);
        }
    }

    /// Reports of mappings were lost: what any process has may be something else. The next rescan
    /// comes when it is due, because a process that maps much loses those of all others.
    pub fn on_code_mappings_lost(&mut self) {
        self.stats.code_mappings_lost += 1;
        self.rescan.code_mappings_lost = true;
    }

    /// What a stack of a process was walked with, which was sampled at a time, and whether that was
    /// wrong: it ran another program by then, or had something else where these addresses, leaf
    /// first, are. Then what is given knows the leaf at most. `epoch` is that of the mappings, 0 if
    /// there were none.
    #[must_use]
    pub fn walked(
        &self,
        pid: Pid,
        at: BootTime,
        epoch: u64,
        addresses: &[Addr],
    ) -> Option<(Arc<Process>, bool)> {
        let entry = self.processes.get(&pid)?;
        entry.images.walked(at, epoch, addresses, &entry.replaced)
    }

    /// The time, by the clock where there is one.
    pub(super) fn read_clock(&mut self) -> BootTime {
        if let Some(clock) = self.clock {
            self.now = self.now.max(clock());
        }
        self.now
    }
}

impl Entry {
    /// Whether what is known of its mappings is wrong by now.
    pub(super) fn is_spoilt(&self) -> bool {
        let Some((_, newest)) = self.images.newest() else { return false };
        let found_at = match &self.state {
            State::Unread => return false,
            State::Inherited => newest.snapshot.read_at(),
            State::Read(facts) => facts.maps_read_at,
        };
        self.replaced.spoils(&newest.snapshot, found_at)
    }
}
