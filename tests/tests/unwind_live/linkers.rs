//! The same calls, in programs that are linked in different ways.

use std::process::Command;

use spanprof_tests::require;
use spanprof_tests::workload::{FLAGS, Program};

use crate::profile::{NO_FRAME_POINTERS, Profile, profile_of, profile_while};
use crate::stack::{Outside, glibc, is_on, static_glibc, within};

const CHAIN: [&str; 5] = ["leaf", "third", "second", "first", "main"];

#[track_caller]
pub(crate) fn check_profile(profile: &Profile, outside: Outside) {
    // Between the calls, `main` polls its stdin.
    profile.all(|walk| {
        within(walk, "main", outside).is_some_and(|stack| is_on(&stack, &CHAIN, &["main"]))
    });
    profile.least(95, |walk| walk.user.starts_with(&CHAIN.map(str::to_owned)));
}

#[track_caller]
fn check(flags: &[&str], more: &[&str], outside: Outside) {
    let Some(profile) = profile_of("chain", flags, more) else { return };
    check_profile(&profile, outside);
}

#[test]
fn position_independent() {
    check(&["-fPIE", "-pie"], &[], glibc);
}

/// Where few processes are chosen, they do not wait for the tables of all others.
#[test]
fn one_process_of_all() {
    let Some(profile) = profile_of("chain", &[], &[]) else { return };
    assert_eq!(profile.processes, 1);
    check_profile(&profile, glibc);
}

#[test]
fn position_dependent() {
    check(&["-no-pie"], &[], glibc);
}

#[test]
fn static_position_independent() {
    check(&["-static-pie"], &[], static_glibc);
}

#[test]
fn static_position_dependent() {
    check(&["-static", "-no-pie"], &[], static_glibc);
}

/// As on a kernel before Linux 5.17.
#[test]
fn by_a_bounded_loop() {
    check(&[], &["--bpf-sampler", "bounded"], glibc);
}

#[test]
fn without_reuse_of_stacks() {
    check(&[], &["--stack-reuse", "off"], glibc);
}

/// Its segments' addresses are not their offsets in the file.
#[test]
fn linked_by_lld() {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().unwrap();
    let sysroot = String::from_utf8(sysroot.stdout).unwrap();
    let linkers = "lib/rustlib/x86_64-unknown-linux-gnu/bin/gcc-ld";
    let linkers = format!("-B{}/{linkers}", sysroot.trim());
    check(&["-fuse-ld=lld", &linkers], &[], glibc);
}

#[test]
fn linked_by_mold() {
    require!(Root);
    let mold = require!(Mold);
    let folder = format!("-B{}", mold.parent().unwrap().display());
    check(&["-fuse-ld=mold", &folder], &[], glibc);
}

/// Another C library: its functions have no unwind information, and its first one leaves a frame
/// pointer of zero.
#[test]
fn static_musl() {
    require!(Root);
    let (spanprof, musl) = (require!(Spanprof), require!(Musl));
    let flags = [&FLAGS[..], &[NO_FRAME_POINTERS, "-static"]].concat();
    let program = Program::compile_by(&musl, "unwind.c", &flags).unwrap();
    let profile = profile_while(&program, &["chain", "0"], spanprof, &[]);
    profile.all(|walk| {
        let user = walk.user();
        let main = user.iter().position(|name| *name == "main");
        let inside = main.map(|main| &user[..=main]).unwrap_or_default();
        is_on(inside, &CHAIN, &["main"])
    });
}
