use std::{fs::File, io::Write as _, path::Path, process::Command};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const VARIABLE: &str = "otel_thread_ctx_v1";
const NAMES: [&str; 2] = [VARIABLE, "other"];

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

/// The variables of a file.
fn variables(path: &Path) -> Vec<TlsVariable> {
    let file = File::open(path).unwrap();
    ElfReader::open(&file).unwrap().tls_variables(&NAMES).list
}

#[track_caller]
fn check_offset(flags: &[&str], exported: bool, transform: impl FnOnce(&Path)) {
    let folder = TempDir::new().unwrap();
    let program = compile(folder.path(), flags);
    let output = Command::new(&program).output().unwrap();
    let truth: i64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    transform(&program);
    let found: Vec<_> =
        variables(&program).iter().map(|it| (it.name, it.exported, it.local_exec)).collect();
    assert_eq!(found, [(0, exported, Some(truth))], "{flags:?}");
}

#[test]
fn agrees_with_the_program() {
    check_offset(&["-rdynamic"], true, |_| ());
    check_offset(&["-rdynamic", "-DALIGNED"], true, |_| ());
    check_offset(&["-rdynamic", "-no-pie"], true, |_| ());
    check_offset(&["-rdynamic", "-no-pie", "-DALIGNED"], true, |_| ());
    check_offset(&["-Wl,--export-dynamic-symbol=otel_thread_ctx_v1"], true, |_| ());
    check_offset(&["-rdynamic", "-DALIGNED", "-s"], true, |_| ());
    check_offset(&[], false, |_| ());
    check_offset(&["-static", "-DALIGNED"], false, |_| ());
    check_offset(&["-static-pie"], false, |_| ());
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
    check_offset(&["-rdynamic", "-DALIGNED"], true, drop_section_headers);
    check_offset(&["-rdynamic", "-Wl,--hash-style=sysv"], true, drop_section_headers);
}

#[test]
fn a_variable_that_no_symbol_names_is_not_found() {
    let folder = TempDir::new().unwrap();
    assert_eq!(variables(&compile(folder.path(), &["-O1", "-s"])), []);
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
         int main(void) { return mine + (otel_thread_ctx_v1 != 0); }",
    )
    .unwrap();
    let program = folder.path().join("user");
    let status =
        Command::new("cc").args(["-rdynamic", "-o"]).args([&program, &user, &library]).status();
    assert!(status.unwrap().success());
    assert_eq!(variables(&program), []);
}

/// A variable: name, exported, and references with whether they are by the symbol.
type Said = (usize, bool, Vec<(ReferenceKind, bool)>);

/// What a library with this source says of its variables.
#[track_caller]
fn library(source: &str, flags: &[&str]) -> Vec<Said> {
    let folder = TempDir::new().unwrap();
    let (from, to) = (folder.path().join("lib.c"), folder.path().join("lib.so"));
    std::fs::write(&from, source).unwrap();
    let mut cc = Command::new("cc");
    let status = cc.args(["-shared", "-fPIC", "-O1", "-o"]).args([&to, &from]).args(flags).status();
    assert!(status.unwrap().success(), "{flags:?}");
    let references = |it: &TlsVariable| {
        let by_symbol = |it: &TlsReference| it.target == ReferenceTarget::Symbol;
        it.references.iter().map(|it| (it.kind, by_symbol(it))).collect()
    };
    variables(&to).iter().map(|it| (it.name, it.exported, references(it))).collect()
}

const EXPORTED: &str = "__thread int a; __thread void *otel_thread_ctx_v1; void *get(void) { a++; return &otel_thread_ctx_v1; }";
const HIDDEN: &str = "__thread int a; static __thread void *otel_thread_ctx_v1; void *get(void) { a++; return &otel_thread_ctx_v1; }";

#[test]
fn a_library_finds_its_variable_by_a_relocation_of_each_model() {
    use ReferenceKind::{Descriptor, Module, Offset};
    let check = |source, flags: &[&str], exported, references: &[(ReferenceKind, bool)]| {
        let found = library(source, flags);
        assert_eq!(found, [(0, exported, references.to_vec())], "{flags:?}, {source}");
    };
    check(EXPORTED, &["-ftls-model=initial-exec"], true, &[(Offset, true)]);
    check(EXPORTED, &[], true, &[(Module, true)]);
    check(HIDDEN, &["-ftls-model=initial-exec"], false, &[(Offset, false)]);
    check(HIDDEN, &["-ftls-model=local-dynamic"], false, &[(Module, false)]);
    if cfg!(target_arch = "x86_64") {
        check(EXPORTED, &["-mtls-dialect=gnu2"], true, &[(Descriptor, true)]);
        check(HIDDEN, &["-mtls-dialect=gnu2"], false, &[(Descriptor, false)]);
    }
}

#[test]
fn a_file_without_thread_local_variables_costs_nothing() {
    let folder = TempDir::new().unwrap();
    let (from, to) = (folder.path().join("lib.c"), folder.path().join("lib.so"));
    std::fs::write(&from, "int otel_thread_ctx_v1;").unwrap();
    let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&to, &from]).status();
    assert!(status.unwrap().success());
    let file = File::open(to).unwrap();
    let found = ElfReader::open(&file).unwrap().tls_variables(&NAMES);
    assert_eq!((found.list, found.cost), (Vec::new(), 0));
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
        reader.interpreter();
        reader.tls_variables(&NAMES);
        reader.dynamic().and_then(|dynamic| reader.table_by_dynamic(&dynamic));
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
            std::fs::read(compile(folder.path(), &["-rdynamic", "-shared", "-fPIC"])).unwrap()
        });
        // The ELF header and the program headers; then also the dynamic tables behind them.
        read_everything(&mutated(bytes, &changes, 64 + 13 * 56));
        read_everything(&mutated(bytes, &more, bytes.len()));
    }
}
