//! `spanprof run` as a process of the test, and the services that it samples.
//!
//! Everything here blocks, and everything that waits has a deadline.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::child::log_end;

/// For what takes moments on a quiet machine.
pub const GRACE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// What a process gets to end by itself when nobody waits for it any more.
const DROP_GRACE: Duration = Duration::from_secs(5);

/// Asks until there is an answer.
///
/// # Errors
///
/// That of a question, or there was no answer within [`GRACE`].
pub fn poll_until<T>(what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + GRACE;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        ensure!(Instant::now() < deadline, "this never came true: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// A process that ends with the test.
#[derive(Debug)]
pub struct Process {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it, with nothing on its standard input.
    ///
    /// # Errors
    ///
    /// It cannot be run.
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        Ok(Self { child, ended: None })
    }

    /// Asks it to end (SIGTERM).
    ///
    /// # Errors
    ///
    /// It cannot be asked.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends it a signal, unless it has ended.
    ///
    /// # Errors
    ///
    /// It cannot be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // Once it was waited for, its id may be somebody else's.
        if self.ended.is_none() {
            rustix::process::kill_process(Pid::from_child(&self.child), signal)?;
        }
        Ok(())
    }

    /// Tells it to read its options again (SIGHUP).
    ///
    /// # Errors
    ///
    /// It cannot be told.
    pub fn hang_up(&self) -> Result<()> {
        self.signal(Signal::HUP)
    }

    /// Ends it at once (SIGKILL).
    ///
    /// # Errors
    ///
    /// It cannot be ended, or waited for.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended.is_none() {
            self.child.kill()?;
            self.ended = Some(self.child.wait()?);
        }
        Ok(())
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    ///
    /// It does not end in time.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        poll_until("the process has ended", || self.ended())
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    ///
    /// Those of waiting.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Asked first: it may have children of its own to end.
        let asked = self.terminate();
        let deadline = Instant::now() + DROP_GRACE;
        while asked.is_ok() && matches!(self.ended(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(POLL_INTERVAL);
        }
        if self.ended.is_none() {
            // Either may fail because it is gone, which is what is wanted.
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// The example service under its own load for this long, under a name of its own.
///
/// # Errors
///
/// It cannot be run.
pub fn start_checkout(binary: &Path, service: &str, seconds: u32) -> Result<Process> {
    start_checkout_with(binary, service, seconds, &[])
}

/// The same, with more in its environment.
///
/// # Errors
///
/// It cannot be run.
pub fn start_checkout_with(
    binary: &Path,
    service: &str,
    seconds: u32,
    environment: &[(&str, PathBuf)],
) -> Result<Process> {
    Process::start(
        Command::new(binary)
            .args(["--demo", "--seconds", &seconds.to_string()])
            .env("OTEL_SERVICE_NAME", service)
            .env("OTEL_RESOURCE_ATTRIBUTES", "service.namespace=shop")
            .envs(environment.iter().cloned())
            .stdout(Stdio::null()),
    )
}

/// `spanprof run`.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    folder: tempfile::TempDir,
}

/// Its counters at one moment.
#[derive(Clone, Debug)]
pub struct AgentStats {
    /// All of them, as `--stats` writes them.
    pub json: Value,
    /// When they were written.
    pub written: SystemTime,
}

impl Agent {
    /// Starts it and waits for the end of its first window. `arguments` go behind `spanprof run`.
    ///
    /// # Errors
    ///
    /// It does not get that far; the end of its log is in the error.
    pub fn start(binary: &Path, arguments: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("spanprof-run-").tempdir()?;
        let log = File::create(folder.path().join("log"))?;
        let mut command = Command::new(binary);
        command.arg("run").args(arguments).arg("--stats").arg(folder.path().join("stats.json"));
        command.stdout(log.try_clone()?).stderr(log);
        // What the machine is set up for is not for this one.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy().to_lowercase();
            if text.ends_with("_proxy") || text.starts_with("spanprof_") || text == "rust_log" {
                command.env_remove(name);
            }
        }
        let mut agent = Self { process: Process::start(&mut command)?, folder };
        agent.wait_for("the first window has ended", |_| true)?;
        Ok(agent)
    }

    /// Its counters at the end of the last window, if one has ended.
    ///
    /// # Errors
    ///
    /// They cannot be read.
    pub fn stats(&self) -> Result<Option<AgentStats>> {
        let path = self.stats_path();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("cannot read the agent's counters"),
        };
        let written = file.metadata()?.modified()?;
        let json = serde_json::from_reader(std::io::BufReader::new(file))
            .context("the agent's counters are not JSON")?;
        Ok(Some(AgentStats { json, written }))
    }

    /// Waits for counters.
    ///
    /// # Errors
    ///
    /// They do not come, or the agent has ended; the end of its log is in the error.
    pub fn wait_for(
        &mut self,
        what: &str,
        condition: impl Fn(&AgentStats) -> bool,
    ) -> Result<AgentStats> {
        let found = poll_until(what, || {
            if let Some(status) = self.process.ended()? {
                bail!("the agent ended with {status}");
            }
            Ok(self.stats()?.filter(|stats| condition(stats)))
        });
        found.with_context(|| format!("the end of the agent's log:\n{}", self.log_end()))
    }

    /// Waits until that many more windows have ended.
    ///
    /// # Errors
    ///
    /// As [`wait_for`](Self::wait_for).
    pub fn wait_for_windows(&mut self, windows: usize) -> Result<AgentStats> {
        let mut stats = self.stats()?.context("no window has ended")?;
        for _ in 0..windows {
            let last = stats.written;
            stats = self.wait_for("another window has ended", |stats| stats.written > last)?;
        }
        Ok(stats)
    }

    /// Ends it without a word (SIGKILL).
    ///
    /// # Errors
    ///
    /// It cannot be sent.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()
    }

    /// Tells it to read its options again (SIGHUP).
    ///
    /// # Errors
    ///
    /// It cannot be told.
    pub fn hang_up(&self) -> Result<()> {
        self.process.hang_up()
    }

    /// Waits until no window waits for the server but the last, which has just been pushed.
    ///
    /// # Errors
    ///
    /// As [`wait_for`](Self::wait_for).
    pub fn wait_until_caught_up(&mut self) -> Result<AgentStats> {
        let deadline = Instant::now() + GRACE;
        let mut last = self.wait_for_windows(1)?;
        loop {
            let stats = self.wait_for_windows(1)?;
            let encoded = stats.samples("samples_encoded");
            if encoded - stats.queued() >= last.samples("samples_encoded") {
                return Ok(stats);
            }
            ensure!(Instant::now() < deadline, "it does not catch up:\n{}", self.log_end());
            last = stats;
        }
    }

    /// Ends it (SIGTERM), and gives its last counters, whose books balance.
    ///
    /// # Errors
    ///
    /// It does not end in time or not well, or they do not balance.
    pub fn stop(mut self) -> Result<AgentStats> {
        self.process.terminate()?;
        let status = self.process.wait()?;
        ensure!(status.success(), "the agent ended with {status}:\n{}", self.log_end());
        let stats = self.stats()?.context("the agent has written no counters")?;
        stats.check_balances()?;
        ensure!(stats.queued() == 0, "the agent ended with a queue: {}", stats.json);
        Ok(stats)
    }

    /// All of its log so far.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn log(&self) -> Result<String> {
        std::fs::read_to_string(self.folder.path().join("log")).context("cannot read the log")
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_end(&self) -> String {
        log_end(&self.folder.path().join("log"))
    }

    fn stats_path(&self) -> PathBuf {
        self.folder.path().join("stats.json")
    }
}

impl AgentStats {
    /// One of user space's counters; 0 if it is not there.
    #[must_use]
    pub fn samples(&self, counter: &str) -> u64 {
        self.json["samples"][counter].as_u64().unwrap_or(0)
    }

    /// One of the kernel's counters; 0 if it is not there.
    #[must_use]
    pub fn kernel(&self, counter: &str) -> u64 {
        self.json["kernel"][counter].as_u64().unwrap_or(0)
    }

    /// Samples in the export queue.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.json["queued"].as_u64().unwrap_or(0)
    }

    /// How often the timers fired, whatever they met.
    #[must_use]
    pub fn ticks(&self) -> u64 {
        ["samples_taken", "ticks_idle", "ticks_filtered"].map(|name| self.kernel(name)).iter().sum()
    }

    /// The losses that happened, by reason.
    #[must_use]
    pub fn losses(&self) -> Vec<(String, u64)> {
        ["kernel", "samples"]
            .iter()
            .filter_map(|part| self.json[part].as_object())
            .flatten()
            .filter(|(name, _)| name.starts_with("lost_"))
            .map(|(name, samples)| (name.clone(), samples.as_u64().unwrap_or(u64::MAX)))
            .filter(|(_, samples)| *samples > 0)
            .collect()
    }

    /// Whether at every stage what went in came out or was counted as lost.
    ///
    /// # Errors
    ///
    /// It is not so; or there was nothing to count.
    pub fn check_balances(&self) -> Result<()> {
        let balances = self.json["balances"].as_array().context("the counters have no balances")?;
        let stages: Vec<_> = balances.iter().filter_map(|one| one["stage"].as_str()).collect();
        let first = ["kernel", "attribute", "encode", "export"];
        ensure!(stages.starts_with(&first), "{stages:?}");
        for balance in balances {
            let (samples_in, samples_out) = (&balance["samples_in"], &balance["samples_out"]);
            ensure!(samples_in == samples_out, "{balance} of {}", self.json);
        }
        ensure!(self.kernel("samples_taken") > 0, "nothing was sampled: {}", self.json);
        Ok(())
    }
}
