//! Known programs, and what binutils' relatives say about them.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};
use profiler_user::attribute::Location;
use profiler_user::process::{BuildId, ElfFile, ElfId};
use profiler_user::symbolize::{
    ElfSource, NamedFrame, Names, Symbolizer, SymbolizerConfig, Unsymbolized, WorkerDeath,
};

/// Lines are part of the expectations: see `naming`.
pub(crate) const PROGRAM: &str = r#"
volatile long sink;
static inline __attribute__((always_inline)) long innermost(long x) {
    sink += x * 3;              /* 4 */
    return sink;
}
static inline __attribute__((always_inline)) long between(long x) {
    return innermost(x + 1);    /* 8 */
}
__attribute__((noinline)) long visible(long x) {
    return between(x) + 2;      /* 11 */
}
__attribute__((noinline)) static long hidden(long x) {
    for (long i = 0; i < x; i++) sink += i;
    return sink;
}
long mangled_cpp(long) __asm__("_ZN6engine4turnEl");
long mangled_cpp(long x) { return hidden(x) + 1; }
long mangled_rust(long) __asm__("_ZN6engine4stop17h0123456789abcdefE");
long mangled_rust(long x) { return hidden(x) + 2; }
int main(int argc, char **argv) {
    return (int)(visible(argc) + mangled_cpp(argc) + mangled_rust(argc));
}
"#;

/// Runs a tool; the test fails if it is missing.
pub(crate) fn run(program: &str, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

/// Compiles [`PROGRAM`] as `folder/name`.
pub(crate) fn compile(folder: &Path, name: &str) -> PathBuf {
    let source = folder.join("program.c");
    std::fs::write(&source, PROGRAM).unwrap();
    let program = folder.join(name);
    run("cc", &[&"-g", &"-O1", &"-Wl,--build-id", &source, &"-o", &program]);
    program
}

/// A program as an independent reader sees it.
pub(crate) struct Known {
    bytes: Vec<u8>,
}

impl Known {
    pub(crate) fn read(path: &Path) -> Self {
        Self { bytes: std::fs::read(path).unwrap() }
    }

    fn file(&self) -> object::File<'_> {
        object::File::parse(&*self.bytes).unwrap()
    }

    /// Address and size of a function.
    pub(crate) fn function(&self, name: &str) -> (u64, u64) {
        let file = self.file();
        let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name));
        let symbol = symbol.unwrap_or_else(|| panic!("no symbol {name}"));
        (symbol.address(), symbol.size())
    }

    /// The addresses of all functions.
    pub(crate) fn functions(&self) -> HashMap<String, u64> {
        let file = self.file();
        let named = file.symbols().map(|s| (s.name().unwrap().to_owned(), s.address()));
        named.collect()
    }

    pub(crate) fn offset(&self, address: u64) -> u64 {
        let file = self.file();
        let segment = file.segments().find(|segment| {
            (segment.address()..segment.address() + segment.size()).contains(&address)
        });
        let segment = segment.unwrap();
        address - segment.address() + segment.file_range().0
    }

    pub(crate) fn build_id(&self) -> BuildId {
        BuildId(self.file().build_id().unwrap().unwrap().into())
    }
}

/// This program as the worker.
pub(crate) fn config(inlined: bool) -> SymbolizerConfig {
    let mut config = SymbolizerConfig::new(inlined);
    config.program = std::env::current_exe().unwrap();
    config
}

/// A file as the process table would give it.
pub(crate) fn elf(id: u32, path: &Path, build_id: Option<BuildId>) -> ElfSource {
    let file = File::open(path).unwrap();
    opened(id, path, Some(file), build_id)
}

pub(crate) fn opened(
    id: u32,
    path: &Path,
    file: Option<File>,
    build_id: Option<BuildId>,
) -> ElfSource {
    let path = Arc::from(path.to_str().unwrap());
    ElfSource::from(ElfFile { id: ElfId(id), path, file: file.map(Arc::new), build_id })
}

pub(crate) fn at(elf: u32, file_offset: u64) -> Location {
    Location::Elf { elf: ElfId(elf), file_offset }
}

/// Names places of the given files.
pub(crate) fn name(
    symbolizer: &mut Symbolizer,
    files: &[ElfSource],
    locations: &[Location],
) -> Names {
    let find = |id| files.iter().find(|source| source.file.id == id).cloned();
    let names = symbolizer.names(locations.iter().copied(), &find);
    for location in locations {
        let frames = &names.frames[location];
        assert!(!frames.is_empty());
        assert!(frames.iter().all(|frame| !frame.function.is_empty()));
    }
    let stats = symbolizer.stats();
    let unsymbolized: u64 = stats.unsymbolized.values().sum();
    assert_eq!(stats.requested, stats.symbolized + unsymbolized, "{stats:?}");
    names
}

pub(crate) fn functions(names: &Names, location: Location) -> Vec<&str> {
    names.frames[&location].iter().map(|frame: &NamedFrame| &*frame.function).collect()
}

pub(crate) fn deaths(symbolizer: &Symbolizer, death: WorkerDeath) -> u64 {
    symbolizer.stats().worker_deaths.get(&death).copied().unwrap_or_default()
}

pub(crate) fn unsymbolized(symbolizer: &Symbolizer, reason: Unsymbolized) -> u64 {
    symbolizer.stats().unsymbolized.get(&reason).copied().unwrap_or_default()
}

pub(crate) fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    // The worker's user is another one.
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), permissions).unwrap();
    folder
}
