//! Which of the files that a process has mapped say where its threads keep their spans.
//!
//! Thousands of files are mapped on a host, and few say anything: each is read once, and "nothing"
//! is remembered too. A file without a block of thread-local variables is done after its headers,
//! unless Go made it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use profiler_common::span::{
    CUSTOM_LABELS_SYMBOL, SLOT_CUSTOM_LABELS, SLOT_RECORD, SPAN_SLOTS_MAX, SpanSlot,
    THREAD_CONTEXT_SYMBOL,
};

use super::elf_reader::{ElfReader, SpanNote, TextSegment};
use super::elf_tls::{TlsVariable, TlsVariables};
use super::go_labels::{GoLabels, go_labels};
use super::{Backing, ElfFile, ElfId, ElfRegistry, MappingSnapshot, TableStats};

/// The variables that are looked for, and what they point to; the first ones count first.
pub(super) const VARIABLES: [(&str, u8); 3] = [
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

/// What a file says, if it says anything.
#[derive(Debug)]
pub(super) struct SpanFile {
    pub(super) note: Option<SpanNote>,
    pub(super) variables: Vec<TlsVariable>,
    /// Where a thread has its goroutine, if the file is the main program.
    pub(super) goroutine: Option<SpanSlot>,
    text: Vec<TextSegment>,
    is_program: bool,
}

impl SpanFile {
    /// A process's memory completes what it says.
    pub(super) fn is_in_memory(&self) -> bool {
        self.note.is_some() || !self.variables.is_empty()
    }
}

/// A file that says something, in a process.
#[derive(Clone, Debug)]
pub(super) struct MappedFile {
    pub(super) id: ElfId,
    pub(super) file: Arc<SpanFile>,
    /// Unknown for a program whose text is not among the mappings.
    pub(super) bias: Option<u64>,
    /// It is the program: its block is the first one at the thread pointer.
    pub(super) is_main: bool,
}

/// The files of a process that say something, for as long as its mappings stay the same.
#[derive(Clone, Debug)]
pub(super) struct SpanFiles {
    epoch: u64,
    main_elf: Option<ElfId>,
    /// All files were read.
    complete: bool,
    pub(super) musl: bool,
    pub(super) files: Arc<[MappedFile]>,
}

/// Finds such files; remembers what each says.
#[derive(Debug, Default)]
pub(super) struct SpanFileFinder {
    by_elf: HashMap<ElfId, Option<Arc<SpanFile>>>,
}

impl SpanFileFinder {
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
        let main = MainFile::read(main_elf, elfs);
        let mut complete = true;
        let mut seen = HashSet::new();
        let mut files: Vec<MappedFile> = Vec::new();
        let first = main_elf.map(|id| (id, None));
        let mapped = snapshot.mappings().iter().filter_map(|mapping| match mapping.backing {
            Backing::Elf(id) => Some((id, Some((mapping.start, mapping.file_offset)))),
            Backing::Anonymous | Backing::Special(_) => None,
        });
        for (id, mapping) in first.into_iter().chain(mapped) {
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
            let is_main = main_elf == Some(id) || main.is_loader && file.is_program;
            let known = files.len();
            let same = |it: &&mut MappedFile| it.id == id && (it.bias == bias || it.is_main);
            if let Some(earlier) = files.iter_mut().find(same) {
                earlier.bias = earlier.bias.or(bias);
            } else if (bias.is_some() || is_main) && known < MAPPED_MAX {
                files.push(MappedFile { id, file, bias, is_main });
            }
        }
        let is_in_memory = files.iter().any(|mapped| mapped.file.is_in_memory());
        let musl = is_in_memory && (main.names_musl || has_musl(snapshot, elfs));
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
            let found = variables_of(&reader);
            *cost = cost.saturating_add(found.cost);
            let go = go_labels(&reader, cost);
            stats.go_version_unknown += u64::from(go == GoLabels::VersionUnknown);
            stats.go_place_unknown += u64::from(go == GoLabels::PlaceUnknown);
            let goroutine = if let GoLabels::Known(slot) = go { Some(slot) } else { None };
            let (variables, text) = (found.list, reader.text());
            let is_program = reader.is_program();
            let said = SpanFile { note, variables, goroutine, text, is_program };
            (said.is_in_memory() || goroutine.is_some()).then_some(said)
        });
        let said = said.map(Arc::new);
        if self.by_elf.len() >= FILES_MAX {
            self.by_elf.clear();
        }
        self.by_elf.insert(id, said.clone());
        Some(said)
    }
}

/// What a file has of these.
pub(super) fn variables_of(reader: &ElfReader<'_>) -> TlsVariables {
    reader.tls_variables(&VARIABLES.map(|(name, _)| name))
}

/// What the file that a process was started with says of it.
#[derive(Default)]
struct MainFile {
    /// It names musl's loader as its own.
    names_musl: bool,
    /// It is a loader, which was started by hand to run a program.
    is_loader: bool,
}

impl MainFile {
    fn read(id: Option<ElfId>, elfs: &ElfRegistry) -> Self {
        let file = id.and_then(|id| elfs.get(id)?.file);
        let Some(reader) = file.as_deref().and_then(ElfReader::open) else {
            return Self::default();
        };
        let interpreter = reader.interpreter();
        let names = |path: &Vec<u8>| path.windows(7).any(|part| part == b"ld-musl");
        Self {
            names_musl: interpreter.as_ref().is_some_and(names),
            is_loader: interpreter.is_none() && !reader.is_program(),
        }
    }
}

/// Whether a file that is mapped is called as musl is.
fn has_musl(snapshot: &MappingSnapshot, elfs: &ElfRegistry) -> bool {
    snapshot.mappings().iter().any(|mapping| {
        let Backing::Elf(id) = mapping.backing else { return false };
        let named = |file: ElfFile| file.name() == "libc.so" || file.name().starts_with("ld-musl-");
        elfs.get(id).is_some_and(named)
    })
}
