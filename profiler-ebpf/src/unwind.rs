//! One step of a walk up the user stack: by unwind rule, or by frame pointer where there is none.
//!
//! The BPF program, `spanprof inspect` and the tests take the same step; what they differ in is
//! [`Process`].

use profiler_common::sample::{
    FRAME_INTERRUPTED, USER_STACK_BAD_STEP, USER_STACK_COMPLETE, USER_STACK_NO_FRAME_POINTER,
    USER_STACK_UNKNOWN_PROCESS, USER_STACK_UNMAPPED, USER_STACK_UNREADABLE,
    USER_STACK_UNSUPPORTED_RULE, USER_STACK_ZERO_FRAME_POINTER,
};
use profiler_common::unwind::{
    CFA_AT_FP, CFA_AT_SP, CFA_FP, CFA_FRAME_POINTER, CFA_NONE, CFA_OTHER_STACK, CFA_PLT,
    CFA_REGISTER, CFA_SIGNAL, CFA_SP, CFA_STOP, MAPPING_TABLE, Rule, SAVED_LINK, SAVED_PAIR,
    SAVED_RA, SAVED_RA_AT, SAVED_RA_FP, SAVED_RA_FP_LOST, SAVED_RA_IN_REGISTER,
};

use crate::machine::Machine;

/// Code below is never user code: Linux maps nothing in the first page (`vm.mmap_min_addr`).
const LOWEST_CODE: u64 = 4096;
/// Code above is never user code: user space ends at 2^56 (x86-64 with five page-table levels).
const USER_END: u64 = 1 << 56;
/// The largest frame that a frame pointer is believed to span.
const FRAME_MAX: u64 = 1 << 20;
/// A frame pointer that leads nowhere: no frame is at an odd address.
const NOWHERE: u64 = 1;

/// `Lookup::kind`: in no mapping.
pub const KIND_UNMAPPED: u8 = 0xff;
/// `Lookup::kind`: nothing is known of the process.
pub const KIND_UNKNOWN_PROCESS: u8 = 0xfe;

/// The walk goes on.
pub const GO_ON: u8 = 0xff;

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// `MAPPING_*` or `KIND_*`.
    pub kind: u8,
    /// The rule, if the kind is `MAPPING_TABLE`: [`Rule::to_bits`].
    pub rule: u64,
}

/// Where a walk stands: a frame, and how it was reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cursor {
    /// The interrupted instruction, or a return address.
    pub ip: u64,
    /// The stack pointer.
    pub sp: u64,
    /// The frame pointer register.
    pub fp: u64,
    /// The link register (aarch64), of the first frame only.
    pub link: u64,
    /// 1: `ip` is where a call returns to; 0: it is an interrupted instruction.
    pub returns: u64,
    /// 1: the first frame, of which all registers are known.
    pub first: u64,
    /// 1: reached by frame pointer, and so to be checked.
    pub guessed: u64,
    /// What of the stack this frame depends on beside the frame before: see `DEPENDS_*`.
    pub depends: u64,
}

/// `Cursor::depends`: on the return address at `sp - 8` alone.
pub const DEPENDS_ON_RETURN_ADDRESS: u64 = 0;
/// `Cursor::depends`: on words that are not noted. Any other value: on the return address at
/// `sp - 8`, and on the frame pointer that is at this address.
pub const DEPENDS_ON_MORE: u64 = 1;

/// What a walk needs of the process, and where its frames go.
pub trait Process {
    /// The processor.
    const MACHINE: Machine;

    /// What is known of an address.
    fn look_up(&mut self, pc: u64) -> Lookup;
    /// A word of its stack.
    fn word(&mut self, address: u64) -> Option<u64>;
    /// The words from `sp` to `cfa` will be asked for.
    fn approach(&mut self, sp: u64, cfa: u64);
    /// A register of the first frame, by DWARF number.
    fn register(&mut self, number: u64) -> u64;
    /// Takes a frame, with `FRAME_INTERRUPTED` where that is to be known.
    fn frame(&mut self, word: u64);
    /// A caller is looked for by frame pointer, from a mapping of this kind.
    fn note_frame_pointer(&mut self, kind: u8);
}

/// Gives the frame at the cursor, and moves to its caller: [`GO_ON`], or a `USER_STACK_*`.
#[inline(always)]
pub fn step<P: Process>(process: &mut P, at: &mut Cursor) -> u8 {
    let pc = at.ip.wrapping_sub(at.returns);
    if pc.wrapping_sub(LOWEST_CODE) >= USER_END - LOWEST_CODE {
        // A return address of zero is the end that start-up code without unwind rules makes.
        let end = at.ip == 0 && at.first == 0;
        return if end { USER_STACK_COMPLETE } else { not_code(at) };
    }
    let found = process.look_up(pc);
    if found.kind == KIND_UNMAPPED && at.guessed != 0 {
        return USER_STACK_NO_FRAME_POINTER;
    }
    let interrupted = (at.returns | at.first) == 0;
    process.frame(if interrupted { at.ip | FRAME_INTERRUPTED } else { at.ip });
    if found.kind == KIND_UNMAPPED {
        return USER_STACK_UNMAPPED;
    }
    if found.kind != MAPPING_TABLE {
        return by_frame_pointer(process, at, found.kind, at.sp);
    }
    by_rule(process, at, Rule::from_bits(found.rule))
}

/// What led to an address that is no code.
#[inline(always)]
fn not_code(at: &Cursor) -> u8 {
    if at.guessed != 0 { USER_STACK_NO_FRAME_POINTER } else { USER_STACK_BAD_STEP }
}

#[inline(always)]
fn by_rule<P: Process>(process: &mut P, at: &mut Cursor, rule: Rule) -> u8 {
    let offset = i64::from(rule.cfa_offset).cast_unsigned();
    let cfa = if rule.cfa == CFA_SP {
        at.sp.wrapping_add(offset)
    } else if rule.cfa == CFA_FP {
        at.fp.wrapping_add(offset)
    } else if rule.cfa == CFA_STOP {
        return USER_STACK_COMPLETE;
    } else if rule.cfa == CFA_NONE || rule.cfa == CFA_FRAME_POINTER || rule.cfa == CFA_OTHER_STACK {
        // Another stack may be anywhere.
        let lowest = if rule.cfa == CFA_OTHER_STACK { at.fp } else { at.sp };
        return by_frame_pointer(process, at, MAPPING_TABLE, lowest);
    } else if rule.cfa == CFA_PLT {
        let pushed = u64::from(at.ip & 15 >= offset);
        at.sp.wrapping_add(8).wrapping_add(pushed << 3)
    } else if rule.cfa == CFA_AT_SP || rule.cfa == CFA_AT_FP {
        let base = if rule.cfa == CFA_AT_SP { at.sp } else { at.fp };
        let [from, added] = halves(rule.cfa_offset);
        let Some(word) = process.word(base.wrapping_add(from)) else {
            return USER_STACK_UNREADABLE;
        };
        word.wrapping_add(added)
    } else if rule.cfa == CFA_SIGNAL {
        return by_signal_frame(process, at);
    } else if rule.cfa == CFA_REGISTER && at.first != 0 {
        let value = process.register(u64::from(rule.cfa_offset.cast_unsigned() & 0xff));
        value.wrapping_add(i64::from(rule.cfa_offset >> 8).cast_unsigned())
    } else {
        return USER_STACK_UNSUPPORTED_RULE;
    };
    // Stacks grow down. Only a leaf that keeps its return address in a register has no frame.
    let frameless = rule.saved == SAVED_LINK || rule.saved == SAVED_RA_IN_REGISTER;
    if cfa & 7 != 0 || cfa < at.sp || (cfa == at.sp && !frameless) {
        return USER_STACK_BAD_STEP;
    }
    process.approach(at.sp, cfa);
    let plain = rule.cfa == CFA_SP || rule.cfa == CFA_FP || rule.cfa == CFA_PLT;
    saved_registers(process, at, rule, cfa, plain)
}

/// The two offsets of a CFA that is in memory.
#[inline(always)]
fn halves(offsets: i32) -> [u64; 2] {
    let [l0, l1, h0, h1] = offsets.to_le_bytes();
    [i16::from_le_bytes([l0, l1]), i16::from_le_bytes([h0, h1])]
        .map(|half| i64::from(half).cast_unsigned())
}

#[inline(always)]
fn saved_registers<P: Process>(
    process: &mut P,
    at: &mut Cursor,
    rule: Rule,
    cfa: u64,
    cfa_is_plain: bool,
) -> u8 {
    let slot = cfa.wrapping_add(i64::from(rule.saved_offset).cast_unsigned());
    let mut return_address = cfa.wrapping_sub(8);
    if rule.saved == SAVED_RA_FP || rule.saved == SAVED_PAIR {
        let Some(fp) = process.word(slot) else { return USER_STACK_UNREADABLE };
        at.fp = fp;
    }
    if rule.saved == SAVED_RA_FP_LOST {
        at.fp = NOWHERE;
    }
    if rule.saved == SAVED_PAIR {
        return_address = slot.wrapping_add(8);
    }
    if rule.saved == SAVED_RA_AT {
        return_address = slot;
    }
    let ip = if rule.saved == SAVED_LINK || rule.saved == SAVED_RA_IN_REGISTER {
        if at.first == 0 {
            return USER_STACK_UNSUPPORTED_RULE;
        }
        let number = u64::from(rule.saved_offset.cast_unsigned());
        if rule.saved == SAVED_LINK { at.link } else { process.register(number) }
    } else {
        let Some(ip) = process.word(return_address) else { return USER_STACK_UNREADABLE };
        ip
    };
    at.depends = match rule.saved {
        SAVED_RA if cfa_is_plain => DEPENDS_ON_RETURN_ADDRESS,
        SAVED_RA_FP if cfa_is_plain => slot,
        _ => DEPENDS_ON_MORE,
    };
    at.ip = ip & P::MACHINE.code_mask;
    at.sp = cfa;
    at.returns = 1;
    at.first = 0;
    at.guessed = 0;
    GO_ON
}

/// The kernel put all registers on the stack before it called the handler.
#[inline(always)]
fn by_signal_frame<P: Process>(process: &mut P, at: &mut Cursor) -> u8 {
    let frame = at.sp;
    let Some(sp) = process.word(frame.wrapping_add(P::MACHINE.signal_sp)) else {
        return USER_STACK_UNREADABLE;
    };
    let Some(ip) = process.word(frame.wrapping_add(P::MACHINE.signal_ip)) else {
        return USER_STACK_UNREADABLE;
    };
    let Some(fp) = process.word(frame.wrapping_add(P::MACHINE.signal_fp)) else {
        return USER_STACK_UNREADABLE;
    };
    *at = Cursor { ip, sp, fp, depends: DEPENDS_ON_MORE, ..Cursor::default() };
    GO_ON
}

/// A chain of frame pointers, believed as far as each is a frame above the one before. `lowest` is
/// where this frame can be: not below the stack pointer, if it is on the same stack.
///
/// ```text
///   higher addresses
///   │ return address │ fp + 8
///   │ caller's fp    │ fp       ◀── the frame pointer register
///   │ locals         │
///   lower addresses            ◀── sp
/// ```
#[inline(always)]
fn by_frame_pointer<P: Process>(process: &mut P, at: &mut Cursor, kind: u8, lowest: u64) -> u8 {
    process.note_frame_pointer(kind);
    let unknown_process = kind == KIND_UNKNOWN_PROCESS;
    let end =
        if unknown_process { USER_STACK_UNKNOWN_PROCESS } else { USER_STACK_NO_FRAME_POINTER };
    let fp = at.fp;
    if fp == 0 && at.first == 0 && !unknown_process {
        // "The end of the frame record chain is indicated by the address zero" (AAPCS64 6.4.6);
        // x86-64's psABI 3.4.1 asks start-up code for the same. Code that keeps no frame pointers
        // can still have the zero of its start-up.
        return USER_STACK_ZERO_FRAME_POINTER;
    }
    if fp & 7 != 0 || fp < lowest || fp - lowest > FRAME_MAX {
        return end;
    }
    process.approach(lowest, fp.wrapping_add(16));
    let Some(caller_fp) = process.word(fp) else { return end };
    let Some(ip) = process.word(fp.wrapping_add(P::MACHINE.frame_pointer_ra)) else { return end };
    let ip = ip & P::MACHINE.code_mask;
    if ip == 0 && !unknown_process {
        return USER_STACK_ZERO_FRAME_POINTER;
    }
    if ip.wrapping_sub(LOWEST_CODE) >= USER_END - LOWEST_CODE {
        return end;
    }
    // Where the caller's frame is not above this one, the caller is still there, but its own frame
    // pointer leads nowhere, unless the caller's frame is on another stack and its rule says so.
    let is_above = caller_fp > fp || caller_fp == 0;
    at.depends = if is_above { fp } else { DEPENDS_ON_MORE };
    at.fp = caller_fp;
    at.ip = ip;
    at.sp = fp.wrapping_add(16);
    at.returns = 1;
    at.first = 0;
    at.guessed = 1;
    GO_ON
}

#[cfg(test)]
#[path = "unwind_tests.rs"]
mod tests;
