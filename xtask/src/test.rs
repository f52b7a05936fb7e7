//! `cargo xtask test`: all tests, in the order in which a failure says most, and at the end which
//! did not run and why.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::build::static_binary;
use crate::exec::{cargo, exec, stream, target_dir};
use crate::setup::{Tools, provide, shout};
use crate::test_count::Count;
use crate::{deb, fixture_tools, go_programs, guests, image, manifest_tools, musl_rust};

/// What becomes of a test that needs something that this machine does not have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It is skipped, and the end says so.
    Skips,
    /// It fails: the machine is expected to have everything.
    Fails,
}

/// The profile of everything that the tests of the whole run, in `Cargo.toml`.
///
/// They measure: shares of CPU time within 3 percentage points, the agent's own cost. Code of the
/// dev profile is several times slower, so that the agent would be most of what it sees. Code of
/// the release profile takes minutes more to link, and asserts nothing.
pub(crate) const PROFILE: &str = "e2e";

/// Workloads are walked by frame pointers.
pub(crate) const RUSTFLAGS: &str = "-Cforce-frame-pointers=yes";

/// The command.
pub(crate) fn run(missing: Missing) -> Result<()> {
    let cache = provide(Tools::Test)?;
    let mut tests = Tests::new(missing)?;

    // What needs nothing comes first: a broken unit explains a broken whole.
    let mut unit = cargo();
    unit.args(["test", "--workspace", "--exclude=spanprof-tests", "--all-features"]);
    let mut bare = cargo();
    bare.args(["test", "--package=span-marker", "--no-default-features"]);
    for command in [&mut unit, &mut bare] {
        tests.run(command.arg("--no-fail-fast"))?;
    }

    tests.run_whole(&cache, &[], &[])?;
    tests.end()
}

/// The command `vm-test`: a kernel is a test in `tests/tests/vm.rs`.
pub(crate) fn virtual_machines(kernels: &[String]) -> Result<()> {
    let cache = provide(Tools::Test)?;
    // Who asks for one kernel wants it tested, not skipped.
    let mut tests = Tests::new(Missing::Fails)?;
    let names: Vec<String> =
        kernels.iter().map(|kernel| format!("tests::linux_{}", kernel.replace('.', "_"))).collect();
    let mut filter: Vec<&str> = names.iter().map(String::as_str).collect();
    filter.push("--exact");
    tests.run_whole(&cache, &["--test=vm"], if kernels.is_empty() { &[] } else { &filter })?;
    tests.end()
}

/// Test runs, and what came of them.
struct Tests {
    missing: Missing,
    /// Lines of tests that did not run.
    log: PathBuf,
    count: Count,
}

impl Tests {
    fn new(missing: Missing) -> Result<Self> {
        let log = target_dir().join("skipped-tests.log");
        fs::create_dir_all(target_dir()).context("cannot make the target directory")?;
        fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
        Ok(Self { missing, log, count: Count::default() })
    }

    /// Runs tests by the protocol of `spanprof_tests::require`.
    fn run(&mut self, command: &mut Command) -> Result<()> {
        command.env("SPANPROF_SKIP_LOG", &self.log);
        if self.missing == Missing::Fails {
            command.env("SPANPROF_TESTS", "all");
        }
        let before = self.count.failed();
        let succeeded = stream(command, |line| {
            println!("{line}");
            self.count.line(line);
        })?;
        if !succeeded && self.count.failed() == before {
            // It did not build, or a test took the runner down with it.
            self.count.broken_run(&format!("{:?}", command.get_args().collect::<Vec<_>>()));
        }
        Ok(())
    }

    /// Runs tests of the whole: `which` for cargo, `filter` for the tests' own runner.
    fn run_whole(&mut self, cache: &Path, which: &[&str], filter: &[&str]) -> Result<()> {
        // First: the dynamic one, which is built next, has the same name.
        let alone = static_binary(with_frame_pointers(), PROFILE);
        let [spanprof, checkout] = build_measured()?;
        let mut whole = measured("test");
        whole.args(["--package=spanprof-tests", "--no-fail-fast"]).args(which);
        // One at a time: they share the kernel, and measure it.
        whole.args(["--", "--test-threads=1"]).args(filter);
        match alone.and_then(|binary| Ok((image::of_binary(&binary)?, deb::of_binary(&binary)?))) {
            Ok((image, deb)) => drop(whole.env("SPANPROF_IMAGE", image).env("SPANPROF_DEB", deb)),
            Err(error) => shout(&format!("{error:#}: THE TESTS OF THE PACKAGES WILL NOT RUN.")),
        }
        whole.env("SPANPROF_BIN", spanprof).env("SPANPROF_CHECKOUT_BIN", checkout);
        tell_go_programs(&mut whole, cache)?;
        fixture_tools::tell(&mut whole, cache);
        manifest_tools::tell(&mut whole, cache)?;
        musl_rust::tell(&mut whole, cache);
        guests::tell(&mut whole, cache);
        self.run(&mut whole)
    }

    fn end(self) -> Result<()> {
        let log = &self.log;
        let skipped =
            fs::read_to_string(log).with_context(|| format!("cannot read {}", log.display()))?;
        let summary = self.count.summary(&skipped);
        println!("{summary}");
        if summary.failed > 0 {
            bail!("tests failed");
        }
        Ok(())
    }
}

/// Builds spanprof and the example service as the tests of the whole run them.
pub(crate) fn build_measured() -> Result<[PathBuf; 2]> {
    exec(measured("build").args(["--package=profiler-user", "--package=checkout", "--bins"]))?;
    Ok(["spanprof", "checkout"].map(|name| target_dir().join(PROFILE).join(name)))
}

fn measured(subcommand: &str) -> Command {
    let mut command = with_frame_pointers();
    command.args([subcommand, "--profile", PROFILE]);
    command
}

fn with_frame_pointers() -> Command {
    let mut command = cargo();
    command.env("RUSTFLAGS", RUSTFLAGS);
    command
}

/// Where the programs in Go are, unless the user named others.
fn tell_go_programs(command: &mut Command, cache: &Path) -> Result<()> {
    let binaries = go_programs::binaries(cache)?;
    for (variable, binary) in [
        ("SPANPROF_PYROSCOPE", binaries.server),
        ("SPANPROF_PPROF_READER", binaries.reader),
        ("SPANPROF_GRAFANA_GO", binaries.service),
        ("SPANPROF_KUBERNETES_BIN", binaries.kubernetes),
    ] {
        if std::env::var_os(variable).is_none() && binary.is_file() {
            command.env(variable, binary);
        }
    }
    Ok(())
}
