//! Programs of other languages, and threads.

use std::path::Path;

use profiler_common::unwind::MAPPING_TABLE;
use spanprof_tests::require;
use spanprof_tests::workload::{FLAGS, Program};

use crate::profile::{NO_FRAME_POINTERS, Profile, Walk, profile_while};
use crate::stack::{glibc, is_on, within};

/// A thread begins in a function of its own, and the library says where its stack ends.
#[test]
fn threads() {
    require!(Root);
    let spanprof = require!(Spanprof);
    const THREADS: usize = 3;
    let chain = ["leaf", "second", "first", "work"];
    for flags in [&["-pthread"][..], &["-pthread", "-static"]] {
        let program = Program::compile_with("threads", &[&[NO_FRAME_POINTERS], flags].concat());
        let count = THREADS.to_string();
        let program = program.unwrap();
        let profile = profile_while(&program, &[&count, "0"], spanprof.clone(), &[]);
        let library = |name: &str, functions: &[&str]| {
            functions.contains(&name) || (name.starts_with("libc.so.6+0x") && flags.len() == 1)
        };
        let is_worker = |walk: &Walk| {
            let user = walk.user();
            let [stack @ .., start, clone] = &user[..] else { return false };
            walk.is_by_rule()
                && is_on(stack, &chain, &[])
                && library(start, &["start_thread"])
                && library(clone, &["clone3", "__clone3"])
        };
        profile.all(|walk| {
            // The first thread polls its stdin.
            is_worker(walk) || walk.user.iter().any(|name| name == "main") && walk.is_by_rule()
        });
        profile.least(95, |walk| walk.user().starts_with(&chain) && is_worker(walk));
        let mut threads: Vec<u32> = profile.walks.iter().map(|walk| walk.tid).collect();
        threads.sort_unstable();
        threads.dedup();
        assert!(threads.len() >= THREADS, "{threads:?}");
    }
}

/// Most of the time is spent unwinding: in the libraries of the compiler.
///
#[test]
fn exceptions_of_cpp() {
    require!(Root);
    let spanprof = require!(Spanprof);
    let flags = [&FLAGS[..], &[NO_FRAME_POINTERS]].concat();
    let program = Program::compile_by(Path::new("c++"), "exceptions.cpp", &flags).unwrap();
    let profile = profile_while(&program, &["throw", "0"], spanprof, &[]);
    let chain = [
        &["throws(long)", "third(long)"][..],
        &["second(long)"; 40],
        &["first(long)", "catches(long)", "main"],
    ]
    .concat();
    // What is rarely run is apart, as a function of its own.
    let whole = |name: &str| name.strip_suffix(" [clone .cold]").unwrap_or(name).to_owned();
    check_unwinding(&profile, |walk| {
        within(walk, "main", glibc).is_some_and(|stack| {
            let stack: Vec<String> = stack.into_iter().map(whole).collect();
            let stack: Vec<&str> = stack.iter().map(String::as_str).collect();
            is_on(&stack, &chain, &chain)
        })
    });
}

/// Most samples are in the unwinder, and their stacks are right.
///
/// When it has found where to go on, it writes the registers of that place over those that it saved
/// in its own frame: a few instructions on, up to its jump, its frame's description leads to where
/// the program goes, not to where it came from. No rule knows that. How many of these there are
/// depends on the processor: 0.6 to 2.5 % were seen.
#[track_caller]
fn check_unwinding(profile: &Profile, is_right: impl Fn(&Walk) -> bool) {
    let is_unwinder =
        |name: &String| name.starts_with("_Unwind_R") || name.starts_with("libgcc_s.so.1+0x");
    let jumps = |walk: &Walk| {
        let inner = walk.user.iter().take_while(|name| is_unwinder(name)).count();
        let outer = inner.checked_sub(1).and_then(|outer| walk.user.get(outer));
        inner <= 2 && outer.is_some_and(|name| name.starts_with("_Unwind_R"))
    };
    let jumping = profile.count(|walk| !is_right(walk) && jumps(walk));
    assert!(jumping * 100 <= 5 * profile.walks.len(), "{jumping} of {}", profile.walks.len());
    profile.all(|walk| is_right(walk) || jumps(walk));
    profile.least(50, |walk| walk.user.iter().any(is_unwinder));
}

/// A program in Rust, which `std` calls in a way of its own.
fn rust(mode: &str, flags: &[&str]) -> Option<Profile> {
    require!(Root, None);
    let spanprof = require!(Spanprof, None);
    let flags = [&["--edition=2024", "-O"], flags].concat();
    let program = Program::compile_by(Path::new("rustc"), "unwind.rs", &flags).unwrap();
    Some(profile_while(&program, &[mode], spanprof, &["--no-inline"]))
}

const RUST: [&str; 5] =
    ["unwind::leaf", "unwind::third", "unwind::second", "unwind::first", "unwind::main"];

/// The functions up to the program's `main`, if `std` is outside of it and C's `main` outside of
/// that, and what is there.
fn in_std(walk: &Walk) -> Option<(Vec<&str>, Vec<&str>)> {
    let mut stack = walk.user();
    let main = stack.iter().rposition(|name| *name == "unwind::main")?;
    let mut std = stack.split_off(main + 1);
    let c_main = std.iter().position(|name| *name == "main")?;
    let outside = std.split_off(c_main + 1);
    let is_std = |name: &&str| ["std::", "core::", "<"].iter().any(|it| name.starts_with(it));
    let (_main, std) = std.split_last()?;
    (std.iter().all(is_std) && std.contains(&"std::rt::lang_start_internal"))
        .then_some((stack, outside))
}

#[track_caller]
fn check_rust(mode: &str, flags: &[&str], is_right: impl Fn(&Walk, &[&str], &[&str]) -> bool) {
    let Some(profile) = rust(mode, flags) else { return };
    let is_right =
        |walk: &Walk| in_std(walk).is_some_and(|(stack, outside)| is_right(walk, &stack, &outside));
    if mode == "panic" {
        return check_unwinding(&profile, is_right);
    }
    profile.all(is_right);
    profile.least(90, |walk| walk.user().starts_with(&RUST));
}

/// The compiler describes no frame of C's `main`, which it makes: there a stack ends, and says so.
#[test]
fn rust_that_aborts() {
    check_rust("chain", &["-Cpanic=abort"], |walk, stack, outside| {
        !walk.complete && outside == ["[no unwind information]"] && is_on(stack, &RUST, &RUST[1..])
    });
}

/// The compiler does describe frames where there is debug information.
#[test]
fn rust_without_unwind_tables_but_with_debug_information() {
    let flags = ["-Cpanic=abort", "-Cforce-unwind-tables=no", "-g"];
    check_rust("chain", &flags, |walk, stack, outside| {
        walk.is_by_rule() && glibc(outside) && is_on(stack, &RUST, &RUST[1..])
    });
}

/// `std` is described, the program is not.
#[test]
fn rust_without_unwind_tables_but_with_frame_pointers() {
    let flags = ["-Cpanic=abort", "-Cforce-unwind-tables=no", "-Cforce-frame-pointers=yes"];
    check_rust("chain", &flags, |walk, stack, outside| {
        let by_both = walk.by_frame_pointer == 1 << MAPPING_TABLE;
        walk.complete && by_both && glibc(outside) && is_on(stack, &RUST, &RUST[1..])
    });
}

#[test]
fn rust_that_panics_and_catches() {
    let chain = [&["unwind::panics"; 9][..], &["unwind::catches", "unwind::main"]].concat();
    check_rust("panic", &[], |walk, stack, outside| {
        let ours = stack.iter().filter(|name| name.starts_with("unwind::"));
        let ours: Vec<_> = ours.copied().collect();
        walk.is_by_rule() && glibc(outside) && chain.ends_with(&ours)
    });
}

/// Its own frame pointers, its own stacks.
#[test]
fn go() {
    require!(Root);
    let (spanprof, go) = (require!(Spanprof), require!(GoToolchain));
    let program = Program::compile_by(&go, "unwind.go", &["build"]).unwrap();
    let profile = profile_while(&program, &[], spanprof, &[]);
    let chain = ["main.leaf", "main.third", "main.second", "main.first", "main.work"];
    profile.all(|walk| walk.complete);
    // The rest is the runtime's own work.
    profile.least(95, |walk| {
        let user = walk.user();
        let rest = user.strip_prefix(&chain[..]).unwrap_or_default();
        walk.complete
            && (rest == ["main.main", "runtime.main", "runtime.goexit"]
                || rest == ["main.main.func2", "runtime.goexit"])
    });
}
