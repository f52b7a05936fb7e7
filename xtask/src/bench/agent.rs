//! One run of the agent over one load.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{counter, sink};
use crate::exec::target_dir;

/// Ten times the usual, so that a short run has many samples.
pub(super) const HZ: u32 = 997;
/// The usual.
pub(super) const USUAL_HZ: u32 = 97;
pub(super) const LOAD_SECONDS: u64 = 12;
const WINDOW_SECONDS: u64 = 2;
/// How often the worker is looked at: it does not tell itself.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// For the start and the end of the agent.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is sampled, besides whatever else the host does.
#[derive(Clone, Copy)]
pub(super) enum Load<'a> {
    /// The example service under its own load.
    Checkout(&'a Path),
    /// A shell loop for each CPU.
    Shells,
}

/// What it cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measurement {
    pub(super) bpf_ns_per_sample: f64,
    /// Without what came before the end of the first window.
    pub(super) agent_cpu_per_100k: f64,
    /// As above.
    pub(super) worker_cpu_per_100k: f64,
    /// Until the end of the first window, both of them.
    pub(super) first_cpu_s: f64,
    /// Both of them, as above, in percent of one CPU.
    pub(super) cpu_percent: f64,
    pub(super) agent_rss_mib: f64,
    pub(super) worker_rss_mib: f64,
}

/// One of its numbers.
pub(super) type Measured = fn(&Measurement) -> f64;

impl Measurement {
    /// Runs the agent over the load, with `hz` samples of each CPU in a second.
    pub(super) fn take(spanprof: &Path, load: Load<'_>, hz: u32) -> Result<Self> {
        // The load first, so that the first window has its names.
        let _loads = load.start()?;
        let Agent { process: mut agent, mut workers, stats, first } = Agent::start(spanprof, hz)?;
        let worker_first_ns = workers.cpu_ns();
        let first_at = Instant::now();
        workers.watch(Duration::from_secs(LOAD_SECONDS - WINDOW_SECONDS), || Ok(None::<()>))?;
        agent.terminate()?;
        let status = workers.watch(PATIENCE, || agent.0.try_wait().map_err(Into::into))?;
        let status = status.context("spanprof does not end")?;
        ensure!(status.success(), "spanprof ended with {status}; target/bench/log says why");
        let last = read_stats(&stats)?.context("spanprof has written no counters")?;
        Self::new(&first, &last, worker_first_ns, first_at.elapsed(), &workers)
    }

    #[expect(clippy::cast_precision_loss, reason = "for people, and within 2^53")]
    fn new(
        first: &Value,
        last: &Value,
        worker_first_ns: u64,
        time: Duration,
        workers: &Workers,
    ) -> Result<Self> {
        let seconds = |ns: u64| ns as f64 / 1e9;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let samples = counter(last, "kernel", "samples_taken")?;
        ensure!(samples > 0, "nothing was sampled");
        let exported = counter(last, "samples", "samples_exported")?;
        // More than a few losses would make what is left look cheap.
        ensure!(exported >= samples / 100 * 99, "only {exported} of {samples} were exported");
        let later = samples - counter(first, "kernel", "samples_taken")?;
        let per_100k = |ns: u64| seconds(ns) * 1e5 / later as f64;
        let agent_first_ns = counter(first, "agent", "cpu_ns")?;
        let agent_ns = counter(last, "agent", "cpu_ns")? - agent_first_ns;
        let worker_ns = workers.cpu_ns() - worker_first_ns;
        Ok(Self {
            bpf_ns_per_sample: counter(last, "sampler", "run_time_ns")? as f64 / samples as f64,
            agent_cpu_per_100k: per_100k(agent_ns),
            worker_cpu_per_100k: per_100k(worker_ns),
            cpu_percent: seconds(agent_ns + worker_ns) / time.as_secs_f64() * 100.0,
            first_cpu_s: seconds(agent_first_ns + worker_first_ns),
            agent_rss_mib: mib(counter(last, "agent", "max_rss_bytes")?),
            worker_rss_mib: mib(workers.max_rss_bytes),
        })
    }
}

/// An agent that has ended its first window.
pub(super) struct Agent {
    process: Running,
    workers: Workers,
    /// Where its counters go.
    stats: PathBuf,
    /// Those of the first window.
    first: Value,
}

impl Agent {
    pub(super) fn start(spanprof: &Path, hz: u32) -> Result<Self> {
        let folder = target_dir().join("bench");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let stats = folder.join("stats.json");
        // That of an earlier run.
        if stats.exists() {
            fs::remove_file(&stats)
                .with_context(|| format!("cannot remove {}", stats.display()))?;
        }
        let log = fs::File::create(folder.join("log")).context("cannot make a log")?;
        let mut command = Command::new(spanprof);
        command.args(["run", "--pyroscope-url", &sink::start()?, "-F", &hz.to_string()]);
        command.args(["--window", &format!("{WINDOW_SECONDS}s")]).arg("--stats").arg(&stats);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = Running(command.spawn().context("cannot run spanprof")?);
        let mut workers = Workers::of(process.0.id());
        let first = workers.watch(PATIENCE, || read_stats(&stats))?;
        let first = first.context("no window ended; target/bench/log says why")?;
        Ok(Self { process, workers, stats, first })
    }
}

fn read_stats(path: &PathBuf) -> Result<Option<Value>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Some(serde_json::from_slice(&text).context("the counters are not JSON")?))
}

impl Load<'_> {
    fn start(self) -> Result<Vec<Running>> {
        let start = |command: &mut Command| {
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            child
                .map(Running)
                .with_context(|| format!("cannot run {}", command.get_program().display()))
        };
        match self {
            Self::Checkout(program) => {
                // Ended with the measurement, not by itself.
                let seconds = (LOAD_SECONDS + PATIENCE.as_secs() * 2).to_string();
                Ok(vec![start(Command::new(program).args(["--demo", "--seconds", &seconds]))?])
            }
            Self::Shells => {
                let cpus = thread::available_parallelism().context("cannot count the CPUs")?;
                let shell = |_| start(Command::new("sh").args(["-c", "while :; do :; done"]));
                (0..cpus.get()).map(shell).collect()
            }
        }
    }
}

/// Ends with its owner.
pub(super) struct Running(pub(super) Child);

impl Running {
    fn terminate(&mut self) -> Result<()> {
        // Until it was waited for, its id is nobody else's.
        if self.0.try_wait().context("cannot wait for a process")?.is_none() {
            kill_process(Pid::from_child(&self.0), Signal::TERM).context("cannot end a process")?;
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Asked first: it may have children of its own to end.
        let deadline = Instant::now() + PATIENCE;
        if self.terminate().is_ok() {
            while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < deadline {
                thread::sleep(POLL_INTERVAL);
            }
        }
        // Both fail if it is gone, as it should be.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The symbolizing workers of an agent, one after the other.
struct Workers {
    agent: u32,
    cpu_ns: BTreeMap<u32, u64>,
    max_rss_bytes: u64,
}

impl Workers {
    fn of(agent: u32) -> Self {
        Self { agent, cpu_ns: BTreeMap::new(), max_rss_bytes: 0 }
    }

    /// CPU time of all that were seen.
    fn cpu_ns(&self) -> u64 {
        self.cpu_ns.values().sum()
    }

    /// Looks at them until there is an answer, or for so long.
    fn watch<T>(
        &mut self,
        time: Duration,
        mut ask: impl FnMut() -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let deadline = Instant::now() + time;
        loop {
            self.look();
            if let Some(answer) = ask()? {
                return Ok(Some(answer));
            }
            if Instant::now() > deadline {
                return Ok(None);
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// A worker may be gone at any moment: what was seen of it last stays.
    fn look(&mut self) {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.agent)) else { return };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            for pid in children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()) {
                let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}"));
                let schedstat = read("schedstat").unwrap_or_default();
                if let Some(ns) = schedstat.split(' ').next().and_then(|ns| ns.parse().ok()) {
                    self.cpu_ns.insert(pid, ns);
                }
                let rss = rss_peak(&read("status").unwrap_or_default()).unwrap_or(0);
                self.max_rss_bytes = self.max_rss_bytes.max(rss);
            }
        }
    }
}

fn rss_peak(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}
