//! The processes of the host: what each was at which time.
//!
//! The table reads `/proc` and keeps what it read. It has no thread: [`tick`] tells it the time,
//! [`on_event`] and [`on_code_mapped`] what the kernel reports, [`refresh`] what samples need.
//! [`view`] reads nothing.
//!
//! [`tick`]: ProcessTable::tick
//! [`on_event`]: ProcessTable::on_event
//! [`on_code_mapped`]: ProcessTable::on_code_mapped
//! [`refresh`]: ProcessTable::refresh
//! [`view`]: ProcessTable::view

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use profiler_common::span::SpanSlots;

use super::hooked::KernelSlots;
use super::images::Images;
use super::looks::{Allowance, Backoff, Look, Looks, SECOND};
use super::reader::{ReadMaps, Reader};
use super::replaced::Replaced;
use super::span_slot::FoundSlot;
use super::table_code::MAPPED_PER_SECOND;
use super::table_entry::{Entry, State};
use super::use_order::UseOrder;
use super::{
    ElfLimits, ElfRegistry, MappingSnapshot, PerfMapRegistry, Proc, Process, TableStats, Unreadable,
};
use crate::decode::{Addr, BootTime, Pid, ProcessEvent, ProcessEventKind};

/// How long what was replaced, and a process that exited, is kept for samples that come late.
pub(super) const KEPT: u64 = 10 * SECOND;

/// The kernel counts start times in ticks of `USER_HZ`, 100 a second on every machine.
pub(super) const TICK: u64 = SECOND / 100;

/// How many programs and snapshots of one process are kept.
const IMAGES_MAX: usize = 8;

/// What a [`ProcessTable`] reads and how much it keeps.
#[derive(Clone, Debug)]
pub struct TableLimits {
    /// How many processes are known at a time; the one used longest ago is forgotten.
    pub processes: usize,
    /// How many executable mappings are known at a time, of all processes.
    pub mappings: usize,
    /// How many looks for published spans are taken in a second.
    pub looks_per_second: u32,
    /// How many processes are read in a second because a sample needs it.
    pub reads_per_second: u32,
    /// How often all processes are looked at.
    pub rescan_every_ns: u64,
    /// How many processes of such a rescan are looked at in one tick.
    pub rescan_per_tick: usize,
    /// Whether services are told apart by where their processes run: [`super::Origin`].
    pub origins: bool,
    /// What bounds the ELF files.
    pub elfs: ElfLimits,
}

impl Default for TableLimits {
    fn default() -> Self {
        Self {
            processes: 16_384,
            mappings: 2_000_000,
            looks_per_second: 500,
            reads_per_second: 1000,
            rescan_every_ns: 10 * SECOND,
            rescan_per_tick: 64,
            origins: false,
            elfs: ElfLimits::default(),
        }
    }
}

/// A fact for the BPF programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlFact {
    /// The threads of the process keep the pointer to their span record here.
    SetSlots {
        /// The process.
        pid: Pid,
        /// Where.
        slots: SpanSlots,
    },
    /// The process, which had a slot, has none.
    ClearSlot {
        /// The process.
        pid: Pid,
    },
    /// The process is gone: nothing about it is to be kept.
    Gone {
        /// The process.
        pid: Pid,
    },
}

/// What is known of a process's mappings from now on: `None` if nothing is, or not any more.
pub type MappingsFact = (Pid, Option<Arc<MappingSnapshot>>);

/// The processes of the host.
#[derive(Debug)]
pub struct ProcessTable {
    pub(super) limits: TableLimits,
    pub(super) reader: Reader,
    pub(super) now: BootTime,
    pub(super) clock: Option<fn() -> BootTime>,
    /// When reports of mappings, of whatever processes, were lost last.
    pub(super) code_mappings_lost_at: BootTime,
    pub(super) processes: HashMap<Pid, Entry>,
    pub(super) by_use: UseOrder<Pid>,
    /// How many mappings all processes have.
    pub(super) mappings: usize,
    pub(super) looks: Looks,
    pub(super) look_allowance: Allowance,
    pub(super) read_allowance: Allowance,
    pub(super) rescan: Rescan,
    pub(super) sweep_at: BootTime,
    /// What the BPF programs are to be told: at most one fact a process.
    pub(super) control: BTreeMap<Pid, Option<SpanSlots>>,
    /// Processes that have other mappings since those were asked for last.
    pub(super) mappings_changed: BTreeMap<Pid, Option<Arc<MappingSnapshot>>>,
    /// Processes that were seen to be gone since the BPF programs were told last.
    pub(super) gone: Vec<Pid>,
    pub(super) stats: TableStats,
    generations: u64,
}

/// The slow look at all processes.
#[derive(Debug)]
pub(super) struct Rescan {
    pub(super) at: BootTime,
    pub(super) round: u64,
    pub(super) queue: VecDeque<Pid>,
    /// Another round is wanted: events were lost.
    pub(super) again: bool,
    /// In this round nothing that was known before is believed.
    pub(super) distrusts: bool,
    /// In this round the mappings of all processes are read.
    pub(super) reads_maps: bool,
    /// And in the next one: reports of mappings were lost.
    pub(super) code_mappings_lost: bool,
    /// Known to be kernel threads, which are not looked at each time.
    pub(super) kernel_threads: HashSet<Pid>,
}

impl ProcessTable {
    /// An empty table.
    #[must_use]
    pub fn new(proc: Proc, limits: TableLimits, now: BootTime) -> Self {
        let elfs = ElfRegistry::new(limits.elfs);
        Self {
            reader: Reader::new(proc, elfs, limits.origins),
            now,
            clock: None,
            code_mappings_lost_at: BootTime(0),
            processes: HashMap::new(),
            by_use: UseOrder::default(),
            mappings: 0,
            looks: Looks::default(),
            look_allowance: Allowance::new(limits.looks_per_second),
            read_allowance: Allowance::new(limits.reads_per_second),
            rescan: Rescan {
                at: BootTime(now.0.saturating_add(limits.rescan_every_ns)),
                round: 0,
                queue: VecDeque::new(),
                again: false,
                distrusts: false,
                reads_maps: false,
                code_mappings_lost: false,
                kernel_threads: HashSet::new(),
            },
            sweep_at: BootTime(now.0.saturating_add(SECOND)),
            control: BTreeMap::new(),
            mappings_changed: BTreeMap::new(),
            gone: Vec::new(),
            stats: TableStats::default(),
            generations: 0,
            limits,
        }
    }

    /// A table of all processes that there are; kernel threads are read when they are sampled.
    ///
    /// # Errors
    ///
    /// The list of processes cannot be read.
    pub fn scan(proc: Proc, limits: TableLimits, now: BootTime) -> std::io::Result<Self> {
        let mut table = Self::new(proc, limits, now);
        for pid in table.reader.proc.pids()? {
            if table.reader.is_kernel_thread(pid) {
                table.rescan.kernel_threads.insert(pid);
            } else {
                table.look(pid, ReadMaps::Always);
            }
        }
        Ok(table)
    }

    /// Takes note of an event. Events are to be given before the samples that were taken after
    /// them, as far as that is possible.
    pub fn on_event(&mut self, event: ProcessEvent) {
        self.now = self.now.max(event.at);
        let ProcessEvent { at, pid, kind } = event;
        match kind {
            ProcessEventKind::Exec => self.on_exec(pid, at),
            ProcessEventKind::Fork { parent } => self.on_fork(pid, parent, at),
            ProcessEventKind::Exit => self.on_exit(pid, at),
            ProcessEventKind::UnknownCode { address } => self.on_unknown_code(pid, at, address),
            ProcessEventKind::SpanSlot { tp_offset } => self.on_span_slot(pid, at, tp_offset),
        }
    }

    /// Makes sure that what a sample needs was read: the process, and the mappings of the user
    /// addresses in its stack. A process that is read in vain is left alone for a while.
    pub fn refresh(&mut self, pid: Pid, at: BootTime, addresses: &[Addr]) {
        self.now = self.now.max(at);
        self.entry(pid);
        let Some(entry) = self.processes.get_mut(&pid) else { return };
        self.by_use.touch(&mut entry.used);
        self.read_if_needed(pid, at, addresses);
    }

    /// Reads a process if that is of use, and not too often.
    pub(super) fn read_if_needed(&mut self, pid: Pid, at: BootTime, addresses: &[Addr]) {
        let now = self.now;
        let Some(entry) = self.processes.get_mut(&pid) else { return };
        let lost_at = self.code_mappings_lost_at;
        let is_doubtful = entry.is_doubtful(lost_at, now);
        let Some(missing) = entry.missing(at, addresses, is_doubtful) else { return };
        // A stack that was walked wrong leads to addresses where nothing is, for which the process
        // was read in vain: no reason to wait.
        let backoff = &entry.backoff;
        let is_over = if is_doubtful { backoff.is_rested(now) } else { backoff.is_over(now) };
        if !is_over {
            self.stats.reads_backed_off += 1;
            return;
        }
        if !self.read_allowance.take(now) {
            self.stats.reads_over_allowance += 1;
            return;
        }
        self.stats.reads_for_samples += 1;
        self.look(pid, ReadMaps::Always);
        let Some(entry) = self.processes.get_mut(&pid) else { return };
        let (maps_len, failed) = (entry.state.maps_len(), entry.is_doubtful(lost_at, now));
        match entry.missing(at, addresses, failed) {
            Some(still_missing) if still_missing >= missing => {
                entry.backoff.grow(now, (!failed).then_some(maps_len));
            }
            _ => entry.backoff.rest(now, maps_len),
        }
    }

    /// What is known of a process at a time. Reads nothing; `None` if it was never asked for, or
    /// was forgotten.
    #[must_use]
    pub fn view(&self, pid: Pid, at: BootTime) -> Option<&Arc<Process>> {
        self.processes.get(&pid)?.images.at(at)
    }

    /// Where a process's threads publish their spans, as far as that is known, and how it was found.
    #[must_use]
    pub fn slots(&self, pid: Pid) -> &[FoundSlot] {
        self.processes.get(&pid).map_or(&[], |entry| &entry.slots)
    }

    /// The ELF files of all processes. Clones share them, and may go to another thread.
    #[must_use]
    pub fn elfs(&self) -> &ElfRegistry {
        &self.reader.elfs
    }

    /// The perf maps of all processes. Clones share them, and may go to another thread.
    #[must_use]
    pub fn perf_maps(&self) -> &PerfMapRegistry {
        &self.reader.perf_maps
    }

    /// What the BPF programs are to be told since the last call.
    pub fn take_control(&mut self) -> Vec<ControlFact> {
        let facts = std::mem::take(&mut self.control).into_iter();
        let slots = facts.map(|(pid, slot)| match slot {
            Some(slots) => ControlFact::SetSlots { pid, slots },
            None => ControlFact::ClearSlot { pid },
        });
        let gone = self.gone.drain(..).map(|pid| ControlFact::Gone { pid });
        // What is gone goes first: its id may be another's already.
        gone.chain(slots).collect()
    }

    /// Whose mappings changed since the last call.
    pub fn take_mappings(&mut self) -> impl Iterator<Item = MappingsFact> + use<> {
        std::mem::take(&mut self.mappings_changed).into_iter()
    }

    /// What it did since it was made.
    #[must_use]
    pub fn stats(&self) -> &TableStats {
        &self.stats
    }

    fn on_exec(&mut self, pid: Pid, at: BootTime) {
        self.stats.execs += 1;
        self.rescan.kernel_threads.remove(&pid);
        self.clear_slot(pid);
        let generation = self.next_generation();
        let entry = self.entry(pid);
        entry.state = State::Unread;
        entry.kernel = KernelSlots::from(at);
        entry.is_copy = false;
        entry.exited_at = None;
        entry.gone = false;
        entry.backoff = Backoff::default();
        entry.keys_backoff = Backoff::default();
        entry.generation = generation;
        self.push_image(pid, at, Arc::new(Process::not_read(pid, Some(Unreadable::NotRead))));
        self.schedule(Look::after_exec(pid, at, generation));
    }

    fn on_fork(&mut self, pid: Pid, parent: Pid, at: BootTime) {
        self.stats.forks += 1;
        self.rescan.kernel_threads.remove(&pid);
        if self.processes.get(&pid).is_some_and(|entry| entry.is_read_after_fork(at)) {
            return;
        }
        self.clear_slot(pid);
        let inherited = self.view(parent, at).map(|parent| Arc::new(parent.child(pid)));
        let replaced = self.processes.get(&parent).map(|parent| parent.replaced.clone());
        let generation = self.next_generation();
        let entry = self.entry(pid);
        entry.kernel = KernelSlots::from(at);
        entry.replaced = replaced.unwrap_or_default();
        entry.is_copy = true;
        entry.exited_at = None;
        entry.gone = false;
        entry.backoff = Backoff::default();
        entry.generation = generation;
        let readable = inherited.filter(|process| process.unreadable.is_none());
        entry.state = if readable.is_some() { State::Inherited } else { State::Unread };
        let not_read = || Arc::new(Process::not_read(pid, Some(Unreadable::NotRead)));
        self.push_image(pid, at, readable.unwrap_or_else(not_read));
        self.schedule(Look::after_fork(pid, at, generation));
    }

    fn on_exit(&mut self, pid: Pid, at: BootTime) {
        self.stats.exits += 1;
        let Some(entry) = self.processes.get_mut(&pid) else { return };
        entry.exited_at = Some(at);
        let generation = entry.generation;
        self.schedule(Look::after_exit(pid, at, generation));
    }

    /// The kernel side does not know what this table may know already: then it is told again.
    fn on_unknown_code(&mut self, pid: Pid, at: BootTime, address: Addr) {
        self.stats.unknown_code += 1;
        self.refresh(pid, at, &[address]);
        let newest = self.processes.get(&pid).and_then(|entry| entry.images.newest());
        if let Some((_, newest)) = newest
            && newest.snapshot.find(address).is_some()
        {
            self.mappings_changed.insert(pid, Some(Arc::clone(&newest.snapshot)));
        }
    }

    pub(super) fn schedule(&mut self, look: Look) {
        if !self.looks.add(look) {
            self.stats.looks_dropped += 1;
        }
    }

    pub(super) fn next_generation(&mut self) -> u64 {
        self.generations = self.generations.wrapping_add(1);
        self.generations
    }

    /// The entry of a process, made if need be.
    pub(super) fn entry(&mut self, pid: Pid) -> &mut Entry {
        while self.processes.len() >= self.limits.processes && !self.processes.contains_key(&pid) {
            let Some(oldest) = self.by_use.oldest() else { break };
            self.stats.processes_evicted += 1;
            self.forget(oldest);
        }
        let by_use = &mut self.by_use;
        self.processes.entry(pid).or_insert_with(|| {
            let mut images = Images::default();
            let process = Process::not_read(pid, Some(Unreadable::NotRead));
            images.push(BootTime(0), 0, Arc::new(process));
            Entry {
                images,
                state: State::Unread,
                exited_at: None,
                gone: false,
                backoff: Backoff::default(),
                keys_backoff: Backoff::default(),
                slots: Vec::new(),
                kernel: KernelSlots::default(),
                is_copy: false,
                read_at: BootTime(0),
                generation: 0,
                replaced: Replaced::default(),
                mapped_allowance: Allowance::new(MAPPED_PER_SECOND),
                code_mappings_lost_at: BootTime(0),
                used: by_use.insert(pid),
                mappings: 0,
            }
        })
    }

    pub(super) fn forget(&mut self, pid: Pid) {
        self.clear_slot(pid);
        self.mappings_changed.insert(pid, None);
        if let Some(entry) = self.processes.remove(&pid) {
            self.by_use.remove(entry.used);
            self.mappings = self.mappings.saturating_sub(entry.mappings);
        }
    }

    pub(super) fn clear_slot(&mut self, pid: Pid) {
        let Some(entry) = self.processes.get_mut(&pid) else { return };
        entry.slots.clear();
        if entry.kernel.known.take().is_some() {
            self.control.insert(pid, None);
        }
    }

    pub(super) fn push_image(&mut self, pid: Pid, from: BootTime, process: Arc<Process>) {
        let forget_before = BootTime(self.now.0.saturating_sub(KEPT));
        if let Some(entry) = self.processes.get_mut(&pid) {
            entry.images.push(from, entry.generation, process);
            entry.images.forget_replaced(forget_before, IMAGES_MAX);
        }
        self.image_changed(pid);
    }
}
