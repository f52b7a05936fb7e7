//! Record bytes to [`Sample`]s and [`ProcessEvent`]s. Parses, never trusts; pure.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod record;

pub use record::{DecodeError, process_event, sample, stale};

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A process (the kernel's *tgid*), in the initial PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pid(pub u32);

/// A thread (the kernel's *pid*), in the initial PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tid(pub u32);

/// An address in a running process or in the running kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Addr(pub u64);

impl std::fmt::Debug for Addr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Nanoseconds of `CLOCK_BOOTTIME`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BootTime(pub u64);

/// A trace id in W3C byte order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId(pub [u8; 16]);

/// A span id in W3C byte order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId(pub [u8; 8]);

macro_rules! hex_display {
    ($id:ident) => {
        impl std::fmt::Display for $id {
            /// Lower-case hex, as OpenTelemetry writes it.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl std::fmt::Debug for $id {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{self}")
            }
        }
    };
}
hex_display!(TraceId);
hex_display!(SpanId);

impl TraceId {
    /// Not known: labels may have a span's id without its trace's. W3C's invalid id.
    pub const UNKNOWN: Self = Self([0; 16]);

    /// Reads 32 hex digits of either case; `None` for anything else, and for the invalid id 0.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        let digits_only = hex.len() == 32 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
        let id = if digits_only { u128::from_str_radix(hex, 16).ok()? } else { 0 };
        (id != 0).then(|| Self(id.to_be_bytes()))
    }
}

impl SpanId {
    /// Reads 16 hex digits of either case; `None` for anything else, and for the invalid id 0.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        let digits_only = hex.len() == 16 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
        let id = if digits_only { u64::from_str_radix(hex, 16).ok()? } else { 0 };
        (id != 0).then(|| Self(id.to_be_bytes()))
    }
}

/// What a sample's value measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SampleKind {
    /// CPU time, in nanoseconds.
    Cpu,
}

/// One sample of one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// What `value` measures.
    pub kind: SampleKind,
    /// How much this sample stands for.
    pub value: u64,
    /// When it was taken.
    pub at: BootTime,
    /// The process.
    pub pid: Pid,
    /// The thread.
    pub tid: Tid,
    /// The thread's name, as the kernel keeps it: up to 15 bytes.
    pub comm: Arc<str>,
    /// The CPU.
    pub cpu: u32,
    /// The cgroup v2 id, 0 where there is none.
    pub cgroup_id: u64,
    /// The stack, leaf first: the kernel's frames, then the process's.
    pub frames: Vec<Frame>,
    /// How the user part of the stack ended.
    pub user_stack: UserStack,
    /// Bit `MAPPING_*` is set if a caller was found by frame pointer in a mapping of that kind.
    pub by_frame_pointer: u8,
    /// The epoch of the mapping snapshot that the user part was walked with, 0 if with none.
    pub epoch: u64,
    /// The thread's span record, or why there is none.
    pub span: Result<SpanRecord, NoSpan>,
}

/// One frame as it was sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// In the kernel.
    Kernel(CodeAddress),
    /// In the process.
    User(CodeAddress),
}

/// A code address that knows what it points to. The instruction that a profile charges is the
/// interrupted one, but the *call* before a return address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeAddress {
    /// The instruction at which the thread was interrupted.
    Instruction(Addr),
    /// Where a call returns to: the first byte after it, which may belong to another function.
    Return(Addr),
}

impl CodeAddress {
    /// The address to look up: inside the charged instruction.
    #[must_use]
    pub fn lookup(self) -> Addr {
        match self {
            Self::Instruction(at) => at,
            Self::Return(Addr(at)) => Addr(at.saturating_sub(1)),
        }
    }
}

/// How the user part of a stack ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserStack {
    /// At its outermost frame.
    Complete,
    /// At the most frames a sample has.
    Truncated,
    /// A kernel thread has none.
    KernelThread,
    /// A 32-bit task is not walked.
    Compat,
    /// The thread was in the kernel and its user registers were not found.
    NoRegisters,
    /// Where frame pointers end; the mappings of the process were not known to the kernel side.
    UnknownProcess,
    /// In no mapping that was known.
    Unmapped,
    /// In code without unwind information, at a frame pointer that leads nowhere.
    NoFramePointer,
    /// In code without unwind information, at a frame pointer of zero: by convention the outermost
    /// frame.
    ZeroFramePointer,
    /// At a part of the stack that cannot be read.
    Unreadable,
    /// At an unwind rule that cannot be followed.
    UnsupportedRule,
    /// At an unwind rule that leads down the stack.
    BadStep,
    /// It was walked with the mappings of another program, or through code that another file had
    /// taken the place of: only its first frame is right.
    Stale,
}

/// A thread's OTEP 4947 record, or what its labels say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanRecord {
    /// The trace; [`TraceId::UNKNOWN`] where there are labels without it.
    pub trace_id: TraceId,
    /// The active span, or the one that the labels name.
    pub span_id: SpanId,
    /// That span's name, where it is a label. A record has it among the attributes.
    pub label_name: Option<Arc<str>>,
    /// W3C trace flags; bit 0 is "sampled".
    pub trace_flags: u8,
    /// Attributes by key index, as the process context names them; of a repeated key the last.
    pub attributes: Vec<(u8, Arc<str>)>,
}

impl SpanRecord {
    /// Whether its trace is kept, as far as was known when the span began (W3C trace flag
    /// `sampled`).
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.trace_flags & 1 != 0
    }
}

/// Why a sample has no span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSpan {
    /// The process is not known to publish spans.
    NoSlot,
    /// The thread says that it works on none.
    NoneActive,
    /// The record says that it is not valid.
    Invalid,
    /// An id of the record is zero.
    ZeroIds,
    /// The thread's labels have a span's id, or a trace's, that is none.
    LabelsMalformed,
    /// The thread pointer, the slot or the record cannot be read.
    Unreadable,
}

/// Something that happened to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessEvent {
    /// When.
    pub at: BootTime,
    /// The process.
    pub pid: Pid,
    /// What.
    pub kind: ProcessEventKind,
}

/// What happened to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessEventKind {
    /// It runs a new program image.
    Exec,
    /// It was made by `parent`.
    Fork {
        /// The process that forked.
        parent: Pid,
    },
    /// Its first thread has exited; others may still run.
    Exit,
    /// A sample's code is in no mapping that the kernel side knows.
    UnknownCode {
        /// The code.
        address: Addr,
    },
    /// It has said where its threads keep their span, and the kernel side knows it.
    SpanSlot {
        /// Distance in bytes from the thread pointer.
        tp_offset: i64,
    },
}

/// A process has mapped something to run it. The kernel itself reports that, not a BPF program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeMapping {
    /// When. No code ran there before.
    pub at: BootTime,
    /// The process.
    pub pid: Pid,
    /// The first address.
    pub begin: Addr,
    /// The address behind the last one.
    pub end: Addr,
    /// Where in the file `begin` is.
    pub file_offset: u64,
    /// What is mapped.
    pub file: FileNumber,
}

/// What the kernel tells files apart by: zeros where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileNumber {
    /// Its file system, as `(major, minor)`.
    pub device: (u32, u32),
    /// Its inode there.
    pub inode: u64,
}
