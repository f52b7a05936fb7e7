//! `cargo xtask image`: a container image of the agent, made without a container engine.
//!
//! It has one file, the static binary.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build::static_binary;
use crate::exec::{cargo, target_dir};
use crate::oci::{VERSION, write};
use crate::setup::{Tools, provide};

/// The command.
pub(crate) fn run(profile: &str) -> Result<()> {
    provide(Tools::Build)?;
    println!("{}", of_profile(cargo(), profile)?.display());
    Ok(())
}

/// Builds the agent by this profile, and makes an image of it.
pub(crate) fn of_profile(cargo: Command, profile: &str) -> Result<PathBuf> {
    let binary = static_binary(cargo, profile)?;
    let program = fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
    let image = target_dir().join(profile).join(format!("spanprof-{VERSION}.oci.tar"));
    write(&image, "spanprof", &[("spanprof".to_owned(), program, 0o755)])?;
    Ok(image)
}
