//! Files whose table is to be made: those of processes that run now first, small ones first, and none
//! of these after a large one.

use std::collections::{BTreeSet, HashMap};

use crate::process::ElfId;

/// How soon a file's table is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wanted {
    /// A process runs it now, and has not many others.
    Now,
    /// It was found when everything was looked at, or had to go before.
    Sometime,
}

/// Files of more bytes are large: LLVM's library takes a quarter of a second, and much longer on a
/// host at work.
pub(super) const SMALL_MAX: u64 = 4 << 20;

/// Which of two threads makes a file's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// That of small files, so that what starts to run does not wait for what is large.
    Small,
    /// That of large ones.
    Large,
}

impl Lane {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::Small, Self::Large];

    fn of(bytes: u64) -> Self {
        if bytes <= SMALL_MAX { Self::Small } else { Self::Large }
    }
}

/// What is kept of each lane.
#[derive(Debug, Default)]
pub(super) struct PerLane<T> {
    small: T,
    large: T,
}

impl<T> PerLane<T> {
    pub(super) const fn new(small: T, large: T) -> Self {
        Self { small, large }
    }

    pub(super) const fn of(&self, lane: Lane) -> &T {
        match lane {
            Lane::Small => &self.small,
            Lane::Large => &self.large,
        }
    }

    pub(super) const fn of_mut(&mut self, lane: Lane) -> &mut T {
        match lane {
            Lane::Small => &mut self.small,
            Lane::Large => &mut self.large,
        }
    }
}

/// What waits to be built.
#[derive(Debug, Default)]
pub(super) struct Queue {
    order: PerLane<BTreeSet<(Wanted, u64, ElfId)>>,
    places: HashMap<ElfId, (Wanted, u64)>,
}

impl Queue {
    /// Adds a file of so many bytes, or moves it forward; `false`: it is as far already.
    pub(super) fn add(&mut self, id: ElfId, wanted: Wanted, bytes: u64) -> bool {
        if let Some((before, known)) = self.places.get(&id).copied() {
            if before <= wanted {
                return false;
            }
            self.order.of_mut(Lane::of(known)).remove(&(before, known, id));
        }
        self.order.of_mut(Lane::of(bytes)).insert((wanted, bytes, id));
        self.places.insert(id, (wanted, bytes));
        true
    }

    /// The next file of a lane.
    pub(super) fn take(&mut self, lane: Lane) -> Option<ElfId> {
        let (_, _, id) = self.order.of_mut(lane).pop_first()?;
        self.places.remove(&id);
        Some(id)
    }

    /// Leaves a file out.
    pub(super) fn remove(&mut self, id: ElfId) {
        if let Some((wanted, bytes)) = self.places.remove(&id) {
            self.order.of_mut(Lane::of(bytes)).remove(&(wanted, bytes, id));
        }
    }

    /// How many files wait.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_now_comes_first_and_small_files_before_large_ones() {
        let mut queue = Queue::default();
        for (id, wanted, bytes) in [
            (1, Wanted::Sometime, 10),
            (2, Wanted::Now, 500),
            (3, Wanted::Now, 20),
            (4, Wanted::Sometime, 5),
            (1, Wanted::Now, 10),
            (2, Wanted::Sometime, 500),
        ] {
            queue.add(ElfId(id), wanted, bytes);
        }
        let mut order =
            |lane| -> Vec<u32> { std::iter::from_fn(|| queue.take(lane)).map(|id| id.0).collect() };
        assert_eq!((order(Lane::Small), order(Lane::Large)), (vec![1, 3, 2, 4], vec![]));
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn large_files_are_for_the_other_thread() {
        let mut queue = Queue::default();
        for (id, bytes) in [(1, SMALL_MAX + 2), (2, SMALL_MAX), (3, SMALL_MAX + 1)] {
            queue.add(ElfId(id), Wanted::Sometime, bytes);
        }
        queue.add(ElfId(1), Wanted::Now, SMALL_MAX + 2);
        assert_eq!([Lane::Small, Lane::Small].map(|it| queue.take(it)), [Some(ElfId(2)), None]);
        assert_eq!([Lane::Large; 2].map(|it| queue.take(it)), [Some(ElfId(1)), Some(ElfId(3))]);
    }
}
