//! Is the slot at the same distance from the thread pointer in every thread?
//!
//! It is when it lies in the main program's own thread-local block, which the C library places at a
//! distance fixed at link time. In a library loaded with `dlopen` it may lie anywhere, per thread.

use crate::slot;

/// The slot's distance from the thread pointer, if it is the same in every thread.
pub(crate) fn tp_offset() -> Option<i64> {
    let offset = slot::tp_offset()?;
    main_program_block()?.contains(offset).then_some(offset)
}

/// The main program's thread-local block: where it starts from the thread pointer, and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    start: i64,
    len: i64,
}

impl Block {
    /// Where the linker and the C library put the block, from `PT_TLS` (glibc
    /// `_dl_determine_tlsoffset`, lld `getTlsTpOffset`).
    #[cfg_attr(
        not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))),
        expect(dead_code, reason = "the formula of a target without a slot is not needed")
    )]
    fn new(vaddr: u64, len: u64, align: u64) -> Option<Self> {
        let mask = align.max(1).checked_sub(1)?;
        let start = if cfg!(target_arch = "x86_64") {
            // Below the thread pointer, which is aligned: round the end up.
            let gap = vaddr.wrapping_neg().wrapping_sub(len) & mask;
            0_i64.checked_sub_unsigned(len)?.checked_sub_unsigned(gap)?
        } else {
            // Above the thread pointer and the 16 bytes of the thread control block.
            16_i64.checked_add_unsigned(vaddr.wrapping_sub(16) & mask)?
        };
        Some(Self { start, len: i64::try_from(len).ok()? })
    }

    fn contains(self, offset: i64) -> bool {
        const SLOT_LEN: i64 = 8;
        let within = offset.checked_sub(self.start);
        within.is_some_and(|at| at >= 0 && at.saturating_add(SLOT_LEN) <= self.len)
    }
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn main_program_block() -> Option<Block> {
    let auxiliary = |key| {
        // SAFETY: reads a value that the kernel left for the process.
        let value = unsafe { libc::getauxval(key) };
        usize::try_from(value).ok().filter(|&value| value != 0)
    };
    let headers = auxiliary(libc::AT_PHDR)?;
    let count = auxiliary(libc::AT_PHNUM)?;
    if auxiliary(libc::AT_PHENT)? != size_of::<libc::Elf64_Phdr>() {
        return None;
    }
    let headers = std::ptr::with_exposed_provenance::<libc::Elf64_Phdr>(headers);
    // SAFETY: the kernel mapped the program with this table, and it stays mapped as long as the
    // process runs.
    let headers = unsafe { std::slice::from_raw_parts(headers, count) };
    let tls = headers.iter().find(|header| header.p_type == libc::PT_TLS)?;
    Block::new(tls.p_vaddr, tls.p_memsz, tls.p_align)
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
fn main_program_block() -> Option<Block> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn ends_at_the_thread_pointer_rounded_to_its_alignment() {
        assert_eq!(Block::new(0x1000, 8, 8), Some(Block { start: -8, len: 8 }));
        assert_eq!(Block::new(0x1000, 100, 64), Some(Block { start: -128, len: 100 }));
        // The start must be congruent to the address modulo the alignment: -88 = 0x1028 (mod 64).
        assert_eq!(Block::new(0x1028, 40, 64), Some(Block { start: -88, len: 40 }));
        assert_eq!(Block::new(0x1028, 24, 64), Some(Block { start: -24, len: 24 }));
        assert_eq!(Block::new(0, u64::MAX, 1), None);
    }

    #[test]
    fn holds_the_whole_slot_or_not_at_all() {
        let block = Block { start: -64, len: 32 };
        assert!(block.contains(-64));
        assert!(block.contains(-40));
        assert!(!block.contains(-39));
        assert!(!block.contains(-65));
        assert!(!block.contains(i64::MIN));
    }

    #[test]
    fn the_slot_of_this_program_is_static() {
        assert_eq!(tp_offset(), slot::tp_offset());
        assert!(tp_offset().is_some_and(|offset| offset < 0));
    }
}
