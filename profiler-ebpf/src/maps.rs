//! Every map, and the read-only globals: who writes, who reads, what happens when it is full.

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    btf_maps,
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
};
use profiler_common::{
    counter::COUNTERS_LEN,
    sample::SampleHeader,
    span::SpanSlots,
    unwind::{
        CHUNK_SEGMENTS, CHUNKS_MAX, MAPPING_SEGMENTS, PAGES_MAX, PROCESSES_MAX, RULES_MAX,
        SEGMENT_WORDS,
    },
};
use profiler_ebpf::lookup::MappingSegment;

use crate::labels::Labels;
use crate::registers::REGISTERS;
use crate::reuse::Remembered;
use crate::span::Found;
use crate::walk::Walk;

/// Samples on their way to user space. User space sizes it by CPUs and frequency; when it is full a
/// sample is lost and counted.
#[map]
pub(crate) static SAMPLES: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Process events on their way to user space. When it is full an event is lost and counted, and
/// user space reads `/proc` again.
#[map]
pub(crate) static PROCESS_EVENTS: RingBuf = RingBuf::with_byte_size(1 << 18, 0);

/// Key: tgid. Where its threads keep the pointer to their span record. Written by user space, and
/// here when the process calls span-marker's hook; deleted here when the process gets another
/// program image.
#[map]
pub(crate) static SPAN_SLOTS: HashMap<u32, SpanSlots> = HashMap::with_max_entries(16384, 0);

/// Key: tgid of a process to sample when only some are. Written by user space, and here for the
/// children of a target.
#[map]
pub(crate) static TARGETS: HashMap<u32, u32> = HashMap::with_max_entries(16384, 0);

/// Key: tgid. Where its slice begins: an index of `MAPPINGS`' entries, over all segments. Written by
/// user space; deleted here at exec, and copied here at fork.
#[map]
pub(crate) static PROCESSES: HashMap<u32, u32> = HashMap::with_max_entries(PROCESSES_MAX, 0);

/// The slices of all processes. Written by user space through its own mapping of it, as are the
/// next two; what is published is never modified.
#[map]
pub(crate) static MAPPINGS: Array<MappingSegment> =
    Array::with_max_entries(MAPPING_SEGMENTS as u32, BPF_F_MMAPABLE);

/// One word for each 64 KiB of each file's text: `profiler_common::unwind::page`.
#[map]
pub(crate) static PAGES: Array<[u64; PAGES_MAX]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The different rules of all files: `profiler_common::unwind::Rule::to_bits`.
#[map]
pub(crate) static RULES: Array<[u64; RULES_MAX]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The blocks of all pages, in chunks that user space makes when they are needed. The value is no
/// struct: Linux 6.1 refuses an inner map that is made without BTF if it is.
#[btf_map]
pub(crate) static ROWS: btf_maps::ArrayOfMaps<
    btf_maps::Array<[u32; SEGMENT_WORDS], CHUNK_SEGMENTS, { BPF_F_MMAPABLE as usize }>,
    CHUNKS_MAX,
> = btf_maps::ArrayOfMaps::new();

/// Key: tgid. When unknown code of it was reported last. Written here only; when it is full, what
/// was reported longest ago is reported again too early.
#[map]
pub(crate) static UNKNOWN_CODE: LruHashMap<u32, u64> = LruHashMap::with_max_entries(8192, 0);

/// Each CPU's last stacks of some threads. Only if `REUSE_STACKS` is set: user space makes it small
/// otherwise.
#[map]
pub(crate) static REMEMBERED: PerCpuArray<Remembered> =
    PerCpuArray::with_max_entries(crate::reuse::THREADS, 0);

/// The other parts of the sampler where the kernel has no `bpf_loop`: at `BOUNDED_REST` what goes on
/// with a walk, at `BOUNDED_END` what ends a sample.
#[map]
pub(crate) static BOUNDED: ProgramArray = ProgramArray::with_max_entries(2, 0);

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
    pub(crate) walk: Walk,
    /// The interrupted thread's registers, by DWARF number.
    pub(crate) registers: [u64; REGISTERS],
    /// A copy of a part of the user stack.
    pub(crate) window: [u64; WINDOW_WORDS],
    /// The thread's span, as far as it was found.
    pub(crate) span: Found,
    /// Where the reading of its labels stands.
    pub(crate) labels: Labels,
}

/// Words of the stack that are copied at a time: 2 KiB. A copy costs little more than a read of one
/// word, and less is copied twice than with half or double the size.
pub(crate) const WINDOW_WORDS: usize = 256;

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

/// See `profiler_common::settings::REUSE_STACKS`.
#[unsafe(no_mangle)]
pub(crate) static REUSE_STACKS: Global<u32> = Global::new(0);

/// Adds one to a counter of `profiler_common::counter`.
#[inline(always)]
pub(crate) fn count(counter: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: a per-CPU element that only this CPU writes; a lookup's result stays valid for
        // the whole program run.
        unsafe { *value += 1 };
    }
}
