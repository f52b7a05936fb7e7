//! `cargo xtask build`: the release binary.

use std::path::PathBuf;

use anyhow::Result;

use crate::exec::{cargo, exec, target_dir};
use crate::setup::{Tools, provide};

/// The command.
pub(crate) fn run() -> Result<()> {
    provide(Tools::Build)?;
    println!("{}", release_binary()?.display());
    Ok(())
}

/// Builds it.
pub(crate) fn release_binary() -> Result<PathBuf> {
    exec(cargo().args(["build", "--release", "--package=profiler-user", "--bin=spanprof"]))?;
    Ok(target_dir().join("release/spanprof"))
}
