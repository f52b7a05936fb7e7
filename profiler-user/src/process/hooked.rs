//! What a process says itself by span-marker's hook: where its threads keep their span.
//!
//! The kernel side has taken it already, so that samples have spans from the first on. The table
//! takes note, so that it does not clear the slot when it finds none by looking.

use profiler_common::span::{SLOT_EMPTY, SpanSlot, SpanSlots};

use super::ProcessTable;
use super::looks::Look;
use super::reader::ReadMaps;
use super::table::Entry;
use crate::decode::{BootTime, Pid};

/// What a process has said by span-marker's hook.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hooked {
    pub(super) slots: SpanSlots,
    /// When it said so last.
    pub(super) at: BootTime,
}

impl ProcessTable {
    /// The process has called span-marker's hook. What else it publishes is wanted soon: its spans
    /// have no names before its attribute keys are known, and it may not live long.
    pub(super) fn on_span_slot(&mut self, pid: Pid, at: BootTime, tp_offset: i64) {
        self.stats.slots_by_hook += 1;
        let entry = self.entry(pid);
        let slot = SpanSlot::at_thread_pointer(tp_offset);
        match &mut entry.hooked {
            Some(hooked) => {
                hooked.at = at;
                // The kernel side tells of no more than fit.
                _ = hooked.slots.add(slot);
            }
            None => entry.hooked = Some(Hooked { slots: SpanSlots::one(slot), at }),
        }
        let generation = entry.generation;
        entry.slots = entry.with_hooked(entry.slots);
        let (slots, start) = (entry.slots, entry.without_slot_since.take());
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

impl Entry {
    /// Slots that were read, and those that the process has told.
    pub(super) fn with_hooked(&self, read: Option<SpanSlots>) -> Option<SpanSlots> {
        let (Some(mut slots), Some(hooked)) = (read, &self.hooked) else {
            return read.or(self.hooked.map(|hooked| hooked.slots));
        };
        let told = hooked.slots.slots.into_iter().filter(|slot| slot.format != SLOT_EMPTY);
        // Where there are too many, those that were read count.
        told.for_each(|slot| _ = slots.add(slot));
        Some(slots)
    }
}
