//! Go programs, by files whose every byte is known.

use profiler_common::unwind::{
    CFA_FRAME_POINTER, CFA_OTHER_STACK, CFA_SIGNAL, CFA_SP, Rule, SAVED_RA, SAVED_RA_FP,
};

use super::made_elf::{FIRST_SECTION, Form, MadeElf, MadeFrames, TEXT, X86_64_START};
use super::{Limits, Source, UnwindTable, build};

const START: Rule = Rule { cfa: CFA_SP, saved: SAVED_RA, saved_offset: 0, cfa_offset: 8 };

fn made(file: &MadeElf) -> UnwindTable {
    build(&file.bytes(), &Limits::default()).unwrap()
}

/// A function of a line table: its offset in the text, its name, and how deep its stack is for how
/// many bytes.
type GoFunction<'a> = (u32, &'a str, &'a [(i32, u8)]);

/// `.gopclntab` as of Go 1.20; `text`: the address of offset 0.
fn line_table_with(functions: &[GoFunction<'_>], end: u32, text: u64) -> Vec<u8> {
    let mut names = Vec::new();
    // At 0 there is none.
    let mut pc_values = vec![0];
    let mut entries = Vec::new();
    let mut descriptions = Vec::new();
    let int = |number: usize| u32::try_from(number).unwrap().to_le_bytes();
    let behind = functions.len() * 8 + 4;
    for (begin, name, depths) in functions {
        entries.extend([begin.to_le_bytes(), int(behind + descriptions.len())].concat());
        let depths_at = if depths.is_empty() { 0 } else { pc_values.len() };
        let description = [begin.to_le_bytes(), int(names.len()), [0; 4], [0; 4], int(depths_at)];
        descriptions.extend(description.concat());
        names.extend(name.bytes().chain([0]));
        let mut before = -1;
        for (depth, len) in *depths {
            let change = depth - before;
            let zigzag =
                u8::try_from(if change < 0 { -2 * change - 1 } else { 2 * change }).unwrap();
            // A number of two bytes, whether it needs them or not.
            pc_values.extend([zigzag & 0x7f | 0x80, zigzag >> 7, *len]);
            before = *depth;
        }
        if !depths.is_empty() {
            pc_values.push(0);
        }
    }
    entries.extend(end.to_le_bytes());
    let long = |number: usize| u64::try_from(number).unwrap().to_le_bytes();
    let values_at = 72 + names.len();
    let functions_at = values_at + pc_values.len();
    let mut table = vec![0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8];
    table.extend([long(functions.len()), long(0), text.to_le_bytes()].concat());
    table.extend([long(72), long(0), long(0), long(values_at), long(functions_at)].concat());
    table.extend([names, pc_values, entries, descriptions].concat());
    table
}

fn line_table(functions: &[(u32, &str)], end: u32) -> Vec<u8> {
    let functions: Vec<_> = functions.iter().map(|(at, name)| (*at, *name, &[][..])).collect();
    line_table_with(&functions, end, TEXT)
}

#[test]
fn go_is_walked_by_frame_pointer_and_ends_where_goroutines_begin() {
    let functions = [(0x200, "main.main"), (0x300, "runtime.goexit.abi0"), (0x340, "main.goexit")];
    let in_c = MadeFrames::new(Form::Eh).common("", 16, &X86_64_START).function(TEXT, 0x100, &[]);
    let file = MadeElf::new(0x1000)
        .section(".eh_frame", in_c.bytes)
        .section(".gopclntab", line_table(&functions, 0x400));
    let table = made(&file);
    assert!(table.stats().go);
    let frame_pointer = Rule::plain(CFA_FRAME_POINTER);
    // The C part has its own rules.
    assert_eq!(table.lookup(TEXT), START);
    for (at, rule) in [
        (0x100, frame_pointer),
        (0x2fe, frame_pointer),
        (0x2ff, Rule::STOP),
        (0x33f, Rule::STOP),
        (0x340, frame_pointer),
        (0xfff, frame_pointer),
    ] {
        assert_eq!(table.lookup(TEXT + at), rule, "{at:#x}");
    }
}

#[test]
fn go_knows_how_deep_its_stack_is() {
    // push rbp; mov rbp, rsp; sub rsp, 64; ...; pop rbp; ret
    let depths = [(0, 1), (8, 7), (72, 100), (8, 1), (0, 1), (72, 40)];
    let functions = [(0x100, "main.main", &depths[..]), (0x200, "main.f", &[])];
    let saved =
        |cfa_offset| Rule { cfa: CFA_SP, saved: SAVED_RA_FP, saved_offset: -16, cfa_offset };
    let check = |file: MadeElf, text: u64| {
        let table = made(&file);
        assert_eq!(table.source(), Source::GoLineTable);
        for (at, rule) in [
            (0xff, Rule::plain(CFA_FRAME_POINTER)),
            (0x100, START),
            (0x101, saved(16)),
            (0x108, saved(80)),
            (0x16c, saved(16)),
            (0x16d, START),
            (0x16e, saved(80)),
            (0x195, saved(80)),
            (0x196, Rule::plain(CFA_FRAME_POINTER)),
            (0x200, Rule::plain(CFA_FRAME_POINTER)),
        ] {
            assert_eq!(table.lookup(text + at), rule, "{at:#x}");
        }
    };
    let file = || MadeElf::new(0x1000);
    let line_table = line_table_with(&functions, 0x300, TEXT);
    check(file().section(".gopclntab", line_table), TEXT);
    // Since Go 1.26, functions are counted from where the module's own description says.
    let without_text = line_table_with(&functions, 0x300, 0);
    let with_module = |line_table: u64, text: u64| {
        let module = [vec![line_table.to_le_bytes(); 22], vec![text.to_le_bytes()]].concat();
        let tables = file().section(".gopclntab", without_text.clone());
        tables.section(".go.module", module.concat())
    };
    check(with_module(FIRST_SECTION, TEXT + 0x40), TEXT + 0x40);
    // A file that is made to harm goes on for ever, and has more depths than text.
    let endless = [(72, 0), (8, 200), (72, 200), (8, 200)];
    let functions = [(0x100, "main.main", &endless[..1]), (0x200, "main.f", &endless[1..])];
    let line_table = line_table_with(&functions, 0x280, TEXT);
    let table = made(&file().section(".gopclntab", line_table));
    for (at, rule) in [
        (0x100, Rule::plain(CFA_FRAME_POINTER)),
        (0x200, saved(16)),
        (0x27f, saved(16)),
        (0x280, Rule::plain(CFA_FRAME_POINTER)),
    ] {
        assert_eq!(table.lookup(TEXT + at), rule, "{at:#x}");
    }
}

#[test]
fn handlers_of_signals_return_by_a_function_of_go() {
    let functions = [(0x100, "runtime.sigreturn__sigaction.abi0"), (0x110, "main.main")];
    let frames = MadeFrames::new(Form::Debug)
        .common("", 16, &X86_64_START)
        .function(TEXT + 0x100, 0x10, &[])
        .bytes;
    let file = MadeElf::new(0x1000)
        .section(".debug_frame", frames)
        .section(".gopclntab", line_table(&functions, 0x400));
    let table = made(&file);
    // The return address is the first byte, and is looked up one before.
    for at in [0xff, 0x100, 0x10f] {
        assert_eq!(table.lookup(TEXT + at), Rule::plain(CFA_SIGNAL), "{at:#x}");
    }
    assert_eq!(table.lookup(TEXT + 0x110), Rule::plain(CFA_FRAME_POINTER));
}

#[test]
fn go_goes_over_to_another_stack_and_keeps_its_frame_pointer() {
    let other = Rule::plain(CFA_OTHER_STACK);
    let functions = [(0x100, "main.main"), (0x200, "runtime.systemstack.abi0"), (0x300, "main.f")];
    let line_table = line_table(&functions, 0x400);
    // All of it by frame pointer: from behind the prologue on.
    let table = made(&MadeElf::new(0x1000).section(".gopclntab", line_table.clone()));
    let frame_pointer = Rule::plain(CFA_FRAME_POINTER);
    let expected = [(0x203, frame_pointer), (0x204, other), (0x2ff, other), (0x300, frame_pointer)];
    for (at, rule) in expected {
        assert_eq!(table.lookup(TEXT + at), rule, "{at:#x}");
    }
    // What describes it says when it has no frame; and never where the frame pointer is saved.
    let frame = [0x41, 0x0e, 16, 0x7f, 0x0e, 8, 0x41, 0x0e, 32];
    let frames = MadeFrames::new(Form::Debug)
        .common("", 16, &X86_64_START)
        .function(TEXT + 0x100, 0x100, &frame)
        .function(TEXT + 0x200, 0x100, &frame);
    let file = MadeElf::new(0x1000)
        .section(".debug_frame", frames.bytes)
        .section(".gopclntab", line_table);
    let table = made(&file);
    let saved =
        |cfa_offset| Rule { cfa: CFA_SP, saved: SAVED_RA_FP, saved_offset: -16, cfa_offset };
    for (at, rule) in [
        (0x100, START),
        (0x101, saved(16)),
        (0x140, START),
        (0x141, saved(32)),
        (0x1ff, saved(32)),
        (0x200, START),
        (0x203, saved(16)),
        (0x204, other),
        (0x23f, other),
        (0x240, START),
        (0x241, other),
        (0x2ff, other),
        (0x300, frame_pointer),
    ] {
        assert_eq!(table.lookup(TEXT + at), rule, "{at:#x}");
    }
}

#[test]
fn go_tables_that_lie_do_not_harm() {
    // Each function's end is the next one's beginning: here it is before its own.
    let backwards = [
        (0x380, "runtime.systemstack"),
        (0x300, "runtime.goexit"),
        (0x200, "runtime.mcall"),
        (0x200, "main.main"),
    ];
    let between = MadeFrames::new(Form::Eh)
        .common("", 16, &X86_64_START)
        .function(TEXT + 0x240, 0x10, &[])
        .bytes;
    let file = MadeElf::new(0x1000)
        .section(".eh_frame", between)
        .section(".gopclntab", line_table(&backwards, 0));
    let table = made(&file);
    assert_eq!(table.lookup(TEXT + 0x200), Rule::plain(CFA_FRAME_POINTER));
    assert_eq!(table.lookup(TEXT + 0x240), START);
    assert_eq!(table.lookup(TEXT + 0x384), Rule::plain(CFA_FRAME_POINTER));
    // Each name is there once in a program, and each range costs as much as there are rows.
    let many: Vec<_> = (0..1000).map(|at| (0x200 + 2 * at, "runtime.goexit")).collect();
    let file = MadeElf::new(0x1000).section(".gopclntab", line_table(&many, 0x1000));
    let table = made(&file);
    let end = (TEXT..TEXT + 0x1000).rev().find(|at| table.lookup(*at) == Rule::STOP);
    assert_eq!(end, Some(TEXT + 0x200 + 2 * 64 - 1));
}
