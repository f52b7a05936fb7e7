//! cargo-deny: licences, duplicates, sources and advisories of what we depend on.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::cache::{self, Partial};
use crate::exec::{ask, cargo, exec, exec_within};
use crate::setup::{shout, step};

/// Needs Rust 1.88.
const VERSION: &str = "0.20.2";

/// How long the advisory database may take before it counts as out of reach.
const FETCH_LIMIT: Duration = Duration::from_secs(60);

/// Where set-up puts it.
pub(crate) fn binary(cache: &Path) -> PathBuf {
    dir(cache).join("bin/cargo-deny")
}

fn dir(cache: &Path) -> PathBuf {
    cache.join(format!("cargo-deny-{VERSION}"))
}

/// Whether set-up has to install it.
pub(crate) fn is_missing(cache: &Path) -> bool {
    ask(Command::new(binary(cache)).arg("--version")).is_err()
}

/// Installs it if it is missing.
pub(crate) fn install(cache: &Path) -> Result<()> {
    if !is_missing(cache) {
        return Ok(());
    }
    step(&format!("building cargo-deny {VERSION} (a few minutes)"));
    let partial = Partial::new(cache, "cargo-deny")?;
    let root = partial.dir("out")?;
    let mut command = cargo();
    cache::without_build_flags(&mut command);
    command.args(["install", "--quiet", "--locked", "cargo-deny", "--version", VERSION]);
    command.arg("--root").arg(&root).env("CARGO_TARGET_DIR", partial.dir("target")?);
    // Its release is one optimized whole, which takes longer to link than a year of checks lasts.
    command.env("CARGO_PROFILE_RELEASE_LTO", "off");
    command.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
    exec(&mut command)?;
    cache::publish(&root, &dir(cache))
}

/// Checks by `deny.toml`. Advisories only if their database can be fetched: without a network
/// the rest must still be checked, and a stale database would say less than it seems to.
pub(crate) fn check(cache: &Path) -> Result<()> {
    let deny = || {
        let mut command = Command::new(binary(cache));
        command.current_dir(crate::exec::workspace()).args(["--workspace", "--all-features"]);
        command
    };
    exec(deny().args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))?;
    if let Err(error) = exec_within(FETCH_LIMIT, deny().args(["fetch", "db"])) {
        shout(&format!("ADVISORIES NOT CHECKED: their database cannot be fetched: {error:#}"));
        return Ok(());
    }
    exec(deny().args(["check", "--disable-fetch", "advisories"]))
}
