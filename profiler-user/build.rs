//! Builds the BPF object from `profiler-ebpf` and leaves it at `$OUT_DIR/profiler-bpf.o`, where
//! `capture` embeds it.
//!
//! It is the only thing that builds the object, and does so by default: a profiler that builds
//! without its probe is a trap. Two variables override it: `SPANPROF_BPF_OBJECT=FILE` embeds that
//! file, and `SPANPROF_SKIP_BPF=1` an empty one, for checks and documentation on a machine
//! without the tools.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

#[path = "build/bpf_toolchain.rs"]
mod bpf_toolchain;

use bpf_toolchain::{BPF_TARGET, BpfToolchain};

/// What decides which object is embedded.
const VARIABLES: [&str; 4] =
    ["SPANPROF_BPF_OBJECT", "SPANPROF_SKIP_BPF", "SPANPROF_BPF_CARGO", "XDG_CACHE_HOME"];

fn main() -> ExitCode {
    for name in VARIABLES {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Cargo prints each of these as one error, and the build fails.
            println!("cargo::error={message}");
            ExitCode::SUCCESS
        }
    }
}

fn run() -> Result<(), String> {
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let object = out_dir.join("profiler-bpf.o");
    if let Some(given) = env::var_os("SPANPROF_BPF_OBJECT") {
        let given = PathBuf::from(given);
        println!("cargo::rerun-if-changed={}", given.display());
        return copy(&given, &object);
    }
    if env::var_os("SPANPROF_SKIP_BPF").is_some_and(|value| value == "1") || under_clippy() {
        return fs::write(&object, []).map_err(|error| said(&object, &error));
    }

    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
    for source in ["profiler-ebpf", "profiler-common", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(source).display());
    }
    let toolchain = bpf_toolchain::find().map_err(|missing| missing.to_string())?;
    println!("cargo::rerun-if-changed={}", toolchain.linker.display());
    if let Some(rustc) = &toolchain.rustc {
        println!("cargo::rerun-if-changed={}", rustc.display());
    }
    // A target directory of its own: the outer cargo holds the lock of the usual one.
    let target_dir = out_dir.join("bpf");
    build(&toolchain, &workspace, &target_dir)?;
    copy(&target_dir.join(BPF_TARGET).join("release/profiler-bpf"), &object)
}

/// Clippy looks at no object, and must run on a machine without the tools.
///
/// Cargo keeps the output of this script apart for a run of clippy: the wrapper is part of a
/// workspace member's identity, so the empty object never reaches a real build.
fn under_clippy() -> bool {
    env::var_os("RUSTC_WORKSPACE_WRAPPER").is_some_and(|wrapper| {
        Path::new(&wrapper).file_stem().is_some_and(|s| s == "clippy-driver")
    })
}

fn build(toolchain: &BpfToolchain, workspace: &Path, target_dir: &Path) -> Result<(), String> {
    let mut cargo = Command::new(&toolchain.cargo);
    forget_outer_cargo(&mut cargo);
    cargo
        .args(["build", "--quiet", "--package=profiler-ebpf", "--bin=profiler-bpf"])
        .args(["--release", "--locked"])
        .args(["--target", BPF_TARGET, "--target-dir"])
        .arg(target_dir)
        .arg("--manifest-path")
        .arg(workspace.join("Cargo.toml"))
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(toolchain)?)
        // The workspace's release profile is for the host. BPF bitcode is optimized as a whole by
        // bpf-linker, and BTF is made from full debug info.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        // aya-ebpf uses unstable features, whichever compiler this is.
        .env("RUSTC_BOOTSTRAP", "1");
    if let Some(rustc) = &toolchain.rustc {
        cargo.env("RUSTC", rustc);
    }
    if toolchain.build_std {
        cargo.arg("-Zbuild-std=core");
    }
    let output = cargo.output().map_err(|error| said(&toolchain.cargo, &error))?;
    let log = String::from_utf8_lossy(&output.stderr);
    // A quiet cargo says nothing but what is wrong, and that is as wrong here as there.
    let succeeded = output.status.success();
    let level = if succeeded { "warning" } else { "error" };
    for line in log.lines().filter(|line| !line.trim().is_empty()) {
        println!("cargo::{level}={line}");
    }
    if succeeded {
        return Ok(());
    }
    Err(format!("the BPF program does not build ({}; tools: {toolchain})", output.status))
}

fn rustflags(toolchain: &BpfToolchain) -> Result<OsString, String> {
    let arch = variable("CARGO_CFG_TARGET_ARCH")?.into_string();
    let arch = arch.map_err(|arch| format!("no such architecture: {}", arch.display()))?;
    let mut flags = OsString::from("-Clinker=");
    flags.push(&toolchain.linker);
    // The architecture of the kernel that will run the object decides the layout of its
    // registers: aya-ebpf would take the build machine's.
    flags.push(format!("\x1f--cfg=bpf_target_arch=\"{arch}\""));
    flags.push("\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf");
    Ok(flags)
}

/// Takes away what the cargo that runs this script says about its own build: a wrapper such as
/// clippy, another compiler's flags, libraries and target directory. What says where crates come
/// from stays, and so does the job server, so that both builds share the processors.
fn forget_outer_cargo(command: &mut Command) {
    const GOES: [&str; 9] = [
        "CLIPPY_ARGS",
        "DEBUG",
        "HOST",
        "LD_LIBRARY_PATH",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "TARGET",
    ];
    const GOES_BY_PREFIX: [&str; 4] = ["AYA_", "CARGO", "DEP_", "RUST"];
    const STAYS_BY_PREFIX: [&str; 8] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
        "RUSTUP_HOME",
    ];
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| text.starts_with(prefix));
        let goes = GOES.contains(&text.as_ref()) || begins(&GOES_BY_PREFIX);
        if goes && !begins(&STAYS_BY_PREFIX) {
            command.env_remove(&name);
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to).map(drop).map_err(|error| said(from, &error))
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}

fn said(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}
