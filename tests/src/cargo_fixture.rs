//! Cargo projects in `tests/fixtures` that are no members of the workspace: they depend on crates
//! that are nobody's business but their own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Runs `cargo rustc --release` in `tests/fixtures/<project>`, with its own lock file, and returns
/// the folder of what it made, which is below `target`. What Cargo has fetched once is not fetched
/// again.
///
/// # Errors
///
/// A crate cannot be fetched, or does not compile.
pub fn build(project: &str, arguments: &[&str], target: &Path) -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(project);
    let target = target.join(project);
    let mut cargo = Command::new("cargo");
    cargo.args(["rustc", "--release", "--locked", "--quiet"]).args(arguments);
    cargo.current_dir(folder).env("CARGO_TARGET_DIR", &target);
    // Those of the tests themselves.
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    let output = cargo.output().with_context(|| format!("{cargo:?}"))?;
    ensure!(output.status.success(), "{cargo:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(target.join("release"))
}
