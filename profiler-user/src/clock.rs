//! The two clocks: samples carry the boot clock, profiles the wall clock.

use rustix::time::{ClockId, clock_gettime};

use crate::decode::BootTime;

/// Now, on the clock that BPF programs use (`bpf_ktime_get_boot_ns`, Linux 5.8).
#[must_use]
pub fn boot_now() -> BootTime {
    BootTime(nanoseconds(ClockId::Boottime).unsigned_abs())
}

/// Now, in nanoseconds since the Unix epoch.
#[must_use]
pub fn unix_now() -> i64 {
    nanoseconds(ClockId::Realtime)
}

fn nanoseconds(clock: ClockId) -> i64 {
    let now = clock_gettime(clock);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}
