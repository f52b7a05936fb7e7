//! Whether the agent lives, and whether it is ready.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use crate::clock::boot_now;

/// A thread that has not shown itself for so long hangs.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A thread that has to show that it is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The one that collects samples: ten times a second.
    Collect,
    /// The one that finishes windows: each window, while there are some to finish.
    Finish,
}

/// Shared state of the agent. Neither part depends on a server being there: a restart does not make
/// one come back.
#[derive(Debug, Default)]
pub struct Health {
    sampling: AtomicBool,
    stopping: AtomicBool,
    /// When the threads were seen last, in nanoseconds of the boot clock; 0: has nothing to do.
    beats: [AtomicU64; 2],
}

impl Health {
    /// All CPUs are sampled, and the processes that ran at the start are known.
    pub fn set_sampling(&self) {
        self.sampling.store(true, Ordering::Relaxed);
    }

    /// It was told to end.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// A thread is alive.
    pub fn beat(&self, thread: Beat) {
        self.beats[thread as usize].store(boot_now().0, Ordering::Relaxed);
    }

    /// A thread has nothing to do, and will not show itself.
    pub fn rest(&self, thread: Beat) {
        self.beats[thread as usize].store(0, Ordering::Relaxed);
    }

    /// Why it is not alive, if it is not.
    #[must_use]
    pub fn hangs(&self) -> Option<&'static str> {
        let now = boot_now().0;
        let hangs = |thread: Beat| {
            let seen = self.beats[thread as usize].load(Ordering::Relaxed);
            seen != 0 && u128::from(now.saturating_sub(seen)) > SILENCE_MAX.as_nanos()
        };
        if hangs(Beat::Collect) {
            Some("the collecting thread hangs")
        } else if hangs(Beat::Finish) {
            Some("the finishing thread hangs")
        } else {
            None
        }
    }

    /// Why it is not ready, if it is not.
    #[must_use]
    pub fn is_not_ready(&self) -> Option<&'static str> {
        if self.stopping.load(Ordering::Relaxed) {
            Some("stopping")
        } else if !self.sampling.load(Ordering::Relaxed) {
            Some("not sampling yet")
        } else {
            self.hangs()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_between_the_start_and_the_end() {
        let health = Health::default();
        assert_eq!((health.hangs(), health.is_not_ready()), (None, Some("not sampling yet")));
        health.set_sampling();
        health.beat(Beat::Collect);
        assert_eq!((health.hangs(), health.is_not_ready()), (None, None));
        health.set_stopping();
        assert_eq!((health.hangs(), health.is_not_ready()), (None, Some("stopping")));
    }

    #[test]
    fn a_thread_that_was_not_seen_for_long_hangs() {
        let health = Health::default();
        health.set_sampling();
        let long_ago = boot_now().0.saturating_sub(61_000_000_000).max(1);
        for thread in [Beat::Finish, Beat::Collect] {
            health.beats[thread as usize].store(long_ago, Ordering::Relaxed);
            assert!(health.hangs().is_some() && health.is_not_ready().is_some());
            health.beat(thread);
            assert_eq!(health.hangs(), None);
        }
        health.beats[1].store(long_ago, Ordering::Relaxed);
        health.rest(Beat::Finish);
        assert_eq!(health.hangs(), None);
    }
}
