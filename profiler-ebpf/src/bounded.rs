//! Indices that every verifier can bound.

/// `index` modulo `LEN`, a power of two.
///
/// In assembly, because LLVM turns sums into `|` and drops masks that it finds redundant after that;
/// Linux 6.1's verifier loses the bounds of `|` (`math between map_value pointer and
/// register with unbounded min value is not allowed`).
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "words have 64 bits where this runs, and the index was bounded just before"
)]
pub fn bounded<const LEN: usize>(index: u64) -> usize {
    const { assert!(LEN.is_power_of_two()) };
    // Once more where LLVM sees it, or it keeps a bounds check, whose panic does not verify.
    masked::<LEN>(index) as usize & (LEN - 1)
}

#[cfg(target_arch = "bpf")]
#[inline(always)]
fn masked<const LEN: usize>(mut index: u64) -> u64 {
    // SAFETY: one arithmetic instruction on a register.
    unsafe {
        core::arch::asm!("{0} &= {1}", inout(reg) index, const LEN - 1,
            options(pure, nomem, nostack));
    }
    index
}

#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
fn masked<const LEN: usize>(index: u64) -> u64 {
    index
}
