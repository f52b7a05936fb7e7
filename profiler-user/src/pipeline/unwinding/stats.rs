//! What was published, and what was not.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

/// How many times to readiness are kept.
const TIMES_MAX: usize = 4096;
/// How many of the slowest files are named.
const SLOWEST_MAX: usize = 5;

/// Counters of unwinding, since the start unless said otherwise.
#[derive(Clone, Debug, Default, Serialize)]
pub struct UnwindStats {
    /// Files whose table is published now.
    pub files_ready: usize,
    /// Files whose table is on its way now.
    pub files_pending: usize,
    /// Files that are walked by frame pointer now because there is no room for their table.
    pub files_over_limit: usize,
    /// Files that are walked by frame pointer, by reason.
    pub files_without: BTreeMap<&'static str, usize>,
    /// Processes that are published now.
    pub processes: usize,
    /// Different sets of mappings that are published now.
    pub snapshots: usize,
    /// Different rules.
    pub rules: usize,
    /// Rows of the tables that are published now.
    pub rows: usize,
    /// Rows of all tables that were ever made.
    pub rows_built: u64,
    /// How long making them took, reading the files included.
    pub build_ms: f64,
    /// Bytes of the tables that are published now.
    pub table_bytes: u64,
    /// Bytes of all maps of unwinding.
    pub map_bytes: u64,
    /// Slices that were published.
    pub slices: u64,
    /// Mappings that were left out: more of one process than a slice holds.
    pub mappings_cut: u64,
    /// Sets of mappings that there was no room for.
    pub slices_refused: u64,
    /// Tables that were taken out to make room.
    pub evictions: u64,
    /// Facts of processes that were lost: the thread was too far behind.
    pub facts_dropped: u64,
    /// The kernel refused a change.
    pub map_errors: u64,
    /// From when a file was first seen in a process that runs until its table was published.
    #[serde(flatten)]
    pub ready: Times,
}

/// Times from a file's discovery to its table's publication.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Times {
    #[serde(skip)]
    all: Vec<Duration>,
    #[serde(rename = "ready_slowest")]
    slowest: Vec<Slow>,
    /// How many files that were.
    #[serde(rename = "ready_files")]
    count: u64,
    #[serde(rename = "ready_ms_p50")]
    p50_ms: f64,
    #[serde(rename = "ready_ms_p99")]
    p99_ms: f64,
}

#[derive(Clone, Debug, Serialize)]
struct Slow {
    file: String,
    bytes: u64,
    ms: f64,
    build_ms: f64,
}

impl Times {
    pub(super) fn add(&mut self, file: &str, bytes: u64, took: Duration, build: Duration) {
        self.count = self.count.saturating_add(1);
        if self.all.len() >= TIMES_MAX {
            self.all.swap_remove(0);
        }
        self.all.push(took);
        self.slowest.push(Slow { file: file.to_owned(), bytes, ms: ms(took), build_ms: ms(build) });
        self.slowest.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        self.slowest.truncate(SLOWEST_MAX);
    }

    /// With the percentiles of what was added.
    pub(super) fn summed_up(&self) -> Self {
        let mut sorted = self.all.clone();
        sorted.sort_unstable();
        let at = |hundredth: usize| {
            let index = sorted.len().saturating_sub(1).saturating_mul(hundredth) / 100;
            sorted.get(index).map_or(0.0, |took| ms(*took))
        };
        Self { p50_ms: at(50), p99_ms: at(99), ..self.clone() }
    }
}

pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
