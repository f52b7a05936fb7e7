//! The true span of each thread over time, as the workload `switches` writes it down.

use std::collections::{BTreeMap, BTreeSet};

/// A thread switches from what it worked on before to a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The thread.
    pub tid: u32,
    /// The boot clock just before, in nanoseconds.
    pub before: u64,
    /// And just after.
    pub after: u64,
    /// The span's id; 0: none.
    pub span: u64,
}

const LEN: usize = 28;

impl Switch {
    /// As the file has it.
    #[must_use]
    pub fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..4].copy_from_slice(&self.tid.to_ne_bytes());
        for (word, at) in [self.before, self.after, self.span].into_iter().zip([4, 12, 20]) {
            bytes[at..at + 8].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; LEN]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(word)
        };
        let mut tid = [0; 4];
        tid.copy_from_slice(&bytes[..4]);
        Self { tid: u32::from_ne_bytes(tid), before: word(4), after: word(12), span: word(20) }
    }
}

/// What all threads worked on.
#[derive(Debug)]
pub struct Truth {
    /// In the order of time.
    by_thread: BTreeMap<u32, Vec<Switch>>,
}

/// The spans that a thread may have worked on at some time; 0 stands for none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Active {
    /// Nothing is known of the thread at that time.
    Unknown,
    /// One of these: more than one where the time is in the middle of a switch.
    OneOf(BTreeSet<u64>),
}

impl Truth {
    /// Reads the file.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Self {
        let mut by_thread: BTreeMap<u32, Vec<Switch>> = BTreeMap::new();
        for switch in bytes.as_chunks().0.iter().map(Switch::from_bytes) {
            by_thread.entry(switch.tid).or_default().push(switch);
        }
        for switches in by_thread.values_mut() {
            switches.sort_by_key(|switch| (switch.before, switch.after));
        }
        Self { by_thread }
    }

    /// How many switches there were.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_thread.values().map(Vec::len).sum()
    }

    /// Whether there was none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_thread.is_empty()
    }

    /// What a thread may have worked on at a time of the boot clock.
    #[must_use]
    pub fn at(&self, tid: u32, time: u64) -> Active {
        let Some(switches) = self.by_thread.get(&tid) else { return Active::Unknown };
        // All that had begun by then; of these, the last that had also ended, and those after it.
        let begun = switches.partition_point(|switch| switch.before <= time);
        let mut active = BTreeSet::new();
        for switch in switches[..begun].iter().rev() {
            active.insert(switch.span);
            if switch.after < time {
                return if begun == switches.len() {
                    Active::Unknown
                } else {
                    Active::OneOf(active)
                };
            }
        }
        // Nothing is known of the time before the first.
        Active::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_in_a_switch_may_be_of_either_side() {
        let switch = |before, after, span| Switch { tid: 7, before, after, span };
        let switches = [switch(10, 12, 1), switch(20, 22, 2), switch(22, 24, 0), switch(30, 32, 3)];
        let bytes: Vec<u8> = switches.iter().flat_map(|switch| switch.to_bytes()).collect();
        let truth = Truth::read(&bytes);
        assert_eq!(truth.len(), 4);
        let one_of = |spans: &[u64]| Active::OneOf(spans.iter().copied().collect());
        assert_eq!(truth.at(7, 11), Active::Unknown);
        assert_eq!(truth.at(7, 15), one_of(&[1]));
        assert_eq!(truth.at(7, 21), one_of(&[1, 2]));
        assert_eq!(truth.at(7, 22), one_of(&[0, 1, 2]));
        assert_eq!(truth.at(7, 23), one_of(&[0, 2]));
        assert_eq!(truth.at(7, 29), one_of(&[0]));
        assert_eq!(truth.at(7, 40), Active::Unknown);
        assert_eq!(truth.at(8, 15), Active::Unknown);
    }
}
