//! What a process says itself by span-marker's hook: where its threads keep their span.
//!
//! The kernel side has taken it already, so that samples have spans from the first on. The table
//! takes note, so that it does not clear the slot when it finds none by looking.

use profiler_common::span::{SLOT_EMPTY, SpanSlot, SpanSlots};

use super::ProcessTable;
use super::looks::Look;
use super::reader::ReadMaps;
use crate::decode::{BootTime, Pid};

/// What the kernel side knows of a process's slots.
#[derive(Debug, Default)]
pub(super) struct KernelSlots {
    /// What it was told, and has told.
    pub(super) known: Option<SpanSlots>,
    /// What the process has said itself, and when it did so last.
    hooked: Option<(SpanSlots, BootTime)>,
    /// When the program started, until a slot of it was found; `None` if that was before this table.
    pub(super) without_since: Option<BootTime>,
}

impl From<BootTime> for KernelSlots {
    /// Those of a program that started then: the kernel side knows none.
    fn from(start: BootTime) -> Self {
        Self { without_since: Some(start), ..Self::default() }
    }
}

impl KernelSlots {
    /// Slots that were read, and those that the process has told.
    pub(super) fn with(&self, read: Option<SpanSlots>) -> Option<SpanSlots> {
        let (Some(mut slots), Some((hooked, _))) = (read, &self.hooked) else {
            return read.or(self.hooked.map(|(hooked, _)| hooked));
        };
        let told = hooked.slots.into_iter().filter(|slot| slot.format != SLOT_EMPTY);
        // Where there are too many, those that were read count.
        told.for_each(|slot| _ = slots.add(slot));
        Some(slots)
    }

    /// What was said before belongs to another process of this id.
    pub(super) fn forget_before(&mut self, start: BootTime) {
        self.hooked = self.hooked.filter(|(_, at)| *at >= start);
    }

    fn add(&mut self, slot: SpanSlot, at: BootTime) {
        let mut hooked = self.hooked.map_or(SpanSlots::one(slot), |(hooked, _)| hooked);
        // The kernel side tells of no more than fit.
        _ = hooked.add(slot);
        self.hooked = Some((hooked, at));
        self.known = self.with(self.known);
    }
}

impl ProcessTable {
    /// The process has called span-marker's hook. What else it publishes is wanted soon: its spans
    /// have no names before its attribute keys are known, and it may not live long.
    pub(super) fn on_span_slot(&mut self, pid: Pid, at: BootTime, tp_offset: i64) {
        self.stats.slots_by_hook += 1;
        let entry = self.entry(pid);
        entry.kernel.add(SpanSlot::at_thread_pointer(tp_offset), at);
        let generation = entry.generation;
        let (slots, start) = (entry.kernel.known, entry.kernel.without_since.take());
        // The kernel side knows it, unless it was told something else meanwhile.
        self.control.insert(pid, slots);
        if let Some(start) = start {
            self.stats.slots_by_hook_after.add(at.0.saturating_sub(start.0));
        }
        // Where all programs that start are looked at, those that have no spans use up their share.
        if self.look_allowance.take(self.now) || self.read_allowance.take(self.now) {
            self.stats.looks += 1;
            self.look(pid, ReadMaps::Always);
        } else {
            self.schedule(Look::after_hook(pid, at, generation));
        }
    }
}
