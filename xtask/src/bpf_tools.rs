//! Installs a compiler and a linker for BPF.
//!
//! On Debian and its relatives: `rustc-web`, which has `core` for BPF precompiled, unpacked into
//! the cache (installing it would remove a user's own `rustc`). Elsewhere: a nightly of rustup's
//! with rust-src, in a `RUSTUP_HOME` of its own, and the distribution's LLVM.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::apt::{self, Apt};
use crate::bpf_toolchain::{
    BPF_LINKER, DEBIAN_LLVM, DEBIAN_RUST, debian_linker_dir, debian_rust_dir, nightly_linker_dir,
    on_path, rustup_home,
};
use crate::cache::{self, Partial};
use crate::exec::{ask, cargo, exec};
use crate::setup::step;

/// Installs what is missing of it.
pub(crate) fn install(cache: &Path) -> Result<()> {
    let debian = debian(cache);
    let Err(reason) = debian else { return Ok(()) };
    if !reason.is::<NotOffered>() {
        return Err(reason);
    }
    step(&format!("{reason}: taking rustup's nightly instead"));
    nightly(cache)
}

/// The machine's package sources do not have the compiler: no failure, there is another way.
#[derive(Debug)]
struct NotOffered(&'static str);

impl std::fmt::Display for NotOffered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for NotOffered {}

fn debian(cache: &Path) -> Result<()> {
    let rust = debian_rust_dir(cache);
    let linker = debian_linker_dir(cache);
    let rust_works = rust_works(&rust);
    if rust_works && linker_works(&linker) {
        return Ok(());
    }
    if !apt::is_here() {
        return Err(NotOffered("this machine has no apt").into());
    }
    let partial = Partial::new(cache, "bpf")?;
    step(&format!("downloading rustc-web {DEBIAN_RUST} and LLVM {DEBIAN_LLVM} (190 MB)"));
    let debs = partial.dir("debs")?;
    let build_only = download(&partial, &debs)?;
    if !rust_works {
        step("unpacking the BPF compiler");
        let root = partial.dir("rust")?;
        apt::unpack(&debs, &root, |package| !build_only.iter().any(|name| name == package))?;
        write_wrapper(&root)?;
        cache::publish(&root, &rust)?;
        ask(Command::new(rust.join("bin/rustc")).arg("-V"))
            .context("the unpacked compiler does not run on this machine")?;
    }
    step(&format!("building bpf-linker {BPF_LINKER} (about a minute)"));
    let root = partial.dir("llvm")?;
    apt::unpack(&debs, &root, |package| !package.contains("rust"))?;
    let llvm = root.join("usr/lib").join(format!("llvm-{DEBIAN_LLVM}"));
    // Relative to the linker itself, so that the cache may move; and of the kind that also finds
    // the libraries of the libraries.
    let rust_name = rust.file_name().context("the compiler's folder has no name")?;
    let rpath = libraries_below(&Path::new("$ORIGIN/../..").join(rust_name));
    let flags = format!("-Clink-arg=-Wl,--disable-new-dtags,-rpath,{rpath}");
    let built = build_linker(&partial, &format!("llvm-{DEBIAN_LLVM}"), |command| {
        command
            .env(format!("LLVM_SYS_{DEBIAN_LLVM}1_PREFIX"), &llvm)
            .env("LLVM_PREFIX", &llvm)
            .env("LD_LIBRARY_PATH", libraries_below(&root))
            .env("RUSTFLAGS", flags);
    })?;
    cache::publish(&built, &linker)?;
    ask(Command::new(linker.join("bin/bpf-linker")).arg("--version"))
        .context("the built bpf-linker does not run on this machine")?;
    Ok(())
}

/// Fetches the packages. Gives the names of those that only building bpf-linker needs.
fn download(partial: &Partial, debs: &Path) -> Result<Vec<String>> {
    let build_only = vec![format!("llvm-{DEBIAN_LLVM}-dev"), format!("llvm-{DEBIAN_LLVM}")];
    let attempt = |apt: &Apt| -> Result<()> {
        let rust = apt.version("rustc-web", DEBIAN_RUST)?;
        let llvm = apt.version(&format!("libllvm{DEBIAN_LLVM}"), DEBIAN_LLVM)?;
        let (Some(rust), Some(llvm)) = (rust, llvm) else {
            return Err(NotOffered("apt does not offer the rustc-web that is needed").into());
        };
        let pinned = |names: &[&str], version: &str| -> Vec<String> {
            names.iter().map(|name| format!("{name}={version}")).collect()
        };
        let std = format!("libstd-rust-web-{DEBIAN_RUST}");
        let library = format!("libllvm{DEBIAN_LLVM}");
        let mut packages =
            pinned(&["rustc-web", &std, "libstd-rust-web-dev", "libstd-rust-web-dev-bpf"], &rust);
        packages.extend(pinned(&[&library, &build_only[0], &build_only[1]], &llvm));
        packages.extend(apt.missing_libraries(&library)?);
        apt.download(&packages, debs)
    };
    // A fresh machine has no package lists, and an old one has lists of what is gone.
    if attempt(&Apt::system()).is_err() {
        step("fetching current package lists, for this download only");
        attempt(&Apt::private(&partial.dir("apt")?)?)?;
    }
    Ok(build_only)
}

/// The compiler finds its libraries beside itself, wherever the cache is.
fn write_wrapper(root: &Path) -> Result<()> {
    let path = root.join("bin/rustc");
    let script = format!(
        "#!/bin/sh\n\
         root=$(dirname \"$(dirname \"$(readlink -f \"$0\")\")\")\n\
         LD_LIBRARY_PATH={} exec \"$root/usr/bin/rustc\" \"$@\"\n",
        libraries_below(Path::new("$root"))
    );
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(root.join("bin"))?;
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn rust_works(root: &Path) -> bool {
    ask(Command::new(root.join("bin/rustc")).arg("-V")).is_ok()
}

fn linker_works(root: &Path) -> bool {
    ask(Command::new(root.join("bin/bpf-linker")).arg("--version")).is_ok()
}

/// Where Debian's packages of this architecture keep libraries, as a search path.
pub(crate) fn libraries_below(root: &Path) -> String {
    let root = root.display();
    let triplet = format!("{}-linux-gnu", env::consts::ARCH);
    format!("{root}/usr/lib/{triplet}:{root}/lib/{triplet}")
}

fn nightly(cache: &Path) -> Result<()> {
    let home = rustup_home(cache);
    let linker = nightly_linker_dir(cache);
    let rustup = on_path("rustup").context(
        "neither Debian's rustc-web nor rustup can be had: install rustup (https://rustup.rs)",
    )?;
    let partial = Partial::new(cache, "nightly")?;
    if !home.is_dir() {
        step("installing a nightly with rust-src, beside your own toolchains");
        let new = partial.dir("rustup")?;
        let mut install = Command::new(&rustup);
        install.args(["toolchain", "install", "nightly", "--profile=minimal"]);
        install.args(["--component=rust-src", "--no-self-update"]);
        exec(install.env("RUSTUP_HOME", &new).env_remove("RUSTUP_TOOLCHAIN"))?;
        cache::publish(&new, &home)?;
    }
    if linker_works(&linker) {
        return Ok(());
    }
    let mut rustc = Command::new(&rustup);
    rustc.args(["run", "nightly", "rustc", "-vV"]);
    let facts = ask(rustc.env("RUSTUP_HOME", &home).env_remove("RUSTUP_TOOLCHAIN"))?;
    let wanted = llvm_of_rustc(&facts).context("rustc -vV does not tell its LLVM")?;
    let Some((llvm, prefix)) = system_llvm(wanted) else {
        bail!(
            "bpf-linker needs the development files of LLVM {wanted} or newer, up to 23, and \
             llvm-config in PATH: install your distribution's package (llvm-devel, llvm-dev)"
        );
    };
    step(&format!("building bpf-linker {BPF_LINKER} on LLVM {llvm} (about a minute)"));
    let built = build_linker(&partial, &format!("llvm-{llvm}"), |command| {
        command.env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix).env("LLVM_PREFIX", &prefix);
    })?;
    cache::publish(&built, &linker)
}

/// From `rustc -vV`: the major version in `LLVM version: 22.1.4`.
fn llvm_of_rustc(facts: &str) -> Option<u32> {
    let version = facts.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// The oldest LLVM of the distribution that reads what a rustc of LLVM `oldest` writes and that
/// bpf-linker can be built on, with its prefix.
fn system_llvm(oldest: u32) -> Option<(u32, PathBuf)> {
    let candidates = (oldest.max(21)..=23).map(|llvm| (llvm, format!("llvm-config-{llvm}")));
    let any = (oldest.max(21)..=23).map(|llvm| (llvm, "llvm-config".to_owned()));
    candidates.chain(any).find_map(|(llvm, program)| {
        let version = ask(Command::new(&program).arg("--version")).ok()?;
        if version.split('.').next()?.parse::<u32>().ok()? != llvm {
            return None;
        }
        let prefix = ask(Command::new(&program).arg("--prefix")).ok()?;
        Some((llvm, PathBuf::from(prefix.trim())))
    })
}

/// Builds bpf-linker from the Rust registry. Gives the folder that has `bin/bpf-linker`.
fn build_linker(
    partial: &Partial,
    feature: &str,
    environment: impl FnOnce(&mut Command),
) -> Result<PathBuf> {
    let root = partial.dir("linker")?;
    let mut command = cargo();
    cache::without_build_flags(&mut command);
    command.args(["install", "--quiet", "--locked", "bpf-linker", "--version", BPF_LINKER]);
    command.args(["--no-default-features", "--features", feature]);
    command.arg("--root").arg(&root);
    command.env("CARGO_TARGET_DIR", partial.dir("target")?);
    environment(&mut command);
    exec(&mut command)?;
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_of_a_rustc_is_its_major_version() {
        let facts = "rustc 1.95.0 (59807616e 2026-04-14)\nhost: x86_64\nLLVM version: 22.1.2\n";
        assert_eq!(llvm_of_rustc(facts), Some(22));
        assert_eq!(llvm_of_rustc("rustc 1.95.0\n"), None);
    }
}
