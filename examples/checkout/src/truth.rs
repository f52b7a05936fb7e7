//! What each span really cost: CPU time by the thread's own clock, independent of any profiler and
//! of span-marker.
//!
//! A layer of `tracing` reads the clock whenever a thread enters or leaves a span. The time since
//! the last reading goes to the span that was the thread's innermost one until then, and to nobody
//! if there was none. So a span has the time that it was current, without that of its children.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tracing::Subscriber;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// The truth so far. Values only grow: subtract two snapshots to judge a window.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Snapshot {
    /// By span name and local root span name, sorted.
    pub(crate) spans: Vec<SpanTruth>,
    /// By local root span name: the sums of the above.
    pub(crate) roots: Vec<RootTruth>,
    /// Sums over all.
    pub(crate) total: Total,
}

/// The spans of one name below local roots of one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct SpanTruth {
    pub(crate) span_name: String,
    pub(crate) root_span_name: String,
    /// CPU time during which such a span was its thread's current span.
    pub(crate) cpu_ns: u64,
    /// How many were started.
    pub(crate) spans: u64,
}

/// The spans below local roots of one name.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RootTruth {
    pub(crate) root_span_name: String,
    pub(crate) cpu_ns: u64,
    /// How many local roots were started.
    pub(crate) spans: u64,
}

/// Sums over all spans.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Total {
    /// CPU time inside spans.
    pub(crate) cpu_ns: u64,
    /// CPU time of the process, inside spans or not.
    pub(crate) process_cpu_ns: u64,
}

/// Shared between the layer, which adds, and whoever takes snapshots.
#[derive(Clone, Debug, Default)]
pub(crate) struct Truth(Arc<Mutex<CountsByName>>);

/// By span name and local root span name.
type CountsByName = BTreeMap<(Arc<str>, Arc<str>), Arc<Counts>>;

#[derive(Debug, Default)]
struct Counts {
    cpu_ns: AtomicU64,
    spans: AtomicU64,
}

impl Truth {
    pub(crate) fn snapshot(&self) -> Snapshot {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let spans: Vec<SpanTruth> = all
            .iter()
            .map(|((span_name, root_span_name), counts)| SpanTruth {
                span_name: span_name.to_string(),
                root_span_name: root_span_name.to_string(),
                cpu_ns: counts.cpu_ns.load(Ordering::Relaxed),
                spans: counts.spans.load(Ordering::Relaxed),
            })
            .collect();
        drop(all);
        let mut roots: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for span in &spans {
            let (cpu_ns, roots) = roots.entry(&span.root_span_name).or_default();
            *cpu_ns += span.cpu_ns;
            *roots += if span.span_name == span.root_span_name { span.spans } else { 0 };
        }
        let roots = roots.into_iter().map(|(root_span_name, (cpu_ns, spans))| RootTruth {
            root_span_name: root_span_name.to_owned(),
            cpu_ns,
            spans,
        });
        let total = Total {
            cpu_ns: spans.iter().map(|span| span.cpu_ns).sum(),
            process_cpu_ns: cpu_ns(ClockId::ProcessCPUTime),
        };
        let roots = roots.collect();
        Snapshot { roots, spans, total }
    }

    fn counts(&self, span_name: &Arc<str>, root_span_name: &Arc<str>) -> Arc<Counts> {
        let key = (Arc::clone(span_name), Arc::clone(root_span_name));
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(key).or_default())
    }
}

/// The CPU time that the calling thread has used.
pub(crate) fn thread_cpu_ns() -> u64 {
    cpu_ns(ClockId::ThreadCPUTime)
}

fn cpu_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}

/// Adds to a [`Truth`] as threads enter and leave spans.
pub(crate) struct TruthLayer {
    truth: Truth,
    clock: fn() -> u64,
}

/// What a span of `tracing` carries for the layer.
struct Names {
    root_span_name: Arc<str>,
    counts: Arc<Counts>,
}

thread_local! {
    static THREAD: RefCell<Thread> = const { RefCell::new(Thread { last: 0, entered: Vec::new() }) };
}

/// The spans that a thread is in, innermost last, and the clock when that last changed.
struct Thread {
    last: u64,
    entered: Vec<(Id, Arc<Counts>)>,
}

impl Thread {
    /// Gives the time since the last change to the innermost span.
    fn charge(&mut self, now: u64) {
        if let Some((_, counts)) = self.entered.last() {
            counts.cpu_ns.fetch_add(now.saturating_sub(self.last), Ordering::Relaxed);
        }
        self.last = now;
    }
}

impl TruthLayer {
    pub(crate) fn new(truth: Truth, clock: fn() -> u64) -> Self {
        Self { truth, clock }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for TruthLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut name = SpanName(attributes.metadata().name().into());
        attributes.record(&mut name);
        let SpanName(name) = name;
        let root_span_name = span
            .parent()
            .and_then(|parent| {
                parent.extensions().get::<Names>().map(|names| Arc::clone(&names.root_span_name))
            })
            .unwrap_or_else(|| Arc::clone(&name));
        let counts = self.truth.counts(&name, &root_span_name);
        counts.spans.fetch_add(1, Ordering::Relaxed);
        span.extensions_mut().insert(Names { root_span_name, counts });
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let counts = span.extensions().get::<Names>().map(|names| Arc::clone(&names.counts));
        let Some(counts) = counts else { return };
        THREAD.with_borrow_mut(|thread| {
            thread.charge((self.clock)());
            thread.entered.push((id.clone(), counts));
        });
    }

    fn on_exit(&self, id: &Id, _context: Context<'_, S>) {
        THREAD.with_borrow_mut(|thread| {
            thread.charge((self.clock)());
            // Not always the innermost: guards may be dropped in any order.
            if let Some(position) = thread.entered.iter().rposition(|(entered, _)| entered == id) {
                thread.entered.remove(position);
            }
        });
    }
}

/// The name under which opentelemetry knows the span.
struct SpanName(Arc<str>);

impl Visit for SpanName {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "otel.name" {
            self.0 = value.into();
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "otel.name" {
            self.0 = format!("{value:?}").into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use tracing_subscriber::layer::SubscriberExt as _;

    thread_local! {
        static NOW: Cell<u64> = const { Cell::new(1000) };
    }

    fn burn(ns: u64) {
        NOW.set(NOW.get() + ns);
    }

    #[track_caller]
    fn check(work: impl FnOnce(), expected: &[(&str, &str, u64, u64)]) {
        let truth = Truth::default();
        let layer = TruthLayer::new(truth.clone(), || NOW.get());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
        let snapshot = truth.snapshot();
        let found: Vec<_> = snapshot
            .spans
            .iter()
            .map(|span| (&*span.span_name, &*span.root_span_name, span.cpu_ns, span.spans))
            .collect();
        assert_eq!(found, expected);
        assert_eq!(snapshot.total.cpu_ns, expected.iter().map(|span| span.2).sum::<u64>());
        assert_eq!(
            snapshot.roots.iter().map(|root| root.cpu_ns).sum::<u64>(),
            snapshot.total.cpu_ns
        );
    }

    #[test]
    fn a_span_has_its_own_time_without_its_childrens() {
        check(
            || {
                burn(1);
                tracing::info_span!("root").in_scope(|| {
                    burn(10);
                    tracing::info_span!("child").in_scope(|| {
                        burn(100);
                        tracing::info_span!("inner", otel.name = "named").in_scope(|| burn(1000));
                        burn(200);
                    });
                    tracing::info_span!("child").in_scope(|| burn(400));
                    burn(20);
                });
                burn(2);
            },
            &[("child", "root", 700, 2), ("named", "root", 1000, 1), ("root", "root", 30, 1)],
        );
    }

    #[test]
    fn the_same_child_below_two_roots_is_two() {
        let request = |root: tracing::Span, ns| {
            root.in_scope(|| tracing::info_span!("load").in_scope(|| burn(ns)));
        };
        check(
            || {
                request(tracing::info_span!("a"), 5);
                request(tracing::info_span!("b"), 7);
            },
            &[("a", "a", 0, 1), ("b", "b", 0, 1), ("load", "a", 5, 1), ("load", "b", 7, 1)],
        );
    }

    #[test]
    fn a_parent_that_is_entered_again_inside_its_child_is_current() {
        check(
            || {
                let root = tracing::info_span!("root");
                let _outer = root.enter();
                tracing::info_span!("child").in_scope(|| {
                    burn(1);
                    root.in_scope(|| burn(10));
                    burn(2);
                });
            },
            &[("child", "root", 3, 1), ("root", "root", 10, 1)],
        );
    }

    #[test]
    fn spans_that_are_left_out_of_order_keep_their_time() {
        check(
            || {
                let (a, b) = (tracing::info_span!("a"), tracing::info_span!("b"));
                let a = a.entered();
                burn(1);
                let b = b.entered();
                burn(10);
                drop(a);
                burn(100);
                drop(b);
                burn(1000);
            },
            &[("a", "a", 1, 1), ("b", "b", 110, 1)],
        );
    }

    #[test]
    fn the_threads_clock_counts_work_and_not_waiting() {
        let before = thread_cpu_ns();
        while thread_cpu_ns() < before + 2_000_000 {
            std::hint::black_box(0);
        }
        let elsewhere = std::thread::spawn(thread_cpu_ns).join().unwrap();
        assert!(elsewhere < thread_cpu_ns());
    }
}
