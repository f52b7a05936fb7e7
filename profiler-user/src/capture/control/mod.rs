//! The only writer of BPF maps: facts about processes on their way back to the kernel.

pub mod hooks;
pub mod unwind_maps;

use aya::maps::{HashMap, MapData, MapError};
use profiler_common::span::SpanSlots;

use crate::decode::Pid;

/// Writes what user space found out of processes.
pub struct Control {
    slots: HashMap<MapData, u32, SpanSlots>,
    targets: HashMap<MapData, u32, u32>,
    /// Processes that are no target are not sampled.
    targets_only: bool,
}

/// A fact that the kernel did not take.
#[derive(Debug, thiserror::Error)]
#[error("cannot tell the kernel about process {}", pid.0)]
pub struct ControlError {
    /// The process.
    pub pid: Pid,
    /// Why not: the map is full, or `CAP_BPF` was dropped before Linux 5.11.
    #[source]
    pub source: std::io::Error,
}

impl Control {
    pub(super) fn new(
        slots: HashMap<MapData, u32, SpanSlots>,
        targets: HashMap<MapData, u32, u32>,
        targets_only: bool,
    ) -> Self {
        Self { slots, targets, targets_only }
    }

    /// From now on, the threads of `pid` keep their span record there.
    ///
    /// # Errors
    ///
    /// The map is full.
    pub fn set_slots(&mut self, pid: Pid, slots: SpanSlots) -> Result<(), ControlError> {
        self.slots.insert(pid.0, slots, 0).map_err(|error| control_error(pid, error))
    }

    /// The process publishes no spans.
    ///
    /// # Errors
    ///
    /// The map cannot be written. That nothing was there is no error.
    pub fn clear_slot(&mut self, pid: Pid) -> Result<(), ControlError> {
        ignore_missing(self.slots.remove(&pid.0)).map_err(|error| control_error(pid, error))
    }

    /// The process is gone: its id may be given to another.
    ///
    /// # Errors
    ///
    /// A map cannot be written. That nothing was there is no error.
    pub fn forget(&mut self, pid: Pid) -> Result<(), ControlError> {
        self.clear_slot(pid)?;
        ignore_missing(self.targets.remove(&pid.0)).map_err(|error| control_error(pid, error))
    }

    /// Sample this process, where only some are.
    ///
    /// # Errors
    ///
    /// The map is full.
    pub fn add_target(&mut self, pid: Pid) -> Result<(), ControlError> {
        self.targets.insert(pid.0, 1, 0).map_err(|error| control_error(pid, error))
    }

    /// Whether this process is sampled: the kernel makes a target of each child of one.
    #[must_use]
    pub fn is_sampled(&self, pid: Pid) -> bool {
        let is_no_target = || matches!(self.targets.get(&pid.0, 0), Err(MapError::KeyNotFound));
        !self.targets_only || !is_no_target()
    }
}

fn ignore_missing(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn control_error(pid: Pid, error: MapError) -> ControlError {
    ControlError { pid, source: std::io::Error::other(error) }
}
