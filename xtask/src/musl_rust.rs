//! The source of Rust's standard library, of the release of Debian's compiler for BPF: of both
//! together, tests make programs for musl, for which there is no library to be had ready made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::apt::{self, Apt};
use crate::bpf_toolchain::{DEBIAN_RUST, debian_rust_dir};
use crate::cache::{self, Partial};
use crate::setup::{shout, step};

const PACKAGE: &str = "rust-web-src";

/// The library's manifest.
pub(crate) fn manifest(cache: &Path) -> Option<PathBuf> {
    let path = cache.join(format!("rust-src-{DEBIAN_RUST}")).join("library/Cargo.toml");
    path.is_file().then_some(path)
}

/// Whether set-up has something to fetch.
pub(crate) fn is_missing(cache: &Path) -> bool {
    apt::is_here() && manifest(cache).is_none()
}

/// Fetches it if it is missing. Where it is not to be had, it says so, and goes on.
pub(crate) fn install(cache: &Path) -> Result<()> {
    if !is_missing(cache) {
        return Ok(());
    }
    let partial = Partial::new(cache, "rust-src")?;
    step(&format!("fetching {PACKAGE} {DEBIAN_RUST}"));
    // A fresh machine has no package lists, and an old one has lists of what is gone.
    let fetched = fetch(cache, &partial, &Apt::system())
        .or_else(|_| fetch(cache, &partial, &Apt::private(&partial.dir("apt")?)?));
    if let Err(error) = fetched {
        shout(&format!("{error:#}: THE TESTS THAT NEED RUST FOR MUSL WILL NOT RUN."));
    }
    Ok(())
}

fn fetch(cache: &Path, partial: &Partial, apt: &Apt) -> Result<()> {
    let version = apt.version(PACKAGE, DEBIAN_RUST)?;
    let version = version.with_context(|| format!("apt does not offer {PACKAGE} {DEBIAN_RUST}"))?;
    let debs = partial.dir("debs")?;
    apt.download(&[format!("{PACKAGE}={version}")], &debs)?;
    let root = partial.dir("src")?;
    apt::unpack(&debs, &root, |_package| true)?;
    let sources = root.join("usr/src");
    let list = fs::read_dir(&sources);
    let mut list = list.with_context(|| format!("cannot read {}", sources.display()))?;
    let sources = list.next().context("the package has no source")?.context("no source")?.path();
    cache::publish(&sources, &cache.join(format!("rust-src-{DEBIAN_RUST}")))
}

/// Where both are, for `spanprof_tests::require`.
pub(crate) fn tell(command: &mut Command, cache: &Path) {
    if let Some(manifest) = manifest(cache) {
        command.env("SPANPROF_RUST_LIBRARY", manifest);
        command.env("SPANPROF_MUSL_RUSTC", debian_rust_dir(cache).join("bin/rustc"));
    }
}
