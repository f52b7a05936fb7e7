//! `cargo xtask setup`: every tool, in the cache, for this user alone.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use crate::{bpf_toolchain, bpf_tools, cache, deny, pyroscope};

/// A set of tools that some command needs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tools {
    /// What builds the BPF program, and so spanprof.
    Build,
    /// Also what the tests talk to.
    Test,
    /// Also what checks the dependencies.
    All,
}

/// The command.
pub(crate) fn run() -> Result<()> {
    let started = Instant::now();
    let cache = provide(Tools::All)?;
    println!("ready in {:.1} s: {}", started.elapsed().as_secs_f64(), cache.display());
    Ok(())
}

/// Installs what is missing of `tools`, and gives the cache folder.
pub(crate) fn provide(tools: Tools) -> Result<PathBuf> {
    let cache = cache::dir()?;
    let lock = cache::lock(&cache)?;
    if bpf_toolchain::find().is_err() {
        bpf_tools::install(&cache)?;
    }
    match bpf_toolchain::find() {
        Ok(toolchain) => step(&format!("BPF: {toolchain}")),
        Err(missing) => anyhow::bail!("set-up ended without a BPF toolchain: {missing}"),
    }
    if tools >= Tools::Test {
        pyroscope::install(&cache)?;
        let binaries = pyroscope::binaries(&cache)?;
        if binaries.server.is_file() {
            step(&format!("Pyroscope: {}", binaries.server.display()));
        }
    }
    if tools >= Tools::All {
        deny::install(&cache)?;
        step(&format!("cargo-deny: {}", deny::binary(&cache).display()));
    }
    drop(lock);
    Ok(cache)
}

/// One line of progress.
pub(crate) fn step(text: &str) {
    // A progress line that cannot be shown stops nothing.
    let mut stderr = io::stderr().lock();
    writeln!(stderr, "setup: {text}").unwrap_or_default();
}
