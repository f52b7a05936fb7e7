//! Unwinding of whatever the host runs: memory that is bounded, and stacks that are reused rightly.

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};

    use spanprof_tests::require;
    use spanprof_tests::spanprof::Spanprof;
    use spanprof_tests::workload::{Program, Workload};
    use tempfile::TempDir;

    fn workloads(program: &Program, modes: &[&str]) -> Vec<Workload> {
        modes.iter().map(|mode| program.start(&[mode, "0"]).unwrap()).collect()
    }

    fn fixture() -> Program {
        Program::compile_with("unwind", &["-fomit-frame-pointer"]).unwrap()
    }

    /// A table of some megabytes, at work: gcc's compiler over and over.
    struct Compiler {
        process: Child,
        _folder: TempDir,
    }

    impl Compiler {
        fn start() -> Self {
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
            let process = Command::new("sh")
                .args(["-c", "while \"$0\" -quiet -O2 \"$1\" -o /dev/null; do :; done"])
                .args([compiler, file])
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            Self { process, _folder: folder }
        }
    }

    impl Drop for Compiler {
        fn drop(&mut self) {
            // The compiler itself ends with its file.
            self.process.kill().unwrap();
            self.process.wait().unwrap();
        }
    }

    #[test]
    fn a_stack_that_is_reused_is_the_one_that_a_walk_finds() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let program = fixture();
        let running = workloads(&program, &["signal", "alloca", "recurse-20", "expression"]);
        let _compiler = Compiler::start();
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
        let running = workloads(&program, &["chain"]);
        let _compiler = Compiler::start();
        let options = ["-d", "4s", "-F", "997", "--max-unwind-mib", "8", "-o", "p.folded"];
        let (_, books) = spanprof.record(&options).unwrap();
        running.into_iter().for_each(|workload| drop(workload.end().unwrap()));
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
