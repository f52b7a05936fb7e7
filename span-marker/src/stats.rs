//! What could not be published as asked, by reason.

use std::sync::atomic::{AtomicU64, Ordering};

/// One reason's count since the process started.
#[derive(Debug)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

pub(crate) static ATTRIBUTES_DROPPED: Counter = Counter::new();
pub(crate) static VALUES_CUT: Counter = Counter::new();
pub(crate) static KEYS_REFUSED: Counter = Counter::new();
pub(crate) static ENTERED_TOO_DEEP: Counter = Counter::new();
pub(crate) static CONTEXT_UPDATES_FAILED: Counter = Counter::new();
#[cfg(feature = "opentelemetry")]
pub(crate) static NOT_SAMPLED: Counter = Counter::new();
#[cfg(feature = "opentelemetry")]
pub(crate) static NOT_TRACKED: Counter = Counter::new();
#[cfg(feature = "opentelemetry")]
pub(crate) static TOO_MANY_SPANS: Counter = Counter::new();

/// What could not be published as asked, by reason, since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Attributes left out of a record: no room, or no key.
    pub attributes_dropped: u64,
    /// Attribute values cut at 255 bytes.
    pub values_cut: u64,
    /// Uses of a key that could not be registered.
    pub keys_refused: u64,
    /// Records that were entered below too many others on one thread, and so are not published: the
    /// time counts for the one above.
    pub entered_too_deep: u64,
    /// Updates of the process context that failed: readers do not know the newest keys.
    pub context_updates_failed: u64,
    /// Contexts published with the active span's id alone, because the SDK does not record the span.
    #[cfg(feature = "opentelemetry")]
    pub spans_not_sampled: u64,
    /// Contexts of sampled spans published with the active span's id alone: the span had ended, came
    /// from a provider without our processor, or was one too many.
    #[cfg(feature = "opentelemetry")]
    pub spans_not_tracked: u64,
    /// Spans that were started while too many others were open.
    #[cfg(feature = "opentelemetry")]
    pub spans_over_limit: u64,
}

/// Reads the counts.
#[must_use]
pub fn stats() -> Stats {
    Stats {
        attributes_dropped: ATTRIBUTES_DROPPED.get(),
        values_cut: VALUES_CUT.get(),
        keys_refused: KEYS_REFUSED.get(),
        entered_too_deep: ENTERED_TOO_DEEP.get(),
        context_updates_failed: CONTEXT_UPDATES_FAILED.get(),
        #[cfg(feature = "opentelemetry")]
        spans_not_sampled: NOT_SAMPLED.get(),
        #[cfg(feature = "opentelemetry")]
        spans_not_tracked: NOT_TRACKED.get(),
        #[cfg(feature = "opentelemetry")]
        spans_over_limit: TOO_MANY_SPANS.get(),
    }
}
