//! Attributed samples to [`Window`]s: counts by service, stack and span. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use indexmap::IndexSet;

use crate::attribute::{AttributedSample, Location, SpanLabel};
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

/// The most distinct frames that one window holds: 64 MiB of [`Location`]s.
const FRAMES_MAX: usize = 4 << 20;
/// The most distinct (stack, span) pairs of one window.
const ROWS_MAX: usize = 1 << 20;

/// A window in the making.
#[derive(Debug, Default)]
pub struct Aggregator {
    groups: BTreeMap<Arc<ServiceIdentity>, GroupInProgress>,
    frames: usize,
    rows: usize,
}

/// The window holds as many distinct stacks or spans as it may: the sample was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the window holds as many distinct stacks as it may")]
pub struct WindowFull;

#[derive(Debug, Default)]
struct GroupInProgress {
    main_elf: Option<ElfId>,
    stacks: IndexSet<Stack>,
    spans: IndexSet<SpanLabel>,
    rows: HashMap<(usize, Option<usize>), Totals>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    samples: u64,
    cpu_ns: u64,
}

impl Aggregator {
    /// Counts one sample.
    ///
    /// # Errors
    ///
    /// The sample is not added: the window is full.
    pub fn add(&mut self, sample: AttributedSample) -> Result<(), WindowFull> {
        let AttributedSample { service, main_elf, stack, span, value } = sample;
        if self.frames.saturating_add(stack.len()) > FRAMES_MAX || self.rows >= ROWS_MAX {
            return Err(WindowFull);
        }
        let group = self.groups.entry(service).or_default();
        group.main_elf = group.main_elf.or(main_elf);
        let depth = stack.len();
        let (stack, is_new) = group.stacks.insert_full(stack);
        if is_new {
            self.frames = self.frames.saturating_add(depth);
        }
        let span = span.map(|span| group.spans.insert_full(span).0);
        let totals = group.rows.entry((stack, span)).or_insert_with(|| {
            self.rows = self.rows.saturating_add(1);
            Totals::default()
        });
        totals.samples = totals.samples.saturating_add(1);
        totals.cpu_ns = totals.cpu_ns.saturating_add(value);
        Ok(())
    }

    /// Ends the window and begins the next.
    #[must_use]
    pub fn take(&mut self, start_unix_ns: i64, duration_ns: i64, period_ns: u64) -> Window {
        let groups = std::mem::take(self)
            .groups
            .into_iter()
            .map(|(service, group)| group.finish(service))
            .collect();
        Window { start_unix_ns, duration_ns, period_ns, groups }
    }
}

impl GroupInProgress {
    fn finish(self, service: Arc<ServiceIdentity>) -> Group {
        let Self { main_elf, stacks, spans, rows } = self;
        let mut rows: Vec<Row> = rows
            .into_iter()
            .map(|((stack, span), Totals { samples, cpu_ns })| Row { stack, span, samples, cpu_ns })
            .collect();
        rows.sort_unstable();
        Group { service, main_elf, stacks, spans, rows }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Addr, SpanId, TraceId};

    fn service(name: &str) -> Arc<ServiceIdentity> {
        Arc::new(ServiceIdentity { name: name.to_owned(), namespace: None })
    }

    fn sample(of: &str, stack: &[u64], span: Option<u8>) -> AttributedSample {
        AttributedSample {
            service: service(of),
            main_elf: None,
            stack: stack.iter().map(|&at| Location::Kernel(Addr(at))).collect(),
            span: span.map(|id| SpanLabel {
                trace_id: TraceId([1; 16]),
                span_id: SpanId([id; 8]),
                name: None,
            }),
            value: 10,
        }
    }

    #[test]
    fn equal_samples_are_counted_and_others_kept_apart() {
        let mut aggregator = Aggregator::default();
        for sample in [
            sample("b", &[1, 2], Some(1)),
            sample("b", &[1, 2], Some(1)),
            sample("b", &[1, 2], Some(2)),
            sample("b", &[1, 2], None),
            sample("b", &[1], Some(1)),
            sample("a", &[1, 2], Some(1)),
        ] {
            aggregator.add(sample).unwrap();
        }
        let window = aggregator.take(5, 6, 7);
        assert_eq!((window.start_unix_ns, window.duration_ns, window.period_ns), (5, 6, 7));
        assert_eq!(window.samples(), 6);
        let names: Vec<_> = window.groups.iter().map(|group| group.service.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        let rows: Vec<_> = window.groups[1]
            .rows
            .iter()
            .map(|row| (row.stack, row.span, row.samples, row.cpu_ns))
            .collect();
        assert_eq!(
            rows,
            [(0, None, 1, 10), (0, Some(0), 2, 20), (0, Some(1), 1, 10), (1, Some(0), 1, 10)]
        );
        assert_eq!(aggregator.take(0, 0, 0).groups.len(), 0);
    }

    #[test]
    fn a_full_window_refuses_and_the_next_one_takes_again() {
        let mut aggregator = Aggregator::default();
        let deep: Vec<u64> = (0..1 << 20).collect();
        let mut taken = 0;
        while aggregator.add(sample("a", &deep[taken..], None)).is_ok() {
            taken += 1;
        }
        assert!(taken >= 3, "{taken}");
        let window = aggregator.take(0, 0, 0);
        assert_eq!(window.samples(), u64::try_from(taken).unwrap());
        aggregator.add(sample("a", &deep, None)).unwrap();
    }
}
