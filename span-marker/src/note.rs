//! The way to the slot where no symbol leads to it: stripped, statically linked, or linked by a
//! linker that exports nothing from programs.
//!
//! A note in the ELF file (`.note.span_marker`, which stays in the loaded image) points to a block of
//! data, which holds the slot's distance from the thread pointer once that is known, and to a
//! function that is called then. Nothing happens in it: a uprobe there tells a profiler in the
//! kernel, before the first span.

/// Fills the block and calls the function: `tp_offset` is the slot's distance from the thread
/// pointer in every thread of the process.
pub(crate) fn announce(tp_offset: i64) {
    imp::announce(tp_offset);
}

/// An address in the program or library that holds this crate.
pub(crate) fn address_in_this_object() -> usize {
    imp::address()
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod imp {
    use core::arch::global_asm;
    use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

    use crate::abi::INFO_STATIC;
    use crate::slot;

    // Distances, not addresses, so that nothing has to be relocated when the program is loaded; to
    // hidden names, so that the linker knows them, also in a library.
    global_asm!(
        ".section .data.span_marker_info, \"aw\", %progbits",
        ".balign 8",
        ".globl __span_marker_info_v1",
        ".hidden __span_marker_info_v1",
        ".type __span_marker_info_v1, %object",
        ".size __span_marker_info_v1, 32",
        "__span_marker_info_v1:",
        ".ascii \"SPANMRK1\"",
        ".long 1",
        ".long 0",
        ".quad 0",
        ".quad 0",
        ".previous",
        // Linkers keep notes whatever nobody refers to.
        ".section .note.span_marker, \"a\", %note",
        ".balign 4",
        ".long 12",
        ".long 16",
        ".long 1",
        ".asciz \"span-marker\"",
        ".quad __span_marker_info_v1 - .",
        ".quad __span_marker_hook_v1 - .",
        ".previous",
    );

    /// Begins with an instruction that does nothing and is long enough for the kernel to put a call
    /// or a trap in its place.
    #[cfg(target_arch = "x86_64")]
    macro_rules! hook_body {
        () => {
            ".byte 0x0f, 0x1f, 0x44, 0x00, 0x00\nret"
        };
    }
    #[cfg(target_arch = "aarch64")]
    macro_rules! hook_body {
        () => {
            "nop\nret"
        };
    }

    global_asm!(
        ".section .text.span_marker_hook, \"ax\", %progbits",
        ".balign 16",
        ".globl span_marker_thread_slot_v1",
        ".type span_marker_thread_slot_v1, %function",
        ".globl __span_marker_hook_v1",
        ".hidden __span_marker_hook_v1",
        ".type __span_marker_hook_v1, %function",
        "span_marker_thread_slot_v1:",
        "__span_marker_hook_v1:",
        hook_body!(),
        ".size span_marker_thread_slot_v1, . - span_marker_thread_slot_v1",
        ".size __span_marker_hook_v1, . - __span_marker_hook_v1",
        ".previous",
    );

    /// Exports the function from a `cdylib`: see `slot`.
    #[unsafe(export_name = "span_marker_thread_slot_v[1]")]
    #[used]
    static EXPORT_FROM_CDYLIB: u8 = 0;

    /// The block. Atomic, because readers outside look at any time.
    #[repr(C)]
    struct Info {
        magic: AtomicU64,
        abi: AtomicU32,
        flags: AtomicU32,
        tp_offset: AtomicI64,
        reserved: AtomicU64,
    }

    const _: () = assert!(size_of::<Info>() == 32);

    unsafe extern "C" {
        #[link_name = "__span_marker_info_v1"]
        static INFO: Info;
        #[link_name = "__span_marker_hook_v1"]
        fn hook(slot: *const *const u8, tp_offset: i64);
    }

    pub(super) fn announce(tp_offset: i64) {
        // SAFETY: defined above, as large and as aligned as `Info`, and written by atomics only.
        let info = unsafe { &INFO };
        info.tp_offset.store(tp_offset, Ordering::Relaxed);
        info.flags.store(INFO_STATIC, Ordering::Release);
        // SAFETY: the function defined above, which returns at once.
        unsafe { hook(slot::address(), tp_offset) };
    }

    pub(super) fn address() -> usize {
        (&raw const INFO).addr()
    }
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod imp {
    pub(super) fn announce(_tp_offset: i64) {}

    pub(super) fn address() -> usize {
        0
    }
}
