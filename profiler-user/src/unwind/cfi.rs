//! Call frame information to rows by address.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::collections::HashMap;

use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, DebugFrame, EhFrame, EndianSlice,
    FrameDescriptionEntry, LittleEndian, Register, RegisterRule, UnwindContext,
    UnwindContextStorage, UnwindOffset, UnwindSection, UnwindTableRow, Vendor,
};
use profiler_common::unwind::{CFA_SIGNAL, Rule};

use super::elf::{Elf, Machine, Section};
use super::rules::{Expressions, rule};
use super::table::TableStats;
use super::work::{self, Work};
use super::{BuildError, Limits};

/// Between functions, so many bytes at most are padding, which is never run.
pub(super) const PADDING_MAX: u64 = 15;

/// How many registers a row may have rules for. x86-64 code describes 17 at most, aarch64 code some
/// 30; gimli's own limit of 192 makes each copy of a row four times as large.
const REGISTERS_MAX: usize = 48;

/// Common entries that are remembered; files have some ten.
const CIES_MAX: usize = 1024;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;
type Cie<'a> = CommonInformationEntry<Bytes<'a>>;
pub(super) type Fde<'a> = FrameDescriptionEntry<Bytes<'a>>;

/// Room for one row, and for those that its function remembers.
pub(super) struct Storage;

impl UnwindContextStorage<usize> for Storage {
    type Rules = [(Register, RegisterRule<usize>); REGISTERS_MAX];
    type Stack = Box<[Row; 4]>;
}

/// What holds for some addresses of a function.
pub(super) type Row = UnwindTableRow<usize, Storage>;

/// A described function: where it begins, and where its description is in the section. A section
/// can hold millions of them, and a parsed one is fifteen times as large.
#[derive(Clone, Copy, Debug)]
struct Place {
    begin: u64,
    at: usize,
}

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

    fn within(&self, limits: Limits) -> Result<(), BuildError> {
        if self.rows.len() > limits.rows { Err(BuildError::TooLarge("rows")) } else { Ok(()) }
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
    rows(&frame, &bases(elf).set_eh_frame(section.address), elf, section, limits)
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
    rows(&frame, &bases(elf), elf, section, limits)
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
    elf: &Elf<'_>,
    bytes: &'a Section,
    limits: Limits,
) -> Result<Rows, BuildError>
where
    S: UnwindSection<Bytes<'a>>,
    S::Offset: UnwindOffset<usize>,
{
    let mut found = Rows::default();
    let mut cies = Cies::default();
    let (machine, work) = (elf.machine, &elf.work);
    let functions = functions(section, bases, work, limits, &mut cies, &mut found.stats)?;
    let mut context = UnwindContext::new_in();
    let mut behind = 0_u64;
    for (index, function) in functions.iter().enumerate() {
        let next = functions.get(index.saturating_add(1)).map_or(u64::MAX, |next| next.begin);
        let fde = section.fde_from_offset(bases, function.at.into(), cies.get());
        // It could be parsed before.
        let Ok(fde) = fde else { continue };
        work.charge_rows(&bytes.bytes, &fde)?;
        // Of two that overlap, the later one counts from where it begins.
        let end = fde.end_address().min(next);
        if end <= fde.initial_address() {
            found.stats.fdes_skipped = found.stats.fdes_skipped.saturating_add(1);
            continue;
        }
        if !found.rows.is_empty() && fde.initial_address().saturating_sub(behind) > PADDING_MAX {
            found.push(behind, Rule::NONE);
        }
        let function = Function { section, bases, machine, bytes, fde: &fde, end };
        function.add_to(&mut found, &mut context, limits)?;
        behind = end;
    }
    if behind != 0 {
        found.push(behind, Rule::NONE);
    }
    Ok(found)
}

/// Every function that is described, by address; of two that begin at the same, the first.
fn functions<'a, S>(
    section: &S,
    bases: &BaseAddresses,
    work: &Work<'_>,
    limits: Limits,
    cies: &mut Cies<'a>,
    stats: &mut TableStats,
) -> Result<Vec<Place>, BuildError>
where
    S: UnwindSection<Bytes<'a>>,
    S::Offset: UnwindOffset<usize>,
{
    let mut places: Vec<Place> = Vec::new();
    let mut entries = section.entries(bases);
    loop {
        work.charge(work::ENTRY)?;
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
        match partial.parse(cies.get()) {
            // A function that the linker threw away is at 0.
            Ok(fde) if fde.initial_address() != 0 && fde.len() != 0 => {
                places.push(Place { begin: fde.initial_address(), at: fde.offset() });
            }
            Ok(_) | Err(_) => stats.fdes_skipped = stats.fdes_skipped.saturating_add(1),
        }
        if places.len() > limits.rows {
            return Err(BuildError::TooLarge("functions"));
        }
    }
    stats.fdes = places.len();
    places.sort_by_key(|place| place.begin);
    places.dedup_by_key(|place| place.begin);
    Ok(places)
}

/// Common entries, by where they are.
#[derive(Default)]
struct Cies<'a>(HashMap<usize, Cie<'a>>);

impl<'a> Cies<'a> {
    /// What gimli asks for the common entry of a function.
    fn get<S>(&mut self) -> impl FnMut(&S, &BaseAddresses, S::Offset) -> gimli::Result<Cie<'a>>
    where
        S: UnwindSection<Bytes<'a>>,
        S::Offset: UnwindOffset<usize>,
    {
        |section, bases, offset| {
            if let Some(cie) = self.0.get(&UnwindOffset::into(offset)) {
                return Ok(cie.clone());
            }
            let cie = section.cie_from_offset(bases, offset)?;
            if self.0.len() >= CIES_MAX {
                self.0.clear();
            }
            self.0.insert(UnwindOffset::into(offset), cie.clone());
            Ok(cie)
        }
    }
}

/// A function, and what its rows depend on.
struct Function<'s, 'a, S> {
    section: &'s S,
    bases: &'s BaseAddresses,
    machine: Machine,
    bytes: &'a Section,
    fde: &'s Fde<'a>,
    /// Where it ends, or the next one begins.
    end: u64,
}

impl<'a, S: UnwindSection<Bytes<'a>>> Function<'_, 'a, S> {
    fn add_to(
        &self,
        found: &mut Rows,
        context: &mut UnwindContext<usize, Storage>,
        limits: Limits,
    ) -> Result<(), BuildError> {
        let Self { section, bases, machine, bytes, fde, end } = *self;
        let mut at = fde.initial_address();
        if fde.is_signal_trampoline() {
            found.push(at, Rule::plain(CFA_SIGNAL));
            return found.within(limits);
        }
        let Ok(mut table) = fde.rows(section, bases, context) else {
            found.stats.fdes_skipped = found.stats.fdes_skipped.saturating_add(1);
            found.push(at, Rule::UNSUPPORTED);
            return found.within(limits);
        };
        loop {
            found.within(limits)?;
            match table.next_row() {
                Ok(Some(row)) => {
                    if row.start_address() >= end || row.start_address() < at {
                        return Ok(());
                    }
                    at = row.start_address();
                    let rule = rule(machine, row, Expressions(&bytes.bytes));
                    if rule == Rule::UNSUPPORTED {
                        found.stats.unsupported = found.stats.unsupported.saturating_add(1);
                    }
                    found.push(at, rule);
                }
                Ok(None) => return Ok(()),
                Err(_error) => {
                    found.stats.fdes_skipped = found.stats.fdes_skipped.saturating_add(1);
                    found.push(at, Rule::UNSUPPORTED);
                    return found.within(limits);
                }
            }
        }
    }
}
