//! Every map, and the read-only globals: who writes, who reads, what happens when it is full.

use aya_ebpf::{
    Global,
    macros::map,
    maps::{HashMap, PerCpuArray, RingBuf},
};
use profiler_common::{counter::COUNTERS_LEN, sample::SampleHeader, span::SpanSlot};
use profiler_ebpf::frame_pointer::Cursor;

/// Samples on their way to user space. User space sizes it by CPUs and frequency; when it is full a
/// sample is lost and counted.
#[map]
pub(crate) static SAMPLES: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Process events on their way to user space. When it is full an event is lost and counted, and
/// user space reads `/proc` again.
#[map]
pub(crate) static PROCESS_EVENTS: RingBuf = RingBuf::with_byte_size(1 << 18, 0);

/// Key: tgid. Where its threads keep the pointer to their span record. Written by user space, and
/// deleted here when the process gets another program image.
#[map]
pub(crate) static SPAN_SLOTS: HashMap<u32, SpanSlot> = HashMap::with_max_entries(16384, 0);

/// Key: tgid of a process to sample when only some are. Written by user space, and here for the
/// children of a target.
#[map]
pub(crate) static TARGETS: HashMap<u32, u32> = HashMap::with_max_entries(16384, 0);

/// See `profiler_common::counter`. Written here, read by user space.
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS_LEN, 0);

/// Where a sample is built: it is larger than the 512 bytes of BPF stack. One a CPU is enough:
/// perf-event programs do not nest on a CPU.
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Words after the header: more than a record can have, and a power of two so that a mask bounds an
/// index.
pub(crate) const SCRATCH_WORDS: usize = 512;

/// A sample record with the most that can follow, and the state of the walk.
#[repr(C)]
pub(crate) struct Scratch {
    /// The fixed part.
    pub(crate) header: SampleHeader,
    /// Frames, then the span record.
    pub(crate) words: [u64; SCRATCH_WORDS],
    /// Where the user stack walk stands.
    pub(crate) cursor: Cursor,
}

/// See `profiler_common::settings` for each of these.
#[unsafe(no_mangle)]
pub(crate) static PERIOD_NS: Global<u64> = Global::new(0);
/// 1: only the processes in `TARGETS`.
#[unsafe(no_mangle)]
pub(crate) static TARGETS_ONLY: Global<u32> = Global::new(0);
/// `task_struct`: the thread pointer.
#[unsafe(no_mangle)]
pub(crate) static TASK_THREAD_POINTER: Global<u32> = Global::new(0);
/// `task_struct`: `flags`.
#[unsafe(no_mangle)]
pub(crate) static TASK_FLAGS: Global<u32> = Global::new(0);
/// `task_struct`: `tgid`.
#[unsafe(no_mangle)]
pub(crate) static TASK_TGID: Global<u32> = Global::new(0);
/// `task_struct`: `pid`.
#[unsafe(no_mangle)]
pub(crate) static TASK_PID: Global<u32> = Global::new(0);
/// `task_struct`: `stack`.
#[unsafe(no_mangle)]
pub(crate) static TASK_STACK: Global<u32> = Global::new(0);
/// 1: the kernel has `bpf_task_pt_regs`.
#[unsafe(no_mangle)]
pub(crate) static HAS_TASK_PT_REGS: Global<u32> = Global::new(0);

/// Adds one to a counter of `profiler_common::counter`.
#[inline(always)]
pub(crate) fn count(counter: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: a per-CPU element that only this CPU writes; a lookup's result stays valid for
        // the whole program run.
        unsafe { *value += 1 };
    }
}
