//! What went in, came out and was lost at each stage, by reason.
//!
//! ```text
//! samples_taken (BPF)  = lost_ring_full + lost_no_scratch (BPF) + samples_drained
//! samples_drained      = lost_attribute_queue_full + lost_malformed + lost_window_full
//!                        + samples_aggregated
//! samples_aggregated   = lost_window_queue_full + lost_dropped_by_rule + lost_zero_value
//!                        + samples_encoded
//! samples_encoded      = samples_exported + lost_export_* + uncertain_export + queued
//! ```
//!
//! Every number counts *samples*, so that the books of two stages can be compared.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counts {
    ($($(#[doc = $doc:literal])* $variant:ident => $text:literal,)*) => {
        /// What user space counts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Count {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Count {
            /// All of them, in the order of the pipeline.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in reports and metrics.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

counts! {
    /// Samples read from the ring.
    SamplesDrained => "samples_drained",
    /// Samples lost: the attributing thread was behind and its queue full.
    LostAttributeQueueFull => "lost_attribute_queue_full",
    /// Samples lost: the record is malformed.
    LostMalformed => "lost_malformed",
    /// Samples whose span record has ids of zero: no span. They are not lost.
    SpanIdsZero => "span_ids_zero",
    /// Samples whose thread has labels with an id that is none: no span. They are not lost.
    SpanLabelsMalformed => "span_labels_malformed",
    /// Samples in spans whose trace flags say that they are not sampled, whether they are charged to
    /// them or, by `--unsampled-spans skip`, to none. They are not lost.
    SpanUnsampled => "span_unsampled",
    /// Samples that are charged to no span because their window holds as many as it may. They are
    /// not lost.
    SpanOverLimit => "span_over_limit",
    /// Samples whose user stack was walked with the mappings of a program that did not run any
    /// more: only the first frame is kept. They are not lost.
    UserStackStale => "user_stack_stale",
    /// Samples that went into a window.
    SamplesAggregated => "samples_aggregated",
    /// Samples lost: the finishing thread was behind and a whole window was dropped.
    LostWindowQueueFull => "lost_window_queue_full",
    /// Samples lost: a window held more distinct stacks or spans than are kept.
    LostWindowFull => "lost_window_full",
    /// Samples of series that are not wanted: a filter or a rule of relabelling dropped them.
    LostDroppedByRule => "lost_dropped_by_rule",
    /// Samples lost: their value is 0, which a profile does not hold. A timer never makes one.
    LostZeroValue => "lost_zero_value",
    /// Samples handed to the exporter.
    SamplesEncoded => "samples_encoded",
    /// Samples that the server or the file took.
    SamplesExported => "samples_exported",
    /// Samples lost: the export queue was full; the oldest profile was dropped.
    LostExportQueueFull => "lost_export_queue_full",
    /// Samples lost: the server refused the profile for good.
    LostExportRejected => "lost_export_rejected",
    /// Samples lost: all retries failed, or the profile got too old to be taken.
    LostExportGaveUp => "lost_export_gave_up",
    /// Samples lost: still queued when the time to shut down was over.
    LostExportShutdown => "lost_export_shutdown",
    /// Samples that may or may not have arrived: the request was sent, its answer never came.
    UncertainExport => "uncertain_export",
}

/// The counters of one run. Shared by all stages; adding is one relaxed atomic.
#[derive(Debug)]
pub struct Stats {
    counts: [AtomicU64; Count::ALL.len()],
}

impl Default for Stats {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; Count::ALL.len()] }
    }
}

impl Stats {
    /// Adds to a counter.
    pub fn add(&self, count: Count, samples: u64) {
        self.cell(count).fetch_add(samples, Ordering::Relaxed);
    }

    /// Reads a counter.
    #[must_use]
    pub fn get(&self, count: Count) -> u64 {
        self.cell(count).load(Ordering::Relaxed)
    }

    fn cell(&self, count: Count) -> &AtomicU64 {
        // A variant's discriminant is its index in `ALL`, which sizes the array.
        &self.counts[count as usize]
    }
}
