//! However a program or a library is linked, its spans are found, in each thread, and none is wrong.

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use serde_json::Value;
    use spanprof_tests::require;
    use spanprof_tests::span_writer::{CHILD, OUTSIDE, ROOT, SERVICE, SpanWriter};
    use spanprof_tests::spanprof::Spanprof;
    use spanprof_tests::workload::{Program, Workload, compile_library};
    use tempfile::TempDir;

    const HZ: &str = "997";
    /// In hundredths of a second of CPU time, the first half of which is not looked at.
    const WORK: u64 = 100;
    /// Two threads on two CPUs that are shared with others. What they do before the kernel is told
    /// of their slots is not looked at.
    const THREADS: [&str; 3] = ["-DTHREADS=2", "-DWARM_UP_MS=500", "-pthread"];
    const SAMPLES_MIN: u64 = 100;
    const LABELLED_MIN: f64 = 0.99;

    /// A writer at work, and what its library needs to be kept for.
    struct Running {
        workload: Workload,
        _writer: SpanWriter,
        _folder: Option<TempDir>,
    }

    fn start(writer: SpanWriter, folder: Option<TempDir>, tunables: &str) -> Running {
        let arguments = writer.arguments("good", 0);
        let mut command = Command::new(&arguments[0]);
        command.args(&arguments[1..]).env("GLIBC_TUNABLES", tunables);
        Running {
            workload: Workload::start(&mut command).unwrap(),
            _writer: writer,
            _folder: folder,
        }
    }

    fn program(flags: &[&str]) -> Running {
        let flags = [&THREADS[..], flags].concat();
        start(SpanWriter::compile_with(&flags).unwrap(), None, "")
    }

    /// How a program comes by its library.
    #[derive(Clone, Copy)]
    enum Library {
        Linked,
        Opened,
    }

    /// A program whose slot is in a library.
    fn library(how: Library, model: &[&str], program: &[&str], tunables: &str) -> Running {
        let folder = TempDir::new().unwrap();
        let path: PathBuf = folder.path().join("libspan_slot.so");
        compile_library("span_slot", model, &path).unwrap();
        let path = path.to_str().unwrap();
        let rpath = format!("-Wl,-rpath={}", folder.path().display());
        let opened = format!("-DSLOT_OPENED=\"{path}\"");
        let own = match how {
            Library::Linked => vec!["-DSLOT_LINKED", "-Wl,--no-as-needed", path, &rpath],
            Library::Opened => vec![&*opened],
        };
        let flags = [&THREADS[..], program, &own].concat();
        start(SpanWriter::compile_with(&flags).unwrap(), Some(folder), tunables)
    }

    /// What is found of it: by what, and by which model, of each slot.
    #[track_caller]
    fn found(spanprof: &Path, running: &Running) -> Vec<(String, String)> {
        let inspector = Spanprof::new(spanprof.to_owned()).unwrap();
        let pid = running.workload.pid().to_string();
        let finished = inspector.run(&["inspect", "--json", &pid]).unwrap();
        finished.succeeded().unwrap();
        let report: Value = serde_json::from_str(&finished.stdout).unwrap();
        let text = |slot: &Value, key: &str| slot[key].as_str().unwrap().to_owned();
        let slots = report["span_slots"].as_array().unwrap();
        slots.iter().map(|slot| (text(slot, "found_by"), text(slot, "tls_model"))).collect()
    }

    /// That each sample in a span is labelled with it, and each outside of any with none.
    #[track_caller]
    fn check(spanprof: &Path, running: Running, expected: &[(&str, &str)]) {
        let found = found(spanprof, &running);
        let found: Vec<_> = found.iter().map(|(by, model)| (&**by, &**model)).collect();
        assert_eq!(found, expected);

        let spanprof = Spanprof::new(spanprof.to_owned()).unwrap();
        let options = ["-F", HZ, "-o", "p.folded"];
        spanprof.record_at_work(&options, &running.workload, WORK).unwrap();
        running.workload.end().unwrap();
        let (mut inside, mut labelled) = (0, 0);
        for stack in spanprof.folded("p.folded").unwrap() {
            let leaf = stack.frames.last().map(String::as_str);
            let right = [CHILD, ROOT].into_iter().find(|known| leaf == Some(known.function));
            if let Some(known) = right {
                inside += stack.count;
                if stack.span == known.root_name && stack.service == SERVICE {
                    labelled += stack.count;
                } else {
                    assert_eq!(stack.span, "(no span)", "{expected:?}: a wrong span: {stack:?}");
                }
            } else if leaf == Some(OUTSIDE) {
                assert_eq!(stack.span, "(no span)", "{expected:?}: a wrong span: {stack:?}");
            }
        }
        println!("{expected:?}: {labelled} of {inside} samples inside spans are labelled");
        assert!(inside >= SAMPLES_MIN, "{expected:?}: {inside} samples");
        #[expect(clippy::cast_precision_loss, reason = "within 2^53")]
        let part = labelled as f64 / inside as f64;
        assert!(part >= LABELLED_MIN, "{expected:?}: {part} is labelled");
    }

    #[test]
    fn of_a_program() {
        require!(Root);
        let spanprof = require!(Spanprof);
        let exported = [("dynamic_symbol", "local_exec")];
        check(&spanprof, program(&["-rdynamic"]), &exported);
        check(&spanprof, program(&["-rdynamic", "-s", "-no-pie"]), &exported);
        // The loader fills in where it is, and it is there all the same.
        let initial_exec = ["-rdynamic", "-fPIC", "-ftls-model=initial-exec", "-Wl,--no-relax"];
        check(&spanprof, program(&initial_exec), &exported);
        let hidden = [("symbol_table", "local_exec")];
        check(&spanprof, program(&[]), &hidden);
        check(&spanprof, program(&["-static"]), &hidden);
        check(&spanprof, program(&["-static-pie"]), &hidden);
    }

    #[test]
    fn of_a_musl_program() {
        require!(Root);
        let (spanprof, musl) = (require!(Spanprof), require!(Musl));
        let flags = [&THREADS[..], &["-O2", "-fno-omit-frame-pointer", "-static"]].concat();
        let compiled = Program::compile_by(&musl, "spans.c", &flags).unwrap();
        let running = start(SpanWriter::of(compiled).unwrap(), None, "");
        check(&spanprof, running, &[("symbol_table", "local_exec")]);
    }

    /// A program of musl's and a library, by that loader.
    fn musl_library(musl: &Path, loader: &Path, how: Library, model: &[&str]) -> Running {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("libspan_slot.so");
        let flags = [&["-shared", "-fPIC", "-nostdlib"], model].concat();
        let library = Program::compile_by(musl, "span_slot.c", &flags).unwrap();
        std::fs::copy(library.path(), &path).unwrap();
        let (path, loader) = (path.to_str().unwrap(), loader.to_str().unwrap());
        let interpreter = format!("-Wl,--dynamic-linker={loader}");
        let opened = format!("-DSLOT_OPENED=\"{path}\"");
        let own = match how {
            Library::Linked => vec!["-DSLOT_LINKED", "-Wl,--no-as-needed", path],
            Library::Opened => vec![&*opened],
        };
        let common = ["-O2", "-fno-omit-frame-pointer", &interpreter, loader];
        let flags = [&THREADS[..], &common, &own].concat();
        let program = Program::compile_by(musl, "spans.c", &flags).unwrap();
        start(SpanWriter::of(program).unwrap(), Some(folder), "")
    }

    #[test]
    fn of_a_musl_library() {
        require!(Root);
        let (spanprof, musl) = (require!(Spanprof), require!(Musl));
        let loader = require!(MuslLoader).canonicalize().unwrap();
        let of = |how, model: &[&str]| musl_library(&musl, &loader, how, model);
        let by_module = [("dynamic_symbol", "general_dynamic")];
        check(&spanprof, of(Library::Linked, &[]), &by_module);
        check(&spanprof, of(Library::Opened, &[]), &by_module);
        let descriptor = ["-mtls-dialect=gnu2"];
        let linked = [("dynamic_symbol", "static_descriptor")];
        check(&spanprof, of(Library::Linked, &descriptor), &linked);
        let opened = [("dynamic_symbol", "dynamic_descriptor")];
        check(&spanprof, of(Library::Opened, &descriptor), &opened);
    }

    #[test]
    fn of_a_library_that_is_there_from_the_start() {
        require!(Root);
        let spanprof = require!(Spanprof);
        let of = |model: &[&str]| library(Library::Linked, model, &[], "");
        let initial_exec = ["-ftls-model=initial-exec"];
        check(&spanprof, of(&initial_exec), &[("dynamic_symbol", "initial_exec")]);
        check(&spanprof, of(&[]), &[("dynamic_symbol", "general_dynamic")]);
        let hidden = [("symbol_table", "general_dynamic")];
        check(&spanprof, of(&["-DHIDDEN"]), &hidden);
        check(&spanprof, of(&["-mtls-dialect=gnu2"]), &[("dynamic_symbol", "static_descriptor")]);
        // What the variable was called once.
        check(
            &spanprof,
            of(&["-DSLOT=custom_labels_current_set_v2"]),
            &[("dynamic_symbol", "general_dynamic")],
        );
    }

    #[test]
    fn of_a_library_that_is_opened_later() {
        /// No room for the blocks of such libraries beside the thread pointer.
        const NO_ROOM: &str = "glibc.rtld.optional_static_tls=0";
        require!(Root);
        let spanprof = require!(Spanprof);
        let of = |model: &[&str], tunables| library(Library::Opened, model, &[], tunables);
        check(&spanprof, of(&[], ""), &[("dynamic_symbol", "general_dynamic")]);
        let descriptor = ["-mtls-dialect=gnu2"];
        check(&spanprof, of(&descriptor, ""), &[("dynamic_symbol", "static_descriptor")]);
        check(&spanprof, of(&descriptor, NO_ROOM), &[("dynamic_symbol", "dynamic_descriptor")]);
        let initial_exec = ["-ftls-model=initial-exec"];
        check(&spanprof, of(&initial_exec, ""), &[("dynamic_symbol", "initial_exec")]);
    }

    #[test]
    fn of_the_one_that_is_valid_where_there_are_two() {
        require!(Root);
        let spanprof = require!(Spanprof);
        let running = library(Library::Opened, &[], &["-DDECOY"], "");
        let both = [("dynamic_symbol", "general_dynamic"), ("symbol_table", "local_exec")];
        check(&spanprof, running, &both);
        // The library's code finds the program's: it is one variable.
        let descriptor = ["-mtls-dialect=gnu2"];
        let running = library(Library::Linked, &descriptor, &["-DDECOY", "-rdynamic"], "");
        check(&spanprof, running, &[("dynamic_symbol", "local_exec")]);
    }
}
