//! Builds programs and libraries that mark their threads, in the ways in which programs are built.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail};

/// Packages in a workspace of their own, built with its own rustflags.
#[derive(Debug)]
pub struct Packages {
    folder: PathBuf,
    /// Each build puts its result where the one before was.
    _alone: MutexGuard<'static, ()>,
}

/// How one of them is built.
#[derive(Clone, Copy, Debug, Default)]
pub struct Build<'a> {
    /// `program` or `plugin`, which have span-marker; or `host`, which loads a plugin.
    pub package: &'a str,
    /// `dev`, or one of [`PROFILES`].
    pub profile: &'a str,
    /// For all crates.
    pub rustflags: &'a str,
    /// None: the machine's own, without cross compilation.
    pub target: Option<&'a str>,
    /// For the program or library alone.
    pub arguments: &'a [&'a str],
    /// Whether cargo may download what it needs.
    pub online: bool,
    /// More for cargo.
    pub cargo: &'a [&'a str],
    /// More for cargo's environment.
    pub environment: &'a [(&'a str, &'a str)],
}

const PROFILES: &str = "\
[profile.thin]
inherits = \"release\"
lto = \"thin\"

[profile.fat]
inherits = \"release\"
lto = \"fat\"
strip = true
panic = \"abort\"
";

static BUILDING: Mutex<()> = Mutex::new(());

impl Packages {
    /// Writes them below `folder`, where an earlier run may have left them. `members` are some of
    /// the fixtures: see [`Build::package`].
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn new(folder: &Path, members: &[&str]) -> Result<Self> {
        let alone = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = folder.join("export_matrix").join(members.join("+"));
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/export_matrix");
        let manifest =
            format!("[workspace]\nresolver = \"3\"\nmembers = {members:?}\n\n{PROFILES}");
        write(&folder.join("Cargo.toml"), &manifest)?;
        // The versions that everything else here is built with, so that nothing is downloaded.
        let lock = fs::read_to_string(workspace.join("Cargo.lock")).context("no Cargo.lock")?;
        write(&folder.join("Cargo.lock"), &lock)?;
        let marker = workspace.join("span-marker");
        let marker = format!("span-marker = {{ path = {marker:?} }}\n");
        for name in members {
            let dependency = if *name == "host" { "" } else { &marker };
            let target = if name.ends_with("plugin") {
                "[lib]\ncrate-type = [\"cdylib\"]".to_owned()
            } else {
                format!("[[bin]]\nname = {name:?}")
            };
            let source = sources.join(name).with_extension("rs");
            let features = if *name == "program" {
                "\n[features]\nexternal-slot = [\"span-marker/external-slot\"]\n"
            } else {
                ""
            };
            let manifest = format!(
                "[package]\nname = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
                 {target}\npath = {source:?}\n\n[dependencies]\n{dependency}{features}"
            );
            write(&folder.join(name).join("Cargo.toml"), &manifest)?;
        }
        Ok(Self { folder, _alone: alone })
    }

    /// Builds one of them. The file is there until the next one is built.
    ///
    /// # Errors
    /// With what cargo and the linker say.
    pub fn build(&self, build: &Build<'_>) -> Result<PathBuf> {
        let target_dir = self.folder.join("target");
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // What this test was built with is not what they are built with.
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO") || text.starts_with("RUST") && text != "RUSTUP_TOOLCHAIN" {
                cargo.env_remove(&name);
            }
        }
        cargo.current_dir(&self.folder).env("RUSTFLAGS", build.rustflags);
        cargo.envs(build.environment.iter().copied());
        cargo.args(["rustc", "--quiet", "--package", build.package]);
        cargo.args((!build.online).then_some("--offline"));
        cargo.args(["--profile", build.profile]).args(build.cargo);
        cargo.arg("--target-dir").arg(&target_dir);
        let mut built = target_dir;
        if let Some(target) = build.target {
            cargo.args(["--target", target]);
            built.push(target);
        }
        let output = cargo.arg("--").args(build.arguments).output().context("cannot run cargo")?;
        if !output.status.success() {
            bail!("{build:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        built.push(if build.profile == "dev" { "debug" } else { build.profile });
        let is_library = build.package.ends_with("plugin");
        let library = format!("lib{}.so", build.package);
        built.push(if is_library { &library } else { build.package });
        Ok(built)
    }
}

/// A folder with the `libunwind.a` that Rust's standard library wants, of gcc's own; which wants a
/// function of glibc that musl does not have, and does without.
///
/// # Errors
/// There is no C compiler.
pub fn unwinder_for_musl(folder: &Path) -> Result<PathBuf> {
    let folder = folder.join("unwinder_for_musl");
    write(&folder.join("stub.c"), "int _dl_find_object(void *a, void *b) { return -1; }\n")?;
    let run = |program: &str, arguments: &[&str], input: &str| -> Result<String> {
        write(&folder.join("input"), input)?;
        let input = fs::File::open(folder.join("input")).context("no input")?;
        let mut command = Command::new(program);
        command.current_dir(&folder).args(arguments).stdin(input);
        let output = command.output().with_context(|| format!("cannot run {program}"))?;
        if !output.status.success() {
            bail!("{program}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let of_gcc = run("cc", &["-print-file-name=libgcc_eh.a"], "")?;
    run("cc", &["-c", "stub.c"], "")?;
    let script = format!("CREATE libunwind.a\nADDLIB {of_gcc}\nADDMOD stub.o\nSAVE\nEND\n");
    run("ar", &["-M"], &script)?;
    Ok(folder)
}

/// Does not touch a file that is right already.
fn write(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
