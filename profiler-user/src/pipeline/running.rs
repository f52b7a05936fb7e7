//! A pipeline at work, up to its windows: what `record` and `run` have in common.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::collect::{Collected, Collector, Ended, Recorder, UsedFiles};
use super::unwinding::Unwinding;
use crate::aggregate::Aggregator;
use crate::attribute::SpanPolicy;
use crate::capture::live::{Started, Stop};
use crate::capture::{Capture, CaptureConfig, CaptureError, Counters};
use crate::clock::boot_now;
use crate::privilege::Setup;
use crate::process::{ElfRegistry, PerfMapRegistry, Proc, ProcessTable, TableLimits};
use crate::serve::Health;
use crate::stats::Stats;

/// Windows that may wait to be finished: a finishing thread that is further behind than this stays
/// behind.
const WINDOWS: usize = 2;

/// Why nothing could be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The kernel.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The processes.
    #[error("cannot read the list of processes")]
    Processes(#[source] io::Error),
    /// A thread.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// What to start.
pub struct StartConfig {
    /// What to sample.
    pub capture: CaptureConfig,
    /// Which span a sample is charged to.
    pub spans: SpanPolicy,
    /// Whether services are told apart by where their processes run.
    pub origins: bool,
    /// How long a window is; `None`: one window of everything.
    pub window: Option<Duration>,
    /// Where what came from the kernel is stored.
    pub recorder: Option<Recorder>,
    /// Where the kernel is asked for what only the start may ask for; `None`: here.
    pub setup: Option<Setup>,
    /// Who wants to know whether the thread lives.
    pub health: Arc<Health>,
}

/// A pipeline at work.
pub struct Running {
    /// Ends it.
    pub stop: Stop,
    /// The kernel's counters.
    pub counters: Arc<Counters>,
    /// The files that locations are in.
    pub elfs: ElfRegistry,
    /// What names code made at run time.
    pub perf_maps: PerfMapRegistry,
    /// The windows; they end after the last one.
    pub windows: Receiver<Collected>,
    /// Ends after the last window.
    pub collector: JoinHandle<io::Result<Ended>>,
}

impl Running {
    /// Samples from here on.
    ///
    /// # Errors
    ///
    /// The kernel refuses, or there is no thread or descriptor left.
    pub fn start(config: StartConfig, stats: &Arc<Stats>) -> Result<Self, StartError> {
        let StartConfig { capture: wanted, spans, origins, window, recorder, setup, health } =
            config;
        // Events come before the scan, so that no program that starts meanwhile is missed.
        let Started { capture, mut control, unwind_maps, hooks, counters, since } = match setup {
            Some(setup) => {
                let (wanted, stats) = (wanted.clone(), Arc::clone(stats));
                setup.run(move || Capture::start(&wanted, stats)).map_err(StartError::Thread)?
            }
            None => Capture::start(&wanted, Arc::clone(stats)),
        }?;
        let proc = Proc::default();
        if let Some(targets) = &wanted.targets {
            // Forks are followed from here on; those before are found now.
            let targets = proc.with_descendants(targets).map_err(StartError::Processes)?;
            for pid in targets {
                control.add_target(pid).map_err(CaptureError::from)?;
            }
        }
        let limits = TableLimits { origins, ..TableLimits::default() };
        let table = ProcessTable::scan(proc, limits, boot_now())
            .map_err(StartError::Processes)?
            .with_clock(boot_now);
        let elfs = table.elfs().clone();
        let perf_maps = table.perf_maps().clone();
        let unwinding = Unwinding::start(unwind_maps, elfs.clone()).map_err(StartError::Thread)?;
        let stop = capture.stop_handle().map_err(StartError::Thread)?;
        let collector = Collector {
            table,
            control,
            hooks,
            unwinding,
            used: UsedFiles::default(),
            spans,
            stats: Arc::clone(stats),
            period_ns: wanted.period_ns(),
            recorder: recorder.map(Ok),
            aggregator: Aggregator::default(),
            since,
            previous_end_unix_ns: None,
            health: Arc::clone(&health),
        };
        let (finished, windows) = sync_channel(WINDOWS);
        let collector = std::thread::Builder::new()
            .name("collect".to_owned())
            .spawn(move || collector.run(capture, window, &finished))
            .map_err(StartError::Thread)?;
        health.set_sampling();
        Ok(Self { stop, counters, elfs, perf_maps, windows, collector })
    }
}

/// Waits until everything that was sampled is in a window.
///
/// # Errors
///
/// The draining or the collecting thread has panicked.
pub fn join(collector: JoinHandle<io::Result<Ended>>) -> io::Result<Ended> {
    collector
        .join()
        .unwrap_or_else(|_panic| Err(io::Error::other("the collecting thread has panicked")))
}
