//! Frames of all kinds, and stacks of all depths.

use std::fs;
use std::ops::Range;
use std::path::Path;

use object::{Object as _, ObjectSection as _};
use spanprof_tests::require;
use spanprof_tests::workload::Program;

use crate::profile::{NO_FRAME_POINTERS, Walk, profile_of, profile_while};
use crate::stack::{glibc, is_on, within};

#[track_caller]
fn check_recursion(depth: usize) {
    let Some(profile) = profile_of(&format!("recurse-{depth}"), &[], &[]) else { return };
    let whole = [&["leaf"][..], &vec!["recurse"; depth], &["main"]].concat();
    let is_right = |walk: &Walk| {
        within(walk, "main", glibc).is_some_and(|stack| is_on(&stack, &whole, &["main"]))
    };
    profile.all(is_right);
    profile.least(95, |walk| walk.user().starts_with(&whole));
}

#[test]
fn a_recursion_of_20() {
    check_recursion(20);
}

/// With the leaf, `main` and three frames above it, as many as fit.
#[test]
fn a_recursion_that_just_fits() {
    check_recursion(123);
}

#[test]
fn a_recursion_that_does_not_fit_is_cut_and_says_so() {
    for depth in [127, 128, 500] {
        let Some(profile) = profile_of(&format!("recurse-{depth}"), &[], &[]) else { return };
        let deepest = [&["leaf"][..], &["recurse"; 127], &["[more frames]"]].concat();
        // On the way to the leaf and back.
        let deep = [&["recurse"; 128][..], &["[more frames]"]].concat();
        let whole = [&["leaf"][..], &vec!["recurse"; depth], &["main"]].concat();
        profile.all(|walk| {
            if walk.truncated {
                let user = walk.user();
                return walk.by_frame_pointer == 0 && (user == deepest || user == deep);
            }
            within(walk, "main", glibc).is_some_and(|stack| is_on(&stack, &whole, &["main"]))
        });
        profile.least(95, |walk| walk.user() == deepest);
    }
}

/// A chain, on top of whose first function may be others.
#[track_caller]
fn check(mode: &str, chain: &[&str], first_calls: bool) {
    let Some(profile) = profile_of(mode, &[], &[]) else { return };
    let callers = if first_calls { &[chain[0], "main"][..] } else { &["main"] };
    profile
        .all(|walk| within(walk, "main", glibc).is_some_and(|stack| is_on(&stack, chain, callers)));
    profile.least(95, |walk| walk.user().windows(chain.len()).any(|part| part == chain));
}

#[test]
fn a_frame_of_unknown_size() {
    check("alloca", &["leaf", "with_alloca", "main"], false);
}

#[test]
fn a_frame_whose_caller_is_in_memory() {
    check("expression", &["leaf", "aligned_frame", "main"], false);
}

#[test]
fn a_leaf_whose_caller_is_in_a_register() {
    check("register", &["in_register", "main"], false);
}

#[test]
fn a_system_call() {
    check("read", &["in_kernel", "main"], true);
}

#[test]
fn the_kernels_own_library() {
    check("vdso", &["in_vdso", "main"], true);
}

/// Where stubs are in a file.
fn stubs(program: &Path) -> Vec<Range<u64>> {
    let bytes = fs::read(program).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let stubs = file.sections().filter(|section| section.name().unwrap().starts_with(".plt"));
    let ranges = stubs.map(|section| section.file_range().unwrap());
    ranges.map(|(offset, size)| offset..offset + size).collect()
}

/// How often the linkage table is profiled at most, until a stub itself is seen.
const PLT_PROFILES: usize = 5;

/// Through stubs, and through the dynamic linker the first time.
#[test]
fn the_procedure_linkage_table() {
    require!(Root);
    let spanprof = require!(Spanprof);
    let flags = [NO_FRAME_POINTERS, "-Wl,-z,lazy", "-fno-builtin"];
    let program = Program::compile_with("unwind", &flags).unwrap();
    let chain = ["through_plt", "main"];
    let stubs = stubs(program.path());
    let is_stub = |place: u64| stubs.iter().any(|stubs| stubs.contains(&place));
    // Of more than a thousand samples, few are in the one instruction of a stub; how few depends on the
    // processor.
    let mut in_stub = (0..PLT_PROFILES).map(|_| {
        let profile = profile_while(&program, &["plt", "0"], spanprof.clone(), &[]);
        profile.all(|walk| {
            within(walk, "main", glibc).is_some_and(|stack| is_on(&stack, &chain, &chain))
        });
        // Most of the time is in the table and behind it.
        profile.least(33, |walk| matches!(walk.user()[..], [_, "through_plt", "main", ..]));
        // A stub has no name of its own.
        let is_in = |walk: &Walk| {
            walk.leaf.is_some_and(is_stub) && walk.user.get(1).is_some_and(|name| *name == chain[0])
        };
        profile.count(is_in)
    });
    assert!(in_stub.any(|samples| samples > 0), "{stubs:x?}");
}

/// A task that exits has given its memory back before it is gone: there is no stack any more.
#[test]
fn a_child_that_borrows_its_parents_memory() {
    let Some(profile) = profile_of("vfork", &[], &[]) else { return };
    let is_gone = |walk: &Walk| walk.kernel.iter().any(|name| name == "do_exit");
    let chain = ["leaf", "forks", "main"];
    profile.all(|walk| {
        is_gone(walk)
            || within(walk, "main", glibc)
                .is_some_and(|stack| is_on(&stack, &chain, &["forks", "main"]))
    });
    profile.least(75, |walk| walk.user().starts_with(&chain));
}

#[test]
fn a_signal_handler_on_its_own_stack() {
    let Some(profile) = profile_of("signal", &[], &[]) else { return };
    let interrupted = ["interrupted", "main"];
    let handler = ["leaf", "on_signal"];
    profile.all(|walk| {
        let Some(stack) = within(walk, "main", glibc) else { return false };
        let Some(at) = stack.iter().position(|name| *name == "on_signal") else {
            // Raising it, and back.
            return !stack.contains(&"leaf") && is_on(&stack, &interrupted, &interrupted);
        };
        let (inner, outer) = stack.split_at(at + 1);
        // The return from the signal, and what raises one.
        let between = outer.strip_suffix(&interrupted).unwrap_or_default();
        handler.ends_with(inner)
            && (2..=5).contains(&between.len())
            && !between.iter().any(|name| handler.contains(name) || interrupted.contains(name))
    });
    profile.least(95, |walk| walk.user().starts_with(&handler));
}

/// The C library's own name for it is in no file that is stripped.
#[test]
fn where_a_signal_handler_returns_to() {
    let Some(profile) = profile_of("signal", &["-static"], &[]) else { return };
    profile.least(95, |walk| walk.user().starts_with(&["leaf", "on_signal", "__restore_rt"]));
}
