//! Names that need not be asked for again.

use std::collections::HashMap;
use std::sync::Arc;

use super::stats::Unsymbolized;
use crate::attribute::Location;
use crate::symbolize::NamedFrame;

/// The frames of a location, and why there is no symbol among them if there is none.
#[derive(Clone, Debug)]
pub(super) struct CachedNames {
    pub(super) frames: Arc<[NamedFrame]>,
    pub(super) unsymbolized: Option<Unsymbolized>,
}

/// The locations that were used last, by two generations: what is used moves to the young one; when
/// that holds half of what may be held, it becomes the old one, and the old one is dropped. So at
/// least the last half is kept, at no cost of order-keeping per use.
#[derive(Debug)]
pub(super) struct NameCache {
    young: HashMap<Location, CachedNames>,
    old: HashMap<Location, CachedNames>,
    young_bytes: usize,
    entries_max: usize,
    bytes_max: usize,
}

impl NameCache {
    /// Never holds more than `entries` locations, nor names of more than `bytes`.
    pub(super) fn new(entries: usize, bytes: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            young_bytes: 0,
            entries_max: (entries / 2).max(1),
            bytes_max: bytes / 2,
        }
    }

    pub(super) fn get(&mut self, location: &Location) -> Option<CachedNames> {
        if let Some(names) = self.young.get(location) {
            return Some(names.clone());
        }
        let names = self.old.remove(location)?;
        self.insert(*location, names.clone());
        Some(names)
    }

    pub(super) fn insert(&mut self, location: Location, names: CachedNames) {
        let bytes = bytes_of(&names);
        if self.young.len() >= self.entries_max || self.young_bytes + bytes > self.bytes_max {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if bytes <= self.bytes_max && self.young.insert(location, names).is_none() {
            self.young_bytes += bytes;
        }
    }

    /// Drops what `keep` does not want.
    pub(super) fn retain(&mut self, keep: impl Fn(&Location) -> bool) {
        self.old.retain(|location, _| keep(location));
        self.young.retain(|location, _| keep(location));
        self.young_bytes = self.young.values().map(bytes_of).sum();
    }
}

/// Counts a string at each use, although a batch shares it: never too few.
fn bytes_of(names: &CachedNames) -> usize {
    let strings = |frame: &NamedFrame| {
        frame.function.len() + frame.file.as_ref().map_or(0, |file| file.len())
    };
    let frames = names.frames.iter().map(|frame| size_of::<NamedFrame>() + strings(frame));
    size_of::<(Location, CachedNames)>() + frames.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::Addr;

    fn names(function: &str) -> CachedNames {
        let frame = NamedFrame { function: function.into(), file: None, line: 0 };
        CachedNames { frames: [frame].into(), unsymbolized: None }
    }

    fn at(address: u64) -> Location {
        Location::Kernel(Addr(address))
    }

    #[test]
    fn stays_within_its_entries_and_keeps_what_is_used() {
        let mut cache = NameCache::new(100, usize::MAX);
        cache.insert(at(0), names("kept"));
        for address in 1..10_000 {
            cache.insert(at(address), names("f"));
            assert!(cache.get(&at(0)).is_some(), "at {address}");
            assert!(cache.young.len() + cache.old.len() <= 100);
        }
        assert!(cache.get(&at(9_999)).is_some());
        assert!(cache.get(&at(1)).is_none());
    }

    #[test]
    fn stays_within_its_bytes() {
        let mut cache = NameCache::new(usize::MAX, 10_000);
        for address in 0..100 {
            cache.insert(at(address), names(&"x".repeat(900)));
            let held = cache.young.values().chain(cache.old.values()).map(bytes_of);
            assert!(held.sum::<usize>() <= 10_000);
        }
        cache.insert(at(0), names(&"x".repeat(20_000)));
        assert!(cache.get(&at(0)).is_none());
    }

    #[test]
    fn drops_what_is_not_wanted() {
        let mut cache = NameCache::new(100, 100_000);
        cache.insert(at(1), names("f"));
        cache.insert(at(2), names("g"));
        cache.retain(|location| *location == at(2));
        assert!(cache.get(&at(1)).is_none());
        assert!(cache.get(&at(2)).is_some());
    }
}
