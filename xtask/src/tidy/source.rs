//! What holds for a file by itself.

use std::path::Path;

use super::Violation;
use super::text::{Source, find_word};

/// Tests included.
const LINES: usize = 500;

/// A file with this word in its first lines comes from a program.
const GENERATED: &str = "@generated";

const LENGTH: &str = "a file is about one thing: at most 500 lines, unless a program wrote it";
const SAFETY: &str = "every unsafe block has a SAFETY comment that names the fact";
const FINISHED: &str = "nothing is left to do";
const IGNORED: &str = "a test that did not run must not look green";
const SLEEPS: &str = "a test waits for a condition, not for time";
const MACHINE: &str = "nothing names a path of the machine that it was written on";

/// Rules for any text.
pub(super) fn check_any(path: &Path, text: &str, root: &Path) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut report = |line, found: String, invariant| {
        violations.push(Violation { path: path.to_owned(), line, found, invariant });
    };
    let is_code = path.extension().is_some_and(|extension| {
        ["rs", "go", "py", "sh", "proto"].iter().any(|code| extension == *code)
    });
    let generated = text.lines().take(5).any(|line| line.contains(GENERATED));
    let lines = text.lines().count();
    if is_code && !generated && lines > LINES {
        report(LINES + 1, format!("{lines} lines"), LENGTH);
    }
    let root = root.to_string_lossy();
    for (index, line) in text.lines().enumerate() {
        if let Some(found) = machine_path(line, &root) {
            report(index + 1, found, MACHINE);
        }
    }
    violations
}

/// Rules for Rust.
pub(super) fn check_rust(source: &Source) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut report = |line, found: &str, invariant| {
        let found = found.to_owned();
        violations.push(Violation { path: source.path.clone(), line, found, invariant });
    };
    for (line, code) in source.numbered() {
        let is_unsafe = ["unsafe {", "unsafe impl"]
            .iter()
            .any(|what| find_word(code, "unsafe").is_some_and(|at| code[at..].starts_with(what)));
        if is_unsafe && !has_safety_comment(source, line - 1) {
            report(line, "unsafe", SAFETY);
        }
        if find_word(code, "todo").is_some_and(|at| code[at..].starts_with("todo!")) {
            report(line, "todo!", FINISHED);
        }
        if code.contains("#[ignore") {
            report(line, "#[ignore]", IGNORED);
        }
    }
    // Under tokio's paused clock a sleep takes no time.
    let paused = source
        .tests()
        .any(|(_, code)| code.contains("start_paused") || code.contains("time::pause("));
    for (line, code) in source.tests().filter(|_| !paused) {
        if find_word(code, "sleep").is_some_and(|at| code[at..].starts_with("sleep(")) {
            report(line, "sleep", SLEEPS);
        }
    }
    violations
}

/// Whether the reason stands on the line, or above the statement that it is in.
fn has_safety_comment(source: &Source, index: usize) -> bool {
    if source.raw[index].contains("SAFETY:") {
        return true;
    }
    let mut above = index;
    while above > 0 {
        above -= 1;
        let (raw, code) = (source.raw[above].trim(), source.code[above].trim());
        if raw.contains("SAFETY:") && raw.starts_with("//") {
            return true;
        }
        let is_comment = raw.starts_with("//");
        let ends_another = code.ends_with([';', '}', '{', ',']) && !code.starts_with('#');
        if raw.is_empty() || (!is_comment && ends_another) {
            return false;
        }
    }
    false
}

/// An absolute path below a person's home or below the root of this checkout, or a local file that
/// a list of packages pins.
fn machine_path(line: &str, root: &str) -> Option<String> {
    // In pieces, so that this file does not break its own rule.
    let prefixes = [
        format!("{root}/"),
        ["/ro", "ot/"].concat(),
        ["/wo", "rk/"].concat(),
        ["/Us", "ers/"].concat(),
        // How `pip freeze` names a package that was installed from a file.
        ["@ fi", "le:"].concat(),
    ];
    for prefix in prefixes {
        for (at, _) in line.match_indices(&prefix) {
            // `/proc/<pid>/root/` is no path of anybody's machine.
            let goes_on = |c: char| c.is_alphanumeric() || "}>)]._-*$/%".contains(c);
            if !line[..at].ends_with(goes_on) {
                return Some(prefix);
            }
        }
    }
    None
}

#[cfg(test)]
#[expect(clippy::unnecessary_safety_comment, reason = "clippy takes text in a literal for one")]
mod tests {
    use super::*;

    #[track_caller]
    fn breaks(path: &str, text: &str, expected: &[(usize, &str)]) {
        let source = Source::new(Path::new(path), text);
        let found: Vec<_> = check_rust(&source).into_iter().map(|v| (v.line, v.found)).collect();
        let expected: Vec<_> = expected.iter().map(|(line, f)| (*line, (*f).to_owned())).collect();
        assert_eq!(found, expected);
    }

    fn any(path: &str, text: &str) -> Vec<(usize, &'static str)> {
        let found = check_any(Path::new(path), text, Path::new("/build/here"));
        found.into_iter().map(|violation| (violation.line, violation.invariant)).collect()
    }

    #[test]
    fn an_unsafe_block_has_its_reason() {
        breaks("a.rs", "f();\nlet x = unsafe { g() };", &[(2, "unsafe")]);
        breaks("a.rs", "// SAFETY: checked.\nf();\nunsafe { g() }", &[(3, "unsafe")]);
        breaks("a.rs", "unsafe impl Send for X {}", &[(1, "unsafe")]);
        breaks("a.rs", "// SAFETY: checked above,\n// and here.\nlet x = unsafe { g() };", &[]);
        breaks("a.rs", "// SAFETY: so.\nlet x: Long =\n    unsafe { g() };", &[]);
        breaks("a.rs", "// SAFETY: so.\n#[rustfmt::skip]\nunsafe { g() }", &[]);
        breaks("a.rs", "unsafe fn f() {}\nunsafe extern \"C\" {}", &[]);
    }

    #[test]
    fn nothing_is_left_to_do_or_ignored() {
        breaks("a.rs", "fn f() { todo!() }", &[(1, "todo!")]);
        breaks("tests/a.rs", "#[ignore = \"slow\"]\nfn f() {}", &[(1, "#[ignore]")]);
        breaks("a.rs", "// todo!() and #[ignore] in talk", &[]);
    }

    #[test]
    fn a_test_does_not_sleep() {
        breaks("tests/tests/a.rs", "thread::sleep(SECOND);", &[(1, "sleep")]);
        breaks("src/a.rs", "sleep(x);\n#[cfg(test)]\nmod tests { sleep(x); }", &[(3, "sleep")]);
        let paused = "#[cfg(test)]\nmod tests {\n#[tokio::test(start_paused = true)]\n sleep(x) }";
        breaks("src/a.rs", paused, &[]);
        breaks("tests/src/bin/sleeper.rs", "thread::sleep(SECOND);", &[]);
    }

    #[test]
    fn a_file_fits_in_a_sitting() {
        let long = "x\n".repeat(501);
        assert_eq!(any("src/a.rs", &long), [(501, LENGTH)]);
        assert_eq!(any("src/a.rs", &"x\n".repeat(500)), []);
        assert_eq!(any("src/pprof.rs", &format!("// {GENERATED} by xtask\n{long}")), []);
        assert_eq!(any("Cargo.lock", &long), []);
    }

    #[test]
    fn no_path_of_a_machine() {
        let home = ["/ro", "ot/x"].concat();
        assert_eq!(any("README.md", &format!("run {home}")), [(1, MACHINE)]);
        assert_eq!(any("a.sh", "a\ncd /build/here/b"), [(2, MACHINE)]);
        let pinned = ["a==1\nb @ fi", "le:///tmp/b.whl"].concat();
        assert_eq!(any("requirements.txt", &pinned), [(2, MACHINE)]);
        assert_eq!(any("a.rs", &format!("open(\"/proc/{{pid}}{home}\")")), []);
        assert_eq!(any("a.rs", &format!("open(\"/proc/<pid>{home}\")")), []);
    }
}
