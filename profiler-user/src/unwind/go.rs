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

/// What no caller is above: where goroutines and threads of the runtime begin.
const OUTERMOST: [&str; 6] = [
    "runtime.goexit",
    "runtime.goexit.abi0",
    "runtime.mstart",
    "runtime.mstart.abi0",
    "runtime.rt0_go",
    "runtime.rt0_go.abi0",
];

pub(super) fn is_go(elf: &Elf<'_>) -> bool {
    elf.has_section(LINE_TABLE) || elf.has_section(".go.buildinfo")
}

/// The frame-pointer rule for the Go text in gaps, and stops where stacks begin. A program whose
/// function table cannot be read has the rule and no stops.
pub(super) fn ranges(elf: &Elf<'_>, gaps: &[(u64, u64)]) -> Vec<Range> {
    let rule = Rule::plain(CFA_FRAME_POINTER);
    let mut ranges: Vec<Range> = gaps.iter().map(|(begin, end)| (*begin, *end, rule)).collect();
    let in_gap = |at: &u64| gaps.iter().any(|(begin, end)| (begin..end).contains(&at));
    let stops = outermost(elf).unwrap_or_default();
    ranges.extend(
        stops
            .into_iter()
            .filter(|(begin, _)| in_gap(begin))
            .map(|(begin, end)| (begin.saturating_sub(1), end, Rule::STOP)),
    );
    ranges
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
        let is = |wanted: &&str| {
            let len = u64::try_from(wanted.len()).unwrap_or(u64::MAX);
            at(name, len.saturating_add(1))
                .and_then(|bytes| bytes.split_last())
                .is_some_and(|(end, bytes)| *end == 0 && bytes == wanted.as_bytes())
        };
        OUTERMOST.iter().any(is).then_some(())
    };
    let mut found = Vec::new();
    for index in 0..count {
        let Some((begin, function)) = entry(index) else { break };
        if name_is_outermost(function).is_some() {
            let (end, _) = entry(index.saturating_add(1)).unwrap_or((begin.saturating_add(16), 0));
            found.push((text.saturating_add(begin.into()), text.saturating_add(end.into())));
        }
    }
    Some(found)
}
