//! Where the threads of a process keep the pointer to their span record.
//!
//! Told by its process context, by span-marker's note, or by the symbols of its program and of the
//! libraries that it has mapped. Each may have a copy of its own: all are kept, up to a few, and
//! the one that has a valid record at a sample counts. A Go program has labels instead.

use std::{fs::File, os::unix::fs::FileExt as _};

use profiler_common::span::{SLOT_CUSTOM_LABELS, SLOT_RECORD, SPAN_SLOTS_MAX, SpanSlot, SpanSlots};
use profiler_common::span_note::{INFO_ABI, INFO_MAGIC, INFO_STATIC, SpanMarkerInfo};
use serde::Serialize;

use super::elf_reader::{ElfReader, SpanNote};
use super::elf_tls::{ReferenceTarget, TlsVariable};
use super::proc_fs::ProcessDir;
use super::process_context::{ProcessContext, Schema};
use super::span_files::{MappedFile, SpanFiles, VARIABLES, variables_of};
use super::tls_slot::{ReadMemory, ThreadLayout, TlsModel, at_distance, read};
use super::{ElfId, TableStats};

/// What told where a slot is. The first ones count first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotSource {
    /// The version of Go that made the program: labels of goroutines.
    GoRuntime,
    /// The process context.
    ProcessContext,
    /// The block that span-marker's note leads to.
    Note,
    /// `.dynsym`.
    DynamicSymbol,
    /// `.symtab`.
    SymbolTable,
}

/// A slot, and how it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundSlot {
    /// Where it is.
    pub slot: SpanSlot,
    /// What told.
    pub source: SlotSource,
    /// How a thread finds it.
    pub model: TlsModel,
    /// The file that defines it, where that is known.
    pub file: Option<ElfId>,
    /// Which of the names it has.
    variable: usize,
}

/// The slots of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FoundSlots {
    /// In the order in which they count.
    pub(super) list: Vec<FoundSlot>,
    /// The process says by its own context that its threads publish spans.
    pub(super) announced: bool,
}

impl FoundSlots {
    /// What the BPF programs are told; `None`: nothing.
    pub(super) fn to_control(&self) -> Option<SpanSlots> {
        let first = self.list.first()?;
        let mut slots = SpanSlots::one(first.slot);
        for (to, found) in slots.slots.iter_mut().zip(&self.list) {
            *to = found.slot;
        }
        Some(slots)
    }

    /// Nothing more is to be expected.
    pub(super) fn is_published(&self) -> bool {
        self.list.iter().any(|found| found.source == SlotSource::ProcessContext)
    }
}

/// Where the threads of a process that runs this file keep the pointer to their span record, as a
/// distance from the thread pointer; `None` if its symbols name no such place.
#[must_use]
pub fn span_slot_of_file(file: &File) -> Option<(i64, SlotSource)> {
    let variables = variables_of(&ElfReader::open(file)?).list;
    let first = variables.iter().min_by_key(|variable| (!variable.exported, variable.name))?;
    Some((first.local_exec?, source_of(first)))
}

/// What span-marker's note in this file says.
#[must_use]
pub fn span_note_of_file(file: &File) -> Option<SpanNote> {
    ElfReader::open(file)?.span_note()
}

fn source_of(variable: &TlsVariable) -> SlotSource {
    if variable.exported { SlotSource::DynamicSymbol } else { SlotSource::SymbolTable }
}

/// The slots of a process, by its context and these files. Asks the process's memory anew each
/// time: what was not filled in at the last look may be now.
pub(super) fn find_slots(
    context: Option<&ProcessContext>,
    files: &SpanFiles,
    dir: &ProcessDir,
    stats: &mut TableStats,
) -> FoundSlots {
    let announced = context.is_some_and(|context| context.schema == Schema::ThreadContext);
    let mut list: Vec<_> = files.files.iter().filter_map(MappedFile::goroutine_slot).collect();
    if let Some(context) = context {
        match (context.schema, context.tp_offset) {
            (Schema::ThreadContext, Some(offset)) => list.push(FoundSlot {
                slot: at_distance(offset, SLOT_RECORD),
                source: SlotSource::ProcessContext,
                model: TlsModel::Published,
                file: None,
                variable: 0,
            }),
            // Its records are not those that are read.
            (Schema::Other, _) => return FoundSlots { list, announced },
            (Schema::ThreadContext, None) | (Schema::Absent, _) => {}
        }
    }
    // Most processes have no such file: their memory is not opened.
    if files.files.iter().any(|mapped| mapped.file.is_in_memory()) {
        let memory = dir.memory();
        let read = |address, bytes: &mut [u8]| match &memory {
            Ok(memory) => memory.read_exact_at(bytes, address),
            Err(error) => Err(error.kind().into()),
        };
        let layout = ThreadLayout::native(files.musl);
        for mapped in files.files.iter() {
            list.extend(mapped.noted_slot(&read));
            for variable in &mapped.file.variables {
                mapped.slots(variable, layout, &read, &mut list, stats);
            }
        }
    }
    stats.slots_over_limit += u64::from(rank(&mut list));
    FoundSlots { list, announced }
}

/// Puts slots into the order in which they count, each once, as many as are used; whether there
/// were more.
fn rank(list: &mut Vec<FoundSlot>) -> bool {
    // A label set says less than a record, wherever it was found.
    let is_label_set = |found: &FoundSlot| found.slot.format == SLOT_CUSTOM_LABELS;
    list.sort_by_key(|found| (is_label_set(found), found.source, found.variable));
    let mut seen = Vec::new();
    list.retain(|found| {
        let is_new = !seen.contains(&found.slot);
        seen.push(found.slot);
        is_new
    });
    let more = list.len() > SPAN_SLOTS_MAX;
    list.truncate(SPAN_SLOTS_MAX);
    more
}

impl MappedFile {
    /// Where a thread has its goroutine.
    fn goroutine_slot(&self) -> Option<FoundSlot> {
        self.is_main.then_some(FoundSlot {
            slot: self.file.goroutine?,
            source: SlotSource::GoRuntime,
            model: TlsModel::LocalExec,
            file: Some(self.id),
            variable: 0,
        })
    }

    /// Where span-marker's block says that the slot is.
    fn noted_slot(&self, memory: ReadMemory<'_>) -> Option<FoundSlot> {
        let at = self.bias?.wrapping_add(self.file.note?.info_address);
        let info: SpanMarkerInfo = read(memory, at)?;
        let known = info.magic == INFO_MAGIC && info.abi == INFO_ABI;
        (known && info.flags & INFO_STATIC != 0).then(|| FoundSlot {
            slot: at_distance(info.tp_offset, SLOT_RECORD),
            source: SlotSource::Note,
            model: TlsModel::Published,
            file: Some(self.id),
            variable: 0,
        })
    }

    /// Where a variable is, all its references considered: those that name the symbol lead to the
    /// program's variable where both define it, those that do not to the file's own.
    fn slots(
        &self,
        variable: &TlsVariable,
        layout: ThreadLayout,
        memory: ReadMemory<'_>,
        list: &mut Vec<FoundSlot>,
        stats: &mut TableStats,
    ) {
        let Some((_, format)) = VARIABLES.get(variable.name).copied() else { return };
        let mut add = |(slot, model)| {
            let (file, source) = (Some(self.id), source_of(variable));
            list.push(FoundSlot { slot, source, model, file, variable: variable.name });
        };
        if self.is_main {
            if let Some(offset) = variable.local_exec {
                add((at_distance(offset, format), TlsModel::LocalExec));
            }
            return;
        }
        // One place by the symbol, one in the file's own block: of several ways to it, one that
        // needs no thread vector.
        let mut resolved = false;
        if let Some(bias) = self.bias {
            for by_symbol in [true, false] {
                let references = variable
                    .references
                    .iter()
                    .filter(|reference| (reference.target == ReferenceTarget::Symbol) == by_symbol);
                let found = references
                    .filter_map(|it| layout.resolve(variable, *it, bias, format, memory))
                    .min_by_key(|(slot, _)| slot.module != 0);
                resolved |= found.is_some();
                found.into_iter().for_each(&mut add);
            }
        }
        stats.slots_unresolved += u64::from(!resolved);
    }
}

#[cfg(test)]
#[path = "span_slot_tests.rs"]
mod tests;
