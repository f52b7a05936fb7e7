//! Where the threads of a process keep the pointer to their span record.
//!
//! The process context says it, or the dynamic symbols of the main executable. Both are static
//! TLS: one distance from the thread pointer for all threads. A library's slot may need the
//! thread's DTV; [`SpanSlot`] then gets a way to say so, and this table of sources another row.

use std::{collections::HashMap, fs::File};

use profiler_common::span::{
    CUSTOM_LABELS_SYMBOL, SLOT_CUSTOM_LABELS, SpanSlot, SpanSlots, THREAD_CONTEXT_SYMBOL,
};

use super::elf_reader::{ElfReader, SpanNote};
use super::go_labels::{GoLabels, go_labels};
use super::process_context::{ProcessContext, Schema};
use super::{ElfId, ElfRegistry, TableStats};

/// How many files' answers are kept, "none" included: most processes publish nothing.
const FILES_MAX: usize = 16_384;

/// What told where the slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotSource {
    Context,
    DynamicSymbol,
    GoRuntime,
}

/// Where the threads of a process that runs this file keep the pointer to their span record, as a
/// distance from the thread pointer; `None` if its dynamic symbols name no such place.
#[must_use]
pub fn span_slot_of_file(file: &File) -> Option<i64> {
    ElfReader::open(file)?.tls_offset(THREAD_CONTEXT_SYMBOL)
}

/// What span-marker's note in this file says.
#[must_use]
pub fn span_note_of_file(file: &File) -> Option<SpanNote> {
    ElfReader::open(file)?.span_note()
}

/// What an executable says.
#[derive(Clone, Copy, Debug)]
struct Said {
    tp_offset: Option<i64>,
    go: Option<SpanSlot>,
    custom_labels: Option<SpanSlot>,
}

/// Finds slots; remembers what each executable says.
#[derive(Debug, Default)]
pub(super) struct SlotFinder {
    by_elf: HashMap<ElfId, Said>,
}

impl SlotFinder {
    /// The slots of a process with this context and this main executable. A goroutine's labels
    /// count first: what runs it may go on to another one.
    pub(super) fn find(
        &mut self,
        context: Option<&ProcessContext>,
        main_elf: Option<ElfId>,
        elfs: &ElfRegistry,
        stats: &mut TableStats,
    ) -> Option<(SpanSlots, SlotSource)> {
        let said = main_elf.and_then(|id| self.of_executable(id, elfs, stats));
        let record = record_slot(context, said);
        let go = said.and_then(|said| Some((said.go?, SlotSource::GoRuntime)));
        let custom = said.and_then(|said| Some((said.custom_labels?, SlotSource::DynamicSymbol)));
        let (_, source) = record.or(go).or(custom)?;
        let mut slots = SpanSlots::one(SpanSlot::EMPTY);
        let found = [go, record, custom].into_iter().flatten();
        for (to, (slot, _)) in slots.slots.iter_mut().zip(found) {
            *to = slot;
        }
        Some((slots, source))
    }

    fn of_executable(
        &mut self,
        id: ElfId,
        elfs: &ElfRegistry,
        stats: &mut TableStats,
    ) -> Option<Said> {
        if let Some(known) = self.by_elf.get(&id) {
            return Some(*known);
        }
        // Not open: no answer, and none to remember.
        let file = elfs.get(id)?.file?;
        let go = go_labels(&file);
        stats.go_version_unknown += u64::from(go == GoLabels::VersionUnknown);
        stats.go_place_unknown += u64::from(go == GoLabels::PlaceUnknown);
        let custom = ElfReader::open(&file).and_then(|elf| elf.tls_offset(CUSTOM_LABELS_SYMBOL));
        let said = Said {
            tp_offset: span_slot_of_file(&file),
            go: if let GoLabels::Known(slot) = go { Some(slot) } else { None },
            custom_labels: custom.map(|offset| SpanSlot {
                offset,
                format: SLOT_CUSTOM_LABELS,
                ..SpanSlot::EMPTY
            }),
        };
        if self.by_elf.len() >= FILES_MAX {
            self.by_elf.clear();
        }
        self.by_elf.insert(id, said);
        Some(said)
    }
}

fn record_slot(
    context: Option<&ProcessContext>,
    said: Option<Said>,
) -> Option<(SpanSlot, SlotSource)> {
    if let Some(context) = context {
        match (context.schema, context.tp_offset) {
            (Schema::ThreadContext, Some(tp_offset)) => {
                return Some((SpanSlot::at_thread_pointer(tp_offset), SlotSource::Context));
            }
            // Its records are not those that are read.
            (Schema::Other, _) => return None,
            (Schema::ThreadContext, None) | (Schema::Absent, _) => {}
        }
    }
    Some((SpanSlot::at_thread_pointer(said?.tp_offset?), SlotSource::DynamicSymbol))
}
