//! Attributed samples to [`Window`]s: counts by service, stack and span. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use indexmap::IndexSet;

use crate::attribute::{AttributedSample, Location, SpanAttribute, SpanLabel};
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

    /// Adds what another group holds: both turned out to be of the same service.
    pub fn merge(&mut self, other: Self) {
        let Self { service: _, main_elf, stacks, spans, rows } = other;
        let stacks: Vec<usize> =
            stacks.into_iter().map(|stack| self.stacks.insert_full(stack).0).collect();
        let spans: Vec<usize> =
            spans.into_iter().map(|span| self.spans.insert_full(span).0).collect();
        self.main_elf = self.main_elf.or(main_elf);
        self.rows.extend(rows.into_iter().map(|row| Row {
            stack: stacks[row.stack],
            span: row.span.map(|span| spans[span]),
            ..row
        }));
        self.sum_rows();
    }

    /// Orders the rows, and adds up those of the same stack and span.
    pub(crate) fn sum_rows(&mut self) {
        self.rows.sort_unstable();
        self.rows.dedup_by(|next, kept| {
            let is_same = (next.stack, next.span) == (kept.stack, kept.span);
            if is_same {
                kept.samples = kept.samples.saturating_add(next.samples);
                kept.cpu_ns = kept.cpu_ns.saturating_add(next.cpu_ns);
            }
            is_same
        });
    }
}

/// How much one window holds, and how much of it one service may take: a process that makes up stacks
/// and spans is not to blind the profiler to the others.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Frames of distinct stacks: 24 bytes each.
    frames: usize,
    /// Distinct pairs of stack and span. The last quarter is for stacks outside of any span, where
    /// samples go whose span has no room.
    rows: usize,
    /// Bytes of distinct names and attribute values of spans.
    name_bytes: usize,
}

const WINDOW: Limits = Limits { frames: 4 << 20, rows: 1 << 20, name_bytes: 32 << 20 };
const SERVICE: Limits = Limits { frames: 1 << 20, rows: 1 << 18, name_bytes: 8 << 20 };

impl Limits {
    const fn of_spans(self) -> Self {
        Self { rows: self.rows / 4 * 3, ..self }
    }
}

/// A window in the making.
#[derive(Debug, Default)]
pub struct Aggregator {
    groups: BTreeMap<Arc<ServiceIdentity>, GroupInProgress>,
    held: Held,
}

/// What a window or a service holds.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    frames: usize,
    rows: usize,
    name_bytes: usize,
}

impl Held {
    fn within(self, limits: Limits) -> bool {
        self.frames <= limits.frames
            && self.rows <= limits.rows
            && self.name_bytes <= limits.name_bytes
    }

    fn plus(self, more: Self) -> Self {
        Self {
            frames: self.frames.saturating_add(more.frames),
            rows: self.rows.saturating_add(more.rows),
            name_bytes: self.name_bytes.saturating_add(more.name_bytes),
        }
    }
}

/// What became of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is counted.
    Whole,
    /// It is counted, but under no span: there is no room for another pair of stack and span.
    WithoutSpan,
}

/// The window or the service holds as many distinct stacks or spans as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the window holds as many distinct stacks and spans as it may")]
pub struct WindowFull;

#[derive(Debug, Default)]
struct GroupInProgress {
    main_elf: Option<ElfId>,
    stacks: IndexSet<Stack>,
    spans: IndexSet<SpanLabel>,
    /// Each name and attribute value once: a span's own copy of it goes.
    texts: HashSet<Arc<str>>,
    rows: HashMap<(usize, Option<usize>), Totals>,
    held: Held,
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
    /// The sample is not added: the window, or its service's part of it, has no room for its stack,
    /// not even outside of any span. Samples of what is there already are always counted.
    pub fn add(&mut self, sample: AttributedSample) -> Result<Added, WindowFull> {
        let AttributedSample { service, main_elf, stack, mut span, value } = sample;
        let group = self.groups.entry(service).or_default();
        let (all, own) = (self.held, group.held);
        let fits = |more: Held, window: Limits, service: Limits| {
            more.rows == 0 || (all.plus(more).within(window) && own.plus(more).within(service))
        };
        let mut more = group.would_take(&stack, span.as_ref());
        let mut added = Added::Whole;
        if span.is_some() && !fits(more, WINDOW.of_spans(), SERVICE.of_spans()) {
            span = None;
            more = group.would_take(&stack, None);
            added = Added::WithoutSpan;
        }
        if !fits(more, WINDOW, SERVICE) {
            return Err(WindowFull);
        }
        self.held = self.held.plus(more);
        group.held = group.held.plus(more);
        group.main_elf = group.main_elf.or(main_elf);
        let (stack, _) = group.stacks.insert_full(stack);
        let span = span.map(|span| group.span(span));
        let totals = group.rows.entry((stack, span)).or_default();
        totals.samples = totals.samples.saturating_add(1);
        totals.cpu_ns = totals.cpu_ns.saturating_add(value);
        Ok(added)
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
    /// What this stack under this span would add; nothing if the pair is there.
    fn would_take(&self, stack: &[Location], span: Option<&SpanLabel>) -> Held {
        let stack_at = self.stacks.get_index_of(stack);
        let span_at = span.map(|span| self.spans.get_index_of(span));
        let pair = match (stack_at, span_at) {
            (Some(stack), None) => Some((stack, None)),
            (Some(stack), Some(Some(span))) => Some((stack, Some(span))),
            _ => None,
        };
        if pair.is_some_and(|pair| self.rows.contains_key(&pair)) {
            return Held::default();
        }
        let new_texts = span.into_iter().flat_map(texts_of);
        let new_texts = new_texts.filter(|text| !self.texts.contains(*text));
        Held {
            frames: if stack_at.is_some() { 0 } else { stack.len() },
            rows: 1,
            name_bytes: new_texts.map(|text| text.len()).sum(),
        }
    }

    fn span(&mut self, mut span: SpanLabel) -> usize {
        if let Some(at) = self.spans.get_index_of(&span) {
            return at;
        }
        span.name = span.name.map(|name| self.once(name));
        if !span.attributes.is_empty() {
            let held_once = |attribute: &SpanAttribute| SpanAttribute {
                label: Arc::clone(&attribute.label),
                value: self.once(Arc::clone(&attribute.value)),
            };
            span.attributes = span.attributes.iter().map(held_once).collect();
        }
        self.spans.insert_full(span).0
    }

    /// The copy of a text that is held.
    fn once(&mut self, text: Arc<str>) -> Arc<str> {
        if let Some(known) = self.texts.get(&text) {
            return Arc::clone(known);
        }
        self.texts.insert(Arc::clone(&text));
        text
    }

    fn finish(self, service: Arc<ServiceIdentity>) -> Group {
        let Self { main_elf, stacks, spans, texts: _, rows, held: _ } = self;
        let mut rows: Vec<Row> = rows
            .into_iter()
            .map(|((stack, span), Totals { samples, cpu_ns })| Row { stack, span, samples, cpu_ns })
            .collect();
        rows.sort_unstable();
        Group { service, main_elf, stacks, spans, rows }
    }
}

/// The name and the attribute values of a span.
fn texts_of(span: &SpanLabel) -> impl Iterator<Item = &Arc<str>> {
    let values = span.attributes.iter().map(|attribute| &attribute.value);
    span.name.iter().chain(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Addr, SpanId, TraceId};

    fn service(name: &str) -> Arc<ServiceIdentity> {
        Arc::new(ServiceIdentity::named(name))
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
                attributes: Arc::default(),
            }),
            value: 10,
        }
    }

    #[test]
    fn merged_groups_are_what_one_aggregator_would_have_made() {
        let of_one = [(&[1, 2][..], Some(1)), (&[3], None)];
        let of_other = [(&[4][..], Some(2)), (&[1, 2], Some(1)), (&[1, 2], Some(2)), (&[3], None)];
        let group = |samples: &[(&[u64], Option<u8>)]| {
            let mut aggregator = Aggregator::default();
            for &(stack, span) in samples {
                aggregator.add(sample("a", stack, span)).unwrap();
            }
            aggregator.take(0, 1, 1).groups.remove(0)
        };
        let mut merged = group(&of_one);
        merged.merge(group(&of_other));
        let together = group(&[&of_one[..], &of_other].concat());
        assert_eq!(merged.samples(), 6);
        assert_eq!(merged.rows, together.rows);
        assert!(
            merged.stacks.iter().eq(&together.stacks) && merged.spans.iter().eq(&together.spans)
        );
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
    fn a_service_that_makes_up_stacks_blinds_nobody_else() {
        let mut aggregator = Aggregator::default();
        let deep: Vec<u64> = (0..1 << 18).collect();
        let mut taken = 0;
        while aggregator.add(sample("hostile", &deep[taken..], None)).is_ok() {
            taken += 1;
        }
        assert_eq!(taken, 4, "a quarter of the window");
        aggregator.add(sample("hostile", &deep, None)).expect("it is there already");
        aggregator.add(sample("other", &deep, Some(1))).expect("there is room for others");
        let window = aggregator.take(0, 0, 0);
        assert_eq!(window.samples(), 6);
        assert!(aggregator.add(sample("hostile", &deep[1..], None)).is_ok(), "a new window");
    }

    #[test]
    fn a_million_spans_cost_their_service_spans_and_nobody_a_sample() {
        let mut aggregator = Aggregator::default();
        let with_span = |of: &str, id: u32| {
            let mut sample = sample(of, &[1], Some(0));
            let span = sample.span.as_mut().unwrap();
            span.span_id = SpanId(u64::from(id).to_be_bytes());
            sample
        };
        let mut without = 0_u64;
        for id in 0..1_000_000 {
            match aggregator.add(with_span("hostile", id)).expect("its stack is there") {
                Added::Whole => {}
                Added::WithoutSpan => without += 1,
            }
        }
        assert_eq!(aggregator.add(with_span("other", 1)), Ok(Added::Whole));
        let window = aggregator.take(0, 0, 0);
        assert_eq!(window.samples(), 1_000_001);
        let hostile = &window.groups[0];
        assert_eq!(hostile.spans.len(), 3 << 16);
        let outside = hostile.rows.iter().find(|row| row.span.is_none()).unwrap();
        assert_eq!(outside.samples, without);
    }

    #[test]
    fn a_name_is_held_once() {
        let mut aggregator = Aggregator::default();
        for id in 0..3 {
            let mut sample = sample("a", &[1], Some(id));
            let label = sample.span.as_mut().unwrap();
            label.name = Some(Arc::from("x".repeat(1000)));
            aggregator.add(sample).unwrap();
        }
        assert_eq!(aggregator.held.name_bytes, 1000);
        let window = aggregator.take(0, 0, 0);
        let names: Vec<_> = window.groups[0]
            .spans
            .iter()
            .map(|span| span.name.as_ref().unwrap().as_ptr())
            .collect();
        assert_eq!(names[0], names[2]);
    }
}
