//! A thread's user registers, however the timer caught it: the one file that knows x86-64.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_task, bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_task_pt_regs,
        generated,
    },
    programs::PerfEventContext,
};
use profiler_common::sample::{
    USER_STACK_COMPAT, USER_STACK_KERNEL_THREAD, USER_STACK_NO_REGISTERS,
};
use profiler_ebpf::unwind::Cursor;

use crate::maps::{HAS_TASK_PT_REGS, Scratch, TASK_FLAGS, TASK_STACK, WINDOW_WORDS};

/// The code segment of 32-bit programs (`__USER32_CS`, arch/x86/include/asm/segment.h).
const USER32_CS: u64 = 0x23;
/// `PF_KTHREAD` (include/linux/sched.h): the task has no user side.
const PF_KTHREAD: u32 = 0x0020_0000;
/// `THREAD_SIZE` of x86-64 without KASAN: the kernel stack, with the user registers at its end.
const THREAD_SIZE: u64 = 16384;

/// Words of `struct pt_regs` (arch/x86/include/asm/ptrace.h), and the places of some.
const PT_REGS_WORDS: usize = 21;
const PT_REGS_ORIG_AX: usize = 15;
const PT_REGS_IP: usize = 16;
const PT_REGS_CS: usize = 17;
const PT_REGS_SP: usize = 19;

/// How many registers have a DWARF number (System V psABI, figure 3.36).
pub(crate) const REGISTERS: usize = 16;
/// Where in `struct pt_regs` each of them is, by DWARF number: rax, rdx, rcx, rbx, rsi, rdi, rbp,
/// rsp, r8 to r15.
const BY_DWARF_NUMBER: [usize; REGISTERS] =
    [10, 12, 11, 5, 13, 14, 4, PT_REGS_SP, 9, 8, 7, 6, 3, 2, 1, 0];

/// Whether the timer hit user code.
#[inline(always)]
pub(crate) fn in_user_mode(ctx: &PerfEventContext) -> bool {
    interrupted(ctx, PT_REGS_CS) & 3 == 3
}

/// Where a walk begins, with all registers left in `scratch`; or one of `USER_STACK_*` that says why
/// there is no walk.
#[inline(always)]
pub(crate) fn user_registers(
    ctx: &PerfEventContext,
    user_mode: bool,
    scratch: &mut Scratch,
) -> Result<Cursor, u8> {
    if user_mode {
        if interrupted(ctx, PT_REGS_CS) == USER32_CS {
            return Err(USER_STACK_COMPAT);
        }
        each_register(scratch, |_window, place| interrupted(ctx, place));
        return Ok(cursor(scratch, interrupted(ctx, PT_REGS_IP), 0));
    }
    saved_registers(scratch)?;
    let cs = scratch.window[PT_REGS_CS];
    if cs == USER32_CS {
        return Err(USER_STACK_COMPAT);
    }
    if cs & 3 != 3 {
        return Err(USER_STACK_NO_REGISTERS);
    }
    each_register(scratch, |window, place| window[place]);
    // Entry from a system call keeps its number here, any other entry -1 (arch/x86/entry): of a
    // system call, ip is where it returns to.
    let returns = u64::from(scratch.window[PT_REGS_ORIG_AX] != u64::MAX);
    Ok(cursor(scratch, scratch.window[PT_REGS_IP], returns))
}

/// A word of the interrupted registers.
#[inline(always)]
fn interrupted(ctx: &PerfEventContext, word: usize) -> u64 {
    let registers = ctx.as_ptr().cast::<[u64; PT_REGS_WORDS]>();
    // SAFETY: a perf_event program's context is a `bpf_perf_event_data`, which begins with a
    // `pt_regs`.
    let registers = unsafe { &*registers };
    // Volatile, because the verifier wants a constant offset, and LLVM makes one load at a computed
    // address of two in different branches.
    // SAFETY: a reference is valid for reads.
    unsafe { core::ptr::read_volatile(&raw const registers[word]) }
}

#[inline(always)]
fn each_register(scratch: &mut Scratch, word: impl Fn(&[u64; WINDOW_WORDS], usize) -> u64) {
    macro_rules! copy {
        ($($number:literal)*) => {
            $(scratch.registers[$number] = word(&scratch.window, BY_DWARF_NUMBER[$number]);)*
        };
    }
    copy!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
}

#[inline(always)]
fn cursor(scratch: &Scratch, ip: u64, returns: u64) -> Cursor {
    let [sp, fp] = [scratch.registers[7], scratch.registers[6]];
    Cursor { ip, sp, fp, returns, first: 1, ..Cursor::default() }
}

/// Copies the registers that the thread had when it entered the kernel into the window.
#[inline(always)]
fn saved_registers(scratch: &mut Scratch) -> Result<(), u8> {
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
        stack + THREAD_SIZE - 8 * PT_REGS_WORDS as u64
    };
    let to = scratch.window.as_mut_ptr().cast::<c_void>();
    // SAFETY: the window is larger; the helper fails, and does not fault, on an address that cannot
    // be read.
    let failed = unsafe {
        generated::bpf_probe_read_kernel(to, 8 * PT_REGS_WORDS as u32, registers as *const c_void)
    };
    if failed == 0 { Ok(()) } else { Err(USER_STACK_NO_REGISTERS) }
}

#[inline(always)]
fn read_kernel<T>(address: u64) -> Result<T, u8> {
    // SAFETY: the helper fails, and does not fault, on an address that cannot be read.
    unsafe { bpf_probe_read_kernel(address as *const T) }.map_err(|_errno| USER_STACK_NO_REGISTERS)
}
