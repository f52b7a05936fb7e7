//! What the publisher needs of the maps of unwinding.

use profiler_common::unwind::{Mapping as Published, SliceHead};

use super::UnwindStats;
use crate::capture::{PlacedTable, Slice, UnwindMaps, UnwindMapsError};
use crate::decode::Pid;
use crate::unwind::UnwindTable;

/// The maps, or what stands for them in a test.
pub(super) trait Maps {
    fn place(&mut self, table: &UnwindTable) -> Result<PlacedTable, UnwindMapsError>;
    fn place_slice(
        &mut self,
        head: SliceHead,
        mappings: &[Published],
    ) -> Result<Slice, UnwindMapsError>;
    fn set_process(
        &mut self,
        pid: Pid,
        slice: &Slice,
        only_if_known: bool,
    ) -> Result<(), UnwindMapsError>;
    fn remove_process(&mut self, pid: Pid) -> Result<(), UnwindMapsError>;
    fn release(
        &mut self,
        slices: &mut Vec<Slice>,
        tables: &mut Vec<PlacedTable>,
    ) -> Result<(), UnwindMapsError>;
    fn note(&self, stats: &mut UnwindStats);
}

impl Maps for UnwindMaps {
    fn place(&mut self, table: &UnwindTable) -> Result<PlacedTable, UnwindMapsError> {
        Self::place(self, table)
    }
    fn place_slice(
        &mut self,
        head: SliceHead,
        mappings: &[Published],
    ) -> Result<Slice, UnwindMapsError> {
        Self::place_slice(self, head, mappings)
    }
    fn set_process(
        &mut self,
        pid: Pid,
        slice: &Slice,
        only_if_known: bool,
    ) -> Result<(), UnwindMapsError> {
        Self::set_process(self, pid, slice, only_if_known)
    }
    fn remove_process(&mut self, pid: Pid) -> Result<(), UnwindMapsError> {
        Self::remove_process(self, pid)
    }
    fn release(
        &mut self,
        slices: &mut Vec<Slice>,
        tables: &mut Vec<PlacedTable>,
    ) -> Result<(), UnwindMapsError> {
        Self::release(self, slices, tables)
    }
    fn note(&self, stats: &mut UnwindStats) {
        stats.rules = self.rules();
        stats.map_bytes = self.bytes();
    }
}
