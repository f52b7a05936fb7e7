//! Which crates may be mentioned where.

use std::path::Path;

use super::Violation;
use super::text::{Source, find_word};

/// A name that only some places may mention, below `profiler-user/src`.
struct Rule {
    names: &'static [&'static str],
    /// Folders, or files without `.rs`.
    places: &'static [&'static str],
    invariant: &'static str,
}

const RULES: [Rule; 6] = [
    Rule {
        names: &["aya", "aya_log", "aya_obj"],
        places: &["capture"],
        invariant: "only capture mentions aya",
    },
    Rule {
        names: &["prost"],
        places: &["encode", "export", "process/process_context", "process/context_proto"],
        invariant: "only encode, export and the process-context reader mention prost",
    },
    Rule {
        names: &["blazesym"],
        places: &["symbolize/worker"],
        invariant: "only the symbolizing worker mentions blazesym",
    },
    Rule {
        names: &["reqwest", "opentelemetry_otlp", "TcpStream::connect", "TcpSocket", "UdpSocket"],
        places: &["export"],
        invariant: "only export opens client sockets",
    },
    Rule {
        names: &["kube", "k8s_openapi"],
        places: &["pods"],
        invariant: "only pods asks the API server",
    },
    Rule {
        names: &["openat2"],
        places: &["process/open_in_container"],
        invariant: "paths that a process has a say in are opened by open_in_container",
    },
];

const AYA_CRATES: [&str; 5] = ["", "profiler-common", "profiler-ebpf", "profiler-user", "xtask"];
const AYA_MANIFEST: &str =
    "only the two sides of the kernel boundary, and the bench, depend on aya";

pub(super) fn check(source: &Source) -> Vec<Violation> {
    let Some(path) = source.below("profiler-user/src") else { return Vec::new() };
    let path = path.with_extension("");
    let mut violations = Vec::new();
    for rule in &RULES {
        if rule.places.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        // Tests may serve what the product only connects to; they have no other exception.
        for (line, code) in source.product() {
            if let Some(name) = rule.names.iter().find(|name| mentions(code, name)) {
                violations.push(Violation {
                    path: source.path.clone(),
                    line,
                    found: (*name).to_owned(),
                    invariant: rule.invariant,
                });
            }
        }
    }
    violations
}

/// As the start of a path, as an attribute or in a `use`: a field may have the same name.
fn mentions(code: &str, name: &str) -> bool {
    let Some(at) = find_word(code, name) else { return false };
    let after = &code[at + name.len()..];
    after.starts_with("::")
        || after.starts_with('(')
        || name.contains(char::is_uppercase)
        || code.trim_start().starts_with("use ")
}

/// A dependency table names a crate at the start of a line.
pub(super) fn check_manifest(path: &Path, text: &str) -> Vec<Violation> {
    let folder = path.parent().unwrap_or(Path::new(""));
    if AYA_CRATES.iter().any(|allowed| folder == Path::new(allowed)) {
        return Vec::new();
    }
    let aya = |line: &str| {
        line.split(['=', '.'])
            .next()
            .is_some_and(|name| name.trim() == "aya" || name.trim().starts_with("aya-"))
    };
    text.lines()
        .enumerate()
        .filter(|(_, line)| aya(line))
        .map(|(index, line)| Violation {
            path: path.to_owned(),
            line: index + 1,
            found: line.to_owned(),
            invariant: AYA_MANIFEST,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn breaks(path: &str, text: &str, expected: &[&str]) {
        let source = Source::new(&Path::new("profiler-user/src").join(path), text);
        let found: Vec<_> = check(&source).into_iter().map(|violation| violation.found).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_crate_is_mentioned_in_its_own_place_only() {
        breaks("decode.rs", "use aya::maps::RingBuf;", &["aya"]);
        breaks("capture/rings.rs", "use aya::maps::RingBuf;", &[]);
        breaks("report/mod.rs", "#[derive(prost::Message)]", &["prost"]);
        breaks("process/process_context.rs", "use prost::Message as _;", &[]);
        breaks("symbolize/mod.rs", "fn f(s: blazesym::Addr) {}", &["blazesym"]);
        breaks("symbolize/worker.rs", "use blazesym::symbolize;", &[]);
        breaks("symbolize/worker/serve.rs", "use blazesym::symbolize;", &[]);
        breaks("symbolize/workers.rs", "use blazesym::symbolize;", &["blazesym"]);
        breaks("process/pods.rs", "TcpStream::connect(address)", &["TcpStream::connect"]);
        breaks("export/http.rs", "use reqwest::Client;", &[]);
        breaks("process/perf_map.rs", "let file = openat2(root, path)?;", &["openat2"]);
    }

    #[test]
    fn talk_is_no_mention() {
        breaks("decode.rs", "//! aya:: is for capture", &[]);
        breaks("decode.rs", "let aya = 1;", &[]);
        breaks("decode.rs", "f(\"prost::Message\")", &[]);
    }

    #[test]
    fn a_manifest_depends_on_aya_or_not() {
        let text = "[dependencies]\naya = { workspace = true }\nayatana = \"1\"\n";
        assert_eq!(check_manifest(Path::new("span-marker/Cargo.toml"), text).len(), 1);
        assert_eq!(check_manifest(Path::new("profiler-user/Cargo.toml"), text), []);
        assert_eq!(check_manifest(Path::new("Cargo.toml"), text), []);
    }
}
