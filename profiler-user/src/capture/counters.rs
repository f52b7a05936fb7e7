//! What the BPF programs counted.

use aya::maps::{MapData, PerCpuArray};
use profiler_common::counter;

/// Reads the per-CPU counters. Cheap enough for every window.
pub struct Counters {
    map: PerCpuArray<MapData, u64>,
}

/// The totals at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterTotals {
    totals: [u64; counter::COUNTERS_LEN as usize],
}

impl Counters {
    pub(super) fn new(map: PerCpuArray<MapData, u64>) -> Self {
        Self { map }
    }

    /// Sums each counter over the CPUs.
    ///
    /// # Errors
    ///
    /// The map cannot be read (`CAP_BPF` dropped before Linux 5.11).
    pub fn totals(&self) -> Result<CounterTotals, std::io::Error> {
        let mut totals = [0; counter::COUNTERS_LEN as usize];
        for (index, total) in (0..).zip(&mut totals) {
            let values = self.map.get(&index, 0).map_err(std::io::Error::other)?;
            *total = values.iter().sum();
        }
        Ok(CounterTotals { totals })
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
