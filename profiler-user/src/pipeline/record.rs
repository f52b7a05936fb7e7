//! `spanprof record`: one window, then files and a table.

use std::{
    io::{self, BufWriter, Write},
    os::fd::OwnedFd,
    process::ExitStatus,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::books::Books;
use super::collect::{Collected, Ended};
use super::coverage::Coverage;
use super::launch::{UnderWay, Waiting, launch};
use super::outputs;
use super::own_cost::OwnCost;
use super::running::{Running, StartConfig, StartError, join};
use crate::capture::{CaptureConfig, Counters};
use crate::config::RecordConfig;
use crate::decode::Pid;
use crate::export::file::{AtomicFile, FileError, check_writable};
use crate::process::{ElfRegistry, PerfMapRegistry};
use crate::recording;
use crate::stats::{Count, Stats};
use crate::symbolize::{RecordedNames, Symbolizer, SymbolizerConfig};

/// How often the progress line changes, and whether the processes are still there is looked at.
const PROGRESS_PERIOD: Duration = Duration::from_millis(250);

/// Why there is no recording.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// An output.
    #[error(transparent)]
    File(#[from] FileError),
    /// Sampling.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The command.
    #[error("cannot run `{command}`")]
    Command {
        /// The program.
        command: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The recorded file.
    #[error("cannot write the recorded file")]
    Recorder(#[source] io::Error),
    /// A process to sample is gone.
    #[error("there is no process {}", pid.0)]
    NoSuchProcess {
        /// The process.
        pid: Pid,
    },
    /// Our own threads, signals and terminal.
    #[error("cannot go on")]
    Io(#[from] io::Error),
}

/// Why sampling ended.
#[derive(Debug)]
enum Reason {
    Time,
    Signal,
    ProcessesGone,
    Command(ExitStatus),
}

/// Samples, and writes what was found. `progress` is a terminal, or nothing.
///
/// # Errors
///
/// Nothing could be sampled, or an output not be written.
pub async fn record(
    config: RecordConfig,
    table: &mut dyn Write,
    progress: &mut dyn Write,
) -> Result<(), RecordError> {
    // From here on a signal ends the sampling, and no longer the program: nothing is left half done.
    let mut signals = Signals::new()?;
    outputs::check(&config.outputs)?;
    let recorder = match &config.raw {
        Some(path) => {
            check_writable(path)?;
            let file = BufWriter::new(AtomicFile::create(path)?);
            Some(recording::Writer::new(file).map_err(RecordError::Recorder)?)
        }
        None => None,
    };
    let command_error = |source| RecordError::Command {
        command: config.command.first().map(|name| name.display().to_string()).unwrap_or_default(),
        source,
    };
    let waiting = match config.command.as_slice() {
        [] => None,
        command => Some(launch(command).map_err(command_error)?),
    };
    let targets = match &waiting {
        Some(Waiting { pid, .. }) => Some(vec![*pid]),
        None if config.pids.is_empty() => None,
        None => Some(config.pids.clone()),
    };
    let watched = watch(&config.pids)?;

    let stats = Arc::new(Stats::default());
    let start = StartConfig {
        capture: CaptureConfig {
            hz: config.hz,
            targets,
            bpf_log: config.bpf_log,
            sampler: config.sampler,
            reuse: config.reuse,
            unwind_memory_max: config.unwind_memory_max,
            hook_probe: config.hook_probe,
            // Its command is to have everything that the caller has.
            least_privilege: false,
        },
        setup: None,
        health: Arc::default(),
        origins: false,
        spans: config.outputs.spans.clone(),
        window: None,
        recorder,
    };
    let Running { stop, counters, elfs, perf_maps, windows, collector } =
        Running::start(start, &stats)?;

    let sampled = async {
        let mut command = match waiting {
            Some(waiting) => Some(waiting.go().map_err(command_error)?),
            None => None,
        };
        let reason =
            until(&config, &watched, command.as_mut(), &mut signals, &stats, progress).await?;
        Ok((command, reason))
    };
    let sampled = sampled.await;
    stop.stop();
    let (command, reason) = match sampled {
        Ok(sampled) => sampled,
        Err(error) => {
            // The collecting thread has the recorded file, which is removed when it ends: a program
            // that ends before it leaves half a file behind.
            drop(windows);
            let ended = tokio::task::spawn_blocking(move || join(collector).map(drop));
            if !matches!(ended.await, Ok(Ok(()))) {
                tracing::error!("the collecting thread has panicked");
            }
            return Err(error);
        }
    };
    tracing::debug!(?reason, "sampling ends");
    // It ends while the profile is made.
    if let Some(command) = &command {
        command.terminate();
    }
    let finish = move || -> Result<Finished, RecordError> {
        let collected =
            windows.recv().map_err(|_gone| io::Error::other("the collecting thread is gone"))?;
        let ended = join(collector)?;
        finish(config, collected, ended, (&elfs, perf_maps), &counters, &stats)
    };
    let Finished { window, books } = tokio::task::spawn_blocking(finish)
        .await
        .map_err(|_panic| io::Error::other("the finishing thread has panicked"))??;
    if let Some(command) = command {
        command.end().await;
    }
    outputs::print_table(&window, table)?;
    writeln!(table, "{books}")?;
    if let Reason::Command(status) = reason
        && !status.success()
    {
        tracing::warn!(%status, "the command failed");
    }
    if let Reason::ProcessesGone = reason {
        tracing::info!("the processes have exited");
    }
    Ok(())
}

struct Finished {
    window: crate::aggregate::Window,
    books: Books,
}

fn finish(
    config: RecordConfig,
    collected: Collected,
    ended: Ended,
    (elfs, perf_maps): (&ElfRegistry, PerfMapRegistry),
    counters: &Counters,
    stats: &Stats,
) -> Result<Finished, RecordError> {
    let Collected { window, process, hooks, unwind } = collected;
    let mut symbolizer =
        Symbolizer::new(SymbolizerConfig::new(config.inline)).with_perf_maps(perf_maps);
    let names = outputs::names(&mut symbolizer, &window, elfs);
    let host = host_name();
    let kernel = counters.totals()?;

    let no_value = outputs::without_value(&window);
    stats.add(Count::LostZeroValue, no_value);
    stats.add(Count::SamplesEncoded, window.samples() - no_value);
    let written = outputs::write_files(&config.outputs.files, &window, &names, &host)
        .map_err(RecordError::from)
        .and_then(|()| match ended {
            Some(recorder) => {
                let end = recording::End {
                    start_unix_ns: window.start_unix_ns,
                    duration_ns: window.duration_ns,
                    period_ns: window.period_ns,
                    host,
                    counters: kernel.iter().map(|(_, total)| total).collect(),
                    lost_attribute_queue_full: stats.get(Count::LostAttributeQueueFull),
                };
                let file = recorder
                    .and_then(|recorder| recorder.finish(&end, &RecordedNames::from(&names)))
                    .and_then(|buffer| buffer.into_inner().map_err(io::Error::from))
                    .map_err(RecordError::Recorder)?;
                Ok(file.commit()?)
            }
            None => Ok(()),
        });
    let count = if written.is_ok() { Count::SamplesExported } else { Count::LostExportRejected };
    stats.add(count, window.samples() - no_value);
    let books = Books::new(kernel, stats, 0)
        .with("services", &Coverage::of(&window))
        .with("process", &process)
        .with("hooks", &hooks)
        .with("unwind", &unwind)
        .with("symbolize", &symbolizer.stats())
        .with("sampler", &counters.cost()?)
        .with("agent", &OwnCost::until_now());
    outputs::write_stats(&config.outputs, &books)?;
    written?;
    Ok(Finished { window, books })
}

/// Descriptors that are readable when their process is gone.
fn watch(pids: &[Pid]) -> Result<Vec<OwnedFd>, RecordError> {
    pids.iter()
        .map(|&pid| {
            let id = i32::try_from(pid.0).ok().and_then(rustix::process::Pid::from_raw);
            id.and_then(|id| pidfd_open(id, PidfdFlags::empty()).ok())
                .ok_or(RecordError::NoSuchProcess { pid })
        })
        .collect()
}

/// Whether all of the processes have exited; not if there are none to watch.
fn all_gone(watched: &[OwnedFd]) -> bool {
    let gone = |process: &OwnedFd| {
        let mut fds = [PollFd::new(process, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    };
    !watched.is_empty() && watched.iter().all(gone)
}

/// The signals that end the sampling.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let (interrupt, terminate) = (SignalKind::interrupt(), SignalKind::terminate());
        Ok(Self { interrupt: signal(interrupt)?, terminate: signal(terminate)? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Waits for a reason to end, and shows how it goes.
async fn until(
    config: &RecordConfig,
    watched: &[OwnedFd],
    command: Option<&mut UnderWay>,
    signals: &mut Signals,
    stats: &Stats,
    progress: &mut dyn Write,
) -> Result<Reason, RecordError> {
    let start = Instant::now();
    let time = async {
        match config.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    let exited = async {
        match command {
            Some(command) => command.exited().await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(time, exited);
    let mut ticks = tokio::time::interval(PROGRESS_PERIOD);
    let reason = loop {
        tokio::select! {
            () = &mut time => break Reason::Time,
            status = &mut exited => break Reason::Command(status?),
            () = signals.next() => break Reason::Signal,
            _ = ticks.tick() => {
                if all_gone(watched) {
                    break Reason::ProcessesGone;
                }
                let seconds = start.elapsed().as_secs_f64();
                let samples = stats.get(Count::SamplesDrained);
                write!(progress, "\r{seconds:6.1} s  {samples} samples ")?;
                progress.flush()?;
            }
        }
    };
    write!(progress, "\r\x1b[K")?;
    progress.flush()?;
    Ok(reason)
}

/// The host's name, as it calls itself.
#[must_use]
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
