use std::collections::BTreeMap;

use profiler_common::unwind::{MAPPING_ANONYMOUS, MAPPING_NO_TABLE};

use super::*;
use crate::machine::{AARCH64, X86_64};

/// A process of one mapping a kind: code at `TEXT` with rules, at `PLAIN` and `JIT` without.
struct Fake<const ARM: bool> {
    rules: BTreeMap<u64, Rule>,
    stack: BTreeMap<u64, u64>,
    registers: [u64; 32],
    frames: Vec<u64>,
    by_frame_pointer: Vec<u8>,
    known: bool,
}

const TEXT: u64 = 0x10_0000;
const PLAIN: u64 = 0x20_0000;
const JIT: u64 = 0x30_0000;

impl<const ARM: bool> Process for Fake<ARM> {
    const MACHINE: Machine = if ARM { AARCH64 } else { X86_64 };

    fn look_up(&mut self, pc: u64) -> Lookup {
        let kind = match pc >> 20 {
            _ if !self.known => KIND_UNKNOWN_PROCESS,
            1 => MAPPING_TABLE,
            2 => MAPPING_NO_TABLE,
            3 => MAPPING_ANONYMOUS,
            _ => KIND_UNMAPPED,
        };
        let rule = self.rules.range(..=pc).next_back().map_or(Rule::NONE, |(_, rule)| *rule);
        Lookup { kind, rule: rule.to_bits() }
    }
    fn word(&mut self, address: u64) -> Option<u64> {
        self.stack.get(&address).copied()
    }
    fn approach(&mut self, _sp: u64, _cfa: u64) {}
    fn register(&mut self, number: u64) -> u64 {
        self.registers[usize::try_from(number).unwrap()]
    }
    fn frame(&mut self, word: u64) {
        self.frames.push(word);
    }
    fn note_frame_pointer(&mut self, kind: u8) {
        self.by_frame_pointer.push(kind);
    }
}

fn rule(cfa: u8, cfa_offset: i32, saved: u8, saved_offset: i16) -> Rule {
    Rule { cfa, saved, saved_offset, cfa_offset }
}

fn fake<const ARM: bool>(rules: &[(u64, Rule)], stack: &[(u64, u64)]) -> Fake<ARM> {
    Fake {
        rules: rules.iter().copied().collect(),
        stack: stack.iter().copied().collect(),
        registers: [0; 32],
        frames: Vec::new(),
        by_frame_pointer: Vec::new(),
        known: true,
    }
}

fn leaf(ip: u64, sp: u64, fp: u64) -> Cursor {
    Cursor { ip, sp, fp, first: 1, ..Cursor::default() }
}

fn walk<const ARM: bool>(process: &mut Fake<ARM>, leaf: Cursor) -> u8 {
    let mut at = leaf;
    for _ in 0..100 {
        let outcome = step(process, &mut at);
        if outcome != GO_ON {
            return outcome;
        }
    }
    panic!("it does not end");
}

#[track_caller]
fn check(rules: &[(u64, Rule)], stack: &[(u64, u64)], leaf: Cursor, frames: &[u64], outcome: u8) {
    let mut process = fake::<false>(rules, stack);
    assert_eq!(walk(&mut process, leaf), outcome);
    assert_eq!(process.frames, frames);
}

#[test]
fn walks_by_rules_to_the_outermost_frame() {
    // leaf (sp + 16, fp saved at CFA - 16) ─▶ middle (fp + 16) ─▶ start (stop).
    let rules = [
        (TEXT, rule(CFA_SP, 16, SAVED_RA_FP, -16)),
        (TEXT + 0x100, rule(CFA_FP, 16, SAVED_RA_FP, -16)),
        (TEXT + 0x200, Rule::STOP),
    ];
    let stack =
        [(0x8000, 0x8100), (0x8008, TEXT + 0x110), (0x8100, 0xdead), (0x8108, TEXT + 0x210)];
    check(
        &rules,
        &stack,
        leaf(TEXT + 4, 0x8000, 7),
        &[TEXT + 4, TEXT + 0x110, TEXT + 0x210],
        USER_STACK_COMPLETE,
    );
}

#[test]
fn a_caller_is_looked_up_one_byte_before_its_return_address() {
    // The call is the last instruction of its function: the byte after it has another rule.
    let rules = [
        (TEXT, rule(CFA_SP, 8, SAVED_RA, 0)),
        (TEXT + 0x100, Rule::STOP),
        (TEXT + 0x200, Rule::UNSUPPORTED),
    ];
    let stack = [(0x8000, TEXT + 0x200)];
    let frames = [TEXT, TEXT + 0x200];
    check(&rules, &stack, leaf(TEXT, 0x8000, 0), &frames, USER_STACK_COMPLETE);
    // In a system call the first frame is where it returns to.
    let rules = [(TEXT, Rule::STOP), (TEXT + 0x10, Rule::UNSUPPORTED)];
    let in_call = Cursor { returns: 1, ..leaf(TEXT + 0x10, 0x8000, 0) };
    check(&rules, &[], in_call, &[TEXT + 0x10], USER_STACK_COMPLETE);
}

#[test]
fn a_signal_frame_leads_to_the_interrupted_instruction() {
    let rules = [
        (TEXT, rule(CFA_SP, 8, SAVED_RA, 0)),
        (TEXT + 0x100, Rule::plain(CFA_SIGNAL)),
        // The first byte of a function: one before it is another's.
        (TEXT + 0x200, rule(CFA_FP, 32, SAVED_RA, 0)),
        (TEXT + 0x300, Rule::STOP),
    ];
    let context = 0x5008;
    let stack = [
        (0x5000, TEXT + 0x110),
        (context + 160, 0x9000), // sp
        (context + 168, TEXT + 0x200),
        (context + 120, 0x9100), // fp
        (0x9118, TEXT + 0x310),
    ];
    check(
        &rules,
        &stack,
        leaf(TEXT, 0x5000, 0),
        &[TEXT, TEXT + 0x110, (TEXT + 0x200) | FRAME_INTERRUPTED, TEXT + 0x310],
        USER_STACK_COMPLETE,
    );
}

#[test]
fn a_linkage_table_has_pushed_from_a_byte_of_each_sixteen_on() {
    let rules = [(TEXT, rule(CFA_PLT, 11, SAVED_RA, 0)), (TEXT + 0x100, Rule::STOP)];
    let stack = [(0x8000, TEXT + 0x110), (0x8008, TEXT + 0x120)];
    for (low, caller) in [(0, 0x110), (10, 0x110), (11, 0x120), (15, 0x120)] {
        let frames = [TEXT + 0x20 + low, TEXT + caller];
        check(&rules, &stack, leaf(TEXT + 0x20 + low, 0x8000, 0), &frames, USER_STACK_COMPLETE);
    }
}

#[test]
fn a_cfa_can_be_in_memory_or_in_a_register() {
    let at = |from: i32, added: i32| (added << 16) | (from & 0xffff);
    let rules = [
        (TEXT, rule(CFA_AT_SP, at(24, 8), SAVED_RA_FP, -16)),
        (TEXT + 0x100, rule(CFA_AT_FP, at(-8, -16), SAVED_RA, 0)),
        (TEXT + 0x200, Rule::STOP),
        (TEXT + 0x300, rule(CFA_REGISTER, 16 << 8 | 3, SAVED_RA, 0)),
    ];
    let stack = [
        (0x8018, 0x8100), // CFA = 0x8108
        (0x8100, TEXT + 0x110),
        (0x80f8, 0x9000), // fp
        (0x8ff8, 0x9110), // CFA = 0x9100
        (0x90f8, TEXT + 0x210),
    ];
    let frames = [TEXT, TEXT + 0x110, TEXT + 0x210];
    check(&rules, &stack, leaf(TEXT, 0x8000, 0), &frames, USER_STACK_COMPLETE);

    let mut process = fake::<false>(&rules, &stack);
    process.registers[3] = 0x90f0;
    let outcome = walk(&mut process, leaf(TEXT + 0x300, 0x8000, 0));
    assert_eq!((outcome, process.frames), (USER_STACK_COMPLETE, vec![TEXT + 0x300, TEXT + 0x210]));
    // Only the first frame's registers are known.
    let stack = [(0x8018, 0x8100), (0x8100, TEXT + 0x310), (0x80f8, 0)];
    let frames = [TEXT, TEXT + 0x310];
    check(&rules, &stack, leaf(TEXT, 0x8000, 0), &frames, USER_STACK_UNSUPPORTED_RULE);
}

#[test]
fn a_return_address_can_be_in_a_register() {
    let rules = [(TEXT, rule(CFA_SP, 0, SAVED_RA_IN_REGISTER, 5)), (TEXT + 0x100, Rule::STOP)];
    let mut process = fake::<false>(&rules, &[]);
    process.registers[5] = TEXT + 0x110;
    let outcome = walk(&mut process, leaf(TEXT, 0x8000, 0));
    assert_eq!((outcome, process.frames), (USER_STACK_COMPLETE, vec![TEXT, TEXT + 0x110]));
}

#[test]
fn what_a_rule_leads_to_is_believed_only_above() {
    let wrong = |rule: Rule, outcome| {
        check(&[(TEXT, rule)], &[(0x8000, TEXT)], leaf(TEXT, 0x8000, 0x8003), &[TEXT], outcome);
    };
    wrong(rule(CFA_SP, 0, SAVED_RA, 0), USER_STACK_BAD_STEP);
    wrong(rule(CFA_SP, -8, SAVED_RA, 0), USER_STACK_BAD_STEP);
    wrong(rule(CFA_FP, 16, SAVED_RA, 0), USER_STACK_BAD_STEP);
    wrong(rule(CFA_SP, 16, SAVED_RA, 0), USER_STACK_UNREADABLE);
    wrong(rule(CFA_AT_SP, 64, SAVED_RA, 0), USER_STACK_UNREADABLE);
    wrong(Rule::UNSUPPORTED, USER_STACK_UNSUPPORTED_RULE);
    wrong(rule(77, 0, SAVED_RA, 0), USER_STACK_UNSUPPORTED_RULE);
}

#[test]
fn an_end_that_is_no_code_is_told_apart() {
    let rules = [(TEXT, rule(CFA_SP, 8, SAVED_RA, 0))];
    let ends = |ra, frames: &[u64], outcome| {
        check(&rules, &[(0x8000, ra)], leaf(TEXT, 0x8000, 0), frames, outcome);
    };
    ends(0, &[TEXT], USER_STACK_COMPLETE);
    ends(0xfff, &[TEXT], USER_STACK_BAD_STEP);
    ends(0xffff_ffff_8100_0000, &[TEXT], USER_STACK_BAD_STEP);
    ends(0x70_0000, &[TEXT, 0x70_0000], USER_STACK_UNMAPPED);
    check(&[], &[], leaf(0, 0x8000, 0), &[], USER_STACK_BAD_STEP);
}

#[test]
fn code_without_rules_is_walked_by_frame_pointer() {
    let rules = [(TEXT, rule(CFA_SP, 8, SAVED_RA, 0)), (TEXT + 0x100, Rule::STOP)];
    let stack = [(0x8010, 0x8100), (0x8018, JIT + 8), (0x8100, 0x8200), (0x8108, TEXT + 0x110)];
    let mut process = fake::<false>(&rules, &stack);
    let outcome = walk(&mut process, leaf(PLAIN, 0x8000, 0x8010));
    let frames = vec![PLAIN, JIT + 8, TEXT + 0x110];
    assert_eq!((outcome, process.frames), (USER_STACK_COMPLETE, frames));
    assert_eq!(process.by_frame_pointer, [MAPPING_NO_TABLE, MAPPING_ANONYMOUS]);
}

#[test]
fn a_frame_pointer_is_believed_only_as_far_as_it_is_one() {
    let ends = |fp, stack: &[(u64, u64)], frames: &[u64], outcome| {
        check(&[], stack, leaf(PLAIN, 0x8000, fp), frames, outcome);
    };
    let nowhere = USER_STACK_NO_FRAME_POINTER;
    ends(0x8003, &[(0x8003, 0), (0x800b, PLAIN)], &[PLAIN], nowhere);
    ends(0x7ff8, &[(0x7ff8, 0), (0x8000, PLAIN)], &[PLAIN], nowhere);
    ends(0x8000 + (1 << 21), &[(0x20_8000, 0), (0x20_8008, PLAIN)], &[PLAIN], nowhere);
    ends(0, &[], &[PLAIN], nowhere);
    ends(0x8010, &[], &[PLAIN], nowhere);
    // What is there is not a return address.
    ends(0x8010, &[(0x8010, 0x8100), (0x8018, 0x77)], &[PLAIN], nowhere);
    ends(0x8010, &[(0x8010, 0x8100), (0x8018, 0x70_0000)], &[PLAIN], nowhere);
    // The chain ends, or has a loop.
    let frames = [PLAIN, PLAIN + 4];
    let zero = USER_STACK_ZERO_FRAME_POINTER;
    ends(0x8010, &[(0x8010, 0), (0x8018, PLAIN + 4)], &frames, zero);
    ends(0x8010, &[(0x8010, 0x8100), (0x8018, 0)], &[PLAIN], zero);
    ends(0x8010, &[(0x8010, 0x8010), (0x8018, PLAIN + 4)], &frames, nowhere);
    ends(0x8010, &[(0x8010, 0x8000), (0x8018, PLAIN + 4)], &frames, nowhere);
}

#[test]
fn a_frame_pointer_can_lead_to_another_stack() {
    // The function called on a stack at 0x8000 has saved the frame pointer of its caller's stack.
    let rules = [
        (TEXT, rule(CFA_SP, 32, SAVED_RA_FP, -16)),
        (TEXT + 0x100, Rule::plain(CFA_OTHER_STACK)),
        (TEXT + 0x200, Rule::plain(CFA_FRAME_POINTER)),
        (TEXT + 0x300, Rule::STOP),
    ];
    let stack = |other: u64| {
        let caller = other + 0x40;
        let on_it = [(other, caller), (other + 8, TEXT + 0x210)];
        let above = [(caller, 0), (caller + 8, TEXT + 0x310)];
        [[(0x8010, other), (0x8018, TEXT + 0x110)], on_it, above].concat()
    };
    let frames = [TEXT, TEXT + 0x110, TEXT + 0x210, TEXT + 0x310];
    for other in [0x1000, 0x1_0000_0000] {
        let leaf = leaf(TEXT, 0x8000, 0x8010);
        check(&rules, &stack(other), leaf, &frames, USER_STACK_COMPLETE);
        // Where that function, too, says only that it keeps a frame pointer.
        let by_frame_pointer = [&[(TEXT, Rule::plain(CFA_FRAME_POINTER))], &rules[1..]].concat();
        check(&by_frame_pointer, &stack(other), leaf, &frames, USER_STACK_COMPLETE);
        // Without the rule of the other stack, nothing below is believed.
        let same_stack = [&rules[..1], &[(TEXT + 0x100, rules[2].1)], &rules[2..]].concat();
        let outcome = USER_STACK_NO_FRAME_POINTER;
        check(&same_stack, &stack(other), leaf, &frames[..2], outcome);
    }
    // What is no address of a frame ends it.
    let frames = [TEXT, TEXT + 0x110];
    for (other, outcome) in [(3, USER_STACK_NO_FRAME_POINTER), (0, USER_STACK_ZERO_FRAME_POINTER)] {
        check(&rules, &stack(other), leaf(TEXT, 0x8000, 0x8010), &frames, outcome);
    }
}

#[test]
fn of_a_process_that_is_not_known_the_chain_is_all_there_is() {
    let stack = [(0x8010, 0x8100), (0x8018, 0x7777_0000), (0x8100, 0), (0x8108, 0x5555_0000)];
    let mut process = fake::<false>(&[], &stack);
    process.known = false;
    let outcome = walk(&mut process, leaf(0x6666_0000, 0x8000, 0x8010));
    assert_eq!(outcome, USER_STACK_UNKNOWN_PROCESS);
    assert_eq!(process.frames, [0x6666_0000, 0x7777_0000, 0x5555_0000]);
}

#[test]
fn aarch64_has_a_link_register_and_signed_return_addresses() {
    let signature = 0x00aa << 48;
    let rules = [
        (TEXT, rule(CFA_SP, 0, SAVED_LINK, 0)),
        (TEXT + 0x100, rule(CFA_SP, 48, SAVED_PAIR, -48)),
        (TEXT + 0x200, rule(CFA_SP, 32, SAVED_RA_AT, -32)),
        (TEXT + 0x300, Rule::STOP),
    ];
    let stack = [
        (0x8000, 0x9000),
        (0x8008, (TEXT + 0x210) | signature),
        (0x8030, (TEXT + 0x310) | signature),
    ];
    let mut process = fake::<true>(&rules, &stack);
    let leaf = Cursor { link: (TEXT + 0x110) | signature, ..leaf(TEXT, 0x8000, 0) };
    let outcome = walk(&mut process, leaf);
    assert_eq!(outcome, USER_STACK_COMPLETE);
    assert_eq!(process.frames, [TEXT, TEXT + 0x110, TEXT + 0x210, TEXT + 0x310]);
    // A caller cannot be in its link register: what is there is the return address of its callee.
    let rules = [(TEXT, rule(CFA_SP, 16, SAVED_PAIR, -16)), (TEXT + 0x100, rules[0].1)];
    let mut process = fake::<true>(&rules, &[(0x8000, 0), (0x8008, TEXT + 0x110)]);
    assert_eq!(walk(&mut process, Cursor { link: 0, ..leaf }), USER_STACK_UNSUPPORTED_RULE);
}

#[test]
fn aarch64_signal_frames_hold_all_registers() {
    let rules = [
        (TEXT, rule(CFA_SP, 0, SAVED_LINK, 0)),
        (TEXT + 0x100, Rule::plain(CFA_SIGNAL)),
        (TEXT + 0x200, Rule::STOP),
    ];
    // siginfo 128, ucontext up to its mcontext 176, fault address 8, then x0.
    let x = |number: u64| 0x8000 + 128 + 176 + 8 + number * 8;
    let stack = [(x(29), 0x9000), (x(31), 0x9100), (x(32), TEXT + 0x200)];
    let mut process = fake::<true>(&rules, &stack);
    let leaf = Cursor { link: TEXT + 0x110, ..leaf(TEXT, 0x8000, 0) };
    assert_eq!(walk(&mut process, leaf), USER_STACK_COMPLETE);
    assert_eq!(process.frames[2], (TEXT + 0x200) | FRAME_INTERRUPTED);
}
