//! The unwind tables of a process's files, and what making them took.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::time::Instant;

use serde::Serialize;

use super::error_text;
use crate::process::{Backing, ElfId, ElfRegistry, Process, SlotSource};
use crate::unwind::{BuildError, Limits, Source, TableStats, UnwindTable, build};

/// What is known of a file.
#[derive(Debug, Serialize)]
pub(super) struct FileReport {
    pub(super) path: String,
    pub(super) build_id: Option<String>,
    /// What there is to unwind by, or why there is nothing.
    #[serde(flatten)]
    pub(super) unwind: UnwindReport,
    /// How long making the table, or finding out that there is none, took.
    pub(super) build_us: u128,
    /// For a file that was asked for: where it would have its span slot as a main executable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) span_slot: Option<FileSlotReport>,
}

/// What a file's symbols say of the span slot.
#[derive(Debug, Serialize)]
pub(super) struct FileSlotReport {
    pub(super) tp_offset: i64,
    pub(super) found_by: SlotSource,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum UnwindReport {
    Table {
        source: Source,
        rows: usize,
        rules: usize,
        pages: usize,
        /// What it takes in the kernel, its rules aside, which files share.
        bytes: u64,
        stats: TableStats,
    },
    None {
        reason: &'static str,
        error: String,
    },
}

/// The files of a process.
#[derive(Debug)]
pub(super) struct Files {
    files: BTreeMap<ElfId, (FileReport, Result<UnwindTable, NoTable>)>,
}

/// Why a file has no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoTable {
    /// There is nothing to make it of.
    NoInformation,
    /// The file, or what is in it, cannot be read.
    Unreadable,
    /// It would be too large.
    TooLarge,
}

impl Files {
    /// Makes the tables of all files that a process has mapped.
    pub(super) fn of(process: &Process, elfs: &ElfRegistry) -> Self {
        let mapped = process.snapshot.mappings().iter().filter_map(|it| match it.backing {
            Backing::Elf(elf) => Some(elf),
            Backing::Anonymous | Backing::Special(_) => None,
        });
        let files = mapped.collect::<BTreeSet<_>>().into_iter().map(|id| {
            let elf = elfs.get(id);
            let path = elf.as_ref().map_or("[unknown]", |elf| &elf.path);
            let (mut report, table) =
                report(path, elf.as_ref().and_then(|elf| elf.file.as_deref()));
            report.build_id = elf.and_then(|elf| Some(elf.build_id?.to_string()));
            (id, (report, table))
        });
        Self { files: files.collect() }
    }

    pub(super) fn table(&self, id: ElfId) -> Result<&UnwindTable, NoTable> {
        let found = self.files.get(&id).map(|(_, table)| table.as_ref().map_err(|reason| *reason));
        found.unwrap_or(Err(NoTable::Unreadable))
    }

    pub(super) fn path(&self, id: ElfId) -> &str {
        self.files.get(&id).map_or("[unknown]", |(report, _)| &report.path)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = ElfId> {
        self.files.keys().copied()
    }

    pub(super) fn into_reports(self) -> Vec<FileReport> {
        self.files.into_values().map(|(report, _)| report).collect()
    }
}

/// Makes the table of a file, and says what that took.
pub(super) fn report(
    path: &str,
    file: Option<&File>,
) -> (FileReport, Result<UnwindTable, NoTable>) {
    let begin = Instant::now();
    let built = match file {
        Some(file) => build(file, &Limits::default()),
        None => Err(BuildError::Unreadable(io::ErrorKind::NotFound.into())),
    };
    let build_us = begin.elapsed().as_micros();
    let unwind = match &built {
        Ok(table) => UnwindReport::Table {
            source: table.source(),
            rows: table.row_count(),
            rules: table.rules().len(),
            pages: table.page_count(),
            bytes: bytes(table),
            stats: *table.stats(),
        },
        Err(error) => UnwindReport::None { reason: error.reason(), error: error_text(error) },
    };
    let table = built.map_err(|error| match error {
        BuildError::NoUnwindInformation => NoTable::NoInformation,
        BuildError::TooLarge(_) => NoTable::TooLarge,
        _ => NoTable::Unreadable,
    });
    let path = path.to_owned();
    (FileReport { path, build_id: None, unwind, build_us, span_slot: None }, table)
}

/// Its blocks, and an entry in the list of pages for each page.
fn bytes(table: &UnwindTable) -> u64 {
    let pages = table.page_count().saturating_mul(size_of::<u64>());
    table.block_bytes().saturating_add(u64::try_from(pages).unwrap_or(u64::MAX))
}
