//! Where signal handlers return to, in C libraries that do not describe it (musl).

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use memchr::memmem;
use profiler_common::unwind::{CFA_SIGNAL, Rule};

use super::build::Range;
use super::elf::{Elf, Machine};

/// How much text is searched: such libraries are small.
const SEARCHED_MAX: u64 = 4 << 20;

/// `rt_sigreturn` as it is called on x86-64: `mov $15, %rax` (or `%eax`), `syscall`.
const X86_64: [&[u8]; 2] =
    [&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05], &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05]];
/// And on aarch64: `mov x8, #139`, `svc #0`.
const AARCH64: [&[u8]; 1] = [&[0x68, 0x11, 0x80, 0xd2, 0x01, 0, 0, 0xd4]];

/// The ranges of such code in text that nothing describes. Each begins a byte early: the handler's
/// return address is its first byte, and is looked up one byte before.
pub(super) fn signal_returns(elf: &Elf<'_>, gaps: &[(u64, u64)]) -> Vec<Range> {
    let patterns: &[&[u8]] = match elf.machine {
        Machine::X86_64 => &X86_64,
        Machine::Aarch64 => &AARCH64,
    };
    let mut found = Vec::new();
    let mut left = SEARCHED_MAX;
    for (begin, end) in gaps {
        let len = end.saturating_sub(*begin).min(left);
        left = left.saturating_sub(len);
        // Text that cannot be read is text without such code.
        let Ok(Some(text)) = elf.memory(*begin, len) else { continue };
        for pattern in patterns {
            for at in memmem::find_iter(&text.bytes, pattern) {
                let from = begin.saturating_add(u64::try_from(at).unwrap_or(u64::MAX));
                let until = from.saturating_add(u64::try_from(pattern.len()).unwrap_or(0));
                found.push((from.saturating_sub(1), until, Rule::plain(CFA_SIGNAL)));
            }
        }
        if left == 0 {
            break;
        }
    }
    found
}
