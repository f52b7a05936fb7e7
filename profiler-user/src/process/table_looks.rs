//! The table's looks at processes: scheduled ones, the slow rescan, and what they change.

use std::{collections::HashSet, sync::Arc};

use super::looks::{Look, Purpose, SECOND};
use super::reader::{Looked, ReadMaps};
use super::span_slot::{FoundSlots, SlotSource};
use super::table::{KEPT, TICK};
use super::table_entry::State;
use super::{Process, ProcessTable, Unreadable};
use crate::decode::{BootTime, Pid};

/// Every so many rescans the mappings of all processes are read, also of those that have as much
/// mapped as before.
const FULL_RESCAN_EVERY: u64 = 6;

/// When so much text of mappings was read in one turn, the rest waits for the next one: samples do
/// not wait for it. A usual process has some kilobytes, none more than 16 MiB.
const TURN_TEXT: usize = 1 << 20;

impl ProcessTable {
    /// Does what is due, a bounded part of it. To be called every few milliseconds, or at
    /// [`next_due`](Self::next_due).
    pub fn tick(&mut self, now: BootTime) {
        self.now = self.now.max(now);
        let turn_ends = self.reader.text_read.saturating_add(TURN_TEXT);
        while self.reader.text_read < turn_ends
            && self.look_allowance.left(self.now)
            && let Some(look) = self.looks.take_due(self.now)
        {
            self.take_look(look);
        }
        self.tick_rescan(turn_ends);
        if self.sweep_at <= self.now {
            self.sweep_at = BootTime(self.now.0.saturating_add(SECOND));
            self.sweep();
        }
    }

    /// Events were lost: what is known of any process may be wrong, and all are read again.
    pub fn on_events_lost(&mut self) {
        self.rescan.again = true;
        // A round that distrusts and is under way is not cut short: its end would never be reached.
        if !self.rescan.distrusts {
            self.rescan.queue.clear();
        }
    }

    /// When [`tick`](Self::tick) has something to do.
    #[must_use]
    pub fn next_due(&self) -> BootTime {
        let idle = self.rescan.queue.is_empty() && !self.rescan.again;
        let rescan = if idle { self.rescan.at } else { self.now };
        let due = self.sweep_at.min(rescan);
        self.looks.next_due().map_or(due, |look| look.min(due))
    }

    fn take_look(&mut self, look: Look) {
        let Some(entry) = self.processes.get(&look.pid) else { return };
        if entry.generation != look.generation || entry.gone {
            return;
        }
        if !self.look_allowance.take(self.now) {
            self.stats.looks_dropped += 1;
            return;
        }
        self.stats.looks += 1;
        let done = match look.purpose {
            Purpose::Discover => self.look(look.pid, ReadMaps::Always),
            Purpose::Hooked => {
                self.look(look.pid, ReadMaps::Always);
                true
            }
            Purpose::Exit => self.check_exit(look.pid),
        };
        if done {
            return;
        }
        match look.next() {
            Some(next) => self.schedule(next),
            None if look.purpose == Purpose::Exit => {
                // Only its first thread has exited, others go on.
                if let Some(entry) = self.processes.get_mut(&look.pid) {
                    entry.exited_at = None;
                }
            }
            None => {}
        }
    }

    fn check_exit(&mut self, pid: Pid) -> bool {
        let Some(entry) = self.processes.get(&pid) else { return true };
        let start_time = match &entry.state {
            State::Read(facts) => Some(facts.start_time),
            State::Unread | State::Inherited => None,
        };
        if self.reader.is_there(pid, start_time) {
            return false;
        }
        self.note_gone(pid);
        true
    }

    fn tick_rescan(&mut self, turn_ends: usize) {
        let again = self.rescan.again && self.rescan.queue.is_empty();
        if again || self.rescan.at <= self.now {
            self.rescan.at = BootTime(self.now.0.saturating_add(self.limits.rescan_every_ns));
            self.start_rescan();
        }
        for _ in 0..self.limits.rescan_per_tick {
            if self.reader.text_read >= turn_ends {
                break;
            }
            let Some(pid) = self.rescan.queue.pop_front() else { break };
            self.rescan_process(pid);
        }
    }

    fn start_rescan(&mut self) {
        let Ok(pids) = self.reader.proc.pids() else {
            self.stats.rescans_failed += 1;
            return;
        };
        self.stats.rescans += 1;
        self.rescan.round = self.rescan.round.wrapping_add(1);
        self.rescan.distrusts = std::mem::take(&mut self.rescan.again);
        let lost = std::mem::take(&mut self.rescan.code_mappings_lost);
        let is_full = self.rescan.round.is_multiple_of(FULL_RESCAN_EVERY);
        self.rescan.reads_maps = is_full || lost;
        if is_full || self.rescan.distrusts {
            self.rescan.kernel_threads.clear();
        }
        // An end that was not reported shows here.
        let there: HashSet<Pid> = pids.iter().copied().collect();
        for (pid, entry) in &mut self.processes {
            if !there.contains(pid) {
                entry.exited_at.get_or_insert(self.now);
            }
        }
        // One that the last rescan did not come to is in this one.
        self.rescan.queue = pids.into();
    }

    fn rescan_process(&mut self, pid: Pid) {
        if self.rescan.kernel_threads.contains(&pid) {
            return;
        }
        if !self.processes.contains_key(&pid) {
            if self.processes.len() >= self.limits.processes {
                // Those that are sampled are kept rather than those that merely exist.
                self.stats.rescan_table_full += 1;
                return;
            }
            if self.reader.is_kernel_thread(pid) {
                self.rescan.kernel_threads.insert(pid);
                return;
            }
        }
        self.stats.rescanned += 1;
        let read_maps = if self.rescan.distrusts {
            ReadMaps::Anew
        } else if self.rescan.reads_maps {
            ReadMaps::Always
        } else {
            ReadMaps::IfResized
        };
        self.look(pid, read_maps);
    }

    /// Makes sure that the names of a record's attributes were read, up to this index, if the
    /// process publishes them: it may add some at any time. One that does not is left alone for
    /// longer and longer.
    pub fn refresh_attribute_keys(&mut self, pid: Pid, at: BootTime, greatest: u8) {
        self.now = self.now.max(at);
        if self.names_attribute(pid, greatest) {
            return;
        }
        let now = self.now;
        let Some(entry) = self.processes.get_mut(&pid) else { return };
        // What a program that it runs no more published is not to be had.
        let current = entry.images.newest().is_some_and(|(from, _)| from <= at);
        if !current || entry.gone || !matches!(entry.state, State::Read(_)) {
            return;
        }
        if !entry.keys_backoff.is_over(now) {
            self.stats.reads_backed_off += 1;
            return;
        }
        if !self.read_allowance.take(now) {
            self.stats.reads_over_allowance += 1;
            return;
        }
        self.stats.reads_for_attribute_keys += 1;
        self.look(pid, ReadMaps::IfResized);
        let named = self.names_attribute(pid, greatest);
        let Some(entry) = self.processes.get_mut(&pid) else { return };
        if named { entry.keys_backoff.pause(now) } else { entry.keys_backoff.grow(now, Some(0)) }
    }

    fn names_attribute(&self, pid: Pid, index: u8) -> bool {
        let newest = self.processes.get(&pid).and_then(|entry| entry.images.newest());
        newest.is_some_and(|(_, newest)| newest.attribute_keys.len() > usize::from(index))
    }

    /// Finds the processes that are gone, and forgets those that are for long enough.
    fn sweep(&mut self) {
        let before = BootTime(self.now.0.saturating_sub(KEPT));
        let old = self.processes.iter().filter_map(|(pid, entry)| {
            let exited = entry.exited_at.is_some_and(|at| at < before);
            exited.then_some((*pid, entry.gone))
        });
        let old: Vec<(Pid, bool)> = old.collect();
        for (pid, gone) in old {
            if gone || self.check_exit(pid) {
                self.stats.processes_exited += 1;
                self.forget(pid);
            } else if let Some(entry) = self.processes.get_mut(&pid) {
                entry.exited_at = None;
            }
        }
    }

    /// Reads a process and takes note of what changed; tells whether it has published where its
    /// slot is.
    pub(super) fn look(&mut self, pid: Pid, read_maps: ReadMaps) -> bool {
        let now = self.read_clock();
        let entry = self.entry(pid);
        let known = match (&entry.state, entry.images.newest()) {
            (State::Read(facts), Some((_, newest))) => Some((Arc::clone(newest), facts.clone())),
            _ => None,
        };
        let known = known.as_ref().map(|(process, facts)| (process, facts.as_ref()));
        match self.reader.read(pid, now, known, read_maps, &mut self.stats) {
            Ok(looked) => self.apply(pid, looked),
            Err(reason) => {
                self.note_unreadable(pid, reason);
                false
            }
        }
    }

    fn apply(&mut self, pid: Pid, looked: Looked) -> bool {
        let now = self.now;
        let Looked { process, facts, slots } = looked;
        let entry = self.entry(pid);
        entry.replaced.found_again(&process.snapshot, facts.maps_read_at);
        let before = std::mem::replace(&mut entry.state, State::Read(Box::new(facts)));
        let last_read = std::mem::replace(&mut entry.read_at, now);
        entry.gone = false;
        let newest = entry.images.newest().map(|(_, newest)| Arc::clone(newest));
        // Another program: its start was not reported.
        if newest.as_ref().is_some_and(|newest| newest.main_elf != process.main_elf) {
            entry.is_copy = false;
        }
        match (&before, newest) {
            (_, Some(newest)) if Arc::ptr_eq(&newest, &process) => {}
            (State::Read(facts), Some(newest))
                if facts.start_time == process.start_time
                    && newest.snapshot.epoch() == process.snapshot.epoch() =>
            {
                // It says more of itself than it did, and it was that all the time.
                entry.images.replace_newest(process);
                self.image_changed(pid);
            }
            (State::Read(facts), _) if facts.start_time != process.start_time => {
                // Another process of the same id, whose making was not reported.
                self.stats.pids_reused += 1;
                self.clear_slot(pid);
                let generation = self.next_generation();
                let started = BootTime(process.start_time.saturating_mul(TICK));
                let entry = self.entry(pid);
                entry.generation = generation;
                entry.kernel.forget_before(started);
                self.push_image(pid, started.max(last_read).min(now), process);
            }
            // The mappings changed some time after the last read.
            (State::Read(_), _) => self.push_image(pid, last_read, process),
            // What is known since the fork was its parent's, and stacks were walked with that.
            (State::Inherited, Some(_)) => {
                let since = entry.images.newest().map_or(now, |(from, _)| from);
                self.push_image(pid, since, process);
            }
            // What is known since the exec was nothing.
            (State::Unread | State::Inherited, _) => {
                entry.images.replace_newest(process);
                self.image_changed(pid);
            }
        }
        self.set_slots(pid, slots)
    }

    fn set_slots(&mut self, pid: Pid, found: FoundSlots) -> bool {
        let Some(entry) = self.processes.get_mut(&pid) else { return false };
        // A copy has its parent's pointer to a record, but works on no span of its parent's: it
        // publishes again when it has a process context of its own (OTEP 4719).
        let own = found.announced || !entry.is_copy;
        let read = found.to_control().filter(|_| own);
        let is_published = read.is_some() && found.is_published();
        let Some(slots) = entry.kernel.with(read) else {
            self.clear_slot(pid);
            return false;
        };
        if entry.kernel.known.replace(slots) != Some(slots) {
            self.control.insert(pid, Some(slots));
            if let Some(start) = entry.kernel.without_since.take() {
                self.stats.slots_by_look_after.add(self.now.0.saturating_sub(start.0));
            }
        }
        // What it has said itself by its hook is counted where it says so.
        let list = if read.is_some() { found.list } else { Vec::new() };
        if entry.slots != list {
            if let Some(first) = list.first() {
                *match first.source {
                    SlotSource::GoRuntime => &mut self.stats.slots_of_go,
                    SlotSource::ProcessContext => &mut self.stats.slots_by_context,
                    SlotSource::Note => &mut self.stats.slots_by_note,
                    SlotSource::DynamicSymbol => &mut self.stats.slots_by_dynamic_symbol,
                    SlotSource::SymbolTable => &mut self.stats.slots_by_symbol_table,
                } += 1;
            }
            entry.slots = list;
        }
        is_published
    }

    fn note_unreadable(&mut self, pid: Pid, reason: Unreadable) {
        match reason {
            Unreadable::Gone => self.stats.unreadable_gone += 1,
            Unreadable::NotPermitted => self.stats.unreadable_not_permitted += 1,
            Unreadable::NotRead => self.stats.unreadable_without_code += 1,
            Unreadable::Failed => self.stats.unreadable_failed += 1,
        }
        if reason == Unreadable::Gone {
            self.note_gone(pid);
        }
        let Some(entry) = self.processes.get_mut(&pid) else { return };
        if matches!(entry.state, State::Unread) {
            entry.images.replace_newest(Arc::new(Process::not_read(pid, Some(reason))));
            self.image_changed(pid);
        }
    }

    fn note_gone(&mut self, pid: Pid) {
        self.clear_slot(pid);
        let now = self.now;
        if let Some(entry) = self.processes.get_mut(&pid)
            && !std::mem::replace(&mut entry.gone, true)
        {
            entry.exited_at.get_or_insert(now);
            self.gone.push(pid);
            self.mappings_changed.insert(pid, None);
        }
    }

    /// Counts the mappings of a process anew and makes room for them.
    pub(super) fn image_changed(&mut self, pid: Pid) {
        let Some(entry) = self.processes.get_mut(&pid) else { return };
        if let Some((_, newest)) = entry.images.newest() {
            let known = !newest.snapshot.mappings().is_empty();
            let snapshot = known.then(|| Arc::clone(&newest.snapshot));
            self.mappings_changed.insert(pid, snapshot);
        }
        let mappings = entry.images.mappings();
        self.mappings = self.mappings.saturating_sub(entry.mappings).saturating_add(mappings);
        entry.mappings = mappings;
        while self.mappings > self.limits.mappings {
            let Some(oldest) = self.by_use.oldest().filter(|oldest| *oldest != pid) else { break };
            self.stats.processes_evicted += 1;
            self.forget(oldest);
        }
    }
}
