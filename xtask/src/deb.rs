//! `cargo xtask deb`: a Debian package of the agent: the static binary, a systemd unit, its file of
//! options, manual pages and completions.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build::static_binary;
use crate::exec::{ask, cargo, exec, target_dir, workspace};
use crate::oci::VERSION;
use crate::setup::{Tools, provide};

/// What the package says of itself.
const CONTROL: &str = "\
Package: spanprof
Version: $VERSION
Architecture: amd64
Maintainer: The spanprof authors
Section: admin
Priority: optional
Description: continuous CPU profiler of whole hosts, by trace span
 A BPF program samples every process's stack, with or without frame pointers,
 and reads the trace span that each thread works on. Profiles are pushed to
 Grafana Pyroscope, or written as pprof, flame graph or table.
";

/// The command.
pub(crate) fn run(profile: &str) -> Result<()> {
    provide(Tools::Build)?;
    let binary = static_binary(cargo(), profile)?;
    println!("{}", of_binary(&binary)?.display());
    Ok(())
}

/// Packs this binary; the package is beside it.
pub(crate) fn of_binary(binary: &Path) -> Result<PathBuf> {
    let out = binary.with_file_name(format!("spanprof_{VERSION}_amd64.deb"));
    let root = target_dir().join("deb");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot empty {}", root.display()))?;
    }
    let packaging = workspace().join("profiler-user/packaging");
    let put = |from: &Path, to: &str, mode| copy(from, &root.join(to), mode);
    put(binary, "usr/bin/spanprof", 0o755)?;
    put(&packaging.join("spanprof.service"), "lib/systemd/system/spanprof.service", 0o644)?;
    put(&packaging.join("spanprof.yaml"), "etc/spanprof/spanprof.yaml", 0o644)?;
    let documents = "usr/share/doc/spanprof";
    put(&workspace().join("LICENSE-MIT"), &format!("{documents}/copyright"), 0o644)?;
    put(&workspace().join("CHANGELOG.md"), &format!("{documents}/CHANGELOG.md"), 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        put(&packaging.join(script), &format!("DEBIAN/{script}"), 0o755)?;
    }
    let manual = root.join("usr/share/man/man1");
    fs::create_dir_all(&manual)?;
    exec(Command::new(binary).arg("man").arg(&manual))?;
    for (shell, file) in [
        ("bash", "usr/share/bash-completion/completions/spanprof"),
        ("zsh", "usr/share/zsh/vendor-completions/_spanprof"),
        ("fish", "usr/share/fish/vendor_completions.d/spanprof.fish"),
    ] {
        let text = ask(Command::new(binary).args(["completions", shell]))?;
        write(&root.join(file), &text)?;
    }
    write(&root.join("DEBIAN/conffiles"), "/etc/spanprof/spanprof.yaml\n")?;
    write(&root.join("DEBIAN/control"), CONTROL.replace("$VERSION", VERSION))?;
    exec(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&root).arg(&out))
        .context("a package is made by dpkg-deb, of the package dpkg")?;
    Ok(out)
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    write(to, content)?;
    fs::set_permissions(to, Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", to.display()))
}

fn write(to: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    fs::write(to, content).with_context(|| format!("cannot write {}", to.display()))
}
