//! Call frame information to rows by address.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::collections::HashMap;

use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, DebugFrame, EhFrame, EndianSlice,
    FrameDescriptionEntry, LittleEndian, UnwindContext, UnwindOffset, UnwindSection, Vendor,
};
use profiler_common::unwind::{CFA_SIGNAL, Rule};

use super::elf::{Elf, Machine, Section};
use super::rules::{Expressions, rule};
use super::table::TableStats;
use super::{BuildError, Limits};

/// Between functions, so many bytes at most are padding, which is never run.
pub(super) const PADDING_MAX: u64 = 15;

/// Instructions of common entries are evaluated for each function again. This many times the
/// section's size, and no more, or a small file could take hours.
const WORK_FACTOR: usize = 32;
const WORK_MIN: usize = 64 << 20;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;
type Cie<'a> = CommonInformationEntry<Bytes<'a>>;
type Fde<'a> = FrameDescriptionEntry<Bytes<'a>>;

/// Rows in ascending order: from this address on, this rule holds.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) rows: Vec<(u64, Rule)>,
    pub(super) stats: TableStats,
}

impl Rows {
    /// Adds a row, unless it says what holds already.
    fn push(&mut self, from: u64, rule: Rule) {
        match self.rows.last_mut() {
            Some((at, last)) if *at == from => *last = rule,
            Some((_, last)) if *last == rule => {}
            _ => self.rows.push((from, rule)),
        }
    }
}

/// The rows of `.eh_frame`.
pub(super) fn eh_frame(
    elf: &Elf<'_>,
    section: &Section,
    limits: Limits,
) -> Result<Rows, BuildError> {
    let mut frame = EhFrame::new(&section.bytes, LittleEndian);
    frame.set_address_size(8);
    frame.set_vendor(vendor(elf.machine));
    rows(&frame, &bases(elf).set_eh_frame(section.address), elf.machine, section, limits)
}

/// The rows of `.debug_frame`.
pub(super) fn debug_frame(
    elf: &Elf<'_>,
    section: &Section,
    limits: Limits,
) -> Result<Rows, BuildError> {
    let mut frame = DebugFrame::new(&section.bytes, LittleEndian);
    frame.set_address_size(8);
    frame.set_vendor(vendor(elf.machine));
    rows(&frame, &bases(elf), elf.machine, section, limits)
}

fn vendor(machine: Machine) -> Vendor {
    match machine {
        Machine::X86_64 => Vendor::Default,
        Machine::Aarch64 => Vendor::AArch64,
    }
}

fn bases(elf: &Elf<'_>) -> BaseAddresses {
    let address = |name| elf.section_range(name).map_or(0, |(address, _)| address);
    BaseAddresses::default().set_text(address(".text")).set_got(address(".got"))
}

fn rows<'a, S>(
    section: &S,
    bases: &BaseAddresses,
    machine: Machine,
    bytes: &'a Section,
    limits: Limits,
) -> Result<Rows, BuildError>
where
    S: UnwindSection<Bytes<'a>>,
    S::Offset: UnwindOffset<usize>,
{
    let mut found = Rows::default();
    let fdes = functions(section, bases, &mut found.stats);
    let mut context = UnwindContext::new();
    let mut work = bytes.bytes.len().saturating_mul(WORK_FACTOR).max(WORK_MIN);
    let mut behind = 0_u64;
    for (index, fde) in fdes.iter().enumerate() {
        let cost = fde.entry_len().saturating_add(fde.cie().entry_len());
        work = work
            .checked_sub(cost)
            .ok_or(BuildError::TooLarge("work for call frame information"))?;
        let next = fdes.get(index.saturating_add(1)).map_or(u64::MAX, Fde::initial_address);
        // Of two that overlap, the later one counts from where it begins.
        let end = fde.end_address().min(next);
        if end <= fde.initial_address() {
            found.stats.fdes_skipped = found.stats.fdes_skipped.saturating_add(1);
            continue;
        }
        if !found.rows.is_empty() && fde.initial_address().saturating_sub(behind) > PADDING_MAX {
            found.push(behind, Rule::NONE);
        }
        add_function(section, bases, machine, bytes, fde, end, &mut context, &mut found);
        behind = end;
        if found.rows.len() > limits.rows {
            return Err(BuildError::TooLarge("rows"));
        }
    }
    if behind != 0 {
        found.push(behind, Rule::NONE);
    }
    Ok(found)
}

/// Every function that is described, by address; of two that begin at the same, the first.
fn functions<'a, S>(section: &S, bases: &BaseAddresses, stats: &mut TableStats) -> Vec<Fde<'a>>
where
    S: UnwindSection<Bytes<'a>>,
    S::Offset: UnwindOffset<usize>,
{
    let mut cies: HashMap<usize, Cie<'a>> = HashMap::new();
    let mut fdes: Vec<Fde<'a>> = Vec::new();
    let mut entries = section.entries(bases);
    loop {
        let partial = match entries.next() {
            Ok(Some(CieOrFde::Fde(partial))) => partial,
            Ok(Some(CieOrFde::Cie(_))) => continue,
            Ok(None) => break,
            Err(_error) => {
                // Where one ends is not known any more, so this is the end.
                stats.damaged = true;
                break;
            }
        };
        let parsed = partial.parse(|section, bases, offset| {
            if let Some(cie) = cies.get(&UnwindOffset::into(offset)) {
                return Ok(cie.clone());
            }
            let cie = section.cie_from_offset(bases, offset)?;
            cies.insert(UnwindOffset::into(offset), cie.clone());
            Ok(cie)
        });
        match parsed {
            // A function that the linker threw away is at 0.
            Ok(fde) if fde.initial_address() != 0 && fde.len() != 0 => fdes.push(fde),
            Ok(_) | Err(_) => stats.fdes_skipped = stats.fdes_skipped.saturating_add(1),
        }
    }
    stats.fdes = fdes.len();
    fdes.sort_by_key(Fde::initial_address);
    fdes.dedup_by_key(|fde| fde.initial_address());
    fdes
}

#[expect(clippy::too_many_arguments, reason = "what a function's rows depend on")]
fn add_function<'a, S>(
    section: &S,
    bases: &BaseAddresses,
    machine: Machine,
    bytes: &Section,
    fde: &Fde<'a>,
    end: u64,
    context: &mut UnwindContext<usize>,
    found: &mut Rows,
) where
    S: UnwindSection<Bytes<'a>>,
{
    if fde.is_signal_trampoline() {
        found.push(fde.initial_address(), Rule::plain(CFA_SIGNAL));
        return;
    }
    let Ok(mut table) = fde.rows(section, bases, context) else {
        found.stats.fdes_skipped = found.stats.fdes_skipped.saturating_add(1);
        return found.push(fde.initial_address(), Rule::UNSUPPORTED);
    };
    let mut at = fde.initial_address();
    loop {
        match table.next_row() {
            Ok(Some(row)) => {
                if row.start_address() >= end || row.start_address() < at {
                    return;
                }
                at = row.start_address();
                let rule = rule(machine, row, Expressions(&bytes.bytes));
                if rule == Rule::UNSUPPORTED {
                    found.stats.unsupported = found.stats.unsupported.saturating_add(1);
                }
                found.push(at, rule);
            }
            Ok(None) => return,
            Err(_error) => {
                found.stats.fdes_skipped = found.stats.fdes_skipped.saturating_add(1);
                return found.push(at, Rule::UNSUPPORTED);
            }
        }
    }
}
