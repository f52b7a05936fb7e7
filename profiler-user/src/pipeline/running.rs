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

use super::clock::boot_now;
use super::collect::{Collected, Collector, Ended, Recorder};
use crate::attribute::SpanScope;
use crate::capture::live::{Started, Stop};
use crate::capture::{Capture, CaptureConfig, CaptureError, Counters};
use crate::process::{ElfRegistry, Proc, ProcessTable, TableLimits};
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
    #[error("cannot start the collecting thread")]
    Thread(#[source] io::Error),
}

/// What to start.
pub struct StartConfig {
    /// What to sample.
    pub capture: CaptureConfig,
    /// Which span a sample is charged to.
    pub scope: SpanScope,
    /// How long a window is; `None`: one window of everything.
    pub window: Option<Duration>,
    /// Where what came from the kernel is stored.
    pub recorder: Option<Recorder>,
}

/// A pipeline at work.
pub struct Running {
    /// Ends it.
    pub stop: Stop,
    /// The kernel's counters.
    pub counters: Arc<Counters>,
    /// The files that locations are in.
    pub elfs: ElfRegistry,
    /// The windows; they end after the last one.
    pub windows: Receiver<Collected>,
    collector: JoinHandle<Ended>,
}

impl Running {
    /// Samples from here on.
    ///
    /// # Errors
    ///
    /// The kernel refuses, or there is no thread or descriptor left.
    pub fn start(config: StartConfig, stats: &Arc<Stats>) -> Result<Self, StartError> {
        let StartConfig { capture, scope, window, recorder } = config;
        let period_ns = capture.period_ns();
        // Events come before the scan, so that no program that starts meanwhile is missed.
        let Started { capture, control, counters } = Capture::start(&capture, Arc::clone(stats))?;
        let table = ProcessTable::scan(Proc::default(), TableLimits::default(), boot_now())
            .map_err(StartError::Processes)?;
        let elfs = table.elfs().clone();
        let stop = capture.stop_handle().map_err(StartError::Thread)?;
        let collector =
            Collector { table, control, scope, stats: Arc::clone(stats), period_ns, recorder };
        let (finished, windows) = sync_channel(WINDOWS);
        let collector = std::thread::Builder::new()
            .name("collect".to_owned())
            .spawn(move || collector.run(capture, window, &finished))
            .map_err(StartError::Thread)?;
        Ok(Self { stop, counters, elfs, windows, collector })
    }

    /// Waits until everything that was sampled is in a window.
    ///
    /// # Errors
    ///
    /// The collecting thread has panicked.
    pub fn join(collector: JoinHandle<Ended>) -> io::Result<Ended> {
        collector.join().map_err(|_panic| io::Error::other("the collecting thread has panicked"))
    }

    /// Takes it apart, for threads of their own.
    #[must_use]
    pub fn into_parts(
        self,
    ) -> (Stop, Arc<Counters>, ElfRegistry, Receiver<Collected>, JoinHandle<Ended>) {
        let Self { stop, counters, elfs, windows, collector } = self;
        (stop, counters, elfs, windows, collector)
    }
}
