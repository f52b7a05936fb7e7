//! Starts a command that waits until it is being sampled: nothing of it is missed.

use std::{
    ffi::OsString,
    io::{self, PipeReader, PipeWriter, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    process::{Child, Command},
    thread::JoinHandle,
};

use crate::decode::Pid;

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
    pub fn go(self) -> io::Result<Child> {
        let Self { pid: _, mut go, spawned } = self;
        go.write_all(&[1])?;
        drop(go);
        join(spawned)
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

    #[test]
    fn the_program_runs_only_when_it_may() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ran");
        let waiting = launch(&["touch".into(), file.clone().into()]).unwrap();
        let exe = std::fs::read_link(format!("/proc/{}/exe", waiting.pid.0)).unwrap();
        assert_eq!(exe, std::env::current_exe().unwrap(), "it is still a copy of this process");
        assert!(!file.exists());
        let mut child = waiting.go().unwrap();
        assert!(child.wait().unwrap().success());
        assert!(file.exists());
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let waiting = launch(&["/no/such/program".into()]).unwrap();
        assert_eq!(waiting.go().unwrap_err().kind(), io::ErrorKind::NotFound);
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
