//! What is known of a process: what attribution sees.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{ElfId, JitId, MappingSnapshot, ServiceIdentity};
use crate::decode::Pid;

/// What is known of a process for some time. Never changed: when something else is known, the
/// table has another one.
#[derive(Clone, Debug)]
pub struct Process {
    /// The process.
    pub pid: Pid,
    /// When it was made, in clock ticks since boot; 0 if it was not read. With the id, it names
    /// the process.
    pub start_time: u64,
    /// Its executable's file name, or the kernel's name of its first thread; empty if it was not
    /// read.
    pub name: Arc<str>,
    /// Its service.
    pub service: Arc<ServiceIdentity>,
    /// Its main executable.
    pub main_elf: Option<ElfId>,
    /// What it has mapped.
    pub snapshot: Arc<MappingSnapshot>,
    /// What names the code that it makes at run time, where its run time writes that.
    pub jit: Option<JitId>,
    /// The attribute keys of its thread records, by index.
    pub attribute_keys: Arc<[Arc<str>]>,
    /// Why its mappings are not known, if they are not.
    pub unreadable: Option<Unreadable>,
}

/// Why the mappings of a process are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Unreadable {
    /// It exited before they were read.
    Gone,
    /// Reading them is not permitted.
    NotPermitted,
    /// They are not read yet: the process is only being made, or so many processes are new that
    /// some have to wait.
    NotRead,
    /// The kernel reported another error.
    Failed,
}

impl Process {
    /// A process of which nothing is known.
    #[must_use]
    pub fn not_read(pid: Pid, unreadable: Option<Unreadable>) -> Self {
        Self {
            pid,
            start_time: 0,
            name: "".into(),
            service: Arc::new(ServiceIdentity::unknown("")),
            main_elf: None,
            snapshot: MappingSnapshot::empty(),
            jit: None,
            attribute_keys: Arc::new([]),
            unreadable,
        }
    }

    /// A child of this one, which runs the same program until it says otherwise. The process
    /// context does not pass to a child (OTEP 4719), so its keys do not either.
    pub(super) fn child(&self, pid: Pid) -> Self {
        Self { pid, start_time: 0, attribute_keys: Arc::new([]), ..self.clone() }
    }

    /// Whether both say the same.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        self.pid == other.pid
            && self.start_time == other.start_time
            && self.name == other.name
            && self.service == other.service
            && self.main_elf == other.main_elf
            && self.snapshot.epoch() == other.snapshot.epoch()
            && self.jit == other.jit
            && self.attribute_keys == other.attribute_keys
            && self.unreadable == other.unreadable
    }
}
