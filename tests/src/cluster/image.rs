//! Images of programs of this machine, with the libraries that they run with here.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::virtual_machine::initramfs::libraries;

#[path = "../../../xtask/src/oci.rs"]
mod oci;

pub(super) use oci::full_name;

/// Makes it.
pub(super) fn of_program(image: &Path, name: &str, program: &Path) -> Result<()> {
    let content =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut layer = vec![(name.to_owned(), content(program)?, 0o755)];
    for library in libraries(program)? {
        let path = library.to_str().context("a path that is not UTF-8")?;
        layer.push((path.trim_start_matches('/').to_owned(), content(&library)?, 0o755));
    }
    oci::write(image, name, &layer)
}
