//! Holds requests back while the server is in trouble. A plain state machine: the time is given to
//! it.
//!
//! One failure closes the gate for everybody: a server that is down is not asked by each profile
//! in turn. When the wait is over one request may go; the gate opens when the server has taken or
//! refused a profile. After an answer that never came, that one request is a *probe*, which
//! carries no profile: a server that hangs makes uncertain what was under way, and not one profile
//! more.

use std::time::Duration;

use tokio::time::Instant;

use super::config::RetryPolicy;

#[derive(Debug)]
pub(super) struct Gate {
    policy: RetryPolicy,
    random: fastrand::Rng,
    failures: u32,
    until: Option<Instant>,
    probe: bool,
    generation: Generation,
}

/// Tells requests that began before a change of the gate from those that began after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generation(u64);

impl Gate {
    pub(super) fn new(policy: RetryPolicy, random: fastrand::Rng) -> Self {
        Self { policy, random, failures: 0, until: None, probe: false, generation: Generation(0) }
    }

    /// When the next request may go, if that is later than `now`.
    pub(super) fn closed_until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    /// How many requests may be under way, of at most `concurrency`.
    pub(super) fn limit(&self, concurrency: usize) -> usize {
        if self.is_open() { concurrency } else { 1 }
    }

    /// Whether the next request must not carry a profile.
    pub(super) fn wants_probe(&self) -> bool {
        self.probe
    }

    pub(super) fn is_open(&self) -> bool {
        self.failures == 0
    }

    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    /// The server took or refused a profile. Tells whether that opened the gate.
    pub(super) fn answered(&mut self, began: Generation) -> bool {
        let opens = began == self.generation && !self.is_open();
        if opens {
            self.failures = 0;
            self.until = None;
            self.probe = false;
            self.next_generation();
        }
        opens
    }

    /// The server answered a probe.
    pub(super) fn probe_answered(&mut self) {
        self.probe = false;
        self.until = None;
    }

    /// A request failed in a way that others would, too.
    pub(super) fn failed(
        &mut self,
        began: Generation,
        now: Instant,
        at_least: Duration,
        probe: bool,
    ) {
        // Of requests that were under way together, one tells it; and none of the others shows
        // that the server is well again.
        self.probe |= probe;
        if began == self.generation {
            let wait = self.backoff(self.failures).max(at_least.min(self.policy.max));
            self.failures = self.failures.saturating_add(1);
            self.until = Some(now + wait);
            self.next_generation();
        }
    }

    /// The wait after `failures` earlier ones.
    pub(super) fn backoff(&mut self, failures: u32) -> Duration {
        let doubled = 1_u32.checked_shl(failures).unwrap_or(u32::MAX);
        let longest = self.policy.first.saturating_mul(doubled).min(self.policy.max);
        longest.mul_f64(1.0 - self.random.f64() / 2.0)
    }

    /// No long waits from here on, and none that began earlier.
    pub(super) fn hurry(&mut self, max: Duration) {
        self.policy.max = self.policy.max.min(max);
        self.failures = self.failures.min(1);
        self.until = None;
    }

    fn next_generation(&mut self) {
        self.generation = Generation(self.generation.0.wrapping_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn gate() -> Gate {
        let policy = RetryPolicy { first: SECOND, max: 60 * SECOND, ..RetryPolicy::default() };
        Gate::new(policy, fastrand::Rng::with_seed(7))
    }

    fn fail(gate: &mut Gate, now: Instant, probe: bool) -> Duration {
        gate.failed(gate.generation(), now, Duration::ZERO, probe);
        gate.closed_until(now).expect("it has just been closed") - now
    }

    #[tokio::test(start_paused = true)]
    async fn waits_double_up_to_the_longest_and_vary() {
        let mut gate = gate();
        let now = Instant::now();
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            let wait = fail(&mut gate, now, false);
            let longest = seconds * SECOND;
            assert!(wait > longest / 2 && wait <= longest, "{wait:?} of {longest:?}");
        }
        assert!(gate.backoff(u32::MAX) <= 60 * SECOND);
        let waits: Vec<_> = (0..8).map(|_| gate.backoff(0)).collect();
        assert!(waits.windows(2).any(|pair| pair[0] != pair[1]), "{waits:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_fail_together_count_once() {
        let mut gate = gate();
        let now = Instant::now();
        let began = gate.generation();
        for _ in 0..4 {
            gate.failed(began, now, Duration::ZERO, false);
        }
        assert!(gate.closed_until(now).unwrap() <= now + SECOND);
        assert_eq!(gate.limit(4), 1);
        // One of them that got through says nothing about now.
        assert!(!gate.answered(began));
        assert_eq!(gate.limit(4), 1);
        assert!(gate.answered(gate.generation()));
        assert_eq!((gate.limit(4), gate.closed_until(now)), (4, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_answer_asks_for_a_probe_until_one_is_answered() {
        let mut gate = gate();
        let now = Instant::now();
        let began = gate.generation();
        gate.failed(began, now, Duration::ZERO, false);
        assert!(!gate.wants_probe());
        gate.failed(began, now, Duration::ZERO, true);
        assert!(gate.wants_probe());
        fail(&mut gate, now, true);
        assert!(gate.wants_probe());
        gate.probe_answered();
        assert!(!gate.wants_probe());
        assert_eq!((gate.closed_until(now), gate.limit(4)), (None, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_the_server_asks_for_is_kept_within_bounds() {
        let mut gate = gate();
        let now = Instant::now();
        gate.failed(gate.generation(), now, 30 * SECOND, false);
        assert_eq!(gate.closed_until(now), Some(now + 30 * SECOND));
        gate.failed(gate.generation(), now, 86_400 * SECOND, false);
        assert_eq!(gate.closed_until(now), Some(now + 60 * SECOND));
        gate.hurry(SECOND);
        assert_eq!(gate.closed_until(now), None);
        assert!(fail(&mut gate, now, false) <= SECOND);
    }
}
