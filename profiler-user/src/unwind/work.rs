//! How much making one file's table may cost.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::cell::Cell;

use profiler_common::unwind::Rule;

use super::cfi::Fde;
use super::{BuildError, ReadAt};

/// The instructions of a common entry are evaluated for each of its functions again, and one that
/// copies a row costs more than others. So many times what was read, or a small file could take
/// hours. What compilers write costs four times its size at most.
const PER_BYTE: u64 = 12;
/// What any file may cost.
const MIN: u64 = 1 << 20;
/// What no file may: two seconds. LLVM costs a ninth of this.
const MAX: u64 = 1 << 27;

/// So many bytes are read for what evaluating one costs.
pub(super) const READ_PER_UNIT: usize = 32;
/// So many bytes are moved.
const MOVED_PER_UNIT: usize = 64;
/// So many bytes come out of decompressing.
pub(super) const DECOMPRESSED_PER_UNIT: usize = 8;
/// An entry is looked at, sorted, and looked at again.
pub(super) const ENTRY: u64 = 8;
/// A system call.
pub(super) const CALL: u64 = 16;

/// What instructions cost more than their bytes.
const fn more(byte: u8) -> usize {
    match byte {
        // `DW_CFA_remember_state` copies all rules of the row.
        0x0a => 24,
        // `DW_CFA_advance_loc` and the like end a row, whose rule is then found out.
        0x02..=0x04 | 0x40..=0x7f => 4,
        _ => 0,
    }
}

/// An entry's length field, which its length does not count.
const LENGTH_MAX: usize = 12;

/// What was spent on a file, and what may be: in units of what evaluating a byte of instructions
/// costs, some 15 ns.
pub(super) struct Work<'a> {
    file: &'a dyn ReadAt,
    spent: Cell<u64>,
    allowed: Cell<u64>,
}

impl<'a> Work<'a> {
    pub(super) fn on(file: &'a dyn ReadAt) -> Self {
        Self { file, spent: Cell::new(0), allowed: Cell::new(0) }
    }

    /// What was spent, and what may be.
    #[cfg(test)]
    pub(super) fn spent_of(&self) -> (u64, u64) {
        (self.spent.get(), self.allowed.get().clamp(MIN, MAX))
    }

    /// Takes the cost of something.
    pub(super) fn charge(&self, cost: u64) -> Result<(), BuildError> {
        if !self.file.is_wanted() {
            return Err(BuildError::NotWanted);
        }
        self.spent.set(self.spent.get().saturating_add(cost));
        if self.spent.get() > self.allowed.get().clamp(MIN, MAX) {
            return Err(BuildError::TooLarge("work"));
        }
        Ok(())
    }

    /// Takes the cost of reading so many bytes. The more there are, the more may be done with them.
    pub(super) fn charge_reading(&self, bytes: usize, per_unit: usize) -> Result<(), BuildError> {
        let allowed = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(PER_BYTE);
        self.allowed.set(self.allowed.get().saturating_add(allowed));
        self.charge(u64::try_from(bytes.checked_div(per_unit).unwrap_or(0)).unwrap_or(u64::MAX))
    }

    /// Takes the cost of moving so many rows.
    pub(super) fn charge_moving(&self, rows: usize) -> Result<(), BuildError> {
        let bytes = rows.saturating_mul(size_of::<(u64, Rule)>());
        let cost = bytes.checked_div(MOVED_PER_UNIT).unwrap_or(0);
        self.charge(u64::try_from(cost).unwrap_or(u64::MAX))
    }

    /// Takes the cost of a function's rows, before they are evaluated: of its own entry and of its
    /// common one.
    pub(super) fn charge_rows(&self, section: &[u8], fde: &Fde<'_>) -> Result<(), BuildError> {
        let cie = fde.cie();
        self.charge(cost(section, fde.offset(), fde.entry_len()))?;
        self.charge(cost(section, cie.offset(), cie.entry_len()))
    }
}

/// Of an entry, at most: operands that look like an instruction count as well.
fn cost(section: &[u8], at: usize, len: usize) -> u64 {
    let end = at.saturating_add(len).saturating_add(LENGTH_MAX).min(section.len());
    let entry = section.get(at..end).unwrap_or_default();
    let cost = entry.iter().map(|byte| more(*byte)).fold(len, usize::saturating_add);
    u64::try_from(cost).unwrap_or(u64::MAX)
}
