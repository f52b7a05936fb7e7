//! What a stack may be.

use crate::profile::Walk;

/// How a C library calls a program's first function: what is outside of it, whether that is right.
pub(crate) type Outside = fn(&[&str]) -> bool;

/// The functions from the leaf up to `root`, if the rest is `outside` and the walk is complete.
pub(crate) fn within<'a>(walk: &'a Walk, root: &str, outside: Outside) -> Option<Vec<&'a str>> {
    let mut inside = walk.user();
    let root = inside.iter().rposition(|name| *name == root)?;
    let rest = inside.split_off(root + 1);
    (walk.is_by_rule() && outside(&rest)).then_some(inside)
}

/// `main` in a program of glibc. The library's own symbols are in another file, if anywhere.
pub(crate) fn glibc(outside: &[&str]) -> bool {
    let library =
        |name: &str, function: &str| name.starts_with(function) || name.starts_with("libc.so.6+0x");
    matches!(outside, [call, start, "_start"]
        if library(call, "__libc_start_call_main") && library(start, "__libc_start_main"))
}

/// The same in one that is linked statically: all symbols are there.
pub(crate) fn static_glibc(outside: &[&str]) -> bool {
    matches!(outside, ["__libc_start_call_main", start, "_start"]
        if start.starts_with("__libc_start_main"))
}

/// Whether a stack is the end of `chain`: as far as the program had come. On top of one of
/// `callers` may be what it calls that is not in the chain.
pub(crate) fn is_on(stack: &[&str], chain: &[&str], callers: &[&str]) -> bool {
    let pairs = stack.iter().rev().zip(chain.iter().rev());
    let common = pairs.take_while(|(found, known)| found == known).count();
    let (above, below) = stack.split_at(stack.len() - common);
    let Some(caller) = below.first() else { return false };
    above.is_empty() || (callers.contains(caller) && !above.iter().any(|name| chain.contains(name)))
}
