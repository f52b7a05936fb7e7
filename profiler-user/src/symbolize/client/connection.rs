//! One worker process and the line to it.

use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use super::SymbolizerConfig;
use super::stats::WorkerDeath;
use crate::symbolize::protocol::{Answer, MessageError, Request, VERSION, receive, send, to_bytes};

/// How long a killed process may take to go. One in an uninterruptible sleep takes longer.
const KILL_TIME: Duration = Duration::from_secs(2);

/// A running worker. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    socket: UnixStream,
    deadline: Duration,
}

impl Worker {
    /// Starts one and waits until it is ready.
    pub(super) fn start(config: &SymbolizerConfig) -> Result<Self, WorkerDeath> {
        let (socket, child) = Self::spawn(config).map_err(|error| {
            tracing::warn!(%error, "cannot start the symbolizing worker");
            WorkerDeath::Start
        })?;
        let mut worker = Self { child, socket, deadline: config.request_deadline };
        let start = Request::Start { version: VERSION, memory_bytes: config.worker_memory_bytes };
        match worker.call(&start, None) {
            Ok(Answer::Ready) => Ok(worker),
            answer => {
                tracing::warn!(?answer, "the symbolizing worker does not become ready");
                Err(WorkerDeath::Start)
            }
        }
    }

    fn spawn(config: &SymbolizerConfig) -> io::Result<(UnixStream, Child)> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new(&config.program)
            .args(&config.arguments)
            .stdin(OwnedFd::from(theirs))
            // Its panics are made of what hostile files say.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // The environment may hold the back end's password.
            .env_clear()
            .current_dir("/")
            // Ctrl-C in a terminal is for the profiler, which has names to finish.
            .process_group(0)
            .spawn()?;
        Ok((ours, child))
    }

    /// The process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has ended while nothing was asked of it.
    pub(super) fn ended(&mut self) -> Option<WorkerDeath> {
        self.child.try_wait().ok().flatten().map(how)
    }

    /// Asks and waits for the answer. After an error the worker is dead.
    pub(super) fn call(
        &mut self,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Answer, WorkerDeath> {
        let end = Instant::now() + self.deadline;
        let answer = to_bytes(request).and_then(|bytes| {
            self.socket.set_write_timeout(Some(self.deadline))?;
            send(&self.socket, &bytes, descriptor)?;
            receive(Until { socket: &self.socket, end })
        });
        answer.map_err(|error| {
            let status = self.kill();
            match (error, status) {
                // It closes its end by dying; then the reason is in its status.
                (MessageError::Closed, Some(status)) => how(status),
                (MessageError::Deadline, _) => WorkerDeath::Deadline,
                _ => WorkerDeath::Protocol,
            }
        })
    }

    /// Ends it. The status of one that had died before stays what it was.
    fn kill(&mut self) -> Option<ExitStatus> {
        // An error means that it has been waited for.
        drop(self.child.kill());
        // Not `wait`: a read of a dead network file system cannot be interrupted.
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok();
        if let Some(pidfd) = pidfd {
            let time = Timespec::try_from(KILL_TIME).ok();
            // Interrupted or not: what counts is what the next line finds.
            let _events = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], time.as_ref());
        }
        self.child.try_wait().ok().flatten()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

fn how(status: ExitStatus) -> WorkerDeath {
    match status.signal() {
        Some(signal) if signal == Signal::BUS.as_raw() => WorkerDeath::BusError,
        Some(_) => WorkerDeath::Signal,
        None => WorkerDeath::Exit,
    }
}

/// A socket that is read until a point in time, however slowly the bytes come.
struct Until<'a> {
    socket: &'a UnixStream,
    end: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.set_read_timeout(Some(left))?;
        (&mut &*self.socket).read(buffer)
    }
}
