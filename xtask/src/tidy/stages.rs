//! The order of the stages, and which of them are pure.

use super::Violation;
use super::text::{Source, find_word};

const USER: &str = "profiler-user/src";

/// The pipeline from left to right. Whatever is not here (the command line, what wires the stages)
/// stands to the right of all of them.
const ORDER: [&str; 21] = [
    "file",
    "yaml",
    "stats",
    "metric",
    "decode",
    "privilege",
    "clock",
    "container",
    "pods",
    "engine",
    "process",
    "unwind",
    "capture",
    "attribute",
    "aggregate",
    "symbolize",
    "encode",
    "export",
    "report",
    "relabel",
    "serve",
];

const PURE: [&str; 7] =
    ["decode", "container", "attribute", "aggregate", "encode", "relabel", "unwind"];

/// What reaches out of a program.
const WORLD: [&str; 10] = [
    "std::fs",
    "std::net",
    "std::os::unix::net",
    "tokio::",
    "rustix::",
    "libc::",
    "Instant",
    "SystemTime",
    "tracing",
    "File::open",
];

const LEFT: &str = "a stage imports only from stages to its left";
const BACK: &str =
    "in capture, only control takes facts from process and unwind: the one arrow back";
const NO_WORLD: &str = "decode, container, attribute, aggregate, encode, relabel and unwind touch no file, clock, socket or log";

pub(super) fn check(source: &Source) -> Vec<Violation> {
    let Some(path) = source.below(USER) else { return Vec::new() };
    let modules: Vec<String> = path
        .components()
        .map(|part| part.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned())
        .filter(|name| name != "mod")
        .collect();
    let Some(stage) = modules.first().map(String::as_str) else { return Vec::new() };
    let mut violations = Vec::new();
    let mut report = |line, found: &str, invariant| {
        let found = found.to_owned();
        violations.push(Violation { path: source.path.clone(), line, found, invariant });
    };

    if let Some(rank) = rank(stage) {
        let in_control = stage == "capture" && modules.get(1).is_some_and(|name| name == "control");
        for (line, module) in imports(source, modules.len()) {
            if rank < self::rank(&module).unwrap_or(ORDER.len()) {
                report(line, &format!("{stage} imports {module}"), LEFT);
            }
            if stage == "capture" && !in_control && ["process", "unwind"].contains(&&*module) {
                report(line, &format!("capture imports {module}"), BACK);
            }
        }
    }
    if PURE.contains(&stage) {
        for (line, code) in source.product() {
            for word in WORLD {
                let name = word.trim_end_matches(':');
                let found = find_word(code, name).is_some_and(|at| code[at..].starts_with(word));
                if found {
                    report(line, &format!("{stage} mentions {name}"), NO_WORLD);
                }
            }
        }
    }
    violations
}

fn rank(module: &str) -> Option<usize> {
    ORDER.iter().position(|stage| *stage == module)
}

/// The modules at the root of the crate that the file names outside of its tests: by `crate::`,
/// or by as many `super::` as the file is deep.
fn imports(source: &Source, depth: usize) -> Vec<(usize, String)> {
    let to_root = "super::".repeat(depth);
    let mut found = Vec::new();
    let lines: Vec<&str> = source.product().map(|(_, code)| code).collect();
    for (index, code) in lines.iter().enumerate() {
        for prefix in ["crate::", to_root.as_str()] {
            for (at, _) in code.match_indices(prefix) {
                let part_of_path =
                    |c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '$';
                if code[..at].ends_with(part_of_path) {
                    continue;
                }
                // A list in braces may go on for lines.
                let mut text = code[at + prefix.len()..].to_owned();
                for line in lines.iter().skip(index + 1) {
                    if !text.starts_with('{') || balanced(&text) {
                        break;
                    }
                    text.push(' ');
                    text.push_str(line);
                }
                found.extend(roots(&text).into_iter().map(|module| (index + 1, module)));
            }
        }
    }
    found
}

fn balanced(text: &str) -> bool {
    text.matches('{').count() == text.matches('}').count()
}

/// The first names of what follows `crate::`: of `a::B` it is `a`, of `{a::{B, C}, d}` `a` and `d`.
fn roots(text: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(list) = text.strip_prefix('{') else { return vec![name(text)] };
    let mut depth = 0_usize;
    let mut names = Vec::new();
    let mut item = String::new();
    for c in list.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => names.push(name(std::mem::take(&mut item).trim())),
            _ => {
                depth = match c {
                    '{' => depth + 1,
                    '}' => depth - 1,
                    _ => depth,
                };
                item.push(c);
            }
        }
    }
    names.push(name(item.trim()));
    names.retain(|name| !name.is_empty());
    names
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn found(path: &str, text: &str) -> Vec<(usize, String)> {
        let source = Source::new(&Path::new(USER).join(path), text);
        check(&source).into_iter().map(|violation| (violation.line, violation.found)).collect()
    }

    #[track_caller]
    fn breaks(path: &str, text: &str, expected: &[(usize, &str)]) {
        let expected: Vec<_> =
            expected.iter().map(|(line, text)| (*line, (*text).into())).collect();
        assert_eq!(found(path, text), expected);
    }

    #[test]
    fn a_stage_does_not_look_right() {
        breaks("decode.rs", "\nuse crate::export::Push;", &[(2, "decode imports export")]);
        breaks("encode/table.rs", "use crate::config::X;", &[(1, "encode imports config")]);
        breaks("attribute.rs", "fn f(x: crate::report::R) {}", &[(1, "attribute imports report")]);
        breaks("decode.rs", "use super::process::Pid;", &[(1, "decode imports process")]);
        breaks("process/mod.rs", "use super::export::X;", &[(1, "process imports export")]);
        breaks("process/elf.rs", "use super::super::export::X;", &[(1, "process imports export")]);
    }

    #[test]
    fn a_list_in_braces_is_looked_into() {
        let text = "use crate::{\n    decode::{Sample, Stack},\n    export,\n};\n";
        breaks("aggregate.rs", text, &[(1, "aggregate imports export")]);
        assert_eq!(roots("{a::{B, C}, d, e::F}; g"), ["a", "d", "e"]);
    }

    #[test]
    fn a_stage_may_look_left_and_at_itself() {
        breaks("encode/mod.rs", "use crate::aggregate::Window;\nuse crate::encode::table::T;", &[]);
        breaks("pipeline.rs", "use crate::{config::Config, export::Export};", &[]);
        breaks("process/mod.rs", "use super::decode::Sample;", &[]);
        breaks("process/elf.rs", "use super::export_table::X;", &[]);
        let tests = "#[cfg(test)]\nmod tests {\n use crate::export::X;\n}";
        breaks("decode.rs", tests, &[]);
    }

    #[test]
    fn only_control_takes_facts_back() {
        let text = "use crate::process::Pid;";
        breaks("capture/control.rs", text, &[]);
        breaks("capture/control/maps.rs", text, &[]);
        breaks("capture/rings.rs", text, &[(1, "capture imports process")]);
    }

    #[test]
    fn a_pure_stage_has_no_world() {
        breaks("decode.rs", "use std::fs;", &[(1, "decode mentions std::fs")]);
        breaks("aggregate.rs", "let t = Instant::now();", &[(1, "aggregate mentions Instant")]);
        breaks("encode/mod.rs", "tracing::warn!(x);", &[(1, "encode mentions tracing")]);
        breaks("unwind/rows.rs", "tokio::spawn(x)", &[(1, "unwind mentions tokio")]);
        breaks("export/mod.rs", "use std::fs;", &[]);
        breaks("decode.rs", "//! No std::fs here.\nfn instant_ns() {}", &[]);
    }
}
