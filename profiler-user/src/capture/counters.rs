//! What the BPF programs counted, and what they cost.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use aya::maps::{MapData, PerCpuArray};
use profiler_common::counter;
use serde::Serialize;

/// Reads the per-CPU counters. Cheap enough for every window.
pub struct Counters {
    map: PerCpuArray<MapData, u64>,
    sampler: OwnedFd,
}

/// What the kernel says of the sampling program. It counts only while
/// `kernel.bpf_stats_enabled` is 1 (Linux 5.1), which costs a few nanoseconds a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SamplerCost {
    /// Time in the program, in nanoseconds.
    pub run_time_ns: u64,
    /// How often it ran.
    pub run_cnt: u64,
}

/// The totals at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterTotals {
    totals: [u64; counter::COUNTERS_LEN as usize],
}

impl Default for CounterTotals {
    fn default() -> Self {
        Self { totals: [0; counter::COUNTERS_LEN as usize] }
    }
}

impl Counters {
    pub(super) fn new(map: PerCpuArray<MapData, u64>, sampler: OwnedFd) -> Self {
        Self { map, sampler }
    }

    /// What sampling costs in the kernel, from `/proc/self/fdinfo` of the program.
    ///
    /// # Errors
    ///
    /// `/proc` is not there.
    pub fn cost(&self) -> io::Result<SamplerCost> {
        let path = format!("/proc/self/fdinfo/{}", self.sampler.as_raw_fd());
        Ok(SamplerCost::from_fdinfo(&fs::read_to_string(path)?))
    }

    /// How often the timer of each CPU has fired, whatever it met.
    ///
    /// # Errors
    ///
    /// As [`totals`](Self::totals).
    pub(super) fn ticks_by_cpu(&self) -> io::Result<Vec<u64>> {
        let mut ticks: Vec<u64> = Vec::new();
        for index in [counter::SAMPLES_TAKEN, counter::TICKS_IDLE, counter::TICKS_FILTERED] {
            let values = self.map.get(&index, 0).map_err(io::Error::other)?;
            ticks.resize(values.len(), 0);
            ticks.iter_mut().zip(values.iter()).for_each(|(sum, value)| *sum += value);
        }
        Ok(ticks)
    }

    /// One counter of `profiler_common::counter`, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// As [`totals`](Self::totals).
    pub fn total(&self, index: u32) -> io::Result<u64> {
        let values = self.map.get(&index, 0).map_err(io::Error::other)?;
        Ok(values.iter().sum())
    }

    /// Sums each counter over the CPUs.
    ///
    /// # Errors
    ///
    /// The map cannot be read (`CAP_BPF` dropped before Linux 5.11).
    pub fn totals(&self) -> io::Result<CounterTotals> {
        let mut totals = [0; counter::COUNTERS_LEN as usize];
        for (index, total) in (0..).zip(&mut totals) {
            *total = self.total(index)?;
        }
        Ok(CounterTotals { totals })
    }
}

impl SamplerCost {
    fn from_fdinfo(fdinfo: &str) -> Self {
        let number = |key: &str| {
            let value = fdinfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
        };
        Self { run_time_ns: number("run_time_ns"), run_cnt: number("run_cnt") }
    }
}

impl CounterTotals {
    /// One counter of `profiler_common::counter`.
    #[must_use]
    pub fn get(&self, index: u32) -> u64 {
        usize::try_from(index).ok().and_then(|at| self.totals.get(at)).copied().unwrap_or(0)
    }

    /// Names and totals, in the order of `profiler_common::counter`.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        counter::NAMES.iter().copied().zip(self.totals)
    }

    /// Totals from the numbers of a recorded file; what is missing is 0.
    #[must_use]
    pub fn from_recorded(recorded: &[u64]) -> Self {
        let mut totals = [0; counter::COUNTERS_LEN as usize];
        for (total, value) in totals.iter_mut().zip(recorded) {
            *total = *value;
        }
        Self { totals }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_is_read_from_fdinfo() {
        let fdinfo =
            "pos:\t0\nprog_type:\t7\nrun_time_ns:\t1234\nrun_cnt:\t5\nverified_insns:\t9\n";
        assert_eq!(SamplerCost::from_fdinfo(fdinfo), SamplerCost { run_time_ns: 1234, run_cnt: 5 });
        assert_eq!(SamplerCost::from_fdinfo("pos:\t0\n"), SamplerCost::default());
    }
}
