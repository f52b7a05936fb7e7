//! `cargo xtask doctor`: which tools are there. It changes nothing.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::bpf_toolchain::{self, on_path};
use crate::exec::{ask, cargo};
use crate::{apt, deny, fixture_tools, go_programs, guests, manifest_tools, musl_rust};

/// What brings a tool that is missing.
const SETUP: &str = "cargo xtask setup";

/// The command.
pub(crate) fn run() -> Result<()> {
    let cache = bpf_toolchain::cache_dir().context("neither XDG_CACHE_HOME nor HOME is set")?;
    println!("cache: {}\n", cache.display());

    report("Rust", ask(cargo().arg("--version")).ok(), "https://rustup.rs");
    for component in ["clippy", "fmt"] {
        let version = ask(cargo().args([component, "--version"])).ok();
        report(component, version, "rustup component add clippy rustfmt");
    }
    let compiler = ["cc", "gcc", "clang"].iter().find_map(|name| on_path(name));
    report("C compiler", compiler.map(|path| path.display().to_string()), "your distribution");
    let toolchain = bpf_toolchain::find().map(|toolchain| toolchain.to_string());
    report("BPF toolchain", toolchain.ok(), SETUP);
    if !apt::is_here() {
        println!("{:14} no apt: set-up takes rustup's nightly and the distribution's LLVM", "");
    }

    let deny = deny::binary(&cache);
    let version = ask(Command::new(&deny).arg("--version")).ok();
    report("cargo-deny", version.map(|v| format!("{} in {}", v.trim(), deny.display())), SETUP);

    let go = go_programs::obstacle().map_or_else(
        || ask(Command::new("go").arg("version").env("GOTOOLCHAIN", "local")).ok(),
        |_| None,
    );
    report(
        "Go",
        go,
        "https://go.dev/dl, 1.25 or newer; only the tests with Pyroscope and with Go need it",
    );
    let binaries = go_programs::binaries(&cache)?;
    let found = |path: std::path::PathBuf| path.is_file().then(|| path.display().to_string());
    report("Pyroscope", found(binaries.server), SETUP);
    report("pprof reader", found(binaries.reader), SETUP);
    report("Go service", found(binaries.service), SETUP);
    report("Kubernetes", found(binaries.kubernetes), SETUP);
    for tool in &fixture_tools::TOOLS {
        let found = tool.find(&cache).map(|path| path.display().to_string());
        report(tool.name, found, &format!("{SETUP}, or your distribution; some tests need it"));
    }
    let library = musl_rust::manifest(&cache).map(|path| path.display().to_string());
    report("Rust for musl", library, &format!("{SETUP}, on Debian; one test needs it"));
    let remedy = manifest_tools::obstacle().unwrap_or(SETUP);
    report("Helm, checkov", found(manifest_tools::program(&cache)?), remedy);
    let kernels = guests::are_there(&cache).then(|| guests::dir(&cache).display().to_string());
    report("other kernels", kernels, guests::obstacle().unwrap_or(SETUP));
    Ok(())
}

fn report(tool: &str, found: Option<String>, remedy: &str) {
    match found {
        Some(found) => println!("{tool:14} {}", found.trim()),
        None => println!("{tool:14} MISSING: {remedy}"),
    }
}
