//! ELF bytes to unwind tables: for each address of a file's text, how the caller's registers follow.
//! Pure; what is read comes through [`ReadAt`].
//!
//! The tables are in the terms of `profiler_common::unwind`, which the BPF program reads. A file is
//! whatever a stranger wrote: what is read of it is bounded by [`Limits`], what is done with that by
//! counting (`work.rs`): about two seconds at most, and less the smaller the file is.

mod build;
mod cfi;
mod elf;
#[cfg(test)]
mod form_tests;
#[cfg(test)]
mod fuzz_tests;
mod go;
mod go_table;
#[cfg(test)]
mod go_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod made_elf;
mod restorer;
mod rules;
mod table;
mod work;

pub use build::build;
pub use table::{LoadSegment, Source, TableStats, TextLayout, UnwindTable};

use std::io;

/// A file to read from at any place. It may be shorter by now than it said: that gives an error.
pub trait ReadAt {
    /// How many bytes it has.
    ///
    /// # Errors
    ///
    /// That cannot be told.
    fn size(&self) -> io::Result<u64>;

    /// Fills `to` with the bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or ends before.
    fn read_exact_at(&self, to: &mut [u8], offset: u64) -> io::Result<()>;

    /// Whether anybody waits for its table still.
    fn is_wanted(&self) -> bool {
        true
    }
}

/// What one file may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most bytes of a section that is read, as it is in memory.
    pub section_bytes: u64,
    /// The most rows.
    pub rows: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // The largest libraries that are seen (LLVM, Chromium) have some 20 MB of `.eh_frame` and
        // two million rows.
        Self { section_bytes: 128 << 20, rows: 8 << 20 }
    }
}

/// Why there is no table of a file.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Not an ELF file, or one whose headers make no sense.
    #[error("not a well-formed ELF file: {0}")]
    Malformed(&'static str),
    /// For another processor, of 32 bits, or of the other byte order.
    #[error("an ELF file for another machine")]
    OtherMachine,
    /// It cannot be read, or is shorter than it says.
    #[error("cannot read the file")]
    Unreadable(#[source] io::Error),
    /// More than [`Limits`] allow.
    #[error("more unwind information than is read: {0}")]
    TooLarge(&'static str),
    /// A section is compressed in a way that is not known.
    #[error("cannot decompress {0}")]
    Compressed(&'static str),
    /// Nobody waits for it any more.
    #[error("not wanted any more")]
    NotWanted,
    /// Unwind information that says nothing of any text.
    #[error("no unwind information")]
    NoUnwindInformation,
}

impl BuildError {
    /// A short name for counters.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::OtherMachine => "other_machine",
            Self::Unreadable(_) => "unreadable",
            Self::TooLarge(_) => "too_large",
            Self::Compressed(_) => "compressed",
            Self::NotWanted => "not_wanted",
            Self::NoUnwindInformation => "no_unwind_information",
        }
    }
}
