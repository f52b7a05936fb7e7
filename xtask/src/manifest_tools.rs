//! What checks the manifests: Helm as a library, the schemas of Kubernetes's versions, and a policy
//! gate. Python packages, in the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cache::{self, Partial};
use crate::exec::{ask, workspace};
use crate::setup::{shout, step};

const REQUIREMENTS: &str = "tests/manifest-tools/requirements.txt";
/// How a test learns where they are: see `spanprof_tests::require`.
const VARIABLE: &str = "SPANPROF_MANIFEST_TOOLS";

/// One of the programs, in the folder that they are all in. It is keyed by what pins the packages.
pub(crate) fn program(cache: &Path) -> Result<PathBuf> {
    let path = workspace().join(REQUIREMENTS);
    let pins = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let key = format!("{:016x}", cache::hash(&[pins]));
    Ok(cache.join(format!("manifest-tools-{}/bin/kubernetes-validate", &key[..12])))
}

/// Why they cannot be had on this machine, if they cannot.
pub(crate) fn obstacle() -> Option<&'static str> {
    let pip = ask(Command::new("python3").args(["-m", "pip", "--version"]));
    pip.err().map(|_error| "Python 3 with pip is not installed")
}

/// Whether set-up has to install them.
pub(crate) fn is_missing(cache: &Path) -> Result<bool> {
    Ok(!program(cache)?.is_file())
}

/// Installs them if they are missing. Where they are not to be had, it says so, and goes on.
pub(crate) fn install(cache: &Path) -> Result<()> {
    if !is_missing(cache)? {
        return Ok(());
    }
    if let Some(obstacle) = obstacle() {
        shout(&format!("{obstacle}: THE TESTS OF THE CHART WILL NOT RUN."));
        return Ok(());
    }
    step("fetching Helm, Kubernetes's schemas and checkov (half a minute)");
    let partial = Partial::new(cache, "manifest-tools")?;
    let folder = partial.dir("out")?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"])
        .arg("--target")
        .arg(&folder)
        .arg("--requirement")
        .arg(workspace().join(REQUIREMENTS));
    if let Err(error) = ask(&mut pip) {
        shout(&format!("{error:#}: THE TESTS OF THE CHART WILL NOT RUN."));
        return Ok(());
    }
    let program = program(cache)?;
    let to = program.parent().and_then(Path::parent).context("the program is in a folder")?;
    cache::publish(&folder, to)
}

/// Where they are, unless the user named others.
pub(crate) fn tell(command: &mut Command, cache: &Path) -> Result<()> {
    let program = program(cache)?;
    if std::env::var_os(VARIABLE).is_none() && program.is_file() {
        command.env(VARIABLE, program);
    }
    Ok(())
}
