//! What the kernel reports of processes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The kernel's name of a task, padded with zero bytes.
pub const COMM_LEN: usize = 16;

/// `ProcessEventRecord::kind`: the process runs a new program image.
pub const EVENT_EXEC: u32 = 1;
/// `ProcessEventRecord::kind`: `tgid` is a new process; `parent_tgid` made it.
pub const EVENT_FORK: u32 = 2;
/// `ProcessEventRecord::kind`: the process's first thread has exited.
pub const EVENT_EXIT: u32 = 3;
/// `ProcessEventRecord::kind`: a sample's code is in no mapping that is known of the process, or of
/// the process nothing is known. Not sent more often than each 10 ms for a process.
pub const EVENT_UNKNOWN_CODE: u32 = 4;
/// `ProcessEventRecord::kind`: the process has said by span-marker's hook where its threads keep
/// their span, and it is in `SPAN_SLOTS`. Sent for at most four places of one program.
pub const EVENT_SPAN_SLOT: u32 = 5;

/// One process event, as the BPF programs write it to the `PROCESS_EVENTS` ring.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ProcessEventRecord {
    /// When, in nanoseconds of `CLOCK_BOOTTIME`.
    pub boot_ns: u64,
    /// One of `EVENT_*`.
    pub kind: u32,
    /// The process, in the initial PID namespace.
    pub tgid: u32,
    /// For `EVENT_FORK` the process that forked, otherwise zero.
    pub parent_tgid: u32,
    /// Always zero.
    pub reserved: u32,
    /// For `EVENT_UNKNOWN_CODE` the address of the code, for `EVENT_SPAN_SLOT` the distance from
    /// the thread pointer to the slot (an `i64`), otherwise zero.
    pub address: u64,
}

const _: () = assert!(size_of::<ProcessEventRecord>() == 32);
