//! What this process costs its host.

use std::fs;

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// CPU and memory of the agent itself, without its symbolizing worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OwnCost {
    /// CPU time of all its threads since it started, in nanoseconds.
    pub cpu_ns: u64,
    /// The most memory that it had at a time (`VmHWM`), in bytes; 0 if unknown.
    pub max_rss_bytes: u64,
}

impl OwnCost {
    /// Until now.
    #[must_use]
    pub fn until_now() -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let cpu_ns = cpu.tv_sec.saturating_mul(1_000_000_000).saturating_add(cpu.tv_nsec);
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self { cpu_ns: cpu_ns.unsigned_abs(), max_rss_bytes: max_rss_bytes(&status).unwrap_or(0) }
    }
}

fn max_rss_bytes(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_from_status() {
        assert_eq!(max_rss_bytes("VmPeak:\t 9 kB\nVmHWM:\t   12 kB\n"), Some(12 * 1024));
        assert_eq!(max_rss_bytes("VmPeak:\t 9 kB\n"), None);
    }

    #[test]
    fn this_process_costs_something() {
        let cost = OwnCost::until_now();
        assert!(cost.cpu_ns > 0 && cost.max_rss_bytes > 0, "{cost:?}");
    }
}
