//! Programs with known answers: small ones, most in C, compiled when a test needs them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::child::Watched;

pub use crate::child::wait_until;

/// Frames have frame pointers and are never merged: a call in the source is a frame on the stack.
pub const FLAGS: [&str; 5] =
    ["-O2", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", "-Wall", "-Werror"];

/// A compiled program, gone when dropped.
#[derive(Debug)]
pub struct Program {
    folder: TempDir,
    path: PathBuf,
}

impl Program {
    /// Compiles `tests/fixtures/<name>.c` to a program of that name.
    ///
    /// # Errors
    ///
    /// There is no C compiler, or it refuses.
    pub fn compile(name: &str) -> Result<Self> {
        Self::compile_with(name, &[])
    }

    /// As [`compile`](Self::compile), with more flags.
    ///
    /// # Errors
    ///
    /// As [`compile`](Self::compile).
    pub fn compile_with(name: &str, flags: &[&str]) -> Result<Self> {
        let folder = folder()?;
        let path = folder.path().join(name);
        compile(name, flags, &path)?;
        Ok(Self { folder, path })
    }

    /// Makes a program of `tests/fixtures/<source>` by a compiler that takes `-o`. The flags come
    /// first.
    ///
    /// # Errors
    ///
    /// There is no such compiler, or it refuses.
    pub fn compile_by(compiler: &Path, source: &str, flags: &[&str]) -> Result<Self> {
        let folder = folder()?;
        let path = folder.path().join(Path::new(source).with_extension(""));
        make(Command::new(compiler).args(flags), source, &path)?;
        Ok(Self { folder, path })
    }

    /// Compiles `tests/fixtures/<name>.c` to a shared library beside the program.
    ///
    /// # Errors
    ///
    /// As [`compile`](Self::compile).
    pub fn with_library(&self, name: &str) -> Result<PathBuf> {
        self.with_library_as(name, name, &[])
    }

    /// As [`with_library`](Self::with_library), with a name of its own and more flags.
    ///
    /// # Errors
    ///
    /// As [`compile`](Self::compile).
    pub fn with_library_as(&self, name: &str, library: &str, flags: &[&str]) -> Result<PathBuf> {
        let path = self.folder.path().join(format!("lib{library}.so"));
        compile_library(name, flags, &path)?;
        Ok(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As an argument of a command.
    ///
    /// # Panics
    ///
    /// The folder for temporary files has a name that is no text.
    #[must_use]
    pub fn arg(&self) -> &str {
        self.path.to_str().expect("names of temporary folders are text")
    }

    /// Starts it and waits for its first line: it is at work then. It ends when its stdin does.
    ///
    /// # Errors
    ///
    /// It does not start, or says nothing.
    pub fn start(&self, arguments: &[&str]) -> Result<Workload> {
        Workload::start(Command::new(&self.path).args(arguments))
    }
}

fn folder() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("spanprof-workload-").tempdir()?)
}

fn compile(name: &str, flags: &[&str], to: &Path) -> Result<()> {
    make(Command::new("cc").args(FLAGS).args(flags), &format!("{name}.c"), to)
}

/// Compiles `tests/fixtures/<name>.c` to a shared library.
///
/// # Errors
///
/// There is no C compiler, or it refuses.
pub fn compile_library(name: &str, flags: &[&str], to: &Path) -> Result<()> {
    compile(name, &[&["-shared", "-fPIC"], flags].concat(), to)
}

fn make(compiler: &mut Command, source: &str, to: &Path) -> Result<()> {
    // Of Go's, whatever the user has set.
    compiler.env("GOTOOLCHAIN", "local").env("GOFLAGS", "");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(source);
    let output = compiler.arg("-o").args([to, &source]).output();
    let output = output.with_context(|| format!("a compiler is needed: {compiler:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{compiler:?}: {errors}");
    Ok(())
}

/// A program at work, killed when dropped.
#[derive(Debug)]
pub struct Workload {
    process: Watched,
    first_line: String,
}

impl Workload {
    /// Starts a program and waits for its first line.
    ///
    /// # Errors
    ///
    /// It does not start, or says nothing.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut process = Watched::start(command)?;
        let first_line = process.line().with_context(|| format!("{command:?}"))?;
        Ok(Self { process, first_line })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// The CPU time that it has used in user mode, in hundredths of a second.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn cpu_ticks(&self) -> Result<u64> {
        cpu_ticks(self.pid())
    }

    /// What it said when it was ready.
    #[must_use]
    pub fn first_line(&self) -> &str {
        &self.first_line
    }

    /// Ends its stdin, waits for its end, and gives the rest of what it said.
    ///
    /// # Errors
    ///
    /// It does not end, or fails.
    pub fn end(mut self) -> Result<String> {
        self.process.close_stdin();
        let said = self.process.finish()?;
        ensure!(said.status.success(), "{}: {}", said.status, said.stderr);
        Ok(said.stdout)
    }
}

/// The CPU time that a process has used in user mode, in hundredths of a second.
///
/// # Errors
///
/// It is gone.
pub fn cpu_ticks(pid: u32) -> Result<u64> {
    Ok(ticks(pid)?[0])
}

/// The CPU time that a process has used in user mode and in the kernel, in hundredths of a second.
///
/// # Errors
///
/// It is gone.
pub fn cpu_ticks_in_all(pid: u32) -> Result<u64> {
    Ok(ticks(pid)?.iter().sum())
}

/// In user mode, and in the kernel.
fn ticks(pid: u32) -> Result<[u64; 2]> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold blanks.
    let after_name = stat.rsplit_once(')').map(|(_, fields)| fields);
    let ticks = after_name.and_then(|fields| {
        let mut fields = fields.split(' ').skip(12);
        Some([fields.next()?.parse().ok()?, fields.next()?.parse().ok()?])
    });
    ticks.with_context(|| format!("/proc/{pid}/stat: {stat}"))
}
