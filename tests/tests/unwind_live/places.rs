//! Programs whose files are not where files usually are, or do not stay there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use spanprof_tests::require;
use spanprof_tests::workload::{Program, Workload, wait_until};
use tempfile::TempDir;

use crate::linkers::check_profile;
use crate::profile::{NO_FRAME_POINTERS, Profile, Walk, profile_while};
use crate::stack::{Outside, glibc, is_on, static_glibc, within};

/// Its file is in no folder: it was written to memory and run from there.
#[test]
fn a_program_in_memory() {
    require!(Root);
    let spanprof = require!(Spanprof);
    let launcher = Program::compile("memfd").unwrap();
    let program = Program::compile_with("unwind", &[NO_FRAME_POINTERS]).unwrap();
    let workload = launcher.start(&[program.arg(), "chain", "0"]).unwrap();
    check_profile(&Profile::of(spanprof, workload.pid(), &[]), glibc);
    workload.end().unwrap();
}

/// A process of runc's, with its own processes and mounts: its paths are not the host's.
struct Container {
    runc: PathBuf,
    folder: TempDir,
    id: String,
}

impl Container {
    /// With a program as `/program`, and other files where they are on the host.
    fn of(runc: PathBuf, program: &Path, files: &[PathBuf]) -> Self {
        let folder = tempfile::Builder::new().prefix("spanprof-runc-").tempdir().unwrap();
        let root = folder.path().join("rootfs");
        fs::create_dir(&root).unwrap();
        fs::copy(program, root.join("program")).unwrap();
        for file in files {
            let there = root.join(file.strip_prefix("/").unwrap());
            fs::create_dir_all(there.parent().unwrap()).unwrap();
            fs::copy(file, there).unwrap();
        }
        let mount =
            |kind: &str, at: &str| json!({ "destination": at, "type": kind, "source": kind });
        let config = json!({
            "ociVersion": "1.0.0",
            "process": {
                "terminal": false, "cwd": "/", "user": { "uid": 0, "gid": 0 },
                "args": ["/program", "chain", "0"],
            },
            "root": { "path": "rootfs", "readonly": true },
            "mounts": [mount("proc", "/proc"), mount("tmpfs", "/dev")],
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }] },
        });
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let id = folder.path().file_name().unwrap().to_string_lossy().into_owned();
        Self { runc, folder, id }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.runc);
        command.arg("--root").arg(self.folder.path().join("state"));
        command.args(arguments).arg(&self.id).current_dir(self.folder.path());
        command
    }

    /// The program in it, and its id on the host.
    fn start(&self) -> (Workload, u32) {
        let workload = Workload::start(&mut self.command(&["run", "--pid-file", "pid"])).unwrap();
        // The program may be at work before runc says which it is.
        let mut pid = None;
        wait_until("runc has started it", || {
            let said = fs::read_to_string(self.folder.path().join("pid"));
            pid = said.ok().and_then(|said| said.trim().parse().ok());
            Ok(pid.is_some())
        })
        .unwrap();
        (workload, pid.unwrap())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // It is gone already, unless the test has failed.
        drop(self.command(&["delete", "--force"]).output());
    }
}

#[test]
fn a_container() {
    require!(Root);
    let (spanprof, runc) = (require!(Spanprof), require!(Runc));
    let of_compiler = |name: &str| {
        let asked = Command::new("cc").arg(format!("-print-file-name={name}")).output().unwrap();
        fs::canonicalize(String::from_utf8(asked.stdout).unwrap().trim()).unwrap()
    };
    let libc = of_compiler("libc.so.6");
    let there = libc.parent().unwrap().join("ld-linux-x86-64.so.2");
    let loader = PathBuf::from("/lib64/ld-linux-x86-64.so.2");
    let cases: [(&str, &[PathBuf], Outside); 2] =
        [("-pie", &[libc, there, loader], glibc), ("-static", &[], static_glibc)];
    for (linked, files, outside) in cases {
        let program = Program::compile_with("unwind", &[NO_FRAME_POINTERS, linked]).unwrap();
        let container = Container::of(runc.clone(), program.path(), files);
        let (workload, pid) = container.start();
        check_profile(&Profile::of(spanprof.clone(), pid, &[]), outside);
        workload.end().unwrap();
    }
}

/// The frames of each are of another size, at the same addresses.
#[test]
fn libraries_that_take_each_others_place() {
    require!(Root);
    let spanprof = require!(Spanprof);
    let flags = [NO_FRAME_POINTERS, "-rdynamic"];
    let program = Program::compile_with("swapped", &flags).unwrap();
    let [a, b] = [("a", "-DBYTES=1000"), ("b", "-DBYTES=3000")].map(|(name, bytes)| {
        let inner = format!("-DINNER=inner_of_{name}");
        let flags = [NO_FRAME_POINTERS, &inner, bytes];
        program.with_library_as("swapped_library", name, &flags).unwrap()
    });
    let arguments = ["0", a.to_str().unwrap(), b.to_str().unwrap()];
    let profile = profile_while(&program, &arguments, spanprof, &[]);
    let chains = ["a", "b"].map(|name| {
        let [leaf, inner] = ["leaf_of", "inner_of"].map(|of| format!("{of}_{name}"));
        [leaf, inner, "outer".to_owned(), "use".to_owned(), "main".to_owned()]
    });
    let is_right = |walk: &Walk| {
        within(walk, "main", glibc).is_some_and(|stack| {
            chains.iter().any(|chain| {
                let chain = chain.each_ref().map(String::as_str);
                is_on(&stack, &chain, &["use", "main"])
            })
        })
    };
    // Until what is there now is known, a stack has its first frame, and says so.
    let is_cut = |walk: &Walk| matches!(walk.user()[..], [_, "[program had changed]"]);
    profile.all(|walk| is_right(walk) || is_cut(walk));
    profile.least(60, is_right);
}
