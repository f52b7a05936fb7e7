//! Where the tools are that build the BPF object, for `build.rs`, which uses them, and for
//! `cargo xtask`, which installs them and includes this file. One place, so that what set-up
//! installs is what the build looks for.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The target of the BPF object.
pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";

/// The release of Debian's `rustc-web` that builds aya-ebpf 0.2.1. It comes with LLVM 22.
pub(crate) const DEBIAN_RUST: &str = "1.96";

/// The LLVM that [`DEBIAN_RUST`] is built on. bpf-linker reads the compiler's bitcode, so it must
/// not be older.
pub(crate) const DEBIAN_LLVM: &str = "22";

/// The release of bpf-linker that is installed.
pub(crate) const BPF_LINKER: &str = "0.13.0";

/// A compiler that emits BPF, and the linker that goes with it.
pub(crate) struct BpfToolchain {
    /// The cargo that runs the build.
    pub(crate) cargo: PathBuf,
    /// The rustc that this cargo must use; `None`: its own choice is right.
    pub(crate) rustc: Option<PathBuf>,
    /// bpf-linker.
    pub(crate) linker: PathBuf,
    /// Whether `core` is compiled from rust-src, because none comes precompiled for the target.
    pub(crate) build_std: bool,
    /// What was found, for a person.
    pub(crate) origin: String,
}

impl fmt::Display for BpfToolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, linked by {}", self.origin, self.linker.display())
    }
}

/// Why there is no toolchain: one sentence with the remedy.
pub(crate) struct Missing(String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The folder of everything that set-up installs: `${XDG_CACHE_HOME:-~/.cache}/spanprof`.
pub(crate) fn cache_dir() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base =
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("spanprof"))
}

/// Debian's compiler, unpacked: `bin/rustc` is the wrapper that finds its libraries.
pub(crate) fn debian_rust_dir(cache: &Path) -> PathBuf {
    cache.join(format!("rustc-web-{DEBIAN_RUST}-llvm-{DEBIAN_LLVM}"))
}

/// bpf-linker on Debian's LLVM. It finds the LLVM of [`debian_rust_dir`] beside itself.
pub(crate) fn debian_linker_dir(cache: &Path) -> PathBuf {
    cache.join(format!("bpf-linker-{BPF_LINKER}-llvm-{DEBIAN_LLVM}"))
}

/// The `RUSTUP_HOME` of set-up's own nightly, so that the user's toolchains stay as they are.
pub(crate) fn rustup_home(cache: &Path) -> PathBuf {
    cache.join("rustup-nightly")
}

/// bpf-linker for the nightly in [`rustup_home`], on the distribution's LLVM.
pub(crate) fn nightly_linker_dir(cache: &Path) -> PathBuf {
    cache.join(format!("bpf-linker-{BPF_LINKER}-nightly"))
}

/// The first toolchain that is complete.
pub(crate) fn find() -> Result<BpfToolchain, Missing> {
    if let Some(cargo) = env::var_os("SPANPROF_BPF_CARGO") {
        return named(PathBuf::from(cargo));
    }
    let cache = cache_dir();
    let found =
        nightly(None, on_path("bpf-linker")).or_else(|| debian(cache.as_deref()?)).or_else(|| {
            let cache = cache.as_deref()?;
            nightly(Some(&rustup_home(cache)), linker_in(&nightly_linker_dir(cache)))
        });
    found.ok_or_else(|| {
        Missing(
            "the tools that build the BPF program are not installed: run `cargo xtask setup` \
             once (it changes nothing outside its own cache folder), or set SPANPROF_SKIP_BPF=1 \
             to build a spanprof that cannot profile"
                .to_owned(),
        )
    })
}

/// The cargo that the user named, with the rustc beside it.
fn named(cargo: PathBuf) -> Result<BpfToolchain, Missing> {
    let shown = cargo.display().to_string();
    let fail = |what: &str| Missing(format!("SPANPROF_BPF_CARGO={shown}: {what}"));
    let cargo = if cargo.components().count() == 1 {
        on_path(&shown).ok_or_else(|| fail("no such program in PATH"))?
    } else {
        cargo
    };
    if !cargo.is_file() {
        return Err(fail("no such file"));
    }
    let rustc = cargo.with_file_name("rustc");
    let rustc = rustc.is_file().then_some(rustc);
    let sysroot = sysroot(&mut Command::new(rustc.as_deref().unwrap_or(Path::new("rustc"))))
        .ok_or_else(|| fail("its rustc does not run"))?;
    let build_std = !has_precompiled_core(&sysroot);
    if build_std && !has_rust_src(&sysroot) {
        return Err(fail("its rustc has neither `core` for bpfel-unknown-none nor rust-src"));
    }
    let linker = on_path("bpf-linker")
        .or_else(|| linker_in(&debian_linker_dir(&cache_dir()?)))
        .ok_or_else(|| fail("bpf-linker is not in PATH; `cargo xtask setup` installs one"))?;
    let origin = format!("SPANPROF_BPF_CARGO={shown}");
    Ok(BpfToolchain { cargo, rustc, linker, build_std, origin })
}

/// rustup's nightly, if it has the source of `core`, and a linker to go with it.
fn nightly(rustup_home: Option<&Path>, linker: Option<PathBuf>) -> Option<BpfToolchain> {
    let linker = linker?;
    let rustup = on_path("rustup")?;
    let mut run = Command::new(rustup);
    // Where a toolchain is missing, rustup would install it: asking must not change anything.
    run.args(["run", "nightly", "rustc"]).env("RUSTUP_AUTO_INSTALL", "0");
    if let Some(home) = rustup_home {
        if !home.is_dir() {
            return None;
        }
        run.env("RUSTUP_HOME", home);
    }
    let sysroot = sysroot(&mut run)?;
    has_rust_src(&sysroot).then(|| BpfToolchain {
        cargo: sysroot.join("bin/cargo"),
        rustc: Some(sysroot.join("bin/rustc")),
        linker,
        build_std: true,
        origin: format!("rustup nightly with rust-src in {}", sysroot.display()),
    })
}

/// Debian's rustc-web and its LLVM, as set-up unpacks them.
fn debian(cache: &Path) -> Option<BpfToolchain> {
    let root = debian_rust_dir(cache);
    let rustc = root.join("bin/rustc");
    if !rustc.is_file() {
        return None;
    }
    Some(BpfToolchain {
        // Any cargo drives it. The one that runs this build is known to work.
        cargo: env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from),
        rustc: Some(rustc),
        linker: linker_in(&debian_linker_dir(cache))?,
        build_std: false,
        origin: format!("Debian's rustc-web {DEBIAN_RUST} in {}", root.display()),
    })
}

fn linker_in(directory: &Path) -> Option<PathBuf> {
    Some(directory.join("bin/bpf-linker")).filter(|path| path.is_file())
}

fn has_rust_src(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core").is_dir()
}

fn has_precompiled_core(sysroot: &Path) -> bool {
    fs::read_dir(sysroot.join("lib/rustlib").join(BPF_TARGET).join("lib"))
        .is_ok_and(|mut files| files.next().is_some())
}

/// Asks a rustc for its sysroot, as if no other cargo were running.
fn sysroot(rustc: &mut Command) -> Option<PathBuf> {
    rustc.env_remove("RUSTUP_TOOLCHAIN").args(["--print", "sysroot"]).stderr(Stdio::null());
    let output = rustc.output().ok().filter(|output| output.status.success())?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim_end());
    path.is_dir().then_some(path)
}

/// Where a program is, by `PATH`.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}
