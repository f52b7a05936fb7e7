//! Starts a command that waits until it is being sampled: nothing of it is missed. And ends it with
//! the recording that it was started for: nothing of it is left.

use std::{
    ffi::OsString,
    io::{self, PipeReader, PipeWriter, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{Child, Command, ExitStatus},
    thread::JoinHandle,
    time::Duration,
};

use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::oneshot;

use crate::decode::Pid;

/// How long a command that was told to end may take before it is left alone.
const GRACE: Duration = Duration::from_secs(5);

/// A process that has not begun to run its program.
pub struct Waiting {
    /// Its id.
    pub pid: Pid,
    go: PipeWriter,
    spawned: JoinHandle<io::Result<Child>>,
}

/// Forks, and stops just before the program runs.
///
/// `Command::spawn` returns when the child has run its program or failed to, so it runs in a thread;
/// the child says its id through one pipe and waits at another.
///
/// # Errors
///
/// There is no process or descriptor left.
pub fn launch(command: &[OsString]) -> io::Result<Waiting> {
    let [program, arguments @ ..] = command else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no command"));
    };
    let (mut hello, child_hello) = io::pipe()?;
    let (child_go, go) = io::pipe()?;
    let parents_end = go.as_raw_fd();
    let mut command = Command::new(program);
    command.args(arguments);
    // SAFETY: the closure only reads, writes and closes pipes, which is async-signal-safe.
    unsafe {
        command.pre_exec(move || wait_for_go(&child_hello, &child_go, parents_end));
    }
    let spawned =
        std::thread::Builder::new().name("spawn".to_owned()).spawn(move || command.spawn())?;
    let mut pid = [0; 4];
    if hello.read_exact(&mut pid).is_err() {
        // The fork itself failed: the thread knows why.
        drop(go);
        return Err(match join(spawned) {
            Ok(_) => io::Error::other("the command's process did not say its id"),
            Err(error) => error,
        });
    }
    Ok(Waiting { pid: Pid(u32::from_ne_bytes(pid)), go, spawned })
}

impl Waiting {
    /// Lets it run its program.
    ///
    /// # Errors
    ///
    /// The program was not found, or may not be executed.
    pub fn go(self) -> io::Result<UnderWay> {
        let Self { pid: _, mut go, spawned } = self;
        go.write_all(&[1])?;
        drop(go);
        UnderWay::follow(join(spawned)?)
    }
}

/// A command that runs its program. Dropped, it is told to end.
pub struct UnderWay {
    process: OwnedFd,
    exited: oneshot::Receiver<io::Result<ExitStatus>>,
    has_exited: bool,
}

impl UnderWay {
    fn follow(mut child: Child) -> io::Result<Self> {
        // It cannot be another process: nobody has waited for this one yet.
        let id = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let id = id.ok_or_else(|| io::Error::other("the command's process has no id"))?;
        let process = pidfd_open(id, PidfdFlags::empty())?;
        let (tell, exited) = oneshot::channel();
        // A thread that nobody joins: the end of this program does not wait for that of another.
        std::thread::Builder::new().name("wait".to_owned()).spawn(move || {
            // Nobody to tell means that this program is ending.
            drop(tell.send(child.wait()));
        })?;
        Ok(Self { process, exited, has_exited: false })
    }

    /// Waits until it has exited by itself.
    ///
    /// # Errors
    ///
    /// It cannot be waited for.
    pub async fn exited(&mut self) -> io::Result<ExitStatus> {
        let status = (&mut self.exited).await;
        self.has_exited = true;
        status.map_err(|_gone| io::Error::other("the waiting thread has panicked"))?
    }

    /// Tells it to end, if it has not.
    pub fn terminate(&self) {
        if !self.has_exited
            && let Err(error) = pidfd_send_signal(&self.process, Signal::TERM)
        {
            // Most probably it has exited just now.
            tracing::debug!(%error, "the command cannot be told to end");
        }
    }

    /// Tells it to end, and waits until it has, but not for ever.
    pub async fn end(mut self) {
        if self.has_exited {
            return;
        }
        self.terminate();
        if tokio::time::timeout(GRACE, self.exited()).await.is_err() {
            tracing::warn!("the command was told to end (SIGTERM) and has not");
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.terminate();
    }
}

/// Runs in the child, between fork and exec.
fn wait_for_go(hello: &PipeWriter, go: &PipeReader, parents_end: i32) -> io::Result<()> {
    // The child has a copy of the end that the parent writes to: while it is open, the parent's
    // death would go unnoticed.
    // SAFETY: the descriptor is open here, and nothing in the child uses it.
    unsafe { libc::close(parents_end) };
    (&*hello).write_all(&std::process::id().to_ne_bytes())?;
    let mut byte = [0];
    if (&*go).read(&mut byte)? == 0 {
        return Err(io::Error::from(io::ErrorKind::Interrupted));
    }
    Ok(())
}

fn join(spawned: JoinHandle<io::Result<Child>>) -> io::Result<Child> {
    spawned.join().unwrap_or_else(|_panic| Err(io::Error::other("the spawning thread panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_program_runs_only_when_it_may() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ran");
        let waiting = launch(&["touch".into(), file.clone().into()]).unwrap();
        let exe = std::fs::read_link(format!("/proc/{}/exe", waiting.pid.0)).unwrap();
        assert_eq!(exe, std::env::current_exe().unwrap(), "it is still a copy of this process");
        assert!(!file.exists());
        let mut command = waiting.go().unwrap();
        assert!(command.exited().await.unwrap().success());
        assert!(file.exists());
    }

    #[tokio::test]
    async fn a_program_that_goes_on_is_told_to_end() {
        let command = launch(&["sleep".into(), "1000".into()]).unwrap().go().unwrap();
        let process = command.process.try_clone().unwrap();
        command.end().await;
        assert!(pidfd_send_signal(&process, Signal::TERM).is_err(), "it is still there");
    }

    #[tokio::test]
    async fn a_program_that_is_given_up_is_told_to_end() {
        let mut command = launch(&["sleep".into(), "1000".into()]).unwrap().go().unwrap();
        // What the drop does, by a copy that can be asked.
        let (_, none) = oneshot::channel();
        let exited = std::mem::replace(&mut command.exited, none);
        drop(command);
        let status = exited.await.unwrap().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(Signal::TERM.as_raw())
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let waiting = launch(&["/no/such/program".into()]).unwrap();
        let error = waiting.go().map(drop).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_command_that_is_given_up_never_runs() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ran");
        let waiting = launch(&["touch".into(), file.clone().into()]).unwrap();
        let Waiting { pid: _, go, spawned } = waiting;
        drop(go);
        assert!(join(spawned).is_err());
        assert!(!file.exists());
    }
}
