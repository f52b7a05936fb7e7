//! Programs that see other files than everybody else.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Result;

/// Makes `path` a program that runs another, with its own arguments, in a mount namespace of its own.
/// There a shell does `inside` first; `outside` are its lines before that.
///
/// # Errors
///
/// It cannot be written.
pub fn write(path: &Path, program: &Path, outside: &str, inside: &str) -> Result<()> {
    let script = format!(
        "#!/bin/sh\n{outside}\nexec unshare --mount --propagation private sh -c \
         '{inside} && exec \"$@\"' sh {} \"$@\"\n",
        program.display()
    );
    fs::write(path, script)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}
