//! A thread's user registers, however the timer caught it: the one file that knows x86-64.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_perf_event_data,
    helpers::{
        bpf_get_current_task, bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_task_pt_regs,
    },
    programs::PerfEventContext,
};
use profiler_common::sample::{
    USER_STACK_COMPAT, USER_STACK_KERNEL_THREAD, USER_STACK_NO_REGISTERS,
};
use profiler_ebpf::frame_pointer::Cursor;

use crate::maps::{HAS_TASK_PT_REGS, TASK_FLAGS, TASK_STACK};

/// The code segment of 32-bit programs (`__USER32_CS`, arch/x86/include/asm/segment.h).
const USER32_CS: u64 = 0x23;
/// `PF_KTHREAD` (include/linux/sched.h): the task has no user side.
const PF_KTHREAD: u32 = 0x0020_0000;
/// `THREAD_SIZE` of x86-64 without KASAN: the kernel stack, with the user registers at its end.
const THREAD_SIZE: u64 = 16384;

/// Offsets in `struct pt_regs` (arch/x86/include/asm/ptrace.h), and its size.
const PT_REGS_BP: u64 = 32;
const PT_REGS_ORIG_AX: u64 = 120;
const PT_REGS_LEN: u64 = 168;

/// The user side of an interrupted thread.
pub(crate) struct UserRegisters {
    /// Where a walk begins.
    pub(crate) cursor: Cursor,
    /// The thread is in a system call: `cursor.ip` is where it returns to.
    pub(crate) returns: bool,
}

/// Whether the timer hit user code.
#[inline(always)]
pub(crate) fn in_user_mode(ctx: &PerfEventContext) -> bool {
    // SAFETY: a perf_event program's context is a `bpf_perf_event_data`.
    let data = unsafe { &*ctx.as_ptr().cast::<bpf_perf_event_data>() };
    data.regs.cs & 3 == 3
}

/// The registers of user mode, or one of `USER_STACK_*` that says why there are none.
#[inline(always)]
pub(crate) fn user_registers(ctx: &PerfEventContext, user_mode: bool) -> Result<UserRegisters, u8> {
    if user_mode {
        // SAFETY: a perf_event program's context is a `bpf_perf_event_data`.
        let data = unsafe { &*ctx.as_ptr().cast::<bpf_perf_event_data>() };
        if data.regs.cs == USER32_CS {
            return Err(USER_STACK_COMPAT);
        }
        let cursor = Cursor { ip: data.regs.rip, bp: data.regs.rbp };
        return Ok(UserRegisters { cursor, returns: false });
    }
    saved_registers()
}

/// The registers that the thread had when it entered the kernel.
#[inline(always)]
fn saved_registers() -> Result<UserRegisters, u8> {
    // SAFETY: the helper takes no argument and cannot fail.
    let task = unsafe { bpf_get_current_task() };
    let flags_at = TASK_FLAGS.load();
    if flags_at == 0 {
        return Err(USER_STACK_NO_REGISTERS);
    }
    let flags: u32 = read_kernel(task + u64::from(flags_at))?;
    if flags & PF_KTHREAD != 0 {
        return Err(USER_STACK_KERNEL_THREAD);
    }
    // The globals are frozen, so a kernel without the helper never verifies the call to it.
    let registers = if HAS_TASK_PT_REGS.load() != 0 {
        // SAFETY: the helper takes no argument and cannot fail.
        let task = unsafe { bpf_get_current_task_btf() };
        // SAFETY: `task` is the kernel's own pointer to the running task.
        (unsafe { bpf_task_pt_regs(task) }).cast_unsigned()
    } else {
        let stack: u64 = read_kernel(task + u64::from(TASK_STACK.load()))?;
        stack + THREAD_SIZE - PT_REGS_LEN
    };
    let bp: u64 = read_kernel(registers + PT_REGS_BP)?;
    let [orig_ax, ip, cs]: [u64; 3] = read_kernel(registers + PT_REGS_ORIG_AX)?;
    if cs == USER32_CS {
        return Err(USER_STACK_COMPAT);
    }
    if cs & 3 != 3 {
        return Err(USER_STACK_NO_REGISTERS);
    }
    // Entry from a system call keeps its number here, any other entry -1 (arch/x86/entry).
    let returns = orig_ax != u64::MAX;
    Ok(UserRegisters { cursor: Cursor { ip, bp }, returns })
}

#[inline(always)]
fn read_kernel<T>(address: u64) -> Result<T, u8> {
    // SAFETY: the helper fails, and does not fault, on an address that cannot be read.
    unsafe { bpf_probe_read_kernel(address as *const T) }.map_err(|_errno| USER_STACK_NO_REGISTERS)
}
