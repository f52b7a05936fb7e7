//! Go programs: their compiler keeps frame pointers and describes no unwinding, and the runtime
//! starts each goroutine with a frame that returns into `runtime.goexit`.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use profiler_common::unwind::{CFA_FRAME_POINTER, Rule};

use super::build::Range;
use super::elf::Elf;

const LINE_TABLE: &str = ".gopclntab";

/// `runtime.pcHeader.magic` since Go 1.20 and 1.18, which have the layout that is read here.
const MAGICS: [u32; 2] = [0xffff_fff1, 0xffff_fff0];
/// Large programs (Kubernetes) have some 100,000.
const FUNCTIONS_MAX: u64 = 4 << 20;
/// Each name of [`OUTERMOST`] is there once or twice.
const OUTERMOST_MAX: usize = 64;

/// What no caller is above: where the stacks of goroutines and of the runtime's threads begin, and
/// where the runtime goes over to its own stack (`mcall` to schedule, `morestack` to grow one).
const OUTERMOST: [&str; 5] =
    ["runtime.goexit", "runtime.mstart", "runtime.rt0_go", "runtime.mcall", "runtime.morestack"];
/// What the linker appends to the names of functions in assembly.
const ASSEMBLY: &[u8] = b".abi0";

pub(super) fn is_go(elf: &Elf<'_>) -> bool {
    elf.has_section(LINE_TABLE) || elf.has_section(".go.buildinfo")
}

/// The frame-pointer rule for the Go text in gaps: all of it in a program without `.debug_frame`.
pub(super) fn ranges(gaps: &[(u64, u64)]) -> Vec<Range> {
    let rule = Rule::plain(CFA_FRAME_POINTER);
    gaps.iter().map(|(begin, end)| (*begin, *end, rule)).collect()
}

/// Where stacks begin, whatever `.debug_frame` says of it: there the "return address" of a goroutine
/// is in the middle of `runtime.goexit`. None if the program's function table cannot be read.
pub(super) fn stops(elf: &Elf<'_>) -> Vec<Range> {
    let stops = outermost(elf).unwrap_or_default().into_iter();
    stops.map(|(begin, end)| (begin.saturating_sub(1), end, Rule::STOP)).collect()
}

/// Where the functions of [`OUTERMOST`] are, by the runtime's own table
/// (`runtime/symtab.go`: `pcHeader`, `functab`, `_func`).
fn outermost(elf: &Elf<'_>) -> Option<Vec<(u64, u64)>> {
    let table = elf.section(LINE_TABLE).ok()??.bytes;
    let at = |offset: u64, len: u64| {
        let begin = usize::try_from(offset).ok()?;
        let end = usize::try_from(offset.checked_add(len)?).ok()?;
        table.get(begin..end)
    };
    let u32_at = |offset: u64| Some(u32::from_le_bytes(at(offset, 4)?.try_into().ok()?));
    let u64_at = |offset: u64| Some(u64::from_le_bytes(at(offset, 8)?.try_into().ok()?));
    let pointer_size = *at(7, 1)?.first()?;
    if !MAGICS.contains(&u32_at(0)?) || pointer_size != 8 {
        return None;
    }
    let count = u64_at(8)?;
    if count > FUNCTIONS_MAX {
        return None;
    }
    // Since Go 1.26 it is 0 and the text's own address counts.
    let text = match u64_at(24)? {
        0 => elf.section_range(".text")?.0,
        text => text,
    };
    let (names, functions) = (u64_at(32)?, u64_at(64)?);
    let entry = |index: u64| {
        let entry = functions.checked_add(index.checked_mul(8)?)?;
        Some((u32_at(entry)?, u32_at(entry.checked_add(4)?)?))
    };
    let name_is_outermost = |function: u32| {
        // `_func.nameOff` is behind `_func.entryOff`.
        let name = functions.checked_add(function.into())?.checked_add(4)?;
        let name = names.checked_add(u32_at(name)?.into())?;
        let begin = usize::try_from(name).ok()?;
        let bytes = table.get(begin..)?;
        let is = |wanted: &&str| {
            let rest = bytes.strip_prefix(wanted.as_bytes());
            rest.map(|rest| rest.strip_prefix(ASSEMBLY).unwrap_or(rest))
                .is_some_and(|rest| rest.first() == Some(&0))
        };
        OUTERMOST.iter().any(is).then_some(())
    };
    let mut found = Vec::new();
    for index in 0..count {
        let Some((begin, function)) = entry(index) else { break };
        if name_is_outermost(function).is_some() {
            let (end, _) = entry(index.saturating_add(1)).unwrap_or((begin.saturating_add(16), 0));
            // The table is sorted, unless someone means harm.
            if begin < end && found.len() < OUTERMOST_MAX {
                found.push((text.saturating_add(begin.into()), text.saturating_add(end.into())));
            }
        }
    }
    Some(found)
}
