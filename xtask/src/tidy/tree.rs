//! What holds for the tree as a whole.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::Violation;

const REQUIRED: [&str; 14] = [
    ".ci/run",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "deny.toml",
    "examples/compose.yaml",
    "profiler-user/build.rs",
    "rustfmt.toml",
    "tests/pyroscope/go.mod",
    "tests/pyroscope/go.sum",
];

/// Words that say nothing about what a module is for.
const EMPTY_NAMES: [&str; 7] = ["handler", "helper", "helpers", "manager", "misc", "util", "utils"];

const THERE: &str = "the file belongs to the project and is missing";
const RUNNABLE: &str = "continuous integration runs this file";
const NAMED: &str = "a module is named for what it is about";

pub(super) fn check(root: &Path, files: &[PathBuf]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut report = |path: &Path, found: &str, invariant| {
        let (path, found) = (path.to_owned(), found.to_owned());
        violations.push(Violation { path, line: 0, found, invariant });
    };
    for required in REQUIRED {
        if !files.iter().any(|path| path == Path::new(required)) {
            report(Path::new(required), "missing", THERE);
        }
    }
    let script = root.join(".ci/run");
    if fs::metadata(&script).is_ok_and(|file| file.permissions().mode() & 0o111 == 0) {
        report(Path::new(".ci/run"), "not executable", RUNNABLE);
    }
    for path in files.iter().filter(|path| path.extension().is_some_and(|e| e == "rs")) {
        let empty = path
            .with_extension("")
            .components()
            .any(|part| EMPTY_NAMES.iter().any(|name| part.as_os_str() == *name));
        if empty {
            report(path, "name", NAMED);
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<PathBuf> {
        REQUIRED.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn a_missing_file_is_missed() {
        let root = Path::new("/nowhere");
        assert_eq!(check(root, &all()), []);
        let found = check(root, &all()[1..]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, Path::new(REQUIRED[0]));
        assert_eq!(found[0].invariant, THERE);
    }

    #[test]
    fn an_empty_name_is_refused() {
        let mut files = all();
        files.push(PathBuf::from("profiler-user/src/export/utils.rs"));
        files.push(PathBuf::from("profiler-user/src/helpers/mod.rs"));
        files.push(PathBuf::from("profiler-user/src/export/utility.rs"));
        let found = check(Path::new("/nowhere"), &files);
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|violation| violation.invariant == NAMED));
    }

    #[test]
    fn a_script_must_be_runnable() {
        let root = std::env::temp_dir().join(format!("spanprof-tidy-{}", std::process::id()));
        fs::create_dir_all(root.join(".ci")).expect("a temporary folder");
        fs::write(root.join(".ci/run"), "").expect("written");
        let set = |mode| {
            let permissions = fs::Permissions::from_mode(mode);
            fs::set_permissions(root.join(".ci/run"), permissions).expect("set");
        };
        set(0o644);
        assert_eq!(check(&root, &all())[0].invariant, RUNNABLE);
        set(0o755);
        assert_eq!(check(&root, &all()), []);
        fs::remove_dir_all(&root).expect("clean up");
    }
}
