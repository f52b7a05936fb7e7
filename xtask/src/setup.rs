//! `cargo xtask setup`: every tool, in the cache, for this user alone.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::{
    bpf_toolchain, bpf_tools, cache, deny, fixture_tools, go_programs, guests, manifest_tools,
    musl_rust,
};

/// A set of tools that some command needs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tools {
    /// What builds the BPF program, and so spanprof.
    Build,
    /// Also what the tests talk to, and what makes the programs that they profile.
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
    let mut missing = bpf_toolchain::find().is_err();
    missing |= tools >= Tools::Test
        && (go_programs::is_missing(&cache)?
            || fixture_tools::is_missing(&cache)
            || manifest_tools::is_missing(&cache)?
            || musl_rust::is_missing(&cache)
            || guests::is_missing(&cache));
    missing |= tools >= Tools::All && deny::is_missing(&cache);
    if missing {
        // Another set-up may have installed it by the time the lock is ours.
        let lock = cache::lock(&cache)?;
        if bpf_toolchain::find().is_err() {
            bpf_tools::install(&cache)?;
        }
        if tools >= Tools::Test {
            go_programs::install(&cache)?;
            fixture_tools::install(&cache)?;
            manifest_tools::install(&cache)?;
            musl_rust::install(&cache)?;
            guests::install(&cache)?;
        }
        if tools >= Tools::All {
            deny::install(&cache)?;
        }
        drop(lock);
    }
    match bpf_toolchain::find() {
        Ok(toolchain) => step(&format!("BPF: {toolchain}")),
        Err(missing) => bail!("set-up ended without a BPF toolchain: {missing}"),
    }
    if tools >= Tools::Test && !go_programs::is_missing(&cache)? {
        step(&format!("Pyroscope: {}", go_programs::binaries(&cache)?.server.display()));
    }
    if tools >= Tools::Test && guests::are_there(&cache) {
        step(&format!("other kernels: {}", guests::dir(&cache).display()));
    }
    if tools >= Tools::All {
        step(&format!("cargo-deny: {}", deny::binary(&cache).display()));
    }
    Ok(cache)
}

/// What must not be overlooked.
pub(crate) fn shout(text: &str) {
    let line = "=".repeat(64);
    eprintln!("{line}\n{text}\n{line}");
}

/// One line of progress.
pub(crate) fn step(text: &str) {
    eprintln!("setup: {text}");
}
