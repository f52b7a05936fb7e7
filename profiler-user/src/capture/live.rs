//! A running capture: what it needs, what it gives, how it ends.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    thread::JoinHandle,
    time::Instant,
};

use aya::{
    Ebpf, EbpfError,
    maps::{Map, MapError},
    programs::{ProgramError, RawTracePoint},
};
use aya_log::EbpfLogger;
use rustix::event::{EventfdFlags, eventfd};

use super::attach::CpuTimers;
use super::batch::{Batch, Next};
use super::control::Control;
use super::control::hooks::Hooks;
use super::control::unwind_maps::{self, UnwindMaps};
use super::counters::Counters;
use super::drain::Drain;
use super::kernel_layout::{KERNEL_BTF, TaskLayout};
use super::object::{self, Settings, StackReuse};
use super::sampler::Sampler;
use super::support;
use super::uprobe::{HookProbe, Uprobes};
use crate::clock::boot_now;
use crate::decode::{BootTime, Pid};
use crate::privilege::keep_steady;
use crate::stats::Stats;

/// The programs that follow processes, and their raw tracepoints.
const FOLLOWERS: [(&str, &str); 3] = [
    ("on_exec", "sched_process_exec"),
    ("on_fork", "sched_process_fork"),
    ("on_exit", "sched_process_exit"),
];
/// Batches that may wait for the next stage: 16 MiB at most.
const BATCHES: usize = 32;

/// What to sample.
#[derive(Clone, Debug)]
pub struct CaptureConfig {
    /// Samples per second and CPU.
    pub hz: u32,
    /// These processes and their descendants only; `None`: every process.
    pub targets: Option<Vec<Pid>>,
    /// Show the BPF programs' diagnostics in the log.
    pub bpf_log: bool,
    /// How to walk stacks; `None`: as this kernel can.
    pub sampler: Option<Sampler>,
    /// Whether a thread's last stack is reused.
    pub reuse: StackReuse,
    /// What the maps of unwinding may take together, in bytes.
    pub unwind_memory_max: u64,
    /// How calls of span-marker's hook are noticed; `None`: as this kernel can.
    pub hook_probe: Option<HookProbe>,
    /// The threads that go on sampling give up what only the start needs.
    pub least_privilege: bool,
}

impl CaptureConfig {
    /// How much time one sample stands for, in nanoseconds: as the kernel computes it
    /// (`perf_swevent_init_hrtimer`).
    #[must_use]
    pub fn period_ns(&self) -> u64 {
        1_000_000_000 / u64::from(self.hz.max(1))
    }
}

/// Why nothing can be sampled.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// `SPANPROF_SKIP_BPF` was set at build time.
    #[error("this binary was built without its BPF object")]
    NotBuilt,
    /// The object or one of its maps.
    #[error("cannot load the BPF object")]
    Load(#[source] EbpfError),
    /// The verifier or the kernel refused a program.
    #[error("cannot load the BPF program `{name}`")]
    Program {
        /// The program.
        name: &'static str,
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// The object is not the one that this binary belongs to.
    #[error("the BPF object has no program `{0}`")]
    NoSuchProgram(&'static str),
    /// The object is not the one that this binary belongs to.
    #[error("the BPF object's map `{name}` cannot be used")]
    NoSuchMap {
        /// The map.
        name: &'static str,
        /// What is wrong with it, if it is there.
        #[source]
        source: Option<MapError>,
    },
    /// A CPU cannot be sampled.
    #[error("cannot open a perf event on CPU {cpu}")]
    PerfEvent {
        /// The CPU.
        cpu: u32,
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// The online CPUs are not known.
    #[error("cannot read {path}")]
    OnlineCpus {
        /// The file.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A thread or a descriptor of our own.
    #[error("cannot start the draining thread")]
    Thread(#[source] io::Error),
    /// The memory of the maps of unwinding.
    #[error("cannot map the maps of unwinding")]
    UnwindMaps(#[source] io::Error),
    /// A target did not fit.
    #[error(transparent)]
    Target(#[from] super::control::ControlError),
}

/// A running capture.
pub struct Capture {
    batches: Receiver<Batch>,
    stop: OwnedFd,
    drain: Option<JoinHandle<()>>,
    has_panicked: bool,
}

/// Ends a [`Capture`] from another thread.
pub struct Stop(OwnedFd);

/// What [`Capture::start`] gives: the records, the way back, and the books.
pub struct Started {
    /// The records.
    pub capture: Capture,
    /// The way back.
    pub control: Control,
    /// The maps of unwinding.
    pub unwind_maps: UnwindMaps,
    /// The probes of span-marker's hooks.
    pub hooks: Hooks,
    /// The books.
    pub counters: Arc<Counters>,
    /// No sample is older.
    pub since: BootTime,
}

impl Capture {
    /// Loads the programs, attaches them and starts to sample.
    ///
    /// # Errors
    ///
    /// The kernel refuses, mostly for want of a capability: `spanprof doctor` says which.
    pub fn start(config: &CaptureConfig, stats: Arc<Stats>) -> Result<Started, CaptureError> {
        support::raise_memlock();
        let layout = TaskLayout::from_btf(Path::new(KERNEL_BTF)).unwrap_or_else(|error| {
            tracing::warn!(%error, "no spans, and no user stacks of threads in system calls");
            TaskLayout::default()
        });
        let cpus = aya::util::nr_cpus()
            .map_err(|(path, source)| CaptureError::OnlineCpus { path, source })?;
        let mut ebpf = object::load(&Settings {
            period_ns: config.period_ns(),
            targets_only: config.targets.is_some(),
            layout,
            has_task_pt_regs: support::has_task_pt_regs(),
            log: config.bpf_log,
            samples_ring_bytes: ring_bytes(config.hz, cpus),
            reuse: config.reuse,
        })?;

        // It is given the maps before others take them.
        let hooks = start_hooks(&mut ebpf, config)?;
        let (slots, targets) =
            (take_map(&mut ebpf, "SPAN_SLOTS")?, take_map(&mut ebpf, "TARGETS")?);
        let mut control = Control::new(slots, targets, config.targets.is_some());
        for &pid in config.targets.iter().flatten() {
            control.add_target(pid)?;
        }
        let unwind_maps = UnwindMaps::new(unwind_maps(&mut ebpf)?, config.unwind_memory_max)
            .map_err(CaptureError::UnwindMaps)?;
        let counters = take_map(&mut ebpf, "COUNTERS")?;
        let samples = take_map(&mut ebpf, "SAMPLES")?;
        let events = take_map(&mut ebpf, "PROCESS_EVENTS")?;
        let logger = if config.bpf_log { start_log(&mut ebpf) } else { None };

        for (name, tracepoint) in FOLLOWERS {
            follow(&mut ebpf, name, tracepoint)?;
        }
        let sampler = config.sampler.unwrap_or_else(Sampler::for_this_kernel);
        sampler.load(&mut ebpf)?;
        let program = sampler.program(&mut ebpf)?;
        let sampler_fd = program
            .fd()
            .map_err(|source| CaptureError::Program { name: sampler.name(), source })?
            .as_fd()
            .try_clone_to_owned()
            .map_err(CaptureError::Thread)?;
        let counters = Arc::new(Counters::new(counters, sampler_fd));
        let since = boot_now();
        let mut timers = CpuTimers::new(Arc::clone(&counters));
        let failed = timers.follow_online(program, config.hz)?;
        if let Some((_cpu, error)) = failed.into_iter().next() {
            return Err(error);
        }

        let least_privilege = config.least_privilege;
        let (to_next_stage, batches) = sync_channel(BATCHES);
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(thread_error)?;
        let drain = Drain {
            ebpf,
            sampler,
            timers,
            hz: config.hz,
            samples,
            events,
            logger,
            batches: to_next_stage,
            stats,
            stop: stop.try_clone().map_err(CaptureError::Thread)?,
            counters: Arc::clone(&counters),
            pending: Batch::default(),
            kernel_events_lost: 0,
            failed_cpus: BTreeSet::new(),
        };
        let drain = std::thread::Builder::new()
            .name("drain".to_owned())
            .spawn(move || {
                if least_privilege && let Err(error) = keep_steady() {
                    tracing::warn!(%error, "the draining thread keeps its capabilities");
                }
                drain.run();
            })
            .map_err(CaptureError::Thread)?;
        let capture = Self { batches, stop, drain: Some(drain), has_panicked: false };
        Ok(Started { capture, control, unwind_maps, hooks, counters, since })
    }

    /// After the end: whether it was no end but a panic of the draining thread.
    #[must_use]
    pub fn has_panicked(&self) -> bool {
        self.has_panicked
    }

    /// A handle that ends this capture: sampling stops, and [`next`](Self::next) ends after what is
    /// left.
    ///
    /// # Errors
    ///
    /// There is no descriptor left.
    pub fn stop_handle(&self) -> io::Result<Stop> {
        self.stop.try_clone().map(Stop)
    }
}

impl Stop {
    /// Ends the capture.
    pub fn stop(&self) {
        stop(&self.0);
    }
}

fn stop(event: &OwnedFd) {
    // Adding to the counter cannot fail before 2^64 - 1 calls.
    if let Err(error) = rustix::io::write(event, &1_u64.to_ne_bytes()) {
        tracing::error!(%error, "cannot stop sampling");
    }
}

impl Capture {
    /// The next records, waiting for them no longer than until `deadline`.
    pub fn next(&mut self, deadline: Instant) -> Next {
        let wait = deadline.saturating_duration_since(Instant::now());
        match self.batches.recv_timeout(wait) {
            Ok(batch) => Next::Batch(batch),
            Err(RecvTimeoutError::Timeout) => Next::Deadline,
            Err(RecvTimeoutError::Disconnected) => {
                if let Some(drain) = self.drain.take()
                    && drain.join().is_err()
                {
                    self.has_panicked = true;
                }
                Next::End
            }
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        stop(&self.stop);
    }
}

fn take_map<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, CaptureError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(CaptureError::NoSuchMap { name, source: None })?;
    M::try_from(map).map_err(|source| CaptureError::NoSuchMap { name, source: Some(source) })
}

fn unwind_maps(ebpf: &mut Ebpf) -> Result<unwind_maps::Maps, CaptureError> {
    let mut array = |name| match ebpf.take_map(name) {
        Some(Map::Array(map)) => Ok(map),
        _ => Err(CaptureError::NoSuchMap { name, source: None }),
    };
    let (mappings, pages, rules) = (array("MAPPINGS")?, array("PAGES")?, array("RULES")?);
    let (processes, rows) = (take_map(ebpf, "PROCESSES")?, take_map(ebpf, "ROWS")?);
    Ok(unwind_maps::Maps { processes, mappings, pages, rules, rows })
}

fn start_log(ebpf: &mut Ebpf) -> Option<EbpfLogger<&'static dyn log::Log>> {
    EbpfLogger::init(ebpf)
        .inspect_err(|error| tracing::warn!(%error, "no diagnostics of the BPF programs"))
        .ok()
}

fn follow(ebpf: &mut Ebpf, name: &'static str, tracepoint: &str) -> Result<(), CaptureError> {
    let program: &mut RawTracePoint = ebpf
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(CaptureError::NoSuchProgram(name))?;
    let failed = |source| CaptureError::Program { name, source };
    program.load().map_err(failed)?;
    program.attach(tracepoint).map_err(failed)?;
    Ok(())
}

/// Without probes all else works: processes are found by looking at them, some milliseconds later.
fn start_hooks(ebpf: &mut Ebpf, config: &CaptureConfig) -> Result<Hooks, CaptureError> {
    let uprobes = Uprobes::load(ebpf, config.hook_probe).unwrap_or_else(|error| {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "no uprobes: the first spans of short processes may have no labels");
        None
    });
    Hooks::start(uprobes, config.least_privilege).map_err(CaptureError::Thread)
}

fn thread_error(errno: rustix::io::Errno) -> CaptureError {
    CaptureError::Thread(errno.into())
}

/// Room for two seconds of samples of the usual size, a power of two as the kernel demands.
fn ring_bytes(hz: u32, cpus: usize) -> u32 {
    const USUAL_SAMPLE: u64 = 512;
    const SMALLEST: u64 = 1 << 20;
    const LARGEST: u64 = 64 << 20;
    let cpus = u64::try_from(cpus).unwrap_or(u64::MAX);
    let wanted = u64::from(hz).saturating_mul(cpus).saturating_mul(2 * USUAL_SAMPLE);
    let bytes = wanted.clamp(SMALLEST, LARGEST).next_power_of_two();
    u32::try_from(bytes).unwrap_or(1 << 26)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_grows_with_the_rate_within_bounds() {
        assert_eq!(ring_bytes(97, 2), 1 << 20);
        assert_eq!(ring_bytes(99, 64), 8 << 20);
        assert_eq!(ring_bytes(100_000, 1024), 64 << 20);
    }
}
