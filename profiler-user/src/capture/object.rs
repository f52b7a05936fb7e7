//! The embedded BPF object, its settings, and loading it.

use aya::{Ebpf, EbpfLoader};
use profiler_common::settings;

use super::kernel_layout::TaskLayout;
use super::live::CaptureError;

/// Bytes aligned as an ELF reader wants them.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/profiler-bpf.o")));

/// Whether the stack that a thread had at its last sample is reused as far as it is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StackReuse {
    /// No: each stack is walked from its leaf to its root.
    Off,
    /// Yes.
    #[default]
    On,
    /// Yes, and each stack is walked again without, compared, and counted.
    Check,
}

impl StackReuse {
    fn setting(self) -> u32 {
        match self {
            Self::Off => 0,
            Self::On => 1,
            Self::Check => settings::REUSE_AND_CHECK,
        }
    }
}

/// What the object is loaded with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) period_ns: u64,
    pub(super) targets_only: bool,
    pub(super) layout: TaskLayout,
    pub(super) has_task_pt_regs: bool,
    pub(super) log: bool,
    pub(super) samples_ring_bytes: u32,
    pub(super) reuse: StackReuse,
}

/// The log level of BPF-side diagnostics when they are on: `aya_log::Level::Trace`.
const LOG_ALL: u8 = 5;
/// One page: the log's ring when nothing is logged.
const NO_LOG_RING: u32 = 4096;

/// The object.
pub(super) fn bytes() -> &'static [u8] {
    let Aligned(object) = OBJECT;
    object
}

/// Loads the object; its programs are not verified yet.
pub(super) fn load(settings: &Settings) -> Result<Ebpf, CaptureError> {
    let object = bytes();
    if object.is_empty() {
        return Err(CaptureError::NotBuilt);
    }
    let Settings {
        period_ns,
        targets_only,
        layout,
        has_task_pt_regs,
        log,
        samples_ring_bytes,
        reuse,
    } = settings;
    let TaskLayout { thread_pointer, flags, tgid, pid, stack } = layout;
    let (targets_only, has_task_pt_regs) = (u32::from(*targets_only), u32::from(*has_task_pt_regs));
    let level = if *log { LOG_ALL } else { 0 };
    let reuse_setting = reuse.setting();
    let mut loader = EbpfLoader::new();
    loader
        .override_global(settings::PERIOD_NS, period_ns, true)
        .override_global(settings::TARGETS_ONLY, &targets_only, true)
        .override_global(settings::TASK_THREAD_POINTER, thread_pointer, true)
        .override_global(settings::TASK_FLAGS, flags, true)
        .override_global(settings::TASK_TGID, tgid, true)
        .override_global(settings::TASK_PID, pid, true)
        .override_global(settings::TASK_STACK, stack, true)
        .override_global(settings::HAS_TASK_PT_REGS, &has_task_pt_regs, true)
        .override_global(aya_log::LEVEL, &level, true)
        .map_max_entries("SAMPLES", *samples_ring_bytes);
    loader.override_global(settings::REUSE_STACKS, &reuse_setting, true);
    if *reuse == StackReuse::Off {
        loader.map_max_entries("REMEMBERED", 1);
    }
    if !log {
        loader.map_max_entries("AYA_LOGS", NO_LOG_RING);
    }
    loader.load(object).map_err(CaptureError::Load)
}
