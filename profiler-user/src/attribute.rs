//! [`Sample`](crate::decode)s to attributed samples: every address becomes a [`Location`], every
//! sample gets its service and its span. Pure.

use std::sync::Arc;

use crate::decode::{Addr, SpanId, TraceId};
use crate::process::{ElfId, ServiceIdentity};

/// One frame of a stack, independent of the process that it was seen in.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Location {
    /// Kernel text, at the address to look up (already adjusted for return addresses).
    Kernel(Addr),
    /// Text of an ELF file.
    Elf {
        /// The file.
        elf: ElfId,
        /// The offset in the file of the instruction to look up (already adjusted for return
        /// addresses).
        file_offset: u64,
    },
    /// An address that belongs to no file, and why.
    Unresolved(Unresolved),
}

/// Why an address has no file.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Unresolved {
    /// In executable memory without a file: code made at run time.
    Anonymous,
    /// In no mapping of the process that is known.
    Unmapped,
    /// The process had exited before its mappings were read.
    ProcessGone,
    /// Its mappings could not be read: not permitted, or more than are kept.
    MappingsUnreadable,
}

impl Unresolved {
    /// The frame that stands for it in a profile.
    #[must_use]
    pub fn frame_name(self) -> &'static str {
        match self {
            Self::Anonymous => "[anonymous code]",
            Self::Unmapped => "[unmapped]",
            Self::ProcessGone => "[process gone]",
            Self::MappingsUnreadable => "[mappings unreadable]",
        }
    }
}

/// The span that a sample is charged to, as chosen by `--span-scope`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanLabel {
    /// The trace.
    pub trace_id: TraceId,
    /// The local root span or the active span.
    pub span_id: SpanId,
    /// That span's name, where the process publishes it.
    pub name: Option<Arc<str>>,
}

/// A sample that knows where it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributedSample {
    /// The service.
    pub service: Arc<ServiceIdentity>,
    /// The process's main binary.
    pub main_elf: Option<ElfId>,
    /// Leaf first; never empty.
    pub stack: Box<[Location]>,
    /// The span that it is charged to.
    pub span: Option<SpanLabel>,
    /// How much it stands for, in nanoseconds of CPU time.
    pub value: u64,
}
