//! Tables that give each distinct item an id, in the order of first use.

use std::{hash::Hash, num::NonZeroU64};

use indexmap::IndexSet;

/// Distinct items with ids from 1 on: 0 means "none" in pprof.
pub(super) struct Table<T> {
    items: IndexSet<T>,
}

impl<T: Hash + Eq> Table<T> {
    pub(super) fn new() -> Self {
        Self { items: IndexSet::new() }
    }

    /// The id of `item`, and whether this is its first use.
    pub(super) fn id(&mut self, item: T) -> (NonZeroU64, bool) {
        let (index, is_new) = self.items.insert_full(item);
        (NonZeroU64::MIN.saturating_add(index as u64), is_new)
    }
}

/// Ids from 1 on for some of the numbers below a bound. No hashing: every frame of every sample asks
/// for the id of its location.
pub(super) struct DenseTable {
    /// By number.
    ids: Vec<Option<NonZeroU64>>,
    next: NonZeroU64,
}

impl DenseTable {
    /// For numbers below `bound`.
    pub(super) fn new(bound: usize) -> Self {
        Self { ids: vec![None; bound], next: NonZeroU64::MIN }
    }

    /// The id of `number`, and whether this is its first use.
    pub(super) fn id(&mut self, number: usize) -> (NonZeroU64, bool) {
        if let Some(id) = self.ids[number] {
            return (id, false);
        }
        let id = self.next;
        self.ids[number] = Some(id);
        self.next = id.saturating_add(1);
        (id, true)
    }
}

/// The string table: distinct strings by index; the first is empty.
pub(super) struct Strings<'a> {
    items: IndexSet<&'a str>,
}

impl<'a> Strings<'a> {
    pub(super) fn new() -> Self {
        Self { items: IndexSet::from([""]) }
    }

    /// The index of `string`, and whether this is its first use.
    pub(super) fn index(&mut self, string: &'a str) -> (i64, bool) {
        let (index, is_new) = self.items.insert_full(string);
        (i64::try_from(index).expect("fewer items than bytes of memory"), is_new)
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Forgets all but the first `len` strings.
    pub(super) fn truncate(&mut self, len: usize) {
        self.items.truncate(len);
    }

    pub(super) fn into_table(self) -> Vec<String> {
        self.items.into_iter().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_start_at_one_and_stay() {
        let mut table = Table::new();
        assert_eq!(table.id("a"), (NonZeroU64::new(1).unwrap(), true));
        assert_eq!(table.id("b"), (NonZeroU64::new(2).unwrap(), true));
        assert_eq!(table.id("a"), (NonZeroU64::new(1).unwrap(), false));
    }

    #[test]
    fn dense_ids_start_at_one_and_stay() {
        let mut table = DenseTable::new(5);
        assert_eq!(table.id(4), (NonZeroU64::new(1).unwrap(), true));
        assert_eq!(table.id(0), (NonZeroU64::new(2).unwrap(), true));
        assert_eq!(table.id(4), (NonZeroU64::new(1).unwrap(), false));
        assert_eq!(table.id(3), (NonZeroU64::new(3).unwrap(), true));
    }

    #[test]
    fn the_first_string_is_empty() {
        let mut strings = Strings::new();
        assert_eq!(strings.index(""), (0, false));
        assert_eq!(strings.index("a"), (1, true));
        assert_eq!(strings.index("a"), (1, false));
        assert_eq!(strings.index("b"), (2, true));
        strings.truncate(2);
        assert_eq!(strings.into_table(), ["", "a"]);
    }
}
