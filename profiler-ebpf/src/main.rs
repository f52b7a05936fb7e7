//! The BPF programs: where each is attached and what its context is.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "BPF has 64-bit words only, and what narrows here was bounded just before"
)]
#![expect(
    clippy::large_stack_frames,
    reason = "the log macro's closures, before they are inlined; the verifier has the last word"
)]

mod hook;
mod labels;
mod maps;
mod process;
mod registers;
mod reuse;
mod sample;
mod span;
mod stack;
mod volatile;
mod walk;

use aya_ebpf::{
    macros::{perf_event, raw_tracepoint, uprobe},
    programs::{PerfEventContext, ProbeContext, RawTracePointContext},
};

/// Takes one sample. Attached to a CPU-clock perf event on every CPU.
#[perf_event]
fn on_cpu(ctx: PerfEventContext) -> u32 {
    sample::sample(&ctx);
    0
}

/// As `on_cpu`, for kernels without `bpf_loop` (before Linux 5.17).
#[perf_event]
fn on_cpu_bounded(ctx: PerfEventContext) -> u32 {
    sample::sample_bounded(&ctx);
    0
}

/// As `on_cpu`, without the walk: loaded only to measure what a walk costs.
#[perf_event]
fn on_cpu_floor(ctx: PerfEventContext) -> u32 {
    sample::floor(&ctx);
    0
}

/// What `on_cpu_bounded` hands deep stacks on to.
#[perf_event]
fn on_cpu_rest(ctx: PerfEventContext) -> u32 {
    sample::rest(&ctx);
    0
}

/// What ends the samples that `on_cpu_bounded` begins.
#[perf_event]
fn on_cpu_end(ctx: PerfEventContext) -> u32 {
    sample::end(&ctx);
    0
}

/// `sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`, in the
/// task that got the new image.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn on_exec(_ctx: RawTracePointContext) -> i32 {
    process::exec();
    0
}

/// `sched_process_fork(struct task_struct *parent, struct task_struct *child)`, in the parent.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
fn on_fork(ctx: RawTracePointContext) -> i32 {
    process::fork(&ctx);
    0
}

/// `sched_process_exit(struct task_struct *p, ...)`, in the task that exits.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn on_exit(_ctx: RawTracePointContext) -> i32 {
    process::exit();
    0
}

/// `span_marker_thread_slot_v1(slot: *const *const u8, tp_offset: i64)`, in the program that calls
/// it. Attached to every binary that has it.
#[uprobe]
fn on_span_slot(ctx: ProbeContext) -> u32 {
    hook::span_slot(&ctx);
    0
}

/// The kernel refuses helpers that are for GPL programs only to a program without this.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never runs: the verifier rejects a program that could reach this loop.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Lets clippy, rust-analyzer and `cargo test` build this binary for the host.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
