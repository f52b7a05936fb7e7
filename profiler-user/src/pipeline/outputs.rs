//! What `record` and `replay` leave behind: files, and a table on the terminal.

use std::io::{self, Write};

use super::books::Books;
use crate::aggregate::Window;
use crate::config::{Output, OutputKind, OutputsConfig};
use crate::encode::encode_window;
use crate::export::file::{FileError, check_writable, write_atomically};
use crate::process::{ElfFile, ElfRegistry};
use crate::report::{SpanTable, write_flame_graph, write_folded};
use crate::symbolize::{Binary, Names, Symbolizer};

/// Rows of the table on the terminal.
const TABLE_ROWS: usize = 20;

/// Finds out what cannot be written before anything is sampled.
///
/// # Errors
///
/// A file cannot be made where it was asked for.
pub fn check(config: &OutputsConfig) -> Result<(), FileError> {
    let files = config.files.iter().map(|output| &output.path);
    files.chain(&config.stats).try_for_each(|path| check_writable(path))
}

/// Writes the files, each complete or not at all.
///
/// # Errors
///
/// The first file that cannot be written; those before it are there.
pub fn write_files(
    files: &[Output],
    window: &Window,
    names: &Names,
    host: &str,
) -> Result<(), FileError> {
    files.iter().try_for_each(|Output { path, kind }| {
        write_atomically(path, |out| match kind {
            OutputKind::Pprof => out.write_all(&encode_window(window, names).gzip()),
            OutputKind::Svg => write_flame_graph(window, names, host, out),
            OutputKind::Folded => write_folded(window, names, true, out),
            OutputKind::Json => SpanTable::new(window).write_json(out),
        })
    })
}

/// Writes the counters, if they were asked for.
///
/// # Errors
///
/// The file cannot be written.
pub fn write_stats(config: &OutputsConfig, books: &Books) -> Result<(), FileError> {
    match &config.stats {
        Some(path) => write_atomically(path, |out| books.write_json(out)),
        None => Ok(()),
    }
}

/// Prints the table for a person.
///
/// # Errors
///
/// Those of `out`.
pub fn print_table(window: &Window, out: &mut dyn Write) -> io::Result<()> {
    SpanTable::new(window).write_text(TABLE_ROWS, out)
}

/// Names everything in a window: its locations, and the services' main binaries, which pprof wants
/// first even where no sample hit them.
pub fn names(symbolizer: &mut Symbolizer, window: &Window, elfs: &ElfRegistry) -> Names {
    let locations = window.groups.iter().flat_map(|group| group.stacks.iter().flatten().copied());
    let mut names = symbolizer.names(locations, &|elf| elfs.get(elf).map(Into::into));
    for elf in window.groups.iter().filter_map(|group| group.main_elf) {
        if let Some(ElfFile { path, build_id, .. }) = elfs.get(elf) {
            names.binaries.entry(elf).or_insert(Binary { path, build_id });
        }
    }
    names
}

/// The samples of a window that are in no file: none has a value.
#[must_use]
pub fn without_value(window: &Window) -> u64 {
    let rows = window.groups.iter().flat_map(|group| &group.rows);
    rows.filter(|row| row.cpu_ns == 0).map(|row| row.samples).sum()
}
