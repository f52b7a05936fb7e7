//! A real Pyroscope server for tests: started on loopback, on free ports, with its data in a
//! temporary directory, and gone when it is dropped.
//!
//! Everything here blocks: not to be called inside of an async run time.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use self::flags::{Ports, Storage};
use crate::child::log_end;

mod flags;
mod query;

pub use self::query::{CPU, SpanProfile, TimeRange};

/// Names the server's binary; any from v1.12.0 on, with v1 or v2 storage.
pub const SERVER_VARIABLE: &str = "SPANPROF_PYROSCOPE";

/// The server is ready within seconds; on a busy machine within many.
const READY_DEADLINE: Duration = Duration::from_secs(90);
/// It flushes what it has before it ends.
const STOP_DEADLINE: Duration = Duration::from_secs(90);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Somebody else may take a port between its choice and its use.
const START_ATTEMPTS: u32 = 3;

/// A server. It may be stopped and started again on the same ports and data.
#[derive(Debug)]
pub struct Server {
    binary: PathBuf,
    storage: Storage,
    ports: Ports,
    data: tempfile::TempDir,
    process: Option<Child>,
    http: reqwest::blocking::Client,
}

impl Server {
    /// Starts the server that [`SERVER_VARIABLE`] names and waits until it takes profiles.
    ///
    /// # Errors
    ///
    /// When there is none, or it does not become ready; the end of its log is in the error.
    pub fn start() -> Result<Self> {
        let binary = std::env::var_os(SERVER_VARIABLE)
            .with_context(|| format!("{SERVER_VARIABLE} does not name a Pyroscope server"))?;
        Self::start_binary(Path::new(&binary))
    }

    /// As [`start`](Self::start), with a binary.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_binary(binary: &Path) -> Result<Self> {
        let mut server = Self {
            binary: binary.to_owned(),
            storage: Storage::of(binary)?,
            ports: Ports::free()?,
            data: tempfile::Builder::new().prefix("spanprof-pyroscope-").tempdir()?,
            process: None,
            http: reqwest::blocking::Client::builder()
                .no_proxy()
                .timeout(Duration::from_secs(30))
                .build()?,
        };
        let mut attempt = 1;
        loop {
            match server.start_again() {
                Ok(()) => return Ok(server),
                Err(_) if attempt < START_ATTEMPTS && server.port_was_taken() => {
                    attempt += 1;
                    server.ports = Ports::free()?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts a server that was stopped, on the same ports and data, and waits until it takes
    /// profiles.
    ///
    /// # Errors
    ///
    /// When it runs already or does not become ready.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the server runs already");
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let process = Command::new(&self.binary)
            .args(self.storage.arguments(self.ports, self.data.path()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Its working directory gets files as well.
            .current_dir(self.data.path())
            .spawn()
            .with_context(|| format!("cannot run {}", self.binary.display()))?;
        self.process = Some(process);
        let ready = self.wait_until_ready();
        if ready.is_err() {
            self.kill();
        }
        ready.with_context(|| format!("the end of the server's log:\n{}", self.log_end()))
    }

    /// Asks the server to end (SIGTERM) and waits for it.
    ///
    /// # Errors
    ///
    /// When it does not end in time, or not well.
    pub fn stop(&mut self) -> Result<()> {
        self.terminate()?;
        let status = self.wait()?;
        ensure!(status.success(), "the server ended with {status}:\n{}", self.log_end());
        Ok(())
    }

    /// Asks the server to end (SIGTERM) and does not wait: [`wait`](Self::wait) does.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn terminate(&self) -> Result<()> {
        let process = self.process.as_ref().context("the server does not run")?;
        let pid = rustix::process::Pid::from_child(process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        Ok(())
    }

    /// Waits until the server has ended.
    ///
    /// # Errors
    ///
    /// When that takes too long: it is killed then.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + STOP_DEADLINE;
        let process = self.process.as_mut().context("the server does not run")?;
        loop {
            if let Some(status) = process.try_wait()? {
                self.process = None;
                return Ok(status);
            }
            if Instant::now() > deadline {
                self.kill();
                bail!("the server did not end on SIGTERM:\n{}", self.log_end());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// The base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.http())
    }

    /// Whether the storage is that of version 2.
    #[must_use]
    pub fn has_v2_storage(&self) -> bool {
        self.storage.is_v2()
    }

    /// The last lines of the server's log.
    #[must_use]
    pub fn log_end(&self) -> String {
        log_end(&self.log_path())
    }

    fn log_path(&self) -> PathBuf {
        self.data.path().join("server.log")
    }

    fn port_was_taken(&self) -> bool {
        self.log_end().contains("address already in use")
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_DEADLINE;
        let mut last = String::new();
        loop {
            let process = self.process.as_mut().context("the server does not run")?;
            if let Some(status) = process.try_wait()? {
                self.process = None;
                bail!("the server ended with {status} before it was ready");
            }
            match self.takes_profiles() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => last = format!("{error:#}"),
            }
            if Instant::now() > deadline {
                bail!("the server did not become ready in {READY_DEADLINE:?}: {last}");
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Ready says that it answers; the ring says that somebody stores what it is given.
    fn takes_profiles(&self) -> Result<bool> {
        let get = |path: &str| self.http.get(format!("{}{path}", self.url())).send();
        Ok(get("/ready")?.status().is_success()
            && get(self.storage.ring_path())?.text()?.contains("ACTIVE"))
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            drop(process.kill());
            drop(process.wait());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
