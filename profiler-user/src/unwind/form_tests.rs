//! Each form that unwind information comes in, by files whose every byte is known.

use std::io::Write as _;

use object::elf::{ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD, EM_386, EM_AARCH64};
use profiler_common::unwind::{
    CFA_FP, CFA_SIGNAL, CFA_SP, Rule, SAVED_LINK, SAVED_PAIR, SAVED_RA, SAVED_RA_AT, SAVED_RA_FP,
};

use super::made_elf::{Form, MadeElf, MadeFrames, TEXT, X86_64_START};
use super::{BuildError, Limits, Source, UnwindTable, build};

const START: Rule = Rule { cfa: CFA_SP, saved: SAVED_RA, saved_offset: 0, cfa_offset: 8 };

fn made(file: &MadeElf) -> UnwindTable {
    build(&file.bytes(), &Limits::default()).unwrap()
}

/// One function of 256 bytes at the text's beginning: `push rbp` of one byte, and that is all.
fn push_rbp(form: Form) -> Vec<u8> {
    let pushed = [0x41, 0x0e, 16, 0x80 | 6, 2];
    MadeFrames::new(form).common("", 16, &X86_64_START).function(TEXT, 0x100, &pushed).bytes
}

#[track_caller]
fn check_push_rbp(table: &UnwindTable, source: Source) {
    assert_eq!(table.source(), source);
    let pushed = Rule { cfa: CFA_SP, saved: SAVED_RA_FP, saved_offset: -16, cfa_offset: 16 };
    let expected = [
        (TEXT - 1, Rule::NONE),
        (TEXT, START),
        (TEXT + 1, pushed),
        (TEXT + 0xff, pushed),
        (TEXT + 0x100, Rule::NONE),
    ];
    for (at, rule) in expected {
        assert_eq!(table.lookup(at), rule, "{at:#x}");
    }
}

#[test]
fn frames_by_section() {
    let file = MadeElf::new(0x1000).section(".eh_frame", push_rbp(Form::Eh));
    check_push_rbp(&made(&file), Source::EhFrame);
}

#[test]
fn frames_without_section_headers() {
    let file = MadeElf::new(0x1000).section(".eh_frame", push_rbp(Form::Eh)).stripped();
    check_push_rbp(&made(&file), Source::EhFrameHeader);
}

#[test]
fn frames_for_debuggers_where_there_are_no_others() {
    let file = MadeElf::new(0x1000).section(".debug_frame", push_rbp(Form::Debug));
    check_push_rbp(&made(&file), Source::DebugFrame);
    // What is left when a program is linked without any: a terminator.
    let file = MadeElf::new(0x1000)
        .section(".eh_frame", vec![0; 4])
        .section(".debug_frame", push_rbp(Form::Debug));
    check_push_rbp(&made(&file), Source::DebugFrame);
    let file = MadeElf::new(0x1000)
        .section(".eh_frame", push_rbp(Form::Eh))
        .section(".debug_frame", push_rbp(Form::Debug));
    check_push_rbp(&made(&file), Source::EhFrame);
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn compressed_frames() {
    let frames = push_rbp(Form::Debug);
    let size = frames.len().try_into().unwrap();
    let zstd = zstd::encode_all(&*frames, 3).unwrap();
    for (kind, to) in [(ELFCOMPRESS_ZLIB, zlib(&frames)), (ELFCOMPRESS_ZSTD, zstd)] {
        let file = MadeElf::new(0x1000).compressed(".debug_frame", kind, size, &to);
        check_push_rbp(&made(&file), Source::DebugFrame);
        let cut = MadeElf::new(0x1000).compressed(".debug_frame", kind, size, &to[..to.len() / 2]);
        let error = build(&cut.bytes(), &Limits::default()).unwrap_err();
        assert_eq!(error.reason(), "compressed");
    }
    let unknown = MadeElf::new(0x1000).compressed(".debug_frame", 77, size, &frames);
    let error = build(&unknown.bytes(), &Limits::default()).unwrap_err();
    assert_eq!(error.reason(), "compressed");
}

#[test]
fn what_is_decompressed_is_limited() {
    let zeros = zlib(&vec![0; 1 << 20]);
    let limits = Limits { section_bytes: 1 << 16, ..Limits::default() };
    let honest = MadeElf::new(0x1000).compressed(".debug_frame", ELFCOMPRESS_ZLIB, 1 << 20, &zeros);
    assert_eq!(build(&honest.bytes(), &limits).unwrap_err().reason(), "too_large");
    // One that says that it is small is read as far as that.
    let lying = MadeElf::new(0x1000).compressed(".debug_frame", ELFCOMPRESS_ZLIB, 64, &zeros);
    let error = build(&lying.bytes(), &limits).unwrap_err();
    assert!(matches!(error, BuildError::NoUnwindInformation), "{error:?}");
}

#[test]
fn other_machines_have_no_table() {
    let file = MadeElf::new(0x1000).section(".eh_frame", push_rbp(Form::Eh));
    let whole = file.bytes();
    let mut of_32_bits = whole.clone();
    of_32_bits[4] = 1;
    let mut big_endian = whole.clone();
    big_endian[5] = 2;
    let i386 = file.machine(EM_386).bytes();
    for file in [of_32_bits, big_endian, i386] {
        assert_eq!(build(&file, &Limits::default()).unwrap_err().reason(), "other_machine");
    }
    for len in [0, 3, 63] {
        let error = build(&whole[..len].to_vec(), &Limits::default()).unwrap_err();
        assert_eq!(error.reason(), "unreadable", "{len}");
    }
}

#[test]
fn the_return_address_is_undefined_in_the_outermost_frame() {
    let undefined = [0x07, 16];
    let frames = MadeFrames::new(Form::Eh)
        .common("", 16, &X86_64_START)
        .function(TEXT, 0x100, &undefined)
        .function(TEXT + 0x100, 0x100, &[]);
    let table = made(&MadeElf::new(0x1000).section(".eh_frame", frames.bytes));
    assert_eq!(table.lookup(TEXT + 0xff), Rule::STOP);
    assert_eq!(table.lookup(TEXT + 0x100), START);
}

#[test]
fn frames_of_signal_handlers_returns() {
    let frames =
        MadeFrames::new(Form::Eh).common("zS", 16, &X86_64_START).function(TEXT + 0xff, 0x10, &[]);
    let table = made(&MadeElf::new(0x1000).section(".eh_frame", frames.bytes));
    assert_eq!(table.lookup(TEXT + 0x100), Rule::plain(CFA_SIGNAL));
    assert_eq!(table.lookup(TEXT + 0xfe), Rule::NONE);
}

#[test]
fn code_that_nothing_describes_and_that_is_known() {
    let frames = push_rbp(Form::Eh);
    let restore = [0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];
    let file = MadeElf::new(0x1000)
        .entry(TEXT + 0x400)
        .code(0x800, &restore)
        // Where a function is described, it is no return from a signal.
        .code(0x40, &restore)
        .section(".eh_frame", frames);
    let table = made(&file);
    let signal = Rule::plain(CFA_SIGNAL);
    let expected = [
        (0x3ff, Rule::NONE),
        (0x400, Rule::STOP),
        (0x43f, Rule::STOP),
        (0x440, Rule::NONE),
        (0x7fe, Rule::NONE),
        // The return address is the first byte, and is looked up one before.
        (0x7ff, signal),
        (0x808, signal),
        (0x809, Rule::NONE),
    ];
    for (at, rule) in expected {
        assert_eq!(table.lookup(TEXT + at), rule, "{at:#x}");
    }
    assert_eq!(table.lookup(TEXT + 0x40).cfa, CFA_SP);
    // An entry point that is described needs no other rule.
    let file = MadeElf::new(0x1000).entry(TEXT).section(".eh_frame", push_rbp(Form::Eh));
    check_push_rbp(&made(&file), Source::EhFrame);
}

fn aarch64(instructions: &[u8], at: u64) -> Rule {
    // CFA = sp; the code alignment is 1 here.
    let frames = MadeFrames::new(Form::Eh).common("", 30, &[0x0c, 31, 0]).function(
        TEXT,
        0x100,
        instructions,
    );
    let file = MadeElf::new(0x1000).machine(EM_AARCH64).section(".eh_frame", frames.bytes);
    made(&file).lookup(TEXT + at)
}

#[test]
fn rules_of_aarch64() {
    // stp x29, x30, [sp, -32]!; mov x29, sp; ...; and the CFA by x29.
    let usual = [0x44, 0x0e, 32, 0x80 | 29, 4, 0x80 | 30, 3, 0x44, 0x0d, 29];
    let leaf = Rule { cfa: CFA_SP, saved: SAVED_LINK, saved_offset: 0, cfa_offset: 0 };
    let pair = Rule { cfa: CFA_SP, saved: SAVED_PAIR, saved_offset: -32, cfa_offset: 32 };
    assert_eq!(aarch64(&usual, 3), leaf);
    assert_eq!(aarch64(&usual, 4), pair);
    assert_eq!(aarch64(&usual, 8), Rule { cfa: CFA_FP, ..pair });
    // A function that saves the link register alone.
    let link_only = [0x0e, 16, 0x80 | 30, 2];
    let at = Rule { cfa: CFA_SP, saved: SAVED_RA_AT, saved_offset: -16, cfa_offset: 16 };
    assert_eq!(aarch64(&link_only, 0), at);
    // The return address is signed from here on: it is where it was. On other machines the same
    // byte (0x2d) is about register windows.
    let signed: Vec<u8> = [0x44, 0x2d].into_iter().chain(usual).collect();
    assert_eq!(aarch64(&signed, 4), leaf);
    assert_eq!(aarch64(&signed, 8), pair);
    assert_eq!(aarch64(&[0x07, 30], 0), Rule::STOP);
    // Not as a pair: not in our terms.
    assert_eq!(aarch64(&[0x0e, 64, 0x80 | 29, 8, 0x80 | 30, 2], 0), Rule::UNSUPPORTED);
}
