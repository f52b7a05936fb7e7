//! The spans that are open, with their records: from the processor, which knows the names, to the
//! observer, which knows the contexts.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use super::observer::View;
use crate::record::SpanIds;
use crate::stats::TOO_MANY_SPANS;

/// How many open spans are known by name. Some 500 bytes each.
pub const OPEN_SPANS_MAX: usize = SHARDS * SHARD_MAX;

const SHARDS: usize = 64;
const SHARD_MAX: usize = 1024;

/// Written and emptied by the processors, read by the observer.
pub(super) static SPANS: Spans = Spans(LazyLock::new(|| {
    [const { Mutex::new(Shard::with_hasher(BuildHasherDefault::new())) }; SHARDS]
}));

type Shard = HashMap<[u8; 8], Arc<View>, BuildHasherDefault<IdHasher>>;

/// Span id to view, in shards with a lock each: spans start and end on all threads.
pub(super) struct Spans(LazyLock<[Mutex<Shard>; SHARDS]>);

impl Spans {
    /// A full shard refuses the span, which is counted.
    pub(super) fn insert(&self, view: Arc<View>) {
        let span_id = view.ids.span_id;
        let mut shard = self.shard(span_id);
        if shard.len() >= SHARD_MAX && !shard.contains_key(&span_id) {
            TOO_MANY_SPANS.add();
            return;
        }
        let former = shard.insert(span_id, view);
        drop(shard);
        drop(former);
    }

    /// The view of a span, if it is known in this trace.
    pub(super) fn get(&self, ids: &SpanIds) -> Option<Arc<View>> {
        let shard = self.shard(ids.span_id);
        shard.get(&ids.span_id).filter(|view| view.ids.trace_id == ids.trace_id).map(Arc::clone)
    }

    pub(super) fn remove(&self, span_id: [u8; 8]) {
        let removed = self.shard(span_id).remove(&span_id);
        drop(removed);
    }

    fn shard(&self, span_id: [u8; 8]) -> MutexGuard<'_, Shard> {
        let mut hasher = IdHasher::default();
        hasher.write(&span_id);
        let [.., top] = hasher.finish().to_le_bytes();
        let shard = &self.0[usize::from(top) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Span ids are random already, or at least not chosen against us: one multiplication spreads them.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
        self.0 = self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }

    fn write_usize(&mut self, _length_prefix: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;

    fn view(number: u64) -> Arc<View> {
        let ids = SpanIds { trace_id: [9; 16], span_id: number.to_be_bytes(), trace_flags: 1 };
        Arc::new(View { ids, record: Record::builder(ids).build(), root: None })
    }

    fn spans() -> Spans {
        Spans(LazyLock::new(|| std::array::from_fn(|_| Mutex::default())))
    }

    #[test]
    fn finds_a_span_in_its_own_trace_until_it_ends() {
        let spans = spans();
        let ids = view(7).ids;
        spans.insert(view(7));
        assert_eq!(spans.get(&ids).unwrap().ids, ids);
        assert!(spans.get(&SpanIds { trace_id: [8; 16], ..ids }).is_none());
        spans.remove(ids.span_id);
        assert!(spans.get(&ids).is_none());
    }

    #[test]
    fn is_bounded_and_spreads_even_numbered_ids() {
        let spans = spans();
        let before = crate::stats().spans_over_limit;
        let count = 2 * OPEN_SPANS_MAX as u64;
        for number in 1..=count {
            spans.insert(view(number));
        }
        let kept: usize = spans.0.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert_eq!(kept, OPEN_SPANS_MAX);
        assert_eq!(crate::stats().spans_over_limit - before, count - kept as u64);
    }
}
