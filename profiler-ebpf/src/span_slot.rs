//! What a program says by span-marker's hook, as far as it can be believed.

use crate::machine::Machine;

/// Static thread-local storage is some kilobytes; a program with large arrays in it has megabytes.
const TP_OFFSET_MAX: u64 = 1 << 30;

/// Whether a thread can have a slot at this address, this far from its thread pointer.
#[inline(always)]
#[must_use]
pub fn is_plausible(machine: &Machine, slot: u64, tp_offset: i64) -> bool {
    let aligned = slot.is_multiple_of(8) && tp_offset.cast_unsigned().is_multiple_of(8);
    let on_its_side = tp_offset != 0 && (tp_offset < 0) == machine.tls_below;
    slot != 0 && aligned && on_its_side && tp_offset.unsigned_abs() <= TP_OFFSET_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{AARCH64, X86_64};

    #[test]
    fn a_slot_is_aligned_and_on_the_side_of_static_storage() {
        const SLOT: u64 = 0x7f12_3456_7898;
        assert!(is_plausible(&X86_64, SLOT, -0x98) && is_plausible(&X86_64, SLOT, -(1 << 30)));
        assert!(is_plausible(&AARCH64, SLOT, 16));
        for (slot, offset) in [
            (0, -8),
            (SLOT + 4, -8),
            (SLOT, -4),
            (SLOT, 0),
            (SLOT, 8),
            (SLOT, -(1 << 30) - 8),
            (SLOT, i64::MIN),
        ] {
            assert!(!is_plausible(&X86_64, slot, offset), "{slot:#x} {offset}");
        }
        assert!(!is_plausible(&AARCH64, SLOT, -16) && !is_plausible(&AARCH64, SLOT, i64::MAX));
    }
}
