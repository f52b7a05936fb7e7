//! What differs between processors in a walk.

/// A processor architecture, as far as a walk knows it.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// The bits of a code address; others can be an authentication code (aarch64).
    pub code_mask: u64,
    /// Offsets of sp, ip and fp in the frame that the kernel leaves for a signal handler's return,
    /// from the stack pointer that the return sees.
    pub signal_sp: u64,
    /// See `signal_sp`.
    pub signal_ip: u64,
    /// See `signal_sp`.
    pub signal_fp: u64,
    /// Where the return address is, from the frame pointer; the caller's frame pointer is at 0.
    pub frame_pointer_ra: u64,
    /// Static thread-local storage is below the thread pointer, otherwise above it.
    pub tls_below: bool,
}

/// `struct ucontext` (arch/x86/include/uapi/asm/ucontext.h): sp is at it, `sc_r8` 40 bytes in.
pub const X86_64: Machine = Machine {
    code_mask: u64::MAX,
    signal_sp: 40 + 15 * 8,
    signal_ip: 40 + 16 * 8,
    signal_fp: 40 + 10 * 8,
    frame_pointer_ra: 8,
    tls_below: true,
};

/// `struct rt_sigframe` (arch/arm64/kernel/signal.c): 128 bytes of siginfo, then a ucontext whose
/// `mcontext` is 176 bytes in and begins with the fault address, x0 to x30, sp and pc.
pub const AARCH64: Machine = Machine {
    code_mask: (1 << 48) - 1,
    signal_sp: 128 + 176 + 8 + 31 * 8,
    signal_ip: 128 + 176 + 8 + 32 * 8,
    signal_fp: 128 + 176 + 8 + 29 * 8,
    frame_pointer_ra: 8,
    tls_below: false,
};
