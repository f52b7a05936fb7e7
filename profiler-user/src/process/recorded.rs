//! The facts about processes that a recording needs, and the table that replays them.

use std::{collections::HashMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::images::Images;
use super::{BuildId, ElfId, Mapping, MappingSnapshot, Process, ServiceIdentity, Unreadable};
use crate::decode::{BootTime, Pid};

/// What was known of a process from a time on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedProcess {
    /// The process.
    pub pid: u32,
    /// From when on, in nanoseconds of `CLOCK_BOOTTIME`.
    pub from_boot_ns: u64,
    /// When it was made, in clock ticks since boot.
    pub start_time: u64,
    /// Its executable's file name, or the kernel's name of its first thread.
    pub name: String,
    /// Its service.
    pub service: ServiceIdentity,
    /// Its main executable.
    pub main_elf: Option<ElfId>,
    /// Its executable mappings.
    pub mappings: Vec<Mapping>,
    /// There were more than are kept.
    pub truncated: bool,
    /// The attribute keys of its thread records, by index.
    pub attribute_keys: Vec<String>,
    /// Why its mappings are not known.
    pub unreadable: Option<Unreadable>,
}

/// What was known of an ELF file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedElf {
    /// Its id.
    pub id: ElfId,
    /// Its path.
    pub path: String,
    /// Its GNU build ID.
    pub build_id: Option<BuildId>,
}

impl RecordedProcess {
    pub(super) fn new(from: BootTime, process: &Process) -> Self {
        Self {
            pid: process.pid.0,
            from_boot_ns: from.0,
            start_time: process.start_time,
            name: process.name.as_ref().into(),
            service: process.service.as_ref().clone(),
            main_elf: process.main_elf,
            mappings: process.snapshot.mappings().to_vec(),
            truncated: process.snapshot.truncated(),
            attribute_keys: process.attribute_keys.iter().map(|key| key.as_ref().into()).collect(),
            unreadable: process.unreadable,
        }
    }

    fn into_process(self) -> (BootTime, Arc<Process>) {
        let process = Process {
            pid: Pid(self.pid),
            start_time: self.start_time,
            name: self.name.into(),
            service: Arc::new(self.service),
            main_elf: self.main_elf,
            snapshot: Arc::new(MappingSnapshot::new(self.mappings, self.truncated)),
            attribute_keys: self.attribute_keys.into_iter().map(Into::into).collect(),
            unreadable: self.unreadable,
        };
        (BootTime(self.from_boot_ns), Arc::new(process))
    }
}

/// The processes of a recording: answers like a live table, and reads nothing.
#[derive(Debug, Default)]
pub struct RecordedTable {
    processes: HashMap<Pid, Images>,
}

impl RecordedTable {
    /// Takes the facts in the order in which they were recorded.
    #[must_use]
    pub fn new(recorded: Vec<RecordedProcess>) -> Self {
        let mut table = Self::default();
        for process in recorded {
            let (from, process) = process.into_process();
            table.processes.entry(process.pid).or_default().push(from, process);
        }
        table
    }

    /// What was known of a process at a time.
    #[must_use]
    pub fn view(&self, pid: Pid, at: BootTime) -> Option<&Arc<Process>> {
        self.processes.get(&pid)?.at(at)
    }
}
