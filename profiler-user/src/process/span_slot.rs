//! Where the threads of a process keep the pointer to their span record.
//!
//! The process context says it, or the dynamic symbols of the main executable. Both are static
//! TLS: one distance from the thread pointer for all threads. A library's slot may need the
//! thread's DTV; [`SpanSlot`] then gets a way to say so, and this table of sources another row.

use std::{collections::HashMap, fs::File};

use profiler_common::span::{SpanSlot, SpanSlots, THREAD_CONTEXT_SYMBOL};

use super::elf_reader::{ElfReader, SpanNote};
use super::process_context::{ProcessContext, Schema};
use super::{ElfId, ElfRegistry};

/// How many files' answers are kept, "none" included: most processes publish nothing.
const FILES_MAX: usize = 16_384;

/// What told where the slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotSource {
    Context,
    DynamicSymbol,
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

/// Finds slots; remembers what each executable says.
#[derive(Debug, Default)]
pub(super) struct SlotFinder {
    by_elf: HashMap<ElfId, Option<i64>>,
}

impl SlotFinder {
    /// The slot of a process with this context and this main executable.
    pub(super) fn find(
        &mut self,
        context: Option<&ProcessContext>,
        main_elf: Option<ElfId>,
        elfs: &ElfRegistry,
    ) -> Option<(SpanSlots, SlotSource)> {
        if let Some(context) = context {
            match (context.schema, context.tp_offset) {
                (Schema::ThreadContext, Some(tp_offset)) => {
                    return Some((
                        SpanSlots::one(SpanSlot::at_thread_pointer(tp_offset)),
                        SlotSource::Context,
                    ));
                }
                // Its records are not those that are read.
                (Schema::Other, _) => return None,
                (Schema::ThreadContext, None) | (Schema::Absent, _) => {}
            }
        }
        let tp_offset = self.of_executable(main_elf?, elfs)?;
        Some((SpanSlots::one(SpanSlot::at_thread_pointer(tp_offset)), SlotSource::DynamicSymbol))
    }

    fn of_executable(&mut self, id: ElfId, elfs: &ElfRegistry) -> Option<i64> {
        if let Some(known) = self.by_elf.get(&id) {
            return *known;
        }
        // Not open: no answer, and none to remember.
        let file = elfs.get(id)?.file?;
        let found = span_slot_of_file(&file);
        if self.by_elf.len() >= FILES_MAX {
            self.by_elf.clear();
        }
        self.by_elf.insert(id, found);
        found
    }
}
