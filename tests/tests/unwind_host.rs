//! Unwinding of whatever the host runs: stacks that are complete, memory that is bounded, and stacks
//! that are reused rightly.

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Write as _;
    use std::os::unix::process::CommandExt as _;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};

    use profiler_common::sample::{
        FLAG_FRAME_POINTER_SHIFT, USER_STACK_COMPLETE, USER_STACK_KERNEL_THREAD,
        USER_STACK_UNKNOWN_PROCESS, USER_STACK_UNREADABLE,
    };
    use profiler_common::unwind::MAPPING_PENDING;
    use rustix::process::{Pid, Signal, kill_process_group};
    use spanprof_tests::recorded_file;
    use spanprof_tests::recorded_stacks::{Recorded, Stack};
    use spanprof_tests::require;
    use spanprof_tests::spanprof::{Books, Spanprof};
    use spanprof_tests::workload::{Program, Workload};
    use tempfile::TempDir;

    fn workloads(program: &Program, modes: &[&str]) -> Vec<Workload> {
        modes.iter().map(|mode| program.start(&[mode, "0"]).unwrap()).collect()
    }

    fn fixture() -> Program {
        Program::compile_with("unwind", &["-fomit-frame-pointer"]).unwrap()
    }

    /// A program over and over, with a folder of its own; it and all that it started is killed when
    /// dropped.
    struct Busy {
        process: Child,
        folder: TempDir,
    }

    impl Busy {
        fn start(folder: TempDir, command: &mut Command) -> Self {
            let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let process = command.current_dir(folder.path()).process_group(0).spawn().unwrap();
            Self { process, folder }
        }

        /// gcc's compiler, whose table has some megabytes.
        fn c_compiler() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut source = String::new();
            for number in 0..400 {
                let line = "for (int i = 0; i < n; i++) s += s * i ^ n;";
                writeln!(source, "int f{number}(int n) {{ int s = {number}; {line} return s; }}")
                    .unwrap();
            }
            let file = folder.path().join("source.c");
            std::fs::write(&file, source).unwrap();
            let path = Command::new("cc").arg("-print-prog-name=cc1").output().unwrap();
            let compiler = PathBuf::from(String::from_utf8(path.stdout).unwrap().trim());
            assert!(compiler.is_absolute(), "{}", compiler.display());
            let mut forever = Command::new("sh");
            forever.args(["-c", "while \"$0\" -quiet -O2 \"$1\" -o /dev/null; do :; done"]);
            Self::start(folder, forever.args([compiler, file]))
        }

        /// cargo, rustc and the linker: processes that come and go.
        fn cargo() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let manifest = "[package]\nname = \"made\"\nedition = \"2024\"\n[workspace]\n";
            let mut source = String::new();
            for number in 0..100 {
                writeln!(
                    source,
                    "pub fn f{number}(n: usize) -> String {{ let mut all: Vec<String> = (0..n).map(|i| \
                     format!(\"{{i}}{{}}\", {number})).collect(); all.sort(); all.join(\",\") }}"
                )
                .unwrap();
            }
            source.push_str("fn main() { println!(\"{}\", f7(9)); }\n");
            std::fs::create_dir(folder.path().join("src")).unwrap();
            std::fs::write(folder.path().join("Cargo.toml"), manifest).unwrap();
            std::fs::write(folder.path().join("src/main.rs"), source).unwrap();
            let mut forever = Command::new("sh");
            forever.args(["-c", "while cargo build --offline --release; do rm -r target; done"]);
            forever.env("CARGO_TARGET_DIR", "target").env_remove("RUSTFLAGS");
            Self::start(folder, &mut forever)
        }

        fn program(path: &Path, option: &str, source: &str) -> Self {
            Self::start(tempfile::tempdir().unwrap(), Command::new(path).args([option, source]))
        }

        /// That it was at work all the time.
        #[track_caller]
        fn is_at_work(&mut self) {
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none(), "{}: {ended:?}", self.folder.path().display());
        }
    }

    impl Drop for Busy {
        fn drop(&mut self) {
            let group = Pid::from_child(&self.process);
            kill_process_group(group, Signal::KILL).unwrap();
            self.process.wait().unwrap();
        }
    }

    /// When tables of what runs all the time are there.
    const WARM_UP_NS: u64 = 15_000_000_000;
    const PYTHON: &str = "import json, re\nwhile True:\n s = json.dumps({str(i): i for i in \
                          range(999)})\n json.loads(s); sorted(re.findall('[0-9]+', s))";
    const JAVASCRIPT: &str = "for (;;) { const all = Array.from({ length: 999 }, (_, i) => ({ i, s: \
                              'x' + i % 7 })); all.sort((a, b) => a.s < b.s ? -1 : 1); \
                              JSON.parse(JSON.stringify(all)); }";

    /// What the programs above and what they start are called.
    const PROGRAMS: [&str; 11] = [
        "cargo",
        "cc1",
        "collect2",
        "dash",
        "ld",
        "node",
        "python",
        "rust-lld",
        "rustc",
        "sh",
        "x86_64-linux-gnu",
    ];

    /// How user stacks ended, after a while.
    #[derive(Debug, Default)]
    struct Ends {
        all: u64,
        /// The thread had given its memory back: there is no stack.
        without_memory: u64,
        /// Taken before the table of one of their files was there.
        early: u64,
        complete: u64,
        /// By reason and file.
        rest: BTreeMap<String, u64>,
    }

    impl Ends {
        fn of(recorded: &Recorded, is_counted: impl Fn(&Stack) -> bool) -> Self {
            let mut ends = Self::default();
            let begin = recorded.stacks.iter().map(|stack| stack.boot_ns).min().unwrap();
            let warm = |stack: &&Stack| stack.boot_ns - begin >= WARM_UP_NS;
            let with_user_side = |stack: &&Stack| stack.user_stack != USER_STACK_KERNEL_THREAD;
            let stacks = recorded.stacks.iter().filter(warm).filter(with_user_side);
            for stack in stacks.filter(|stack| is_counted(stack)) {
                ends.all += 1;
                let by_frame_pointer = stack.flags >> FLAG_FRAME_POINTER_SHIFT;
                let pending = by_frame_pointer & (1 << MAPPING_PENDING) != 0;
                let Stack { user_stack, .. } = *stack;
                if user_stack == USER_STACK_UNREADABLE && recorded.is_without_memory(stack) {
                    ends.without_memory += 1;
                } else if pending || user_stack == USER_STACK_UNKNOWN_PROCESS {
                    ends.early += 1;
                } else if user_stack == USER_STACK_COMPLETE {
                    ends.complete += 1;
                } else {
                    let (program, file) = (recorded.program(stack), recorded.ends_in(stack));
                    let reason = format!("user_stack {user_stack}: {program}, in {file}");
                    *ends.rest.entry(reason).or_default() += 1;
                }
            }
            ends
        }
    }

    /// `spanprof record` of 20 seconds while programs of all kinds are at work: after 15, of the
    /// stacks that were taken with tables, 99 of 100 are complete. What else the host does is told,
    /// and not judged: it may be code that nobody can unwind.
    #[test]
    fn of_a_host_at_work_nearly_all_stacks_are_complete() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let (node, python) = (require!(Node), require!(Python));
        let mut busy = [
            Busy::cargo(),
            Busy::c_compiler(),
            Busy::program(&node, "-e", JAVASCRIPT),
            Busy::program(&python, "-c", PYTHON),
        ];
        let options = ["-d", "20s", "-F", "199", "--no-inline", "--raw", "a.raw", "-o", "a.folded"];
        let (_, books) = spanprof.record(&options).unwrap();
        busy.iter_mut().for_each(Busy::is_at_work);
        drop(busy);
        let chunks = recorded_file::chunks_of(&spanprof.bytes("a.raw").unwrap()).unwrap();
        let recorded = Recorded::read(&chunks).unwrap();
        let is_ours = |stack: &Stack| {
            let program = recorded.program(stack);
            PROGRAMS.iter().any(|name| program.starts_with(name))
        };
        let ends = Ends::of(&recorded, is_ours);
        let others = Ends::of(&recorded, |stack| !is_ours(stack));
        eprintln!("{ends:#?}\nothers: {others:#?}\n{}", times(&books));
        let Ends { all, without_memory, early, complete, .. } = ends;
        let with_stack = all - without_memory;
        assert!(with_stack >= 400, "{all} samples, {without_memory} without memory");
        assert!(without_memory * 20 <= all, "{without_memory} of {all} without memory");
        assert!(early * 10 <= with_stack, "{early} of {with_stack} before a table was there");
        let walked = with_stack - early;
        assert!(complete * 100 >= walked * 99, "{complete} of {walked} complete");
    }

    /// How long tables took, from a file's discovery.
    fn times(books: &Books) -> String {
        let [files, p50, p99, slowest] = ["files", "ms_p50", "ms_p99", "slowest"]
            .map(|name| books.of_unwinding(&format!("ready_{name}")).to_string());
        format!("{files} tables: median {p50} ms, 99 of 100 {p99} ms, slowest {slowest}")
    }

    #[test]
    fn a_stack_that_is_reused_is_the_one_that_a_walk_finds() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let program = fixture();
        let running = workloads(&program, &["signal", "alloca", "recurse-20", "expression"]);
        let _compiler = Busy::c_compiler();
        let options = ["-d", "4s", "-F", "997", "--stack-reuse", "check", "-o", "p.folded"];
        let (_, books) = spanprof.record(&options).unwrap();
        running.into_iter().for_each(|workload| drop(workload.end().unwrap()));
        assert_eq!(books.kernel("reuse_different"), 0);
        assert!(books.kernel("reuse_same") > 500, "{}", books.kernel("reuse_same"));
    }

    #[test]
    fn with_little_memory_the_rest_is_still_profiled() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let program = fixture();
        let running = program.start(&["chain", "0"]).unwrap();
        let compiler = Busy::c_compiler();
        // Not the whole host: what else runs would have the room, or not.
        let pids = [running.pid(), compiler.process.id()].map(|pid| pid.to_string());
        let options = ["-d", "4s", "-F", "997", "--max-unwind-mib", "8", "-o", "p.folded"];
        let chosen = ["-p", &pids[0], "-p", &pids[1]];
        let (_, books) = spanprof.record(&[&options[..], &chosen].concat()).unwrap();
        drop(running.end().unwrap());
        assert!(books.unwind("map_bytes") <= 8 << 20, "{}", books.unwind("map_bytes"));
        assert!(books.files_without("over_share") > 0, "the compiler's table has no room");
        assert!(books.kernel("user_table_over_limit") > 0, "and was sampled");
        // The small program's table has room, and its stacks are whole.
        let folded = spanprof.folded("p.folded").unwrap();
        let of_program = folded.iter().filter(|line| line.service.ends_with(":unwind"));
        let (mut whole, mut all) = (0, 0);
        for line in of_program {
            all += line.count;
            whole += if line.frames.first().is_some_and(|root| root == "_start") {
                line.count
            } else {
                0
            };
        }
        assert!(whole * 10 >= all * 5 && all > 100, "{whole} of {all}");
    }
}
