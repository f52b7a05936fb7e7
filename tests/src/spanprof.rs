//! Runs `spanprof` as a person does: arguments in, an exit code, text and files out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::io::Errno;
use rustix::process::Signal;
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use serde_json::Value;
use tempfile::TempDir;

use crate::child::{DEADLINE, Said, Watched, wait_until};
use crate::profile::{Folded, Pprof, SpanTable};
use crate::workload::Workload;

/// The file that [`Spanprof::books`] reads.
pub const STATS: &str = "stats.json";

/// `spanprof` in a folder of its own.
#[derive(Debug)]
pub struct Spanprof {
    binary: PathBuf,
    folder: TempDir,
}

/// What came of a run.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; `None`: killed by a signal.
    pub code: Option<i32>,
    /// What it and its command printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Spanprof {
    /// A binary, and a folder for what it writes.
    ///
    /// # Errors
    ///
    /// There is no room for a folder.
    pub fn new(binary: PathBuf) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("spanprof-test-").tempdir()?;
        Ok(Self { binary, folder })
    }

    /// The command line, to be changed before it is started: it runs in the folder.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).current_dir(self.folder.path());
        // What the person who runs the tests has set is none of the tests' business.
        command.env_remove("RUST_LOG");
        command
    }

    /// Runs it to its end.
    ///
    /// # Errors
    ///
    /// It does not start, or does not end.
    pub fn run(&self, arguments: &[&str]) -> Result<Finished> {
        self.start(arguments)?.finish()
    }

    /// Runs it to its end, which must be a good one, with books that balance.
    ///
    /// # Errors
    ///
    /// It fails, or its books do not balance.
    pub fn record(&self, arguments: &[&str]) -> Result<(Finished, Books)> {
        let all = [&["record", "--stats", STATS], arguments].concat();
        let finished = self.run(&all)?;
        finished.succeeded()?;
        let books = self.books()?;
        Ok((finished, books))
    }

    /// Records one process, which does nothing until it is sampled, until it has used so many
    /// hundredths of a second of CPU time.
    ///
    /// # Errors
    ///
    /// It fails, or the process does.
    pub fn record_at_work(
        &self,
        arguments: &[&str],
        workload: &Workload,
        cpu_ticks: u64,
    ) -> Result<()> {
        workload.signal(Signal::STOP)?;
        let pid = workload.pid().to_string();
        let recording = self.start(&[&["record", "-p", &pid], arguments].concat())?;
        recording.wait_until_sampling()?;
        workload.signal(Signal::CONT)?;
        wait_until("enough samples", || Ok(workload.cpu_ticks()? >= cpu_ticks))?;
        recording.signal(Signal::INT)?;
        recording.finish()?.succeeded()
    }

    /// Starts it.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub fn start(&self, arguments: &[&str]) -> Result<Running> {
        Running::start(&mut self.command(arguments))
    }

    /// Runs it to its end as root without some capabilities.
    ///
    /// # Errors
    ///
    /// They cannot be given up, or it does not start, or does not end.
    pub fn run_without(&self, lost: CapabilitySet, arguments: &[&str]) -> Result<Finished> {
        let mut command = self.command(arguments);
        // The set belongs to the thread, and goes to what the thread starts.
        let started = std::thread::spawn(move || -> Result<Running> {
            for capability in lost.iter() {
                match remove_capability_from_bounding_set(capability) {
                    // One that this kernel does not know yet.
                    Ok(()) | Err(Errno::INVAL) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Running::start(&mut command)
        });
        started.join().map_err(|_panic| anyhow!("the starting thread panicked"))??.finish()
    }

    /// A file in the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The bytes of a file that it wrote.
    ///
    /// # Errors
    ///
    /// It did not.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.path(name)).with_context(|| format!("spanprof wrote no {name}"))
    }

    /// The names of all files in the folder, hidden ones too.
    ///
    /// # Errors
    ///
    /// The folder cannot be read.
    pub fn files(&self) -> Result<Vec<String>> {
        let names = fs::read_dir(self.folder.path())?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    /// A pprof that it wrote, read by Go.
    ///
    /// # Errors
    ///
    /// It is not there, or Go refuses it.
    pub fn pprof(&self, reader: &Path, name: &str) -> Result<Pprof> {
        Pprof::read(reader, &self.path(name))
    }

    /// Folded stacks that it wrote.
    ///
    /// # Errors
    ///
    /// They are not there, or not folded stacks.
    pub fn folded(&self, name: &str) -> Result<Vec<Folded>> {
        Folded::parse(std::str::from_utf8(&self.bytes(name)?)?)
    }

    /// A span table that it wrote.
    ///
    /// # Errors
    ///
    /// It is not there, or not a span table.
    pub fn span_table(&self, name: &str) -> Result<SpanTable> {
        serde_json::from_slice(&self.bytes(name)?).context("not a span table")
    }

    /// The counters in [`STATS`], which balance.
    ///
    /// # Errors
    ///
    /// They are not there, or do not balance.
    pub fn books(&self) -> Result<Books> {
        Books::parse(&self.bytes(STATS)?)
    }
}

impl Finished {
    /// That it ended well, and did not panic on the way.
    ///
    /// # Errors
    ///
    /// It did not; with what it complained about.
    pub fn succeeded(&self) -> Result<()> {
        self.ended_with(0)
    }

    /// That it ended with a code, and did not panic on the way.
    ///
    /// # Errors
    ///
    /// It did not; with what it complained about.
    pub fn ended_with(&self, code: i32) -> Result<()> {
        ensure!(!self.stderr.contains("panicked"), "spanprof panicked: {}", self.stderr);
        ensure!(self.code == Some(code), "exit code {:?}, not {code}: {}", self.code, self.stderr);
        Ok(())
    }
}

/// `spanprof` at work, killed when dropped.
#[derive(Debug)]
pub struct Running(Watched);

impl Running {
    /// Starts a command of [`Spanprof::command`].
    ///
    /// # Errors
    ///
    /// It does not start.
    pub fn start(command: &mut Command) -> Result<Self> {
        Watched::start(command).map(Self)
    }

    /// Waits for the next line of its stdout, or of the command's that it runs.
    ///
    /// # Errors
    ///
    /// None comes.
    pub fn line(&mut self) -> Result<String> {
        self.0.line()
    }

    /// Waits for a line of its log that contains `text`.
    ///
    /// # Errors
    ///
    /// None comes.
    pub fn log(&mut self, text: &str) -> Result<String> {
        self.0.complaint(text)
    }

    /// Waits until it samples: the thread that collects samples starts after sampling has.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn wait_until_sampling(&self) -> Result<()> {
        let threads = PathBuf::from(format!("/proc/{}/task", self.pid()));
        wait_until("spanprof samples", || {
            for thread in fs::read_dir(&threads).context("spanprof has ended")? {
                // A thread may end meanwhile.
                let name = fs::read_to_string(thread?.path().join("comm")).unwrap_or_default();
                if name.trim() == "collect" {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.0.signal(signal)
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub fn finish(self) -> Result<Finished> {
        self.finish_within(DEADLINE)
    }

    /// Waits for its end, which may take longer than what tests usually wait for.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub fn finish_within(self, deadline: Duration) -> Result<Finished> {
        let Said { status, stdout, stderr } = self.0.finish_within(deadline)?;
        Ok(Finished { code: status.code(), stdout, stderr })
    }
}

/// Every counter of a run. What was taken is what was exported and what was lost.
#[derive(Clone, Debug)]
pub struct Books(Value);

impl Books {
    /// Reads them, and holds both sides of every balance against each other.
    ///
    /// # Errors
    ///
    /// A side is missing, or they differ.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let books = Self(serde_json::from_slice(json).context("the counters are not JSON")?);
        let balances = books.0["balances"].as_array().context("no balances")?;
        ensure!(balances.len() == 4, "four stages, not {}", balances.len());
        for balance in balances {
            let side = |name: &str| balance[name].as_u64().context("a balance without a side");
            let (samples_in, samples_out) = (side("samples_in")?, side("samples_out")?);
            ensure!(samples_in == samples_out, "it does not balance: {balance}");
        }
        // By the counters themselves, not by what spanprof says of them.
        let [kernel, samples] = ["kernel", "samples"].map(|part| books.0[part].as_object());
        let counters = || kernel.into_iter().chain(samples).flatten();
        let sum = |of: &dyn Fn(&str) -> bool| -> u64 {
            counters().filter(|(name, _)| of(name)).filter_map(|(_, n)| n.as_u64()).sum()
        };
        let taken = sum(&|name| name == "samples_taken");
        let exported = sum(&|name| name == "samples_exported" || name == "uncertain_export");
        let lost = sum(&|name| name.starts_with("lost_"));
        ensure!(taken == exported + lost, "{taken} taken, {exported} exported, {lost} lost");
        Ok(books)
    }

    /// A counter of the BPF programs.
    ///
    /// # Panics
    ///
    /// There is none of that name.
    #[must_use]
    pub fn kernel(&self, name: &str) -> u64 {
        self.get("kernel", name)
    }

    /// A counter of unwinding.
    ///
    /// # Panics
    ///
    /// There is none of this name.
    #[must_use]
    pub fn unwind(&self, name: &str) -> u64 {
        self.get("unwind", name)
    }

    /// How many files are walked by frame pointer for this reason.
    #[must_use]
    pub fn files_without(&self, reason: &str) -> u64 {
        // What did not happen is not listed.
        self.0["unwind"]["files_without"][reason].as_u64().unwrap_or_default()
    }

    /// A counter of samples in user space.
    ///
    /// # Panics
    ///
    /// There is none of that name.
    #[must_use]
    pub fn samples(&self, name: &str) -> u64 {
        self.get("samples", name)
    }

    /// A counter of the process table.
    ///
    /// # Panics
    ///
    /// There is none of that name.
    #[must_use]
    pub fn process(&self, name: &str) -> u64 {
        self.get("process", name)
    }

    /// A counter of the probes of span-marker's hooks.
    ///
    /// # Panics
    ///
    /// There is none of that name.
    #[must_use]
    pub fn hooks(&self, name: &str) -> u64 {
        self.get("hooks", name)
    }

    /// What else is told of them, as JSON.
    #[must_use]
    pub fn of_hooks(&self, name: &str) -> &Value {
        &self.0["hooks"][name]
    }

    /// What else is told of the process table, as JSON.
    #[must_use]
    pub fn of_process(&self, name: &str) -> &Value {
        &self.0["process"][name]
    }

    /// What else is told of unwinding, as JSON.
    #[must_use]
    pub fn of_unwinding(&self, name: &str) -> &Value {
        &self.0["unwind"][name]
    }

    /// A counter that is not there would be 0 in every test.
    #[expect(clippy::panic, reason = "this is how a test fails")]
    fn get(&self, part: &str, name: &str) -> u64 {
        self.0[part][name].as_u64().unwrap_or_else(|| panic!("no counter {part}.{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn books(taken: u64, exported: u64, lost: u64, last_out: u64) -> Result<Books> {
        let balance = |out: u64| format!(r#"{{"stage":"s","samples_in":5,"samples_out":{out}}}"#);
        let balances = [balance(5), balance(5), balance(5), balance(last_out)].join(",");
        let json = format!(
            r#"{{"kernel":{{"samples_taken":{taken},"lost_ring_full":{lost}}},
                "samples":{{"samples_exported":{exported},"lost_malformed":1,"uncertain_export":1}},
                "balances":[{balances}]}}"#
        );
        Books::parse(json.as_bytes())
    }

    #[test]
    fn books_that_do_not_balance_are_refused() {
        assert_eq!(books(10, 5, 3, 5).unwrap().kernel("samples_taken"), 10);
        assert!(books(10, 5, 2, 5).is_err());
        assert!(books(10, 5, 3, 4).is_err());
        assert!(Books::parse(b"{}").is_err());
    }
}
