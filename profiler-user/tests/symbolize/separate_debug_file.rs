//! Stripped programs whose symbols are in another file, as distributions ship them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use profiler_user::symbolize::{ElfSource, Symbolizer, SymbolizerConfig};

use crate::support::{Known, at, compile, config, elf, folder, functions, name, run};

pub(crate) const TESTS: &[crate::Test] = &[
    ("debug_file_by_build_id", by_build_id),
    ("debug_file_by_link_beside_the_file", by_link_beside),
    ("debug_file_by_link_below_the_debug_folder", by_link_below),
    ("debug_file_in_the_root_of_the_process", in_the_root_of_the_process),
    ("debug_file_of_another_build_is_refused", of_another_build),
    ("debug_file_without_build_ids_by_checksum", by_checksum),
];

/// `bin/app` stripped, and `app.debug` with what was stripped, not where it belongs.
struct Split {
    folder: tempfile::TempDir,
    known: Known,
    app: PathBuf,
    debug: PathBuf,
}

fn split(flags: &[&str]) -> Split {
    let folder = folder();
    let program = compile(folder.path(), "program");
    fs::create_dir(folder.path().join("bin")).unwrap();
    let [app, debug] = ["bin/app", "app.debug"].map(|name| folder.path().join(name));
    run("objcopy", &[&"--only-keep-debug", &program, &debug]);
    let mut arguments: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"--strip-all"];
    arguments.extend(flags.iter().map(|flag| flag as &dyn AsRef<std::ffi::OsStr>));
    let link = format!("--add-gnu-debuglink={}", debug.display());
    arguments.extend([&link as &dyn AsRef<std::ffi::OsStr>, &program, &app]);
    run("objcopy", &arguments);
    Split { known: Known::read(&program), folder, app, debug }
}

impl Split {
    fn put_debug_file(&self, relative: &str) {
        let path = self.folder.path().join(relative.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::rename(&self.debug, path).unwrap();
    }

    fn build_id_path(&self) -> String {
        let hex = self.known.build_id().to_string();
        format!(".build-id/{}/{}.debug", &hex[..2], &hex[2..])
    }

    #[track_caller]
    fn check(&self, config: &dyn Fn(bool) -> SymbolizerConfig, source: &ElfSource, found: bool) {
        let (address, size) = self.known.function("visible");
        let locations: Vec<_> =
            (address..address + size).map(|a| at(1, self.known.offset(a))).collect();
        for inlined in [false, true] {
            let mut symbolizer = Symbolizer::new(config(inlined));
            let names = name(&mut symbolizer, std::slice::from_ref(source), &locations);
            let stacks: Vec<_> = locations.iter().map(|l| functions(&names, *l)).collect();
            let expected = match (found, inlined) {
                (false, _) => vec![format!("app+{address:#x}")],
                (true, false) => vec!["visible".to_owned()],
                (true, true) => ["innermost", "between", "visible"].map(str::to_owned).to_vec(),
            };
            assert!(stacks.iter().any(|stack| *stack == expected), "{inlined} {stacks:?}");
            assert_eq!(symbolizer.stats().debug_files, u64::from(found));
        }
    }

    fn source(&self) -> ElfSource {
        elf(1, &self.app, Some(self.known.build_id()))
    }

    /// With a debug folder of ours.
    fn config(&self) -> impl Fn(bool) -> SymbolizerConfig {
        let dir = self.folder.path().join("debug");
        move |inlined| SymbolizerConfig { debug_dirs: vec![dir.clone()], ..config(inlined) }
    }
}

fn by_build_id() {
    let split = split(&["--remove-section=.gnu_debuglink"]);
    split.check(&split.config(), &split.source(), false);
    split.put_debug_file(&format!("debug/{}", split.build_id_path()));
    split.check(&split.config(), &split.source(), true);
}

fn by_link_beside() {
    for place in ["bin/app.debug", "bin/.debug/app.debug"] {
        let split = split(&[]);
        let source = ElfSource { file: elf(1, &split.app, None).file, root: None };
        split.check(&config, &source, false);
        split.put_debug_file(place);
        split.check(&config, &source, true);
    }
}

fn by_link_below() {
    let split = split(&[]);
    split.put_debug_file(&format!("debug/{}", split.app.with_file_name("app.debug").display()));
    split.check(&split.config(), &split.source(), true);
}

/// The path and the debug folder are the process's, whose root is another one.
fn in_the_root_of_the_process() {
    for by_link in [false, true] {
        let split = split(&[]);
        let place = if by_link {
            "usr/lib/debug/bin/app.debug".to_owned()
        } else {
            format!("usr/lib/debug/{}", split.build_id_path())
        };
        split.put_debug_file(&place);
        let mut source = split.source();
        source.file.path = "/bin/app".into();
        source.root = Some(split.folder.path().to_owned());
        split.check(&config, &source, true);
    }
    // A link in it does not lead out of it.
    let split = split(&[]);
    let outside = folder();
    let link = split.folder.path().join("bin/app.debug");
    fs::rename(&split.debug, outside.path().join("app.debug")).unwrap();
    symlink(outside.path().join("app.debug"), link).unwrap();
    let mut source = split.source();
    source.file.path = "/bin/app".into();
    source.root = Some(split.folder.path().to_owned());
    split.check(&config, &source, false);
    assert!(Path::new(&split.folder.path().join("bin/app.debug")).exists());
}

/// By build ID where both files have one; a debug link's name says nothing.
fn of_another_build() {
    let other = split(&[]);
    let split = split(&[]);
    // Another program at the same place.
    let source = split.folder.path().join("other.c");
    fs::write(&source, "int main(void) { return 7; }\n").unwrap();
    let place = split.app.with_file_name("app.debug");
    run("cc", &[&"-g", &"-Wl,--build-id", &source, &"-o", &place]);
    split.check(&config, &split.source(), false);
    drop(other);
}

fn by_checksum() {
    let remove = "--remove-section=.note.gnu.build-id";
    let split = split(&[remove]);
    let source = ElfSource { file: elf(1, &split.app, None).file, root: None };
    let debug = split.app.with_file_name("app.debug");
    fs::copy(&split.debug, &debug).unwrap();
    split.check(&config, &source, true);
    let mut bytes = fs::read(&debug).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&debug, bytes).unwrap();
    split.check(&config, &source, false);
}
