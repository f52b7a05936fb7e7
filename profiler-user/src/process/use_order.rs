//! Which of many things was used longest ago: what the bounded tables of this module forget first.

use std::collections::BTreeMap;

/// Keys in the order of their last use. The owner keeps each key's [`Stamp`].
#[derive(Debug)]
pub(super) struct UseOrder<K> {
    by_use: BTreeMap<u64, K>,
    next: u64,
}

/// When a key was used last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(u64);

impl<K> Default for UseOrder<K> {
    fn default() -> Self {
        Self { by_use: BTreeMap::new(), next: 0 }
    }
}

impl<K: Copy> UseOrder<K> {
    /// Adds a key, as the one used last.
    pub(super) fn insert(&mut self, key: K) -> Stamp {
        let stamp = self.next;
        // 2^64 uses do not happen.
        self.next = self.next.wrapping_add(1);
        self.by_use.insert(stamp, key);
        Stamp(stamp)
    }

    /// Makes a key the one used last.
    pub(super) fn touch(&mut self, stamp: &mut Stamp) {
        if let Some(key) = self.by_use.remove(&stamp.0) {
            *stamp = self.insert(key);
        }
    }

    /// Forgets a key.
    pub(super) fn remove(&mut self, stamp: Stamp) {
        self.by_use.remove(&stamp.0);
    }

    /// The key that was used longest ago.
    pub(super) fn oldest(&self) -> Option<K> {
        self.by_use.values().next().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.by_use.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_the_one_not_touched() {
        let mut order = UseOrder::default();
        let mut first = order.insert('a');
        let second = order.insert('b');
        assert_eq!(order.oldest(), Some('a'));
        order.touch(&mut first);
        assert_eq!(order.oldest(), Some('b'));
        order.remove(second);
        assert_eq!((order.oldest(), order.len()), (Some('a'), 1));
        order.touch(&mut first);
        order.remove(first);
        assert_eq!(order.oldest(), None);
    }
}
