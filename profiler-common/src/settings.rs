//! Names and meanings of the read-only globals that user space sets when it loads the object.
//!
//! They are frozen before the program is verified, so that branches on them cost nothing.

/// `u64`: nanoseconds that one sample stands for.
pub const PERIOD_NS: &str = "PERIOD_NS";
/// `u32`: 1 if only the processes in the `TARGETS` map are sampled.
pub const TARGETS_ONLY: &str = "TARGETS_ONLY";
/// `u32`: offset in bytes of the thread pointer in `struct task_struct`, 0 if not known.
pub const TASK_THREAD_POINTER: &str = "TASK_THREAD_POINTER";
/// `u32`: offset of `flags` in `struct task_struct`, 0 if not known.
pub const TASK_FLAGS: &str = "TASK_FLAGS";
/// `u32`: offset of `tgid` in `struct task_struct`, 0 if not known.
pub const TASK_TGID: &str = "TASK_TGID";
/// `u32`: offset of `pid` in `struct task_struct`, 0 if not known.
pub const TASK_PID: &str = "TASK_PID";
/// `u32`: offset of `stack` in `struct task_struct`, 0 if not known.
pub const TASK_STACK: &str = "TASK_STACK";
/// `u32`: 1 if the kernel has `bpf_task_pt_regs` (Linux 5.15).
pub const HAS_TASK_PT_REGS: &str = "HAS_TASK_PT_REGS";
/// `u32`: 1 if the stack that a thread had at its last sample is reused as far as it is the same, 2
/// ([`REUSE_AND_CHECK`]) if each stack is walked a second time without, and compared.
pub const REUSE_STACKS: &str = "REUSE_STACKS";
/// A value of [`REUSE_STACKS`].
pub const REUSE_AND_CHECK: u32 = 2;

/// Of the map `BOUNDED`, the index of the program that goes on with a walk.
pub const BOUNDED_REST: u32 = 0;
/// Of the map `BOUNDED`, the index of the program that ends a sample.
pub const BOUNDED_END: u32 = 1;
