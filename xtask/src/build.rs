//! `cargo xtask build`: the release binary.

use anyhow::Result;

use crate::exec::{cargo, exec, target_dir};
use crate::setup::{Tools, provide};

/// The command.
pub(crate) fn run() -> Result<()> {
    provide(Tools::Build)?;
    exec(cargo().args(["build", "--release", "--package=profiler-user", "--bin=spanprof"]))?;
    println!("{}", target_dir().join("release/spanprof").display());
    Ok(())
}
