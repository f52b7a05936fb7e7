//! One sample, as the BPF program writes it to the `SAMPLES` ring.
//!
//! A record is a [`SampleHeader`], then `kernel_frame_count` and `user_frame_count` addresses of
//! 8 bytes, leaf first (a user address may carry [`FRAME_INTERRUPTED`]), then `span_len` bytes of the thread's OTEP 4947 record, then zero bytes up
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
/// `SampleHeader::flags`: the thread was in the kernel.
pub const FLAG_IN_KERNEL: u16 = 1 << 1;

/// `SampleHeader::flags`: where the bits begin that say how frames were found by frame pointer:
/// bit `FLAG_FRAME_POINTER_SHIFT + MAPPING_*` if one was, in a mapping of that kind.
pub const FLAG_FRAME_POINTER_SHIFT: u32 = 8;

/// A bit of a user frame, which is no bit of any address: a signal interrupted this instruction,
/// so that it is no return address. Never set in the first frame: there,
/// [`FLAG_USER_LEAF_RETURNS`] tells.
pub const FRAME_INTERRUPTED: u64 = 1 << 63;

/// `SampleHeader::user_stack`: walked up to the outermost frame.
pub const USER_STACK_COMPLETE: u8 = 0;
/// `SampleHeader::user_stack`: a kernel thread: there is no user stack.
pub const USER_STACK_KERNEL_THREAD: u8 = 1;
/// `SampleHeader::user_stack`: a task of another register layout (32-bit).
pub const USER_STACK_COMPAT: u8 = 2;
/// `SampleHeader::user_stack`: the thread was in the kernel and its user registers were not found.
pub const USER_STACK_NO_REGISTERS: u8 = 3;
/// `SampleHeader::user_stack`: there are more frames than the sample has room for.
pub const USER_STACK_TRUNCATED: u8 = 4;
/// `SampleHeader::user_stack`: the process's mappings are not known (yet): walked by frame pointer.
pub const USER_STACK_UNKNOWN_PROCESS: u8 = 5;
/// `SampleHeader::user_stack`: the last frame is in no mapping that is known.
pub const USER_STACK_UNMAPPED: u8 = 6;
/// `SampleHeader::user_stack`: the last frame has no unwind information, and its frame pointer
/// leads nowhere.
pub const USER_STACK_NO_FRAME_POINTER: u8 = 7;
/// `SampleHeader::user_stack`: the last frame's caller is on a part of the stack that cannot be
/// read.
pub const USER_STACK_UNREADABLE: u8 = 8;
/// `SampleHeader::user_stack`: the last frame's unwind rule cannot be followed.
pub const USER_STACK_UNSUPPORTED_RULE: u8 = 9;
/// `SampleHeader::user_stack`: the last frame's unwind rule leads down the stack.
pub const USER_STACK_BAD_STEP: u8 = 10;
/// `SampleHeader::user_stack`: the last frame has no unwind information, and its frame pointer is
/// zero: by convention the outermost frame, if the code keeps to it.
pub const USER_STACK_ZERO_FRAME_POINTER: u8 = 11;
/// `SampleHeader::user_stack`: all but the first frame is wrong: they were found with the mappings
/// of a program that the process did not run any more. Never written in the kernel, which cannot
/// know.
pub const USER_STACK_STALE: u8 = 12;

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
    /// The epoch of the mapping snapshot that the user stack was walked with, 0 if with none.
    pub epoch: u64,
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

const _: () = assert!(size_of::<SampleHeader>() == 72);
const _: () = assert!(SAMPLE_LEN_MAX.is_multiple_of(8));
