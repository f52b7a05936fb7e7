//! One sample, as the BPF program writes it to the `SAMPLES` ring.
//!
//! A record is a [`SampleHeader`], then `kernel_frame_count` and `user_frame_count` addresses of
//! 8 bytes, leaf first, then `span_len` bytes of the thread's OTEP 4947 record, then zero bytes up
//! to a multiple of 8.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::process::COMM_LEN;
use crate::span::{SPAN_ATTRIBUTES_MAX, SPAN_HEADER_LEN};

/// The most kernel frames in a sample: `kernel.perf_event_max_stack`'s default.
pub const KERNEL_FRAMES_MAX: usize = 127;

/// The most user frames in a sample.
pub const USER_FRAMES_MAX: usize = 128;

/// The largest record.
pub const SAMPLE_LEN_MAX: usize = size_of::<SampleHeader>()
    + 8 * (KERNEL_FRAMES_MAX + USER_FRAMES_MAX)
    + (SPAN_HEADER_LEN + SPAN_ATTRIBUTES_MAX);

/// `SampleHeader::kind`: CPU time, by a CPU-clock timer; `value` is in nanoseconds.
pub const KIND_CPU: u16 = 1;

/// `SampleHeader::flags`: the first user frame is an instruction that the thread returns to (it is
/// in a system call), not one that was interrupted: look up `address - 1`.
pub const FLAG_USER_LEAF_RETURNS: u16 = 1;
/// `SampleHeader::flags`: there are more user frames than the sample has room for.
pub const FLAG_USER_TRUNCATED: u16 = 1 << 1;
/// `SampleHeader::flags`: the thread was in the kernel.
pub const FLAG_IN_KERNEL: u16 = 1 << 2;

/// `SampleHeader::user_stack`: user frames were walked.
pub const USER_STACK_WALKED: u8 = 0;
/// `SampleHeader::user_stack`: a kernel thread: there is no user stack.
pub const USER_STACK_KERNEL_THREAD: u8 = 1;
/// `SampleHeader::user_stack`: a task of another register layout (32-bit).
pub const USER_STACK_COMPAT: u8 = 2;
/// `SampleHeader::user_stack`: the thread was in the kernel and its user registers were not found.
pub const USER_STACK_NO_REGISTERS: u8 = 3;

/// `SampleHeader::span`: a valid record follows.
pub const SPAN_READ: u8 = 0;
/// `SampleHeader::span`: the process is not known to publish spans.
pub const SPAN_NO_SLOT: u8 = 1;
/// `SampleHeader::span`: the thread's slot is null: it works on no span.
pub const SPAN_NONE: u8 = 2;
/// `SampleHeader::span`: the record says that it is not valid.
pub const SPAN_INVALID: u8 = 3;
/// `SampleHeader::span`: the thread pointer, the slot or the record cannot be read.
pub const SPAN_UNREADABLE: u8 = 4;

/// The fixed part of a sample record.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SampleHeader {
    /// When, in nanoseconds of `CLOCK_BOOTTIME`.
    pub boot_ns: u64,
    /// What this sample stands for, in the unit of its kind.
    pub value: u64,
    /// The cgroup v2 id of the task, 0 where there is none.
    pub cgroup_id: u64,
    /// The process, in the initial PID namespace.
    pub tgid: u32,
    /// The thread, in the initial PID namespace.
    pub tid: u32,
    /// The CPU.
    pub cpu: u32,
    /// One of `KIND_*`.
    pub kind: u16,
    /// Some of `FLAG_*`.
    pub flags: u16,
    /// How many kernel frames follow.
    pub kernel_frame_count: u16,
    /// How many user frames follow.
    pub user_frame_count: u16,
    /// How many bytes of the span record follow, 0 or at least [`SPAN_HEADER_LEN`].
    pub span_len: u16,
    /// One of `USER_STACK_*`.
    pub user_stack: u8,
    /// One of `SPAN_*`.
    pub span: u8,
    /// The thread's name.
    pub comm: [u8; COMM_LEN],
}

const _: () = assert!(size_of::<SampleHeader>() == 64);
const _: () = assert!(SAMPLE_LEN_MAX.is_multiple_of(8));
