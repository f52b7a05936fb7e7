//! The way of a sample into a window, counted: the same for a live one and a recorded one.

use crate::aggregate::{Added, Aggregator};
use crate::attribute::AttributedSample;
use crate::decode::{NoSpan, Sample};
use crate::stats::{Count, Stats};

/// Counts what a sample says of its span.
pub(super) fn count_span(sample: &Sample, stats: &Stats) {
    match &sample.span {
        Ok(span) if !span.is_sampled() => stats.add(Count::SpanUnsampled, 1),
        Err(NoSpan::ZeroIds) => stats.add(Count::SpanIdsZero, 1),
        Err(NoSpan::LabelsMalformed) => stats.add(Count::SpanLabelsMalformed, 1),
        _ => {}
    }
}

/// Adds a sample, or counts why not.
pub(super) fn aggregate(sample: AttributedSample, aggregator: &mut Aggregator, stats: &Stats) {
    let count = match aggregator.add(sample) {
        Ok(Added::Whole) => Count::SamplesAggregated,
        Ok(Added::WithoutSpan) => {
            stats.add(Count::SpanOverLimit, 1);
            Count::SamplesAggregated
        }
        Err(_full) => Count::LostWindowFull,
    };
    stats.add(count, 1);
}
