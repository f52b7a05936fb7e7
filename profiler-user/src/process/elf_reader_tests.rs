use std::{io::Write as _, path::Path, process::Command};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const VARIABLE: &str = "otel_thread_ctx_v1";

/// A program that says where its thread-local is, as a distance from the thread pointer.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef ALIGNED
__thread __attribute__((aligned(64))) char beside[72] = "x";
#else
__thread char beside[3] = "x";
#endif
__thread void *otel_thread_ctx_v1;
__thread int after;
int main(void) {
    beside[1] = 1; after = 1;
    printf("%ld\n", (long)((char *)&otel_thread_ctx_v1 - (char *)__builtin_thread_pointer()));
    return 0;
}
"#;

fn compile(folder: &Path, flags: &[&str]) -> std::path::PathBuf {
    let (source, program) = (folder.join("tls.c"), folder.join("tls"));
    std::fs::write(&source, PROGRAM).unwrap();
    let status =
        Command::new("cc").args(flags).arg("-o").args([&program, &source]).status().unwrap();
    assert!(status.success(), "{flags:?}");
    program
}

#[track_caller]
fn check_offset(flags: &[&str], transform: impl FnOnce(&Path)) {
    let folder = TempDir::new().unwrap();
    let program = compile(folder.path(), flags);
    let output = Command::new(&program).output().unwrap();
    let truth: i64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    transform(&program);
    let file = File::open(&program).unwrap();
    let found = ElfReader::open(&file).unwrap().tls_offset(VARIABLE);
    assert_eq!(found, Some(truth), "{flags:?}");
}

#[test]
fn agrees_with_the_program() {
    check_offset(&["-rdynamic"], |_| ());
    check_offset(&["-rdynamic", "-DALIGNED"], |_| ());
    check_offset(&["-rdynamic", "-no-pie"], |_| ());
    check_offset(&["-rdynamic", "-no-pie", "-DALIGNED"], |_| ());
    check_offset(&["-Wl,--export-dynamic-symbol=otel_thread_ctx_v1"], |_| ());
    check_offset(&["-rdynamic", "-DALIGNED", "-s"], |_| ());
}

/// Zeroes `e_shoff` and `e_shnum`: what a packer leaves.
fn drop_section_headers(program: &Path) {
    let mut bytes = std::fs::read(program).unwrap();
    bytes[0x28..0x30].fill(0);
    bytes[0x3c..0x3e].fill(0);
    std::fs::write(program, bytes).unwrap();
}

#[test]
fn agrees_with_the_program_without_section_headers() {
    check_offset(&["-rdynamic", "-DALIGNED"], drop_section_headers);
    check_offset(&["-rdynamic", "-Wl,--hash-style=sysv"], drop_section_headers);
}

#[test]
fn a_variable_that_is_not_exported_is_not_found() {
    let folder = TempDir::new().unwrap();
    let file = File::open(compile(folder.path(), &["-O1"])).unwrap();
    assert_eq!(ElfReader::open(&file).unwrap().tls_offset(VARIABLE), None);
}

#[test]
fn a_variable_of_a_library_is_not_the_executables() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("libctx.so");
    std::fs::rename(compile(folder.path(), &["-shared", "-fPIC"]), &library).unwrap();
    let user = folder.path().join("user.c");
    std::fs::write(
        &user,
        "extern __thread void *otel_thread_ctx_v1; __thread int mine;\
         int start(void) { return mine + (otel_thread_ctx_v1 != 0); }",
    )
    .unwrap();
    let program = folder.path().join("user");
    let status =
        Command::new("cc").args(["-rdynamic", "-o"]).args([&program, &user, &library]).status();
    assert!(status.unwrap().success());
    let file = File::open(&program).unwrap();
    assert_eq!(ElfReader::open(&file).unwrap().tls_offset(VARIABLE), None);
}

#[test]
fn formulas() {
    // Values of real links of a 64-aligned and an 8-aligned block, checked by running them.
    let block = |vaddr, memsz, align| TlsBlock { vaddr, memsz, align };
    let below = |block: TlsBlock, value| block.offset_below_thread_pointer(value);
    assert_eq!(below(block(0x3d80, 0x18, 8), 0x8), Some(-16));
    assert_eq!(below(block(0x3d80, 0x98, 64), 0x48), Some(0x48 - 0xc0));
    // The segment does not start at a multiple of its alignment.
    assert_eq!(below(block(0x1010, 0x20, 64), 0), Some(-0x30));
    assert_eq!(below(block(0x1000, 0x20, 0), 0), Some(-0x20));
    assert_eq!(below(block(0x1000, 0x20, 48), 0), None);

    let above = |block: TlsBlock, value| block.offset_above_thread_pointer(value);
    assert_eq!(above(block(0x10d80, 0x18, 8), 0x8), Some(0x18));
    assert_eq!(above(block(0x10d80, 0x98, 64), 0x48), Some(0x40 + 0x48));
    assert_eq!(above(block(0x1030, 0x20, 64), 0), Some(0x30));
    assert_eq!(above(block(0x1000, 0x20, 3), 0), None);
}

#[track_caller]
fn check_build_id(flag: &str, expected: Option<&str>) {
    let folder = TempDir::new().unwrap();
    let file = File::open(compile(folder.path(), &[flag])).unwrap();
    let found = ElfReader::open(&file).unwrap().build_id().map(|id| id.to_string());
    assert_eq!(found.as_deref(), expected);
}

#[test]
fn finds_the_build_id() {
    check_build_id("-Wl,--build-id=0x0123456789abcdef0011", Some("0123456789abcdef0011"));
    check_build_id("-Wl,--build-id=none", None);
}

#[test]
fn a_long_build_id_is_cut() {
    let flag = format!("-Wl,--build-id=0x{}", "ab".repeat(100));
    check_build_id(&flag, Some("ab".repeat(64).as_str()));
}

#[test]
fn other_files_are_refused() {
    let mut file = tempfile::tempfile().unwrap();
    assert!(!is_elf(&file).unwrap());
    assert!(ElfReader::open(&file).is_none());
    file.write_all(b"\x7fELF\x01\x01\x01").unwrap();
    assert!(is_elf(&file).unwrap());
    assert!(ElfReader::open(&file).is_none());
}

/// Any change of the headers of a real file: no panic, and nothing that takes long.
fn mutated(bytes: &[u8], changes: &[(prop::sample::Index, u8)], headers: usize) -> File {
    let mut bytes = bytes.to_vec();
    for (at, value) in changes {
        bytes[at.index(headers)] = *value;
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    file
}

fn read_everything(file: &File) {
    if let Some(reader) = ElfReader::open(file) {
        reader.build_id();
        reader.tls_offset(VARIABLE);
        reader.table_by_dynamic();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_headers(
        changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..24),
        more in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..200),
    ) {
        static PROGRAM_BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let bytes = PROGRAM_BYTES.get_or_init(|| {
            let folder = TempDir::new().unwrap();
            std::fs::read(compile(folder.path(), &["-rdynamic"])).unwrap()
        });
        // The ELF header and the program headers; then also the dynamic tables behind them.
        read_everything(&mutated(bytes, &changes, 64 + 13 * 56));
        read_everything(&mutated(bytes, &more, bytes.len()));
    }

    #[test]
    fn any_notes(notes in prop::collection::vec(any::<u8>(), 0..512)) {
        notes_in(&notes).for_each(drop);
    }
}

/// As mold lays out a segment that is aligned to 8: a note of `.note.gnu.property` and a build ID of
/// 20 bytes, and behind it another.
#[test]
fn notes_of_both_alignments_in_one_segment() {
    let note = |name: &[u8], desc: &[u8], kind: u32| {
        let lens = [name.len(), desc.len()].map(|len| u32::try_from(len).unwrap().to_ne_bytes());
        [&lens[0], &lens[1], &kind.to_ne_bytes(), name, desc].concat()
    };
    let notes = [
        note(b"GNU\0", &[5; 16], 5),
        note(b"GNU\0", &[7; 20], NT_GNU_BUILD_ID),
        note(NOTE_NAME, &[9; 16], NOTE_TYPE),
    ];
    let kinds: Vec<(u32, u8, usize)> =
        notes_in(&notes.concat()).map(|note| (note.kind, note.desc[0], note.desc_at)).collect();
    assert_eq!(kinds, [(5, 5, 16), (NT_GNU_BUILD_ID, 7, 48), (NOTE_TYPE, 9, 92)]);
}
