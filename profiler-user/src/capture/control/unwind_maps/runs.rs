//! Runs of numbers, given out and taken back: pages, mapping entries, the words of a segment.

use std::collections::BTreeMap;

/// Free numbers from 0 on, as runs. A run lies within one segment of `segment` numbers.
#[derive(Debug)]
pub(super) struct Runs {
    /// Start to length; neighbours are one run, unless a segment ends between them.
    free: BTreeMap<u32, u32>,
    segment: u32,
}

impl Runs {
    /// All numbers below `len`, a multiple of `segment`.
    pub(super) fn new(len: u32, segment: u32) -> Self {
        let mut runs = Self { free: BTreeMap::new(), segment };
        runs.extend(0, len);
        runs
    }

    /// More numbers, from `start` on.
    pub(super) fn extend(&mut self, start: u32, len: u32) {
        let step = usize::try_from(self.segment).unwrap_or(1).max(1);
        for at in (start..start.saturating_add(len)).step_by(step) {
            self.free.insert(at, self.segment);
        }
    }

    /// A run of `len` numbers: from the smallest that is large enough, so that large ones stay.
    pub(super) fn take(&mut self, len: u32) -> Option<u32> {
        let fits = self.free.iter().filter(|(_, free)| **free >= len);
        let (start, free) = fits.min_by_key(|(start, free)| (**free, **start))?;
        let (start, free) = (*start, *free);
        self.free.remove(&start);
        if free > len {
            self.free.insert(start.saturating_add(len), free.saturating_sub(len));
        }
        Some(start)
    }

    /// Takes back a run that was given out.
    pub(super) fn give_back(&mut self, start: u32, len: u32) {
        let segment_of = |at: u32| at / self.segment.max(1);
        let (mut start, mut len) = (start, len);
        if let Some((&before, &free)) = self.free.range(..start).next_back()
            && before.saturating_add(free) == start
            && segment_of(before) == segment_of(start)
        {
            self.free.remove(&before);
            (start, len) = (before, len.saturating_add(free));
        }
        let behind = start.saturating_add(len);
        if segment_of(behind) == segment_of(start)
            && let Some(free) = self.free.remove(&behind)
        {
            len = len.saturating_add(free);
        }
        self.free.insert(start, len);
    }

    /// How many numbers are free.
    pub(super) fn free(&self) -> u32 {
        self.free.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_end_with_their_segment() {
        let mut runs = Runs::new(32, 16);
        assert_eq!(runs.take(17), None);
        assert_eq!(
            [runs.take(10), runs.take(10), runs.take(6), runs.take(6)],
            [Some(0), Some(16), Some(10), Some(26)]
        );
        assert_eq!(runs.take(1), None);
        for (start, len) in [(10, 6), (16, 10), (0, 10), (26, 6)] {
            runs.give_back(start, len);
        }
        assert_eq!((runs.free(), runs.take(16), runs.take(16)), (32, Some(0), Some(16)));
        runs.extend(32, 16);
        assert_eq!(runs.take(16), Some(32));
    }

    proptest! {
        /// Against a bitmap: no number is given out twice, and all can be given out in the end.
        #[test]
        fn no_number_is_given_out_twice(steps in prop::collection::vec((any::<bool>(), 1..20_u32), 1..200)) {
            let mut runs = Runs::new(64, 16);
            let mut taken: Vec<(u32, u32)> = Vec::new();
            for (take, number) in steps {
                if take {
                    if let Some(start) = runs.take(number) {
                        prop_assert!(number <= 16 && start / 16 == (start + number - 1) / 16);
                        prop_assert!(taken.iter().all(|(at, len)| at + len <= start || start + number <= *at));
                        taken.push((start, number));
                    }
                } else if !taken.is_empty() {
                    let (start, len) = taken.swap_remove(number as usize % taken.len());
                    runs.give_back(start, len);
                }
            }
            for (start, len) in taken {
                runs.give_back(start, len);
            }
            prop_assert_eq!([16, 16, 16, 16].map(|len| runs.take(len)).iter().flatten().count(), 4);
        }
    }
}
