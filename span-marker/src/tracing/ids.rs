//! Ids for spans that have none.

use std::cell::Cell;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use crate::process_context::forks;

thread_local! {
    /// The generator's state, and the number of forks of which this process is the result when it
    /// was seeded: a child does not go on with its parent's numbers.
    static STATE: Cell<Option<(u32, u64)>> = const { Cell::new(None) };
}

/// Any number, by `SplitMix64`: ids have to be different, not secret.
fn random() -> u64 {
    let forks = forks();
    let seeded = STATE.get().filter(|&(seeded_at, _)| seeded_at == forks);
    let (_, state) = seeded.unwrap_or_else(|| (forks, seed()));
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(Some((forks, state)));
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// From the keys that the standard library has from the system, and what differs from a parent.
fn seed() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}

pub(super) fn random_span_id() -> [u8; 8] {
    // Zero means that there is none.
    random().max(1).to_be_bytes()
}

pub(super) fn random_trace_id() -> [u8; 16] {
    let (high, low) = (u128::from(random()), u128::from(random()));
    ((high << 64) | low).max(1).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ids_differ_within_and_between_threads() {
        let ids = || -> Vec<[u8; 8]> { (0..1000).map(|_| random_span_id()).collect() };
        let other = std::thread::spawn(ids);
        let all: HashSet<[u8; 8]> = ids().into_iter().chain(other.join().unwrap()).collect();
        assert_eq!(all.len(), 2000);
        assert_ne!(random_trace_id()[..8], random_trace_id()[..8]);
    }
}
