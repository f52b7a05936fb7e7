//! Programs that publish their spans by a library that is not ours: their samples have the span.

#![cfg(test)]
#![cfg(target_arch = "x86_64")]

use std::path::Path;

use spanprof_tests::export_matrix::{Build, Packages};
use spanprof_tests::require;
use spanprof_tests::spanprof::Spanprof;

const SPAN_ID: &str = "bbbbbbbbbbbbbbbb";

/// Records a command of one span, which is labelled with it.
#[track_caller]
fn check(spanprof: &Path, command: &[&str]) {
    let spanprof = Spanprof::new(spanprof.to_owned()).unwrap();
    let outputs =
        ["-F", "997", "--span-scope", "active", "-o", "stacks.folded", "-o", "spans.json", "--"];
    spanprof.record(&[&outputs, command].concat()).unwrap();
    let stacks = spanprof.folded("stacks.folded").unwrap();
    let (mut inside, mut labelled) = (0, 0);
    // It does next to nothing outside of the span; stripped, its functions have no names.
    for stack in &stacks {
        inside += stack.count;
        // It publishes no names.
        labelled += if stack.span == "(unnamed span)" { stack.count } else { 0 };
    }
    let spans = spanprof.span_table("spans.json").unwrap().spans;
    let ids: Vec<&str> = spans.iter().map(|span| &*span.span_id).collect();
    assert_eq!(ids, [SPAN_ID]);
    // The program is not known when it starts: it is looked at a few times after that.
    println!("{labelled} of {inside} samples have the span");
    assert!(labelled > 0 && labelled * 2 >= inside, "{labelled} of {inside}: {stacks:#?}");
}

/// As its users are told to link it, and as they are not.
#[test]
fn libdd_otel_thread_ctx() {
    require!(Root);
    let spanprof = require!(Spanprof);
    let members = ["other", "other_plugin", "host"];
    let packages = Packages::new(Path::new(env!("CARGO_TARGET_TMPDIR")), &members).unwrap();
    let build = Build { profile: "release", online: true, ..Build::default() };
    let export = "-Clink-arg=-Wl,--export-dynamic-symbol=otel_thread_ctx_v1";
    for arguments in [[].as_slice(), &[export, "-Cstrip=symbols"]] {
        let program = packages.build(&Build { package: "other", arguments, ..build }).unwrap();
        check(&spanprof, &[program.to_str().unwrap()]);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/export_matrix/export.map");
    let arguments = &[&*format!("-Clink-arg=-Wl,--version-script={}", script.display())];
    let library = packages.build(&Build { package: "other_plugin", arguments, ..build }).unwrap();
    let host = packages.build(&Build { package: "host", ..build }).unwrap();
    let [host, library] = [&host, &library].map(|path| path.to_str().unwrap());
    check(&spanprof, &[host, library, "work"]);
}
