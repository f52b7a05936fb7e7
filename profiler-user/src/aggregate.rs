//! Attributed samples to [`Window`]s: counts by service, stack and span. Pure.

use std::sync::Arc;

use indexmap::IndexSet;

use crate::attribute::{Location, SpanLabel};
use crate::process::{ElfId, ServiceIdentity};

/// A stack, leaf first: the kernel's frames, then the process's.
pub type Stack = Box<[Location]>;

/// What one window of time held.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// When it began, in nanoseconds since the Unix epoch.
    pub start_unix_ns: i64,
    /// How long it was, in nanoseconds.
    pub duration_ns: i64,
    /// How much CPU time one sample stands for, in nanoseconds.
    pub period_ns: u64,
    /// One group a service, ordered by its identity.
    pub groups: Vec<Group>,
}

/// The samples of one service.
#[derive(Clone, Debug)]
pub struct Group {
    /// The service.
    pub service: Arc<ServiceIdentity>,
    /// The main binary of its first process, which pprof wants as the first mapping.
    pub main_elf: Option<ElfId>,
    /// The distinct stacks.
    pub stacks: IndexSet<Stack>,
    /// The distinct spans.
    pub spans: IndexSet<SpanLabel>,
    /// The counts, ordered by `(stack, span)`, each pair once.
    pub rows: Vec<Row>,
}

/// How often a stack was seen under a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// Index in [`Group::stacks`].
    pub stack: usize,
    /// Index in [`Group::spans`]; `None`: outside of any span.
    pub span: Option<usize>,
    /// How many samples.
    pub samples: u64,
    /// Their value: CPU time in nanoseconds.
    pub cpu_ns: u64,
}

impl Window {
    /// How many samples it holds.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.groups.iter().map(Group::samples).sum()
    }
}

impl Group {
    /// How many samples it holds.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.rows.iter().map(|row| row.samples).sum()
    }
}
