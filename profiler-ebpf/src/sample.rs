//! The body of a sample: who, when, both stacks and the span, built in scratch and sent.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_RB_NO_WAKEUP,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_smp_processor_id,
        bpf_get_stack, bpf_ktime_get_boot_ns, bpf_probe_read_user, generated::bpf_get_current_comm,
    },
    programs::PerfEventContext,
};
use aya_log_ebpf::debug;
use profiler_common::{
    counter,
    process::COMM_LEN,
    sample::{
        FLAG_IN_KERNEL, FLAG_USER_LEAF_RETURNS, KERNEL_FRAMES_MAX, KIND_CPU, SAMPLE_LEN_MAX,
        SampleHeader, USER_FRAMES_MAX, USER_STACK_NO_REGISTERS,
    },
    settings::{BOUNDED_END, BOUNDED_REST},
};

use crate::maps::{BOUNDED, PERIOD_NS, SAMPLES, SCRATCH, Scratch, TARGETS, TARGETS_ONLY, count};
use crate::registers::{in_user_mode, user_registers};
use crate::span::read_span;
use crate::walk;

/// Takes one sample of the running task, with `bpf_loop`.
#[inline(always)]
pub(crate) fn sample(ctx: &PerfEventContext) {
    let Some(scratch) = begin::<true>(ctx) else { return };
    if walk::is_under_way(scratch) {
        walk::go_on::<false>(scratch, current_tid());
    }
    finish::<false>(ctx, scratch);
}

/// Takes one sample of the running task, as far as a bounded loop goes; deeper stacks are handed on
/// to [`rest`], and all to [`end`].
#[inline(always)]
pub(crate) fn sample_bounded(ctx: &PerfEventContext) {
    let Some(scratch) = begin::<true>(ctx) else { return };
    if walk::is_under_way(scratch) {
        walk::go_on::<true>(scratch, 0);
    }
    if walk::is_under_way(scratch) {
        // Returns if there is no such program: then the stack is cut here.
        // SAFETY: the program there is of this type.
        unsafe { BOUNDED.tail_call(ctx, BOUNDED_REST) };
    }
    hand_on_to_end(ctx);
}

/// Goes on with a walk that [`sample_bounded`] began on this CPU.
#[inline(always)]
pub(crate) fn rest(ctx: &PerfEventContext) {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return count(counter::LOST_NO_SCRATCH) };
    // SAFETY: the element is this CPU's own, and perf-event programs do not nest.
    let scratch = unsafe { &mut *scratch };
    walk::go_on::<true>(scratch, 0);
    hand_on_to_end(ctx);
}

/// In a program of its own, because a verifier remembers each branch that it has not followed yet,
/// up to 8192: a walk of 64 frames takes up most of them.
#[inline(always)]
fn hand_on_to_end(ctx: &PerfEventContext) {
    // SAFETY: the program there is of this type.
    unsafe { BOUNDED.tail_call(ctx, BOUNDED_END) };
    // There is no such program. Never seen: it is loaded first.
    count(counter::LOST_NO_SCRATCH);
}

/// Ends the sample that [`sample_bounded`] began on this CPU.
#[inline(always)]
pub(crate) fn end(ctx: &PerfEventContext) {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return count(counter::LOST_NO_SCRATCH) };
    // SAFETY: the element is this CPU's own, and perf-event programs do not nest.
    let scratch = unsafe { &mut *scratch };
    finish::<true>(ctx, scratch);
}

/// Everything of a sample but the walk: one copy of a part of the stack, and a record of 300 bytes.
/// What a walk costs is measured against it.
#[inline(always)]
pub(crate) fn floor(ctx: &PerfEventContext) {
    let Some(scratch) = begin::<false>(ctx) else { return };
    finish::<true>(ctx, scratch);
}

/// Everything up to the walk; `None` if no sample is taken.
#[inline(always)]
fn begin<const WALK: bool>(ctx: &PerfEventContext) -> Option<&'static mut Scratch> {
    let tgid = current_tgid();
    if tgid == 0 {
        count(counter::TICKS_IDLE);
        return None;
    }
    // SAFETY: the value is copied at once and never modified in place.
    if TARGETS_ONLY.load() != 0 && unsafe { TARGETS.get(tgid) }.is_none() {
        count(counter::TICKS_FILTERED);
        return None;
    }
    count(counter::SAMPLES_TAKEN);
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        count(counter::LOST_NO_SCRATCH);
        return None;
    };
    // SAFETY: the element is this CPU's own, and perf-event programs do not nest.
    let scratch = unsafe { &mut *scratch };

    let user_mode = in_user_mode(ctx);
    scratch.header.flags = if user_mode { 0 } else { FLAG_IN_KERNEL };
    let kernel_frames = if user_mode { 0 } else { kernel_stack(ctx, scratch) };
    scratch.header.kernel_frame_count = kernel_frames as u16;
    scratch.header.user_frame_count = 0;
    match user_registers(ctx, user_mode, scratch) {
        Ok(leaf) => {
            if leaf.returns != 0 {
                scratch.header.flags |= FLAG_USER_LEAF_RETURNS;
            }
            if WALK {
                walk::begin(scratch, tgid, leaf, kernel_frames);
            } else {
                walk::only_copy(scratch, leaf, kernel_frames);
            }
        }
        Err(reason) => {
            scratch.header.epoch = 0;
            walk::refuse(scratch, reason);
        }
    }
    Some(scratch)
}

/// Everything after the walk. `BOUNDED`: without `bpf_loop`.
#[inline(always)]
fn finish<const BOUNDED: bool>(ctx: &PerfEventContext, scratch: &mut Scratch) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((pid_tgid >> 32) as u32, (pid_tgid & 0xffff_ffff) as u32);
    walk::end(scratch, tgid);
    if scratch.header.user_stack == USER_STACK_NO_REGISTERS {
        debug!(ctx, "no user registers for thread {}", tid);
    }
    let frames = frames(scratch);
    let span = read_span::<BOUNDED>(ctx, tgid, scratch, frames);
    let header = &mut scratch.header;
    header.span = span.status;
    header.span_len = span.len as u16;
    header.value = PERIOD_NS.load();
    header.tgid = tgid;
    header.tid = tid;
    header.kind = KIND_CPU;
    // SAFETY: the helper takes no argument and cannot fail.
    header.boot_ns = unsafe { bpf_ktime_get_boot_ns() };
    // SAFETY: the helper takes no argument and cannot fail.
    header.cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    // SAFETY: the helper takes no argument and cannot fail.
    header.cpu = unsafe { bpf_get_smp_processor_id() };
    // SAFETY: `comm` has the length that is given, and is zeroed by the helper on failure.
    unsafe { bpf_get_current_comm(header.comm.as_mut_ptr().cast(), COMM_LEN as u32) };
    send(scratch, size_of::<SampleHeader>() + 8 * frames + span.padded_len);
}

#[inline(always)]
fn current_tid() -> u64 {
    bpf_get_current_pid_tgid() & 0xffff_ffff
}

#[inline(always)]
fn current_tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Writes the kernel's frames at the start of the words and returns how many.
#[inline(always)]
fn kernel_stack(ctx: &PerfEventContext, scratch: &mut Scratch) -> usize {
    const ROOM: u32 = 8 * KERNEL_FRAMES_MAX as u32;
    let to = scratch.words.as_mut_ptr();
    // SAFETY: `to` has room for `ROOM` bytes, and the helper writes no more.
    let bytes = unsafe { bpf_get_stack(ctx.as_ptr(), to.cast(), ROOM, 0) };
    let Some(bytes @ 1..) = u64::try_from(bytes).ok() else {
        count(counter::KERNEL_STACK_FAILED);
        return 0;
    };
    (bytes >> 3) as usize & KERNEL_FRAMES_MAX
}

/// How many frames there are. The masks are for the verifier; the counts are never larger.
#[inline(always)]
fn frames(scratch: &Scratch) -> usize {
    let kernel = volatile_read(&scratch.header.kernel_frame_count) as usize;
    let user = volatile_read(&scratch.header.user_frame_count) as usize;
    (kernel & KERNEL_FRAMES_MAX) + (user & (2 * USER_FRAMES_MAX - 1))
}

#[inline(always)]
fn volatile_read<T: Copy>(from: &T) -> T {
    // SAFETY: a reference is valid for reads.
    unsafe { core::ptr::read_volatile(from) }
}

/// Reads a value of the current process.
#[inline(always)]
pub(crate) fn read_user<T>(address: u64) -> Result<T, i32> {
    // SAFETY: the helper fails, and does not fault, on an address that cannot be read.
    unsafe { bpf_probe_read_user(address as *const T) }
}

/// User space drains on a timer: waking it for each sample would cost more than the sample.
#[inline(always)]
fn send(scratch: &Scratch, len: usize) {
    if len > SAMPLE_LEN_MAX {
        return count(counter::LOST_NO_SCRATCH);
    }
    let first = core::ptr::from_ref(scratch).cast::<MaybeUninit<u8>>();
    // SAFETY: `Scratch` is larger than the largest record, which `len` was just compared with.
    let bytes = unsafe { core::slice::from_raw_parts(first, len) };
    if SAMPLES.output::<[MaybeUninit<u8>]>(bytes, u64::from(BPF_RB_NO_WAKEUP)).is_err() {
        count(counter::LOST_RING_FULL);
    }
}
