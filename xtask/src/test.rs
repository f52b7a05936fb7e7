//! `cargo xtask test`: all tests, in the order in which a failure says most, and at the end which
//! did not run and why.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::exec::{cargo, exec, stream, target_dir};
use crate::setup::{Tools, provide};
use crate::test_count::Count;
use crate::{fixture_tools, pyroscope};

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
    let log = target_dir().join("skipped-tests.log");
    fs::create_dir_all(target_dir()).context("cannot make the target directory")?;
    fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
    let mut count = Count::default();

    // What needs nothing comes first: a broken unit explains a broken whole.
    let mut unit = cargo();
    unit.args(["test", "--workspace", "--exclude=spanprof-tests", "--all-features"]);
    let mut bare = cargo();
    bare.args(["test", "--package=span-marker", "--no-default-features"]);
    for command in [&mut unit, &mut bare] {
        command.arg("--no-fail-fast");
        tell_tests(command, &log, missing);
        count_tests(command, &mut count)?;
    }

    let [spanprof, checkout] = build_measured()?;
    let mut whole = measured("test");
    whole.args(["--package=spanprof-tests", "--no-fail-fast", "--"]);
    // One at a time: they share the kernel, and measure it.
    whole.arg("--test-threads=1");
    tell_tests(&mut whole, &log, missing);
    whole.env("SPANPROF_BIN", spanprof).env("SPANPROF_CHECKOUT_BIN", checkout);
    tell_pyroscope(&mut whole, &cache)?;
    fixture_tools::tell(&mut whole, &cache);
    count_tests(&mut whole, &mut count)?;

    let skipped =
        fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let summary = count.summary(&skipped);
    println!("{summary}");
    if summary.failed > 0 {
        bail!("tests failed");
    }
    Ok(())
}

/// Builds spanprof and the example service as the tests of the whole run them.
pub(crate) fn build_measured() -> Result<[PathBuf; 2]> {
    exec(measured("build").args(["--package=profiler-user", "--package=checkout", "--bins"]))?;
    Ok(["spanprof", "checkout"].map(|name| target_dir().join(PROFILE).join(name)))
}

fn measured(subcommand: &str) -> Command {
    let mut command = cargo();
    command.args([subcommand, "--profile", PROFILE]).env("RUSTFLAGS", RUSTFLAGS);
    command
}

/// The protocol of `spanprof_tests::require`.
fn tell_tests(command: &mut Command, log: &Path, missing: Missing) {
    command.env("SPANPROF_SKIP_LOG", log);
    if missing == Missing::Fails {
        command.env("SPANPROF_TESTS", "all");
    }
}

/// Where the server is, unless the user named another, and the reader.
fn tell_pyroscope(command: &mut Command, cache: &Path) -> Result<()> {
    let binaries = pyroscope::binaries(cache)?;
    if std::env::var_os("SPANPROF_PYROSCOPE").is_none() && binaries.server.is_file() {
        command.env("SPANPROF_PYROSCOPE", binaries.server);
    }
    if std::env::var_os("SPANPROF_PPROF_READER").is_none() && binaries.reader.is_file() {
        command.env("SPANPROF_PPROF_READER", binaries.reader);
    }
    Ok(())
}

fn count_tests(command: &mut Command, count: &mut Count) -> Result<()> {
    let before = count.failed();
    let succeeded = stream(command, |line| {
        println!("{line}");
        count.line(line);
    })?;
    if !succeeded && count.failed() == before {
        // It did not build, or a test took the runner down with it.
        count.broken_run(&format!("{:?}", command.get_args().collect::<Vec<_>>()));
    }
    Ok(())
}
