//! However a program or a library with span-marker is linked, it runs, and its slot is found: by the
//! note always, by the dynamic symbols where the linker exports them without being told to.

#![cfg(test)]
#![cfg(target_arch = "x86_64")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{Endianness, Object as _, ObjectSymbol as _, elf};
use profiler_common::span::THREAD_CONTEXT_SYMBOL;
use profiler_common::span_note::{HOOK_SYMBOL, INFO_ABI, INFO_MAGIC, INFO_STATIC};
use profiler_user::process::{SlotSource, span_note_of_file, span_slot_of_file};
use spanprof_tests::export_matrix::{Build, Packages, unwinder_for_musl};
use spanprof_tests::require;
use spanprof_tests::workload::Workload;

/// In `.dynsym`, or found by the note only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exports {
    Both,
    Neither,
    /// Only those that the linker was told to export.
    Slot,
}

use Exports::{Both, Neither, Slot};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const NOT_LLD: &str = "-Clinker-features=-lld";

fn packages() -> Packages {
    Packages::new(Path::new(env!("CARGO_TARGET_TMPDIR")), &["program", "plugin", "host"]).unwrap()
}

/// Programs of each profile, and libraries of the two that differ most, by one linker.
#[track_caller]
fn check_linker(arguments: &[&str], programs: Exports) {
    let packages = packages();
    for profile in ["dev", "release", "thin", "fat"] {
        let build = Build { profile, arguments, ..Build::default() };
        check_program(&packages, &build, programs);
    }
    for profile in ["dev", "fat"] {
        check_library(&packages, &Build { profile, arguments, ..Build::default() });
    }
}

/// A program runs, says where its slot is, and a reader says the same.
#[track_caller]
fn check_program(packages: &Packages, build: &Build<'_>, exported: Exports) {
    let build = Build { package: "program", ..*build };
    let path = packages.build(&build).unwrap();
    let running = Workload::start(&mut Command::new(&path));
    let running = running.unwrap_or_else(|error| panic!("{build:?}: {error:#}"));
    let offset: i64 = running.first_line().trim_end().parse().unwrap();
    assert_eq!(slot_by_note(running.pid(), &path), offset, "{build:?}");
    let by_symbol = span_slot_of_file(&File::open(&path).unwrap());
    assert!(by_symbol.is_none_or(|(found, _)| found == offset), "{by_symbol:?} for {build:?}");
    let by_dynamic = by_symbol.is_some_and(|(_, source)| source == SlotSource::DynamicSymbol);
    assert_eq!(by_dynamic, exported != Neither, "{by_symbol:?} for {build:?}");
    let expected = [exported != Neither, exported == Both];
    assert_eq!([THREAD_CONTEXT_SYMBOL, HOOK_SYMBOL].map(|it| exports(&path, it)), expected);
    running.end().unwrap_or_else(|error| panic!("{build:?}: {error:#}"));
}

/// A program loads a library, whose slot its own dynamic symbols name.
#[track_caller]
fn check_library(packages: &Packages, build: &Build<'_>) {
    let library = packages.build(&Build { package: "plugin", ..*build }).unwrap();
    for symbol in [THREAD_CONTEXT_SYMBOL, HOOK_SYMBOL] {
        assert!(exports(&library, symbol), "{symbol} of {build:?}");
    }
    let note = span_note_of_file(&File::open(&library).unwrap()).unwrap();
    check_hook(&library, note.hook_offset);
    let host = packages.build(&Build { package: "host", profile: "dev", ..Build::default() });
    let mut host = Command::new(host.unwrap());
    let output = host.arg(library).output().unwrap();
    assert!(output.status.success() && output.stdout == b"marked\n", "{build:?}: {output:?}");
}

/// What the note of the file leads to in the process.
fn slot_by_note(pid: u32, path: &Path) -> i64 {
    let note = span_note_of_file(&File::open(path).unwrap()).unwrap();
    check_hook(path, note.hook_offset);
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut info = [0; 32];
    memory.read_exact_at(&mut info, load_bias(pid, path).wrapping_add(note.info_address)).unwrap();
    assert_eq!(info[..8], INFO_MAGIC);
    assert_eq!(info[8..12], INFO_ABI.to_ne_bytes());
    assert_eq!(info[12..16], INFO_STATIC.to_ne_bytes());
    i64::from_ne_bytes(info[16..24].try_into().unwrap())
}

/// A `nop` of five bytes, and a return.
#[track_caller]
fn check_hook(path: &Path, offset: u64) {
    let mut code = [0; 6];
    File::open(path).unwrap().read_exact_at(&mut code, offset).unwrap();
    assert_eq!(code, [0x0f, 0x1f, 0x44, 0, 0, 0xc3]);
}

fn load_bias(pid: u32, path: &Path) -> u64 {
    let data = fs::read(path).unwrap();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let path = fs::canonicalize(path).unwrap();
    let first = maps.lines().find(|line| line.ends_with(path.to_str().unwrap())).unwrap();
    let start = u64::from_str_radix(first.split('-').next().unwrap(), 16).unwrap();
    let header = elf::FileHeader64::<Endianness>::parse(&*data).unwrap();
    let endian = header.endian().unwrap();
    let programs = header.program_headers(endian, &*data).unwrap();
    let load = programs.iter().find(|header| header.p_type(endian) == elf::PT_LOAD).unwrap();
    start.wrapping_sub(load.p_vaddr(endian) & !0xfff)
}

/// Whether it is in the dynamic symbols, defined and global. And nothing is needed at run time of
/// what made the linker export it.
fn exports(path: &Path, symbol: &str) -> bool {
    let data = fs::read(path).unwrap();
    let stub = b"libspan_marker_export";
    assert!(!data.windows(stub.len()).any(|window| window == stub));
    let file: ElfFile64<'_, Endianness> = ElfFile64::parse(&*data).unwrap();
    file.dynamic_symbols().any(|found| {
        found.name() == Ok(symbol) && found.is_global() && !found.is_weak() && !found.is_undefined()
    })
}

#[test]
fn by_lld_which_is_the_default() {
    check_linker(&[], Both);
}

#[test]
fn by_gnu_ld() {
    check_linker(&[NOT_LLD], Neither);
}

#[test]
fn by_gold() {
    require!(Gold);
    check_linker(&[NOT_LLD, "-Clink-arg=-fuse-ld=gold"], Both);
}

#[test]
fn by_mold() {
    let mold = require!(Mold);
    let folder = format!("-Clink-arg=-B{}", mold.parent().unwrap().display());
    check_linker(&[NOT_LLD, "-Clink-arg=-fuse-ld=mold", &folder], Neither);
}

#[test]
fn told_to_export() {
    let packages = packages();
    let export = format!("-Clink-arg=-Wl,--export-dynamic-symbol={THREAD_CONTEXT_SYMBOL}");
    let build = Build { profile: "fat", arguments: &[NOT_LLD, &export], ..Build::default() };
    check_program(&packages, &build, Slot);
}

/// Where there is no dynamic linker, also at a fixed address; and exported by GNU ld, which then
/// reads the slot in a way that no start-up code prepares for, if it is read by its exported name.
#[test]
fn statically() {
    let packages = packages();
    let export = format!("-Clink-arg=-Wl,--export-dynamic-symbol={THREAD_CONTEXT_SYMBOL}");
    let pie = "-Ctarget-feature=+crt-static";
    let fixed = "-Ctarget-feature=+crt-static -Crelocation-model=static";
    for (rustflags, arguments, exported) in [
        (pie, [].as_slice(), Neither),
        (pie, &[NOT_LLD], Neither),
        (pie, &[NOT_LLD, &export], Slot),
        (fixed, &[], Neither),
        (fixed, &[NOT_LLD], Neither),
    ] {
        let build = Build {
            profile: "fat",
            rustflags,
            target: Some(TARGET),
            arguments,
            ..Build::default()
        };
        check_program(&packages, &build, exported);
    }
}

/// Where musl has what a program starts with, as its compiler would tell the linker.
fn start_files(gcc: &Path) -> String {
    let output = Command::new(gcc).args(["-static", "-###", "-x", "c", "/dev/null"]).output();
    let text = String::from_utf8(output.unwrap().stderr).unwrap();
    let mut words = text.split_whitespace().map(|word| word.trim_matches('"'));
    words.find_map(|word| word.strip_suffix("/crti.o")).unwrap().to_owned()
}

/// With musl, at a fixed address and not: `musl-gcc` knows nothing of the second.
#[test]
fn statically_with_musl() {
    let gcc = require!(Musl);
    let (rustc, library) = require!(MuslRust);
    let packages = packages();
    let unwinder = unwinder_for_musl(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
    let rustflags = format!(
        "-Clinker={} -Clink-self-contained=no -Ctarget-feature=+crt-static -Lnative={}",
        gcc.display(),
        unwinder.display()
    );
    let folder = start_files(&gcc);
    let start = ["rcrt1.o", "crti.o", "crtn.o"].map(|name| format!("-Clink-arg={folder}/{name}"));
    let mut pie = vec!["-Clink-arg=-nostartfiles"];
    pie.extend(start.iter().map(String::as_str));
    // What the first file refers to comes after it.
    pie.extend(["-Clink-arg=-lc", "-Clink-arg=-Wl,-static,-pie,--no-dynamic-linker,-z,text"]);
    let [rustc, library] = [&rustc, &library].map(|path| path.to_str().unwrap());
    for arguments in [["-Crelocation-model=static"].as_slice(), &pie] {
        let build = Build {
            profile: "fat",
            rustflags: &rustflags,
            target: Some("x86_64-unknown-linux-musl"),
            arguments,
            online: true,
            cargo: &["-Zbuild-std=std,panic_abort"],
            environment: &[
                ("RUSTC", rustc),
                ("RUSTC_BOOTSTRAP", "1"),
                ("__CARGO_TESTS_ONLY_SRC_ROOT", library),
            ],
            ..Build::default()
        };
        check_program(&packages, &build, Neither);
    }
}

/// Another library has defined the slot: both use its own.
#[test]
fn with_the_slot_of_another_library() {
    let packages = packages();
    for arguments in [[].as_slice(), &[NOT_LLD]] {
        let cargo = &["--features=external-slot"];
        let build = Build { profile: "release", arguments, cargo, ..Build::default() };
        check_program(&packages, &build, if arguments.is_empty() { Both } else { Neither });
    }
}
