//! The thread-local `otel_thread_ctx_v1`, and the only code that writes it.
//!
//! Stable Rust can neither declare a thread-local with a fixed symbol nor choose the access model
//! that readers look for, so the symbol is assembly and so is its access: the TLSDESC sequence in
//! the exact form that compilers emit, because linkers match the instructions to relax them.

/// Points the calling thread's slot at a record's bytes, or at nothing.
///
/// A reader sees the thread stopped, between two instructions: the two fences keep the compiler from
/// moving the building of the record after this, and the freeing of the previous one before it.
#[inline]
pub(crate) fn set(record: *const u8) {
    imp::set(record);
}

/// The slot's distance from the thread pointer, in the calling thread.
pub(crate) fn tp_offset() -> Option<i64> {
    imp::tp_offset()
}

/// The address of the calling thread's slot; null on targets without one.
pub(crate) fn address() -> *const *const u8 {
    imp::address()
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod imp {
    use core::arch::{asm, global_asm};
    use core::sync::atomic::{Ordering, compiler_fence};

    /// How the slot's symbol binds. Another library of the program may have the slot already; then
    /// the feature `external-slot` lets that one's definition win, and this one serves if there is
    /// none.
    #[cfg(not(feature = "external-slot"))]
    macro_rules! binding {
        () => {
            ".globl otel_thread_ctx_v1"
        };
    }
    #[cfg(feature = "external-slot")]
    macro_rules! binding {
        () => {
            ".weak otel_thread_ctx_v1"
        };
    }

    // The hidden alias is for static executables: there GNU ld turns an access through an exported
    // name into a relocation that no start-up code applies, and the first write hits the thread
    // control block. `.balign 8`, not more: a larger one would raise the alignment of PT_TLS, which
    // some readers ignore.
    global_asm!(
        ".section .tbss.otel_thread_ctx_v1,\"awT\",@nobits",
        ".balign 8",
        binding!(),
        ".type otel_thread_ctx_v1, @object",
        ".size otel_thread_ctx_v1, 8",
        ".globl __span_marker_slot_v1",
        ".hidden __span_marker_slot_v1",
        ".type __span_marker_slot_v1, @object",
        ".size __span_marker_slot_v1, 8",
        "otel_thread_ctx_v1:",
        "__span_marker_slot_v1:",
        ".zero 8",
        ".previous",
    );

    /// Exports the symbol from a `cdylib`. rustc copies this *name* into the version script of the
    /// library, where it is a glob that matches the symbol above.
    #[unsafe(export_name = "otel_thread_ctx_v[1]")]
    #[used]
    static EXPORT_FROM_CDYLIB: u8 = 0;

    // Not with `external-slot`: the alias names the definition here, which may not be the one.
    #[cfg(all(target_feature = "crt-static", not(feature = "external-slot")))]
    macro_rules! symbol {
        () => {
            "__span_marker_slot_v1"
        };
    }
    #[cfg(not(all(target_feature = "crt-static", not(feature = "external-slot"))))]
    macro_rules! symbol {
        () => {
            "otel_thread_ctx_v1"
        };
    }

    /// The address of the calling thread's slot.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn address() -> *mut *const u8 {
        let address: *mut *const u8;
        // SAFETY: the canonical access to a thread-local of eight bytes that is defined above. It
        // calls, so the stack is usable; all that a C call may clobber is declared, because glibc
        // before 2.40 does not preserve vector registers on the dynamic path.
        unsafe {
            asm!(
                concat!("leaq ", symbol!(), "@tlsdesc(%rip), %rax"),
                concat!("call *", symbol!(), "@TLSCALL(%rax)"),
                "addq %fs:0, %rax",
                out("rax") address,
                clobber_abi("sysv64"),
                options(att_syntax),
            );
        }
        address
    }

    /// The address of the calling thread's slot.
    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    pub(super) fn address() -> *mut *const u8 {
        let address: *mut *const u8;
        // SAFETY: the canonical access to a thread-local of eight bytes that is defined above. It
        // calls, so the stack is usable; all that a C call may clobber is declared.
        unsafe {
            asm!(
                concat!("adrp x0, :tlsdesc:", symbol!()),
                concat!("ldr x1, [x0, :tlsdesc_lo12:", symbol!(), "]"),
                concat!("add x0, x0, :tlsdesc_lo12:", symbol!()),
                concat!(".tlsdesccall ", symbol!()),
                "blr x1",
                "mrs x8, tpidr_el0",
                "add x0, x8, x0",
                out("x0") address,
                clobber_abi("C"),
            );
        }
        address
    }

    #[inline]
    pub(super) fn set(record: *const u8) {
        compiler_fence(Ordering::SeqCst);
        // SAFETY: the slot is the calling thread's own and is never borrowed: only this function
        // touches it.
        unsafe { address().write_volatile(record) };
        compiler_fence(Ordering::SeqCst);
    }

    #[cfg(target_arch = "x86_64")]
    fn thread_pointer() -> i64 {
        let thread_pointer: i64;
        // SAFETY: reads the thread control block's pointer to itself, which the psABI puts there.
        unsafe {
            asm!("mov {}, fs:0", out(reg) thread_pointer, options(pure, readonly, nostack, preserves_flags));
        }
        thread_pointer
    }

    #[cfg(target_arch = "aarch64")]
    fn thread_pointer() -> i64 {
        let thread_pointer: i64;
        // SAFETY: reads a register that any code may read.
        unsafe {
            asm!("mrs {}, tpidr_el0", out(reg) thread_pointer, options(pure, nomem, nostack, preserves_flags));
        }
        thread_pointer
    }

    pub(super) fn tp_offset() -> Option<i64> {
        i64::try_from(address().addr()).ok()?.checked_sub(thread_pointer())
    }
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod imp {
    pub(super) fn set(_record: *const u8) {}

    pub(super) fn address() -> *mut *const u8 {
        core::ptr::null_mut()
    }

    pub(super) fn tp_offset() -> Option<i64> {
        None
    }
}
