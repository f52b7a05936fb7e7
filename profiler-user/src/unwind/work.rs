//! How much evaluating one section's call frame information may cost.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use super::BuildError;
use super::cfi::Fde;

/// The instructions of a common entry are evaluated for each of its functions again, and one that
/// copies a row costs more than others. So many times the section's size, or a small file could
/// take hours. What compilers write costs three times the size at most.
const PER_BYTE: u64 = 12;
/// What any section may cost.
const MIN: u64 = 1 << 20;
/// What no section may: some seconds.
const MAX: u64 = 1 << 29;

/// `DW_CFA_remember_state` copies all rules of the row.
const REMEMBER_STATE: u8 = 0x0a;
/// What that costs, in instructions.
const COPY: usize = 24;

/// An entry's length field, which its length does not count.
const LENGTH_MAX: usize = 12;

/// What is left to spend, in bytes of instructions.
#[derive(Debug)]
pub(super) struct Work {
    left: u64,
}

impl Work {
    pub(super) fn of_section(len: usize) -> Self {
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        Self { left: len.saturating_mul(PER_BYTE).clamp(MIN, MAX) }
    }

    /// Takes the cost of a function's rows, before they are evaluated: of its own entry and of its
    /// common one.
    pub(super) fn charge(&mut self, section: &[u8], fde: &Fde<'_>) -> Result<(), BuildError> {
        let cie = fde.cie();
        let cost = cost(section, fde.offset(), fde.entry_len()).saturating_add(cost(
            section,
            cie.offset(),
            cie.entry_len(),
        ));
        self.left = self
            .left
            .checked_sub(cost)
            .ok_or(BuildError::TooLarge("work for call frame information"))?;
        Ok(())
    }
}

/// Of an entry, at most: operands that look like the instruction count as well.
fn cost(section: &[u8], at: usize, len: usize) -> u64 {
    let end = at.saturating_add(len).saturating_add(LENGTH_MAX).min(section.len());
    let entry = section.get(at..end).unwrap_or_default();
    let copies = entry.iter().filter(|byte| **byte == REMEMBER_STATE).count();
    let cost = copies.saturating_mul(COPY).saturating_add(len);
    u64::try_from(cost).unwrap_or(u64::MAX)
}
