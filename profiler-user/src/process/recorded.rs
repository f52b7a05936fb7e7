//! What was known of a process, in a form that can be stored.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{ElfId, JitId, Mapping, MappingSnapshot, Process, ServiceIdentity, Unreadable};
use crate::decode::Pid;

/// What was known of a process for some time: a [`Process`] that can be stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedProcess {
    /// The process.
    pub pid: u32,
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
    /// What names the code that it made at run time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jit: Option<JitId>,
    /// The attribute keys of its thread records, by index.
    pub attribute_keys: Vec<String>,
    /// Why its mappings are not known.
    pub unreadable: Option<Unreadable>,
}

impl From<&Process> for RecordedProcess {
    fn from(process: &Process) -> Self {
        let Process {
            pid,
            start_time,
            name,
            service,
            main_elf,
            snapshot,
            jit,
            attribute_keys,
            unreadable,
        } = process;
        Self {
            pid: pid.0,
            start_time: *start_time,
            name: name.as_ref().into(),
            service: service.as_ref().clone(),
            main_elf: *main_elf,
            mappings: snapshot.mappings().to_vec(),
            truncated: snapshot.truncated(),
            jit: *jit,
            attribute_keys: attribute_keys.iter().map(|key| key.as_ref().into()).collect(),
            unreadable: *unreadable,
        }
    }
}

impl From<RecordedProcess> for Process {
    fn from(recorded: RecordedProcess) -> Self {
        let RecordedProcess {
            pid,
            start_time,
            name,
            service,
            main_elf,
            mappings,
            truncated,
            jit,
            attribute_keys,
            unreadable,
        } = recorded;
        Self {
            pid: Pid(pid),
            start_time,
            name: name.into(),
            service: Arc::new(service),
            main_elf,
            snapshot: Arc::new(MappingSnapshot::new(mappings, truncated)),
            jit,
            attribute_keys: attribute_keys.into_iter().map(Into::into).collect(),
            unreadable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Backing;

    #[test]
    fn what_was_stored_is_what_was_known() {
        let mapping = Mapping {
            start: 0x1000,
            end: 0x2000,
            file_offset: 0x40,
            backing: Backing::Elf(ElfId(3)),
        };
        let recorded = RecordedProcess {
            pid: 7,
            start_time: 5,
            name: "checkout".to_owned(),
            service: ServiceIdentity {
                namespace: Some("eu".to_owned()),
                version: Some("1.2".to_owned()),
                ..ServiceIdentity::named("shop")
            },
            main_elf: Some(ElfId(3)),
            mappings: vec![mapping],
            truncated: true,
            jit: Some(JitId(4)),
            attribute_keys: vec!["a".to_owned(), "b".to_owned()],
            unreadable: Some(Unreadable::Gone),
        };
        let json = serde_json::to_string(&recorded).unwrap();
        let process = Process::from(serde_json::from_str::<RecordedProcess>(&json).unwrap());
        assert_eq!(RecordedProcess::from(&process), recorded);
    }
}
