//! `cargo xtask build`: the release binary.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::exec::{cargo, exec, target_dir};
use crate::setup::{Tools, provide};

/// The command.
pub(crate) fn run(is_static: bool) -> Result<()> {
    provide(Tools::Build)?;
    let built = if is_static { static_binary(cargo(), "release") } else { release_binary() };
    println!("{}", built?.display());
    Ok(())
}

/// Builds it.
pub(crate) fn release_binary() -> Result<PathBuf> {
    exec(cargo().args(["build", "--release", "--package=profiler-user", "--bin=spanprof"]))?;
    Ok(target_dir().join("release/spanprof"))
}

/// Builds the agent as a program that needs no file beside itself, not even the C library.
///
/// Only the program itself is compiled for that, and linked: what it is made of serves both.
pub(crate) fn static_binary(mut cargo: Command, profile: &str) -> Result<PathBuf> {
    cargo.args(["rustc", "--profile", profile, "--package=profiler-user", "--bin=spanprof"]);
    exec(cargo.args(["--", "-Ctarget-feature=+crt-static"]))
        .context("a static program needs libc.a (libc6-dev, glibc-static)")?;
    let built = target_dir().join(profile).join("spanprof");
    // The next build of the dynamic one takes its place.
    let kept = built.with_file_name("spanprof-static");
    fs::copy(&built, &kept).with_context(|| format!("cannot copy {}", built.display()))?;
    Ok(kept)
}
