//! What waits to be sent: bounded in bytes, oldest first, and the first to go when it is full.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::stats::{Count, Stats};

/// What an entry takes beside its message.
const ENTRY_OVERHEAD_BYTES: usize = 128;

/// A message that waits or is under way.
#[derive(Debug)]
pub(super) struct Entry {
    /// The encoded `PushRequest`.
    pub(super) message: Bytes,
    /// The samples inside.
    pub(super) samples: u64,
    /// When it is too old for the server.
    pub(super) expires: Instant,
    /// Not to be sent before.
    pub(super) not_before: Instant,
    /// How often the server would not take it for now.
    pub(super) failures: u32,
    /// How often the server answered it with 500.
    pub(super) server_errors: u32,
}

impl Entry {
    fn cost(&self) -> usize {
        self.message.len().saturating_add(ENTRY_OVERHEAD_BYTES)
    }
}

/// Its place in the queue: older is smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u64);

/// What is queued, requests under way included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queued {
    /// Profiles.
    pub profiles: usize,
    /// Samples inside them.
    pub samples: u64,
    /// Bytes that they take.
    pub bytes: usize,
}

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    max_bytes: usize,
    stats: Arc<Stats>,
    /// Something came in.
    pub(super) grown: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: BTreeMap<Place, Entry>,
    /// All that is in `waiting` or was taken and not settled yet.
    held: Queued,
    waiting_bytes: usize,
    next_place: u64,
    closed: bool,
}

impl Queue {
    pub(super) fn new(max_bytes: usize, stats: Arc<Stats>) -> Self {
        Self { state: Mutex::default(), max_bytes, stats, grown: Notify::new() }
    }

    /// Takes an entry in, or counts what was lost for want of room. Never waits.
    pub(super) fn push(&self, entry: Entry) {
        let cost = entry.cost();
        let mut state = self.lock();
        if state.closed {
            self.stats.add(Count::LostExportShutdown, entry.samples);
            return;
        }
        let under_way = state.held.bytes - state.waiting_bytes;
        if under_way.saturating_add(cost) > self.max_bytes {
            self.stats.add(Count::LostExportQueueFull, entry.samples);
            return;
        }
        while state.held.bytes.saturating_add(cost) > self.max_bytes
            && let Some((_, oldest)) = state.waiting.pop_first()
        {
            state.waiting_bytes -= oldest.cost();
            state.release(&oldest);
            self.stats.add(Count::LostExportQueueFull, oldest.samples);
        }
        state.held.profiles += 1;
        state.held.samples += entry.samples;
        state.held.bytes += cost;
        state.waiting_bytes += cost;
        let place = Place(state.next_place);
        state.next_place += 1;
        state.waiting.insert(place, entry);
        drop(state);
        self.grown.notify_one();
    }

    /// The oldest entry that may be sent. It goes on counting as queued until it is settled.
    pub(super) fn take(&self, now: Instant) -> Option<(Place, Entry)> {
        let mut state = self.lock();
        let place = *state.waiting.iter().find(|(_, entry)| entry.not_before <= now)?.0;
        let entry = state.waiting.remove(&place)?;
        state.waiting_bytes -= entry.cost();
        Some((place, entry))
    }

    /// Puts an entry that was taken back in its place.
    pub(super) fn put_back(&self, place: Place, entry: Entry) {
        let mut state = self.lock();
        state.waiting_bytes += entry.cost();
        state.waiting.insert(place, entry);
    }

    /// An entry that was taken has come to its end.
    pub(super) fn settle(&self, entry: &Entry, count: Count) {
        let mut state = self.lock();
        state.release(entry);
        self.stats.add(count, entry.samples);
    }

    /// Gives up what the server would not take any more.
    pub(super) fn expire(&self, now: Instant) {
        let mut state = self.lock();
        let state = &mut *state;
        let (held, waiting_bytes) = (&mut state.held, &mut state.waiting_bytes);
        state.waiting.retain(|_, entry| {
            let keep = entry.expires > now;
            if !keep {
                *waiting_bytes -= entry.cost();
                held.remove(entry);
                self.stats.add(Count::LostExportGaveUp, entry.samples);
            }
            keep
        });
    }

    /// When something can be sent or expires next.
    pub(super) fn next_event(&self, may_send: bool) -> Option<Instant> {
        let state = self.lock();
        let event = |entry: &Entry| {
            if may_send { entry.not_before.min(entry.expires) } else { entry.expires }
        };
        state.waiting.values().map(event).min()
    }

    /// Nothing comes in from here on; what waits may go at once.
    pub(super) fn close(&self, now: Instant) {
        let mut state = self.lock();
        state.closed = true;
        for entry in state.waiting.values_mut() {
            entry.not_before = now;
        }
    }

    /// Counts what still waits as lost to the end of the program.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.waiting_bytes = 0;
        for entry in std::mem::take(&mut state.waiting).into_values() {
            state.release(&entry);
            self.stats.add(Count::LostExportShutdown, entry.samples);
        }
    }

    pub(super) fn queued(&self) -> Queued {
        self.lock().held
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole at each point at which a panic could happen.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn release(&mut self, entry: &Entry) {
        self.held.remove(entry);
    }
}

impl Queued {
    fn remove(&mut self, entry: &Entry) {
        self.profiles -= 1;
        self.samples -= entry.samples;
        self.bytes -= entry.cost();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SIZE: usize = 1000 - ENTRY_OVERHEAD_BYTES;

    fn entry(samples: u64, size: usize) -> Entry {
        let now = Instant::now();
        Entry {
            message: Bytes::from(vec![0; size]),
            samples,
            expires: now + Duration::from_secs(10),
            not_before: now,
            failures: 0,
            server_errors: 0,
        }
    }

    fn queue(max_bytes: usize) -> (Queue, Arc<Stats>) {
        let stats = Arc::new(Stats::default());
        (Queue::new(max_bytes, Arc::clone(&stats)), stats)
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_drops_the_oldest_and_counts_it() {
        let (queue, stats) = queue(3000);
        for samples in [1, 2, 4, 8] {
            queue.push(entry(samples, SIZE));
        }
        assert_eq!(stats.get(Count::LostExportQueueFull), 1);
        assert_eq!(queue.queued(), Queued { profiles: 3, samples: 14, bytes: 3000 });
        // One of twice the size pushes two out.
        queue.push(entry(16, 2000 - ENTRY_OVERHEAD_BYTES));
        assert_eq!(stats.get(Count::LostExportQueueFull), 1 + 2 + 4);
        assert_eq!(queue.queued(), Queued { profiles: 2, samples: 24, bytes: 3000 });
        // One that never fits pushes nothing out.
        queue.push(entry(32, 3000));
        assert_eq!(stats.get(Count::LostExportQueueFull), 1 + 2 + 4 + 32);
        assert_eq!(queue.queued().profiles, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_keeps_its_room() {
        let (queue, stats) = queue(2000);
        let now = Instant::now();
        queue.push(entry(1, SIZE));
        let (first, taken) = queue.take(now).unwrap();
        queue.push(entry(2, SIZE));
        queue.push(entry(4, SIZE));
        assert_eq!(stats.get(Count::LostExportQueueFull), 2);
        queue.put_back(first, taken);
        // Back in its place: the oldest, and so the first to be sent and the first to go.
        assert_eq!(queue.take(now).unwrap().1.samples, 1);
        assert_eq!(queue.take(now).unwrap().1.samples, 4);
        assert!(queue.take(now).is_none());
        assert_eq!(queue.queued().profiles, 2);
        queue.push(entry(8, SIZE));
        assert_eq!(stats.get(Count::LostExportQueueFull), 2 + 8);
    }

    #[tokio::test(start_paused = true)]
    async fn entries_wait_for_their_time_and_expire() {
        let (queue, stats) = queue(10_000);
        let now = Instant::now();
        let mut later = entry(1, SIZE);
        later.not_before = now + Duration::from_secs(3);
        queue.push(later);
        assert!(queue.take(now).is_none());
        assert_eq!(queue.next_event(true), Some(now + Duration::from_secs(3)));
        assert_eq!(queue.next_event(false), Some(now + Duration::from_secs(10)));
        queue.push(entry(2, SIZE));
        assert_eq!(queue.take(now).unwrap().1.samples, 2);
        queue.expire(now + Duration::from_secs(9));
        assert_eq!(stats.get(Count::LostExportGaveUp), 0);
        queue.expire(now + Duration::from_secs(10));
        assert_eq!(stats.get(Count::LostExportGaveUp), 1);
        assert_eq!(queue.queued().profiles, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_queue_takes_nothing_and_counts_what_is_left() {
        let (queue, stats) = queue(10_000);
        queue.push(entry(1, SIZE));
        queue.close(Instant::now());
        queue.push(entry(2, SIZE));
        assert_eq!(stats.get(Count::LostExportShutdown), 2);
        queue.abandon();
        assert_eq!(stats.get(Count::LostExportShutdown), 3);
        assert_eq!(queue.queued(), Queued::default());
    }

    proptest::proptest! {
        /// Whatever happens in whatever order: every sample is queued or counted, and the bytes
        /// stay within the bound.
        #[test]
        fn the_books_add_up(steps in proptest::collection::vec((0_u8..6, 1_u64..9, 0_usize..1500), 0..200)) {
            let (queue, stats) = queue(4000);
            let now = Instant::now();
            let (mut handed, mut taken) = (0, Vec::new());
            for (step, samples, size) in steps {
                match step {
                    0..=2 => {
                        handed += samples;
                        queue.push(entry(samples, size));
                    }
                    3 => taken.extend(queue.take(now)),
                    4 => if let Some((place, entry)) = taken.pop() {
                        queue.put_back(place, entry);
                    },
                    _ => if let Some((_, entry)) = taken.pop() {
                        queue.settle(&entry, Count::SamplesExported);
                    },
                }
                let settled = stats.get(Count::SamplesExported) + stats.get(Count::LostExportQueueFull);
                let queued = queue.queued();
                proptest::prop_assert_eq!(handed, queued.samples + settled);
                proptest::prop_assert!(queued.bytes <= 4000);
            }
        }
    }
}
