//! When to look at which process.

use std::collections::BTreeMap;

use crate::decode::{BootTime, Pid};

/// The most looks that wait; more are not taken, and the slow rescan finds what they would have.
const LOOKS_MAX: usize = 4096;

const MILLISECOND: u64 = 1_000_000;
pub(super) const SECOND: u64 = 1000 * MILLISECOND;

/// A program publishes its spans soon after its start: in most a few milliseconds after `main`
/// begins, in large ones when their libraries are loaded.
const AFTER_EXEC: [u64; 5] =
    [5 * MILLISECOND, 20 * MILLISECOND, 80 * MILLISECOND, 150 * MILLISECOND, SECOND];

/// The last two: most children run another program before that.
const AFTER_FORK_FIRST: usize = 3;

/// The exit is reported while the process still exits.
const AFTER_EXIT: [u64; 2] = [20 * MILLISECOND, SECOND];

/// Only where too many are looked at for a look at once.
const AFTER_HOOK: [u64; 1] = [5 * MILLISECOND];

/// A look at a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) pid: Pid,
    /// When what it waits for happened.
    since: BootTime,
    /// Which one of its kind it is.
    attempt: usize,
    pub(super) purpose: Purpose,
    /// Which program of the process it is for.
    pub(super) generation: u64,
}

/// What a look is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To find what a process publishes.
    Discover,
    /// To find what else a process publishes that has said where its slot is.
    Hooked,
    /// To see that a process is gone.
    Exit,
}

impl Look {
    pub(super) fn after_exec(pid: Pid, since: BootTime, generation: u64) -> Self {
        Self { pid, since, attempt: 0, purpose: Purpose::Discover, generation }
    }

    pub(super) fn after_fork(pid: Pid, since: BootTime, generation: u64) -> Self {
        let attempt = AFTER_FORK_FIRST;
        Self { pid, since, attempt, purpose: Purpose::Discover, generation }
    }

    pub(super) fn after_exit(pid: Pid, since: BootTime, generation: u64) -> Self {
        Self { pid, since, attempt: 0, purpose: Purpose::Exit, generation }
    }

    pub(super) fn after_hook(pid: Pid, since: BootTime, generation: u64) -> Self {
        Self { pid, since, attempt: 0, purpose: Purpose::Hooked, generation }
    }

    /// The next one for the same; `None` after the last.
    pub(super) fn next(self) -> Option<Self> {
        let next = Self { attempt: self.attempt + 1, ..self };
        next.due().map(|_| next)
    }

    fn due(&self) -> Option<BootTime> {
        let delays: &[u64] = match self.purpose {
            Purpose::Discover => &AFTER_EXEC,
            Purpose::Hooked => &AFTER_HOOK,
            Purpose::Exit => &AFTER_EXIT,
        };
        delays.get(self.attempt).map(|delay| BootTime(self.since.0.saturating_add(*delay)))
    }
}

/// The looks that wait, by time.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// By time and order of arrival.
    waiting: BTreeMap<(BootTime, u64), Look>,
    arrived: u64,
}

impl Looks {
    /// Adds a look; `false`: too many wait.
    #[must_use]
    pub(super) fn add(&mut self, look: Look) -> bool {
        let Some(due) = look.due().filter(|_| self.waiting.len() < LOOKS_MAX) else {
            return false;
        };
        self.arrived = self.arrived.wrapping_add(1);
        self.waiting.insert((due, self.arrived), look);
        true
    }

    pub(super) fn take_due(&mut self, now: BootTime) -> Option<Look> {
        let first = self.waiting.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    pub(super) fn next_due(&self) -> Option<BootTime> {
        self.waiting.keys().next().map(|(due, _)| *due)
    }
}

/// So many a second, and no more than those of one second at once.
#[derive(Debug)]
pub(super) struct Allowance {
    cost: u64,
    /// How far the allowance is used up.
    used_until: BootTime,
}

impl Allowance {
    pub(super) fn new(per_second: u32) -> Self {
        Self { cost: SECOND / u64::from(per_second.max(1)), used_until: BootTime(0) }
    }

    pub(super) fn left(&self, now: BootTime) -> bool {
        self.used_until <= now
    }

    #[must_use]
    pub(super) fn take(&mut self, now: BootTime) -> bool {
        if !self.left(now) {
            return false;
        }
        let from = self.used_until.0.max(now.0.saturating_sub(SECOND));
        self.used_until = BootTime(from.saturating_add(self.cost));
        true
    }
}

/// How long to leave a process alone after it was read.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    until: BootTime,
    /// The part of it that what the read cost asks for.
    rests_until: BootTime,
    doublings: u32,
}

impl Backoff {
    const FIRST: u64 = 100 * MILLISECOND;
    const MAX: u64 = 10 * SECOND;

    pub(super) fn is_over(&self, now: BootTime) -> bool {
        self.until <= now
    }

    /// Whether a read is affordable that is known to give something, however many gave nothing.
    pub(super) fn is_rested(&self, now: BootTime) -> bool {
        self.rests_until <= now
    }

    /// After a read that gave something. A process that maps something else all the time would
    /// have us read it at each sample: a line of 100 bytes takes about 1 µs to read, and for 100
    /// times as long it is left alone.
    pub(super) fn rest(&mut self, now: BootTime, maps_len: usize) {
        let wait = u64::try_from(maps_len).unwrap_or(u64::MAX).saturating_mul(1000);
        self.rests_until = BootTime(now.0.saturating_add(wait.min(Self::MAX)));
        self.until = self.rests_until;
        self.doublings = 0;
    }

    /// After a read that gave what it was for, and could be wanted again soon.
    pub(super) fn pause(&mut self, now: BootTime) {
        self.until = BootTime(now.0.saturating_add(Self::FIRST));
        self.doublings = 0;
    }

    /// After a read of so many bytes that gave nothing, or one that failed.
    pub(super) fn grow(&mut self, now: BootTime, maps_len: Option<usize>) {
        let wait = Self::FIRST.saturating_mul(1 << self.doublings.min(20)).min(Self::MAX);
        let doublings = self.doublings.saturating_add(1);
        self.rest(now, maps_len.unwrap_or(0));
        self.until = self.until.max(BootTime(now.0.saturating_add(wait)));
        self.doublings = doublings;
        if maps_len.is_none() {
            self.rests_until = self.until;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> BootTime {
        BootTime(ms * MILLISECOND)
    }

    fn dues(first: Look) -> Vec<u64> {
        let all = std::iter::successors(Some(first), |look| look.next());
        all.map(|look| look.due().unwrap().0 / MILLISECOND).collect()
    }

    #[test]
    fn looks_come_closely_and_then_less_so() {
        assert_eq!(dues(Look::after_exec(Pid(1), ms(10), 0)), [15, 30, 90, 160, 1010]);
        assert_eq!(dues(Look::after_fork(Pid(1), ms(10), 0)), [160, 1010]);
        assert_eq!(dues(Look::after_exit(Pid(1), ms(10), 0)), [30, 1010]);
        assert_eq!(dues(Look::after_hook(Pid(1), ms(10), 0)), [15]);
    }

    #[test]
    fn looks_are_taken_by_time_and_bounded() {
        let mut looks = Looks::default();
        assert!(looks.add(Look::after_exec(Pid(1), ms(100), 0)));
        assert!(looks.add(Look::after_exec(Pid(2), ms(50), 0)));
        assert_eq!(looks.next_due(), Some(ms(55)));
        assert_eq!(looks.take_due(ms(54)), None);
        assert_eq!(looks.take_due(ms(105)).unwrap().pid, Pid(2));
        assert_eq!(looks.take_due(ms(105)).unwrap().pid, Pid(1));
        let taken = (0..5000).filter(|_| looks.add(Look::after_exec(Pid(3), ms(0), 0)));
        assert_eq!(taken.count(), 4096);
    }

    #[test]
    fn an_allowance_is_a_rate_with_a_burst_of_one_second() {
        let mut allowance = Allowance::new(10);
        let mut taken = |now| (0..100).filter(|_| allowance.take(now)).count();
        // One more: what is left of the last one counts.
        assert_eq!(taken(ms(5000)), 11);
        assert_eq!(taken(ms(5200)), 2);
        assert_eq!(taken(ms(50_000)), 11);
    }

    #[test]
    fn a_backoff_doubles_up_to_ten_seconds() {
        let mut backoff = Backoff::default();
        let waits = std::array::from_fn(|_| {
            backoff.grow(ms(0), Some(6000));
            backoff.until.0 / MILLISECOND
        });
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert!(!backoff.is_over(ms(9999)) && backoff.is_over(ms(10_000)));
        assert!(!backoff.is_rested(ms(5)) && backoff.is_rested(ms(6)));
        backoff.grow(ms(0), None);
        assert!(!backoff.is_rested(ms(9999)) && backoff.is_rested(ms(10_000)));
        backoff.rest(ms(0), 6000);
        assert!(!backoff.is_over(ms(5)) && backoff.is_over(ms(6)));
        backoff.rest(ms(0), usize::MAX);
        assert!(backoff.is_over(ms(10_000)));
        backoff.pause(ms(0));
        assert!(!backoff.is_over(ms(99)) && backoff.is_over(ms(100)));
    }
}
