//! Files whose table is to be made: those of processes that run now first, small ones first.

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

/// What waits to be built.
#[derive(Debug, Default)]
pub(super) struct Queue {
    order: BTreeSet<(Wanted, u64, ElfId)>,
    places: HashMap<ElfId, (Wanted, u64)>,
}

impl Queue {
    /// Adds a file of so many bytes, or moves it forward; `false`: it is as far already.
    pub(super) fn add(&mut self, id: ElfId, wanted: Wanted, bytes: u64) -> bool {
        if let Some((before, known)) = self.places.get(&id).copied() {
            if before <= wanted {
                return false;
            }
            self.order.remove(&(before, known, id));
        }
        self.order.insert((wanted, bytes, id));
        self.places.insert(id, (wanted, bytes));
        true
    }

    /// The next file.
    pub(super) fn take(&mut self) -> Option<ElfId> {
        let (_, _, id) = self.order.pop_first()?;
        self.places.remove(&id);
        Some(id)
    }

    /// Leaves a file out.
    pub(super) fn remove(&mut self, id: ElfId) {
        if let Some((wanted, bytes)) = self.places.remove(&id) {
            self.order.remove(&(wanted, bytes, id));
        }
    }

    /// How many files wait.
    pub(super) fn len(&self) -> usize {
        self.order.len()
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
        let order: Vec<u32> = std::iter::from_fn(|| queue.take()).map(|id| id.0).collect();
        assert_eq!((order, queue.len()), (vec![1, 3, 2, 4], 0));
    }
}
