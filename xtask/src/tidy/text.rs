//! Rust text with comments and literals blanked, so that a rule finds code and not talk.

use std::path::{Path, PathBuf};

/// A Rust file as the rules see it.
pub(super) struct Source {
    /// From the workspace's root.
    pub(super) path: PathBuf,
    /// The lines as written.
    pub(super) raw: Vec<String>,
    /// The same lines with comments and the insides of literals blanked.
    pub(super) code: Vec<String>,
    /// The first line (from 0) of the unit tests at the end of the file, or the number of lines.
    pub(super) tests_from: usize,
}

impl Source {
    pub(super) fn new(path: &Path, text: &str) -> Self {
        let code: Vec<String> = blanked(text).lines().map(str::to_owned).collect();
        let tests_from = if is_test_file(path) {
            0
        } else {
            code.iter().position(|line| line.trim() == "#[cfg(test)]").unwrap_or(code.len())
        };
        let raw = text.lines().map(str::to_owned).collect();
        Self { path: path.to_owned(), raw, code, tests_from }
    }

    /// The lines of code outside of tests, numbered from 1.
    pub(super) fn product(&self) -> impl Iterator<Item = (usize, &str)> {
        self.numbered().take(self.tests_from)
    }

    /// The lines of code in tests, numbered from 1.
    pub(super) fn tests(&self) -> impl Iterator<Item = (usize, &str)> {
        self.numbered().skip(self.tests_from)
    }

    /// All lines of code, numbered from 1.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.iter().enumerate().map(|(index, line)| (index + 1, line.as_str()))
    }

    /// The path below a folder, if the file is there.
    pub(super) fn below(&self, folder: &str) -> Option<&Path> {
        self.path.strip_prefix(folder).ok()
    }
}

/// Files that hold nothing but tests: `tests/*.rs` of any crate, and modules named `tests` or
/// `…_tests`.
fn is_test_file(path: &Path) -> bool {
    let in_tests = path.parent().and_then(Path::file_name).is_some_and(|name| name == "tests");
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    in_tests || stem == "tests" || stem.ends_with("_tests")
}

/// Whether `word` stands in `line` as a word of its own, and where.
pub(super) fn find_word(line: &str, word: &str) -> Option<usize> {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).map(|(at, _)| at).find(|&at| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(part_of_word) && !after.is_some_and(part_of_word)
    })
}

/// Replaces each character of comments, and of the insides of strings, by a space. Lines stay.
fn blanked(text: &str) -> String {
    let mut rest = text;
    let mut out = String::with_capacity(text.len());
    while let Some(first) = rest.chars().next() {
        let in_word = out.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let (keep, blank) = token(rest, first, in_word);
        out.push_str(&rest[..keep]);
        for c in rest[keep..keep + blank].chars() {
            out.push(if c == '\n' { '\n' } else { ' ' });
        }
        rest = &rest[keep + blank..];
    }
    out
}

/// The bytes of what is next: how many to keep, then how many to blank.
fn token(rest: &str, first: char, in_word: bool) -> (usize, usize) {
    if rest.starts_with("//") {
        return (0, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (0, block_comment(rest));
    }
    if !in_word && let Some(length) = raw_string(rest) {
        return (0, length);
    }
    if first == '"' {
        return (1, string_inside(&rest[1..]));
    }
    if first == '\''
        && let Some(length) = char_literal(rest)
    {
        return (0, length);
    }
    (first.len_utf8(), 0)
}

/// A block comment may hold others.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// The length of `r"…"`, `r#"…"#`, `br#"…"#` and so on.
fn raw_string(rest: &str) -> Option<usize> {
    let after_r = ["r", "br", "cr"].iter().find_map(|prefix| rest.strip_prefix(prefix))?;
    let hashes = after_r.len() - after_r.trim_start_matches('#').len();
    let inside = after_r[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = inside.find(&end).map_or(inside.len(), |at| at + end.len());
    Some(rest.len() - inside.len() + length)
}

/// Up to and with the closing quote.
fn string_inside(inside: &str) -> usize {
    let mut escaped = false;
    for (at, c) in inside.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    inside.len()
}

/// `'x'` or `'\n'`, and not a lifetime.
fn char_literal(rest: &str) -> Option<usize> {
    let mut chars = rest.char_indices().skip(1);
    let (_, first) = chars.next()?;
    if first == '\\' {
        chars.next()?;
        return chars.find(|(_, c)| *c == '\'').map(|(at, _)| at + 1);
    }
    let (at, second) = chars.next()?;
    (second == '\'').then_some(at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, gone: &[&str], stays: &[&str]) {
        let code = blanked(text);
        assert_eq!(code.lines().count(), text.lines().count(), "{code}");
        for word in gone {
            assert!(!code.contains(word), "{word} in {code}");
        }
        for word in stays {
            assert!(code.contains(word), "no {word} in {code}");
        }
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        check("a(); // gone\nb();", &["gone"], &["a();", "b();"]);
        check("/* gone /* gone */ gone */ stays", &["gone"], &["stays"]);
        check(r#"f("gone \" gone", stays)"#, &["gone"], &["stays"]);
        check("r#\"gone \" gone\"# stays", &["gone"], &["stays"]);
        check("\"gone\ngone\" stays", &["gone"], &["stays"]);
    }

    #[test]
    fn a_quote_may_be_a_character_or_a_lifetime() {
        check("'\"' stays \"gone\"", &["gone"], &["stays"]);
        check(r"'\'' stays", &[], &["stays"]);
        check("fn f<'a>(x: &'a str) { \"gone\" }", &["gone"], &["'a str"]);
    }

    #[test]
    fn a_word_is_not_a_part_of_another() {
        assert_eq!(find_word("use aya_log::x; use aya::y;", "aya"), Some(20));
        assert_eq!(find_word("playa", "aya"), None);
    }

    #[test]
    fn unit_tests_begin_at_their_attribute() {
        let text = "fn a() {}\n// #[cfg(test)]\n#[cfg(test)]\nmod tests {}\n";
        assert_eq!(Source::new(Path::new("src/a.rs"), text).tests_from, 2);
        assert_eq!(Source::new(Path::new("tests/tests/spans.rs"), text).tests_from, 0);
        assert_eq!(Source::new(Path::new("src/decode/tests.rs"), text).tests_from, 0);
        assert_eq!(Source::new(Path::new("src/process/elf_tests.rs"), text).tests_from, 0);
    }
}
