//! Where the threads of a process keep the pointer to their span record.
//!
//! Told by its process context, by span-marker's note, or by the symbols of its program and of the
//! libraries that it has mapped. Each may have a copy of its own: all are kept, up to a few, and
//! the one that has a valid record at a sample counts.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use profiler_common::span::{
    CUSTOM_LABELS_SYMBOL, SLOT_CUSTOM_LABELS, SLOT_RECORD, SPAN_SLOTS_MAX, SpanSlot, SpanSlots,
    THREAD_CONTEXT_SYMBOL,
};
use profiler_common::span_note::{INFO_ABI, INFO_MAGIC, INFO_STATIC, SpanMarkerInfo};
use serde::Serialize;

use super::elf_reader::{ElfReader, SpanNote, TextSegment};
use super::elf_tls::{ReferenceTarget, TlsVariable};
use super::go_labels::{GoLabels, go_labels};
use super::proc_fs::ProcessDir;
use super::process_context::{ProcessContext, Schema};
use super::tls_slot::{ReadMemory, ThreadLayout, TlsModel, at_distance, read};
use super::{Backing, ElfId, ElfRegistry, MappingSnapshot, TableStats};

/// The variables that are looked for, and what they point to; the first ones count first.
const VARIABLES: [(&str, u8); 3] = [
    (THREAD_CONTEXT_SYMBOL, SLOT_RECORD),
    // What it was called before the standard had a name for it; the record is the same.
    ("custom_labels_current_set_v2", SLOT_RECORD),
    (CUSTOM_LABELS_SYMBOL, SLOT_CUSTOM_LABELS),
];

/// How many files' answers are kept, "none" included: most publish nothing.
const FILES_MAX: usize = 65_536;

/// How many symbols and relocations are read in one look: 48 MB. Files behind that are for the next
/// look.
const COST_MAX: u64 = 2 << 20;

/// How many mapped files with a variable are kept of a process: more than the slots that are used.
const MAPPED_MAX: usize = 2 * SPAN_SLOTS_MAX;

/// What told where a slot is. The first ones count first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotSource {
    /// The code of a Go program: goroutines have labels. Before all others, because what runs a
    /// goroutine may go on to another one.
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
    /// Which of [`VARIABLES`] it is.
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
    let names = VARIABLES.map(|(name, _)| name);
    let variables = ElfReader::open(file)?.tls_variables(&names).list;
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

/// What a file says, if it says anything.
#[derive(Debug)]
struct SpanFile {
    note: Option<SpanNote>,
    variables: Vec<TlsVariable>,
    /// Where the thread of a Go program has its goroutine.
    go: Option<SpanSlot>,
    text: Vec<TextSegment>,
    is_program: bool,
}

/// A file that says something, in a process.
#[derive(Clone, Debug)]
struct MappedFile {
    id: ElfId,
    file: Arc<SpanFile>,
    /// Unknown for a program whose text is not among the mappings.
    bias: Option<u64>,
    is_main: bool,
}

/// The files of a process that say something, for as long as its mappings stay the same.
#[derive(Clone, Debug)]
pub(super) struct SpanFiles {
    epoch: u64,
    main_elf: Option<ElfId>,
    /// All files were read.
    complete: bool,
    musl: bool,
    files: Arc<[MappedFile]>,
}

/// Finds slots; remembers what each file says.
#[derive(Debug, Default)]
pub(super) struct SlotFinder {
    by_elf: HashMap<ElfId, Option<Arc<SpanFile>>>,
}

impl SlotFinder {
    /// The files of a process that say where its slots are; `known` is what the last look found.
    pub(super) fn files(
        &mut self,
        snapshot: &MappingSnapshot,
        main_elf: Option<ElfId>,
        elfs: &ElfRegistry,
        known: Option<&SpanFiles>,
        stats: &mut TableStats,
    ) -> SpanFiles {
        let (epoch, mut cost) = (snapshot.epoch(), 0);
        if let Some(known) = known.filter(|it| it.complete && it.epoch == epoch)
            && known.main_elf == main_elf
        {
            return known.clone();
        }
        let mut complete = true;
        let mut seen = HashSet::new();
        let mut files: Vec<MappedFile> = Vec::new();
        let main = main_elf.map(|id| (id, None));
        let mapped = snapshot.mappings().iter().filter_map(|mapping| match mapping.backing {
            Backing::Elf(id) => Some((id, Some((mapping.start, mapping.file_offset)))),
            Backing::Anonymous | Backing::Special(_) => None,
        });
        for (id, mapping) in main.into_iter().chain(mapped) {
            let said = match self.by_elf.get(&id) {
                Some(said) => said.clone(),
                // Asked in vain in this look.
                None if !seen.insert(id) => continue,
                None if cost >= COST_MAX => {
                    complete = false;
                    stats.span_files_put_off += 1;
                    continue;
                }
                None => match self.read(id, elfs, &mut cost, stats) {
                    Some(said) => said,
                    None => {
                        complete = false;
                        continue;
                    }
                },
            };
            let Some(file) = said else { continue };
            let bias_by =
                |(start, offset)| file.text.iter().find_map(|text| text.load_bias(start, offset));
            let bias = mapping.and_then(bias_by);
            let is_main = main_elf == Some(id);
            let known = files.len();
            let same = |it: &&mut MappedFile| it.id == id && (it.bias == bias || it.is_main);
            if let Some(earlier) = files.iter_mut().find(same) {
                earlier.bias = earlier.bias.or(bias);
            } else if (bias.is_some() || is_main) && known < MAPPED_MAX {
                files.push(MappedFile { id, file, bias, is_main });
            }
        }
        let musl = !files.is_empty() && is_musl(snapshot, main_elf, elfs);
        SpanFiles { epoch, main_elf, complete, musl, files: files.into() }
    }

    /// What a file says; `None`: it is not open, so there is no answer, and none to remember.
    fn read(
        &mut self,
        id: ElfId,
        elfs: &ElfRegistry,
        cost: &mut u64,
        stats: &mut TableStats,
    ) -> Option<Option<Arc<SpanFile>>> {
        let file = elfs.get(id)?.file?;
        let said = ElfReader::open(&file).and_then(|reader| {
            let note = reader.span_note();
            let found = reader.tls_variables(&VARIABLES.map(|(name, _)| name));
            *cost = cost.saturating_add(found.cost);
            let (variables, text) = (found.list, reader.text());
            let go = go_labels(&file);
            stats.go_version_unknown += u64::from(go == GoLabels::VersionUnknown);
            stats.go_place_unknown += u64::from(go == GoLabels::PlaceUnknown);
            let go = if let GoLabels::Known(slot) = go { Some(slot) } else { None };
            let says = note.is_some() || go.is_some() || !variables.is_empty();
            let is_program = reader.is_program();
            says.then_some(SpanFile { note, variables, go, text, is_program })
        });
        let said = said.map(Arc::new);
        if self.by_elf.len() >= FILES_MAX {
            self.by_elf.clear();
        }
        self.by_elf.insert(id, said.clone());
        Some(said)
    }
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
    let mut list = Vec::new();
    if let Some(context) = context {
        match (context.schema, context.tp_offset) {
            (Schema::ThreadContext, Some(offset)) => list.push(FoundSlot {
                slot: at_distance(offset, SLOT_RECORD),
                source: SlotSource::ProcessContext,
                model: TlsModel::Published,
                file: None,
                variable: 0,
            }),
            (Schema::ThreadContext, None) | (Schema::Absent | Schema::Other, _) => {}
        }
    }
    // Most processes have no such file: their memory is not opened.
    if !files.files.is_empty() {
        let memory = dir.memory();
        let read = |address, bytes: &mut [u8]| match &memory {
            Ok(memory) => memory.read_exact_at(bytes, address),
            Err(error) => Err(error.kind().into()),
        };
        let layout = ThreadLayout::native(files.musl);
        for mapped in files.files.iter() {
            list.extend(mapped.go_slot());
            list.extend(mapped.noted_slot(&read));
            for variable in &mapped.file.variables {
                mapped.slots(variable, layout, &read, &mut list, stats);
            }
        }
    }
    if context.is_some_and(|context| context.schema == Schema::Other) {
        // Its records are not those that are read. Labels are what they are.
        list.retain(|found| found.slot.format != SLOT_RECORD);
    }
    list.sort_by_key(|found| (found.source, found.variable));
    let mut seen = Vec::new();
    list.retain(|found| {
        !seen.contains(&found.slot) && {
            seen.push(found.slot);
            true
        }
    });
    stats.slots_over_limit += u64::from(list.len() > SPAN_SLOTS_MAX);
    list.truncate(SPAN_SLOTS_MAX);
    FoundSlots { list, announced }
}

impl MappedFile {
    /// Where a thread of this program has its goroutine.
    fn go_slot(&self) -> Option<FoundSlot> {
        let slot = self.file.go.filter(|_| self.is_main)?;
        let (source, model) = (SlotSource::GoRuntime, TlsModel::LocalExec);
        Some(FoundSlot { slot, source, model, file: Some(self.id), variable: 0 })
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
        let by_headers = || {
            let slot = at_distance(variable.local_exec?, format);
            Some((slot, TlsModel::LocalExec))
        };
        if self.is_main {
            return by_headers().into_iter().for_each(add);
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
        if self.file.is_program && variable.references.is_empty() {
            by_headers().into_iter().for_each(add);
        } else if !resolved {
            stats.slots_unresolved += 1;
        }
    }
}

/// Whether the process's C library is musl: by what its program names as its loader, or by the
/// files that it has mapped.
fn is_musl(snapshot: &MappingSnapshot, main_elf: Option<ElfId>, elfs: &ElfRegistry) -> bool {
    let interpreter = || ElfReader::open(&*elfs.get(main_elf?)?.file?)?.interpreter();
    let names_musl = |path: Vec<u8>| path.windows(7).any(|part| part == b"ld-musl");
    if interpreter().is_some_and(names_musl) {
        return true;
    }
    snapshot.mappings().iter().any(|mapping| {
        let Backing::Elf(id) = mapping.backing else { return false };
        let named =
            |file: super::ElfFile| file.name() == "libc.so" || file.name().starts_with("ld-musl-");
        elfs.get(id).is_some_and(named)
    })
}
