//! What symbolizing counts.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::symbolize::protocol::Nameless;

/// Why a location has a stand-in for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unsymbolized {
    /// The address belongs to no file; its frame says why.
    NoFile,
    /// No symbol covers it.
    NoSymbol,
    /// The file has no symbols: it is stripped.
    NoSymbols,
    /// The offset is in no loadable segment of the file.
    NotLoaded,
    /// What the file says about it cannot be read.
    Malformed,
    /// The file could not be opened, or was closed before it was needed.
    FileUnavailable,
    /// Not a regular file, or not an ELF file.
    NotElf,
    /// The worker's user may not open the file, and it is too large to be copied.
    TooLargeToCopy,
    /// The file has ended the worker twice and is not tried again.
    Quarantined,
    /// The worker cannot be started, or was started too often lately.
    WorkerUnavailable,
    /// The time for this window's names was over.
    OutOfTime,
    /// The names of this one location are more than an answer holds.
    AnswerFull,
    /// The kernel hides its symbols (`kernel.kptr_restrict`, `CAP_SYSLOG`).
    KernelHidden,
}

impl Unsymbolized {
    /// The name in reports and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoFile => "no_file",
            Self::NoSymbol => "no_symbol",
            Self::NoSymbols => "no_symbols",
            Self::NotLoaded => "not_loaded",
            Self::Malformed => "malformed",
            Self::FileUnavailable => "file_unavailable",
            Self::NotElf => "not_elf",
            Self::TooLargeToCopy => "too_large_to_copy",
            Self::Quarantined => "quarantined",
            Self::WorkerUnavailable => "worker_unavailable",
            Self::OutOfTime => "out_of_time",
            Self::AnswerFull => "answer_full",
            Self::KernelHidden => "kernel_hidden",
        }
    }

    /// Whether asking again could give another answer; if so the stand-in is not remembered.
    pub(super) fn is_for_now(self) -> bool {
        matches!(
            self,
            Self::FileUnavailable
                | Self::Quarantined
                | Self::WorkerUnavailable
                | Self::OutOfTime
                | Self::AnswerFull
                | Self::KernelHidden
        )
    }
}

impl From<Nameless> for Unsymbolized {
    fn from(nameless: Nameless) -> Self {
        match nameless {
            Nameless::NoSymbol => Self::NoSymbol,
            Nameless::NoSymbols => Self::NoSymbols,
            Nameless::NotLoaded => Self::NotLoaded,
            Nameless::Malformed => Self::Malformed,
            Nameless::AnswerFull => Self::AnswerFull,
        }
    }
}

/// How a worker ended that was not told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerDeath {
    /// It could not be started, or did not become ready.
    Start,
    /// SIGBUS: a mapped file was truncated.
    BusError,
    /// Another signal; SIGABRT if its memory was at the ceiling.
    Signal,
    /// It ended by itself.
    Exit,
    /// It did not answer in time and was killed.
    Deadline,
    /// It answered what is no answer and was killed.
    Protocol,
}

impl WorkerDeath {
    /// The name in reports and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::BusError => "bus_error",
            Self::Signal => "signal",
            Self::Exit => "exit",
            Self::Deadline => "deadline",
            Self::Protocol => "protocol",
        }
    }
}

/// What was read of perf maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PerfMapStats {
    /// Bytes of text.
    pub bytes: u64,
    /// Lines that name code.
    pub entries: u64,
    /// Lines that make no sense.
    pub malformed_lines: u64,
    /// Lines whose name is not kept: the perf map is too large.
    pub entries_over_limit: u64,
    /// Perf maps that are longer than what is read of one.
    pub cut: u64,
    /// Times that a perf map was read from its start again: it was written anew.
    pub restarts: u64,
    /// Times that a perf map could not be read.
    pub read_failed: u64,
    /// Perf maps whose names were forgotten to keep the memory bounded.
    pub forgotten: u64,
}

/// The counters since the start: `requested = symbolized + Σ unsymbolized`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SymbolizeStats {
    /// Distinct locations of a window, summed over the windows.
    pub requested: u64,
    /// Those of them that needed no worker, with or without a name.
    pub from_cache: u64,
    /// Those of them with a name.
    pub symbolized: u64,
    /// Those of them without one, by reason.
    pub unsymbolized: BTreeMap<Unsymbolized, u64>,
    /// Workers started.
    pub worker_starts: u64,
    /// Workers replaced because they had taken three quarters of their memory.
    pub worker_recycles: u64,
    /// Workers lost, by reason.
    pub worker_deaths: BTreeMap<WorkerDeath, u64>,
    /// Files that ended a worker while their lines were read; only their functions are now.
    pub files_degraded: u64,
    /// Files that ended a worker twice.
    pub files_quarantined: u64,
    /// Separate debug files in use, summed over the workers.
    pub debug_files: u64,
    /// What was read of perf maps.
    pub perf_maps: PerfMapStats,
}
