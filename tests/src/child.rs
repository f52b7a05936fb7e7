//! Another program under watch: its lines as they come, its end by a deadline, and nothing of it
//! left.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long anything that a test waits for may take, on a machine that does much else.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A program that was started; killed when dropped.
#[derive(Debug)]
pub(crate) struct Watched {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Lines,
    stderr: Lines,
}

/// What a program said, and that it has closed its end.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Watched {
    /// Starts it, with pipes as its three streams unless `command` says otherwise.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        Ok(Self {
            stdin: child.stdin.take(),
            stdout: Lines::of(stdout.context("no stdout")?),
            stderr: Lines::of(stderr.context("no stderr")?),
            child,
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Waits for the next line of its stdout.
    pub(crate) fn line(&mut self) -> Result<String> {
        self.stdout.next(DEADLINE)?.context("it ended without saying anything")
    }

    /// Waits for a line of its stderr that contains `text`.
    pub(crate) fn complaint(&mut self, text: &str) -> Result<String> {
        let until = Instant::now() + DEADLINE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.stderr.next(left)? {
                Some(line) if line.contains(text) => return Ok(line),
                Some(_other) => {}
                None => bail!("it never said `{text}`, but: {}", self.stderr.so_far()),
            }
        }
    }

    /// Ends its stdin.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until it has ended, and nobody has its stdout and stderr any more.
    pub(crate) fn finish(self) -> Result<Said> {
        self.finish_within(DEADLINE)
    }

    /// As [`finish`](Self::finish), for what may take longer or shorter.
    pub(crate) fn finish_within(mut self, deadline: Duration) -> Result<Said> {
        let until = Instant::now() + deadline;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() >= until {
                let (stdout, stderr) = (self.stdout.so_far(), self.stderr.so_far());
                bail!("it has not ended; stdout: {stdout}; stderr: {stderr}");
            }
            std::thread::sleep(POLL_INTERVAL);
        };
        let stdout = self.stdout.rest(until).context("somebody still has its stdout")?;
        let stderr = self.stderr.rest(until).context("somebody still has its stderr")?;
        Ok(Said { status, stdout, stderr })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // It may have ended: then there is nothing to kill, and waiting takes no time.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The lines of a pipe, read by a thread so that the program never waits for its reader.
#[derive(Debug)]
struct Lines {
    from: Receiver<String>,
    read: String,
}

impl Lines {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let (to, from) = channel();
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            // Nobody to tell: the test is over.
            while pipe.read_until(b'\n', &mut line).is_ok_and(|read| read > 0)
                && to.send(String::from_utf8_lossy(&line).into_owned()).is_ok()
            {
                line.clear();
            }
        });
        Self { from, read: String::new() }
    }

    /// The next line; `None` after the last one.
    fn next(&mut self, within: Duration) -> Result<Option<String>> {
        match self.from.recv_timeout(within) {
            Ok(line) => {
                self.read += &line;
                Ok(Some(line.trim_end().to_owned()))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!("nothing came, after: {}", self.read),
        }
    }

    /// Everything that it said so far.
    fn so_far(&mut self) -> &str {
        self.read.extend(self.from.try_iter());
        &self.read
    }

    /// Everything that it said, to its end.
    fn rest(&mut self, until: Instant) -> Result<String> {
        let left = || until.saturating_duration_since(Instant::now()).max(POLL_INTERVAL);
        while self.next(left())?.is_some() {}
        Ok(std::mem::take(&mut self.read))
    }
}

/// The last lines of a log; empty if there is none.
pub(crate) fn log_end(path: &Path) -> String {
    const LINES: usize = 40;
    let log = std::fs::read(path).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<_> = log.lines().collect();
    lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n")
}

/// Polls until `condition` is true.
///
/// # Errors
///
/// It never was; `what` says what it is.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let until = Instant::now() + DEADLINE;
    while !condition()? {
        if Instant::now() >= until {
            bail!("never came true: {what}");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}
