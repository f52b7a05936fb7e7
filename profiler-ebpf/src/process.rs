//! The bodies of the process events.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns, bpf_probe_read_kernel},
    programs::RawTracePointContext,
};
use profiler_common::{
    counter,
    process::{EVENT_EXEC, EVENT_EXIT, EVENT_FORK, EVENT_UNKNOWN_CODE, ProcessEventRecord},
};

use crate::maps::{
    PROCESS_EVENTS, PROCESSES, SPAN_SLOTS, TARGETS, TARGETS_ONLY, TASK_PID, TASK_TGID,
    UNKNOWN_CODE, count,
};

/// How often unknown code of one process is reported at most.
const UNKNOWN_CODE_EVERY_NS: u64 = 10_000_000;

/// The process runs another program: what was known of its memory is wrong from here on.
#[inline(always)]
pub(crate) fn exec() {
    let tgid = current_tgid();
    // An error means that nothing was known.
    _ = SPAN_SLOTS.remove(tgid);
    _ = PROCESSES.remove(tgid);
    send(EVENT_EXEC, tgid, 0, 0);
}

/// A task was made: `sched_process_fork(struct task_struct *parent, struct task_struct *child)`.
#[inline(always)]
pub(crate) fn fork(ctx: &RawTracePointContext) {
    let (tgid_at, pid_at) = (TASK_TGID.load(), TASK_PID.load());
    if tgid_at == 0 || pid_at == 0 {
        return;
    }
    let child = ctx.arg::<u64>(1);
    let (Some(tgid), Some(pid)) = (read_kernel(child, tgid_at), read_kernel(child, pid_at)) else {
        return;
    };
    if tgid != pid {
        return; // A thread.
    }
    let parent = current_tgid();
    // The child has a copy of the parent's record but not of its process context: by OTEP 4719 it
    // publishes none until it says so. An error means that nothing was known of a namesake.
    _ = SPAN_SLOTS.remove(tgid);
    inherit_mappings(parent, tgid);
    if TARGETS_ONLY.load() != 0 {
        if !is_target(parent) {
            // An error means that no namesake was a target.
            _ = TARGETS.remove(tgid);
        } else if TARGETS.insert(tgid, 1, 0).is_err() {
            count(counter::TARGETS_FULL);
        }
    }
    send(EVENT_FORK, tgid, parent, 0);
}

/// The child has the parent's mappings, until it makes others.
#[inline(always)]
fn inherit_mappings(parent: u32, child: u32) {
    // SAFETY: the value is copied at once; user space replaces elements, it does not modify them.
    let slice = unsafe { PROCESSES.get(parent) }.copied();
    let inherited = slice.is_some_and(|slice| PROCESSES.insert(child, slice, 0).is_ok());
    if !inherited {
        // An error means that nothing was known of a namesake.
        _ = PROCESSES.remove(child);
    }
}

/// A sample met code that is in no mapping that is known of its process.
#[inline(always)]
pub(crate) fn unknown_code(tgid: u32, address: u64) {
    // SAFETY: the helper takes no argument and cannot fail.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // SAFETY: the value is copied at once.
    let last = unsafe { UNKNOWN_CODE.get(tgid) }.copied();
    if last.is_some_and(|last| now.wrapping_sub(last) < UNKNOWN_CODE_EVERY_NS) {
        return;
    }
    // Where it cannot be noted, it is reported once more.
    _ = UNKNOWN_CODE.insert(tgid, now, 0);
    send(EVENT_UNKNOWN_CODE, tgid, 0, address);
}

/// A task exits. Only a process's first thread is reported; others may still run.
#[inline(always)]
pub(crate) fn exit() {
    let pid_tgid = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((pid_tgid >> 32) as u32, (pid_tgid & 0xffff_ffff) as u32);
    if tgid == tid {
        send(EVENT_EXIT, tgid, 0, 0);
    }
}

#[inline(always)]
pub(crate) fn is_target(tgid: u32) -> bool {
    // SAFETY: only the presence of the element is used.
    unsafe { TARGETS.get(tgid) }.is_some()
}

#[inline(always)]
pub(crate) fn current_tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

#[inline(always)]
fn read_kernel(task: u64, offset: u32) -> Option<u32> {
    // SAFETY: the helper fails, and does not fault, on an address that cannot be read.
    unsafe { bpf_probe_read_kernel((task + u64::from(offset)) as *const u32) }.ok()
}

#[inline(always)]
pub(crate) fn send(kind: u32, tgid: u32, parent_tgid: u32, address: u64) {
    let record = ProcessEventRecord {
        // SAFETY: the helper takes no argument and cannot fail.
        boot_ns: unsafe { bpf_ktime_get_boot_ns() },
        kind,
        tgid,
        parent_tgid,
        reserved: 0,
        address,
    };
    if PROCESS_EVENTS.output::<ProcessEventRecord>(&record, 0).is_err() {
        count(counter::EVENT_LOST_RING_FULL);
    }
}
