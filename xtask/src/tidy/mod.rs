//! `cargo xtask tidy`: the invariants of `ARCHITECTURE.md` that text can check.
//!
//! A rule looks at text, not at a syntax tree: it is a tripwire for the usual mistake, not a proof.

mod text;
mod stages;
mod crates;
mod source;
mod tree;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::exec::{ask, workspace};
use text::Source;

/// One place that breaks an invariant.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    path: PathBuf,
    /// From 1; 0: the file as a whole.
    line: usize,
    /// What is there.
    found: String,
    /// The sentence that it breaks.
    invariant: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, found, invariant } = self;
        write!(f, "{}:{line}: {found}: {invariant}", path.display())
    }
}

/// The command.
pub(crate) fn run() -> Result<()> {
    let root = workspace();
    let files = files(&root)?;
    let mut violations = tree::check(&root, &files);
    for path in &files {
        // A file of a removed commit or a link to nowhere is not ours to read.
        let Ok(bytes) = fs::read(root.join(path)) else { continue };
        let Ok(text) = String::from_utf8(bytes) else { continue };
        violations.extend(source::check_any(path, &text, &root));
        if path.extension().is_some_and(|extension| extension == "rs") {
            let source = Source::new(path, &text);
            violations.extend(stages::check(&source));
            violations.extend(crates::check(&source));
            violations.extend(source::check_rust(&source));
        } else if path.file_name().is_some_and(|name| name == "Cargo.toml") {
            violations.extend(crates::check_manifest(path, &text));
        }
    }
    violations.sort();
    for violation in &violations {
        println!("{violation}");
    }
    if !violations.is_empty() {
        bail!("{} places break an invariant", violations.len());
    }
    println!("tidy: {} files", files.len());
    Ok(())
}

/// What belongs to the project: tracked, or about to be.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let list = ask(&mut git).context("cannot list the files of the project")?;
    let mut files: Vec<PathBuf> =
        list.lines().map(PathBuf::from).filter(|path| root.join(path).is_file()).collect();
    files.sort();
    files.dedup();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_names_the_place_and_the_sentence() {
        let violation = Violation {
            path: PathBuf::from("profiler-user/src/decode.rs"),
            line: 7,
            found: "std::fs".to_owned(),
            invariant: "decode is pure",
        };
        let shown = "profiler-user/src/decode.rs:7: std::fs: decode is pure";
        assert_eq!(violation.to_string(), shown);
    }
}
