//! Go programs: their compiler keeps frame pointers, and describes unwinding only for debuggers and
//! for their own runtime; the runtime starts each goroutine with a frame that returns into
//! `runtime.goexit`, and goes from stack to stack.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use profiler_common::unwind::{
    CFA_FRAME_POINTER, CFA_OTHER_STACK, CFA_SIGNAL, CFA_SP, Rule, SAVED_RA, SAVED_RA_FP,
};

use super::BuildError;
use super::build::{Range, replace};
use super::elf::{Elf, Machine};
use super::go_table::{Depth, Function, LineTable};

/// Of all functions together; large programs (Kubernetes) have some 600,000.
const ROWS_MAX: usize = 4 << 20;
/// Each name that is looked for is there once or twice.
const NAMED_MAX: usize = 64;

/// What no caller is above: where the program, the stacks of goroutines and of the runtime's threads
/// begin, and where the runtime goes over to a thread's own stack for good: the goroutine that it
/// leaves may be another thread's at once (`mcall` to schedule, `morestack` to grow a stack). These
/// clear the frame pointer.
const OUTERMOST: [&str; 8] = [
    "runtime.goexit",
    "runtime.mstart",
    "runtime.rt0_go",
    "runtime.mcall",
    "runtime.morestack",
    "_rt0_amd64_linux",
    "_rt0_amd64",
    "_rt0_arm64_linux",
];
/// What calls on the thread's own stack, or on one that it aligned, and returns to the one before.
/// Their frame pointer stays where it was, "which is useful for stack unwinding"
/// (`runtime/asm_amd64.s`); no offset from the stack pointer leads there.
const TWO_STACKS: [&str; 10] = [
    "runtime.systemstack",
    "runtime.asmcgocall",
    "runtime.asmcgocall_no_g",
    "runtime.nanotime1",
    "runtime.walltime",
    "time.now",
    "runtime.vgetrandom1",
    "runtime.sigfwd",
    "runtime.callCgoMmap",
    "runtime.callCgoSigaction",
];
/// Where handlers of signals return to.
const SIGNAL_RETURNS: [&str; 2] = ["runtime.sigreturn__sigaction", "runtime.sigreturn"];
/// The rule of Go text that nothing else is known of.
const FRAME_POINTER: Rule = Rule::plain(CFA_FRAME_POINTER);
const RETURN_ADDRESS_LEN: i32 = 8;
/// `push rbp; mov rbp, rsp`: from behind it on, the frame pointer is the function's own.
const PROLOGUE_LEN: u64 = 4;
/// Return address and frame pointer: what a frame of [`TWO_STACKS`] has at least.
const FRAME_LEN: i32 = 16;
/// What the linker appends to the names of functions in assembly.
const ASSEMBLY: &[u8] = b".abi0";

/// Rules for the Go text in gaps, which is all of it in a program without `.debug_frame`: by the
/// stack's depth as the runtime knows it, and by frame pointer where it does not.
pub(super) fn ranges(elf: &Elf<'_>, table: Option<&LineTable>, gaps: &[(u64, u64)]) -> Vec<Range> {
    let by_frame_pointer = gaps.iter().map(|(begin, end)| (*begin, *end, FRAME_POINTER));
    let mut ranges: Vec<Range> = by_frame_pointer.collect();
    let Some(table) = table.filter(|_| elf.machine == Machine::X86_64) else { return ranges };
    let mut gaps = gaps.iter().copied().peekable();
    for function in table.functions() {
        while gaps.next_if(|(_, end)| *end <= function.begin).is_some() {}
        let Some((begin, end)) = gaps.peek().copied() else { break };
        // One that is not in a gap is described.
        if function.begin < begin || function.end > end {
            continue;
        }
        for Depth { begin, end, bytes } in table.depths(function) {
            if ranges.len() >= ROWS_MAX {
                return ranges;
            }
            ranges.push((begin, end, by_depth(bytes)));
        }
    }
    ranges
}

fn by_depth(bytes: i32) -> Rule {
    match bytes.checked_add(RETURN_ADDRESS_LEN) {
        Some(cfa_offset) if bytes >= 0 => {
            with_frame_pointer(Rule { cfa: CFA_SP, saved: SAVED_RA, saved_offset: 0, cfa_offset })
        }
        _ => FRAME_POINTER,
    }
}

/// Corrects what `.debug_frame` says of Go text: it is silent on where the frame pointer is saved.
pub(super) fn add_frame_pointers(elf: &Elf<'_>, rows: &mut [(u64, Rule)]) {
    if elf.machine == Machine::X86_64 {
        rows.iter_mut().for_each(|(_, rule)| *rule = with_frame_pointer(*rule));
    }
}

/// A function saves the frame pointer first thing, below the return address.
fn with_frame_pointer(rule: Rule) -> Rule {
    match rule {
        Rule { cfa: CFA_SP, saved: SAVED_RA, cfa_offset: FRAME_LEN.., .. } => {
            Rule { saved: SAVED_RA_FP, saved_offset: -16, ..rule }
        }
        other => other,
    }
}

/// Gives the functions that are known by name their rules, whatever describes them.
pub(super) fn correct(
    elf: &Elf<'_>,
    table: &LineTable,
    rows: &mut Vec<(u64, Rule)>,
) -> Result<(), BuildError> {
    let named = table.functions().filter_map(|function| Some((function, named(table, function)?)));
    for (Function { begin, end, .. }, named) in named.take(NAMED_MAX) {
        // Whatever is put in, what is behind it moves.
        elf.work.charge_moving(rows.len())?;
        match named {
            // The "return address" of a goroutine is in the middle of `runtime.goexit`.
            Named::Outermost => replace(rows, (begin.saturating_sub(1), end, Rule::STOP)),
            Named::SignalReturn => {
                replace(rows, (begin.saturating_sub(1), end, Rule::plain(CFA_SIGNAL)));
            }
            Named::TwoStacks if elf.machine == Machine::X86_64 => {
                two_stacks(rows, begin.saturating_add(PROLOGUE_LEN), end);
            }
            Named::TwoStacks => {}
        }
    }
    Ok(())
}

/// Gives a function of [`TWO_STACKS`] its rule, but for where it has no frame yet or any more.
fn two_stacks(rows: &mut Vec<(u64, Rule)>, begin: u64, end: u64) {
    if begin >= end {
        return;
    }
    let at_begin = rows.partition_point(|(at, _)| *at <= begin);
    let Some((at, rule)) = at_begin.checked_sub(1).and_then(|row| rows.get(row)).copied() else {
        return;
    };
    if at < begin {
        rows.insert(at_begin, (begin, rule));
    }
    // What is behind the function's end begins with a row of its own, unless it has the same rule.
    let at_end = rows.partition_point(|(at, _)| *at < end);
    if rows.get(at_end).is_none_or(|(at, _)| *at != end) {
        let goes_on = at_end.checked_sub(1).and_then(|row| rows.get(row));
        let goes_on = goes_on.map_or(Rule::NONE, |(_, rule)| *rule);
        rows.insert(at_end, (end, goes_on));
    }
    let first = rows.partition_point(|(at, _)| *at < begin);
    let behind = rows.partition_point(|(at, _)| *at < end);
    for (_, rule) in rows.get_mut(first..behind).unwrap_or_default() {
        if rule.cfa == CFA_FRAME_POINTER || (rule.cfa == CFA_SP && rule.cfa_offset >= FRAME_LEN) {
            *rule = Rule::plain(CFA_OTHER_STACK);
        }
    }
}

/// A function that is known by its name.
#[derive(Clone, Copy)]
enum Named {
    Outermost,
    SignalReturn,
    TwoStacks,
}

fn named(table: &LineTable, function: Function) -> Option<Named> {
    let bytes = table.name(function)?;
    let is = |wanted: &&str| {
        let rest = bytes.strip_prefix(wanted.as_bytes());
        rest.map(|rest| rest.strip_prefix(ASSEMBLY).unwrap_or(rest))
            .is_some_and(|rest| rest.first() == Some(&0))
    };
    let known: [(&[&str], Named); 3] = [
        (&OUTERMOST, Named::Outermost),
        (&SIGNAL_RETURNS, Named::SignalReturn),
        (&TWO_STACKS, Named::TwoStacks),
    ];
    known.iter().find(|(names, _)| names.iter().any(is)).map(|(_, named)| *named)
}
