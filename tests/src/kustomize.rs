//! What `kubectl kustomize` makes of a folder.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

/// The manifests of a folder. `kubernetes` is every program of Kubernetes, by the name that it is
/// called by.
///
/// # Errors
///
/// It is refused; why is in the error.
pub fn kustomize(kubernetes: &Path, folder: &Path) -> Result<String> {
    let links = tempfile::tempdir()?;
    let kubectl = links.path().join("kubectl");
    symlink(kubernetes, &kubectl)?;
    let made = Command::new(kubectl).arg("kustomize").arg(folder).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(String::from_utf8(made.stdout)?)
}
