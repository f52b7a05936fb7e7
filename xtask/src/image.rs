//! `cargo xtask image`: a container image of the agent, made without a container engine.
//!
//! It has one file, the static binary.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::build::static_binary;
use crate::exec::cargo;
use crate::oci::{VERSION, write};
use crate::setup::{Tools, provide};

/// The command.
pub(crate) fn run(profile: &str) -> Result<()> {
    provide(Tools::Build)?;
    let binary = static_binary(cargo(), profile)?;
    println!("{}", of_binary(&binary)?.display());
    Ok(())
}

/// Makes an image of this binary; it is beside it.
pub(crate) fn of_binary(binary: &Path) -> Result<PathBuf> {
    let program = fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
    let image = binary.with_file_name(format!("spanprof-{VERSION}.oci.tar"));
    write(&image, "spanprof", &[("spanprof".to_owned(), program, 0o755)])?;
    Ok(image)
}
