//! The caller of a frame by a rule of our tables, over made-up registers and memory.

use profiler_common::sample::USER_STACK_COMPLETE;
use profiler_common::unwind::{MAPPING_TABLE, Rule};
use profiler_ebpf::machine::{Machine, X86_64};
use profiler_ebpf::unwind::{Cursor, GO_ON, Lookup, Process, step};

/// The stack pointer. Everything else is above.
pub(crate) const SP: u64 = 0x7000_0000_0000;

/// A caller's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The return address.
    pub(crate) ip: u64,
    /// The stack pointer.
    pub(crate) sp: u64,
    /// The frame pointer; `None`: it is not known.
    pub(crate) fp: Option<u64>,
}

/// What a rule leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A caller.
    Caller(Caller),
    /// There is none.
    Outermost,
    /// No rule, or one that cannot be followed: a `USER_STACK_*`.
    End(u8),
}

/// The word at an address: even, above the stack pointer, another one at each address.
pub(crate) fn word(address: u64) -> u64 {
    let mixed = address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    SP + 0x1000_0000 + (mixed << 3)
}

/// A register, by DWARF number.
pub(crate) fn register(number: u64) -> u64 {
    if number == 7 { SP } else { SP + 0x10_0000 + number * 0x1_0000 }
}

struct MadeUp(Rule);

impl Process for MadeUp {
    const MACHINE: Machine = X86_64;

    fn look_up(&mut self, _pc: u64) -> Lookup {
        Lookup { kind: MAPPING_TABLE, rule: self.0.to_bits() }
    }
    fn word(&mut self, address: u64) -> Option<u64> {
        Some(word(address))
    }
    fn approach(&mut self, _sp: u64, _cfa: u64) {}
    fn register(&mut self, number: u64) -> u64 {
        register(number)
    }
    fn frame(&mut self, _word: u64) {}
    fn note_frame_pointer(&mut self, _kind: u8) {}
}

/// Where the file is mapped: no program has code in its lowest pages.
const MAPPED_AT: u64 = 0x5555_0000_0000;

/// Follows a rule at an address of the file.
pub(crate) fn follow(rule: Rule, address: u64) -> Found {
    let leaf =
        Cursor { ip: MAPPED_AT + address, sp: SP, fp: register(6), first: 1, ..Cursor::default() };
    let mut at = leaf;
    match step(&mut MadeUp(rule), &mut at) {
        GO_ON => {
            let fp = (at.fp != 1).then_some(at.fp);
            Found::Caller(Caller { ip: at.ip, sp: at.sp, fp })
        }
        USER_STACK_COMPLETE => Found::Outermost,
        outcome => Found::End(outcome),
    }
}
