//! Programs without frame pointers: each sample's stack is the one that the program had, up to the
//! outermost frame, in 99.5 of 100 samples.

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use spanprof_tests::profile::Sample;
    use spanprof_tests::require;
    use spanprof_tests::spanprof::{Books, Spanprof};
    use spanprof_tests::workload::{Program, Workload};

    const SERVICE: &str = "unknown_service:unwind";
    /// Overrides what the other workloads are compiled with.
    const NO_FRAME_POINTERS: &str = "-fomit-frame-pointer";

    struct Profile {
        samples: Vec<Sample>,
        books: Books,
        total: u64,
    }

    impl Profile {
        fn of(spanprof: PathBuf, reader: PathBuf, workload: &Workload, more: &[&str]) -> Self {
            let spanprof = Spanprof::new(spanprof).unwrap();
            let pid = workload.pid().to_string();
            let options = ["-F", "997", "-d", "2s", "-o", "p.pb.gz", "-p", &pid];
            let (_, books) = spanprof.record(&[&options[..], more].concat()).unwrap();
            let pprof = spanprof.pprof(&reader, "p.pb.gz").unwrap();
            let samples: Vec<Sample> = pprof.of_service(SERVICE).cloned().collect();
            let total = samples.iter().map(Sample::count).sum();
            assert!(total > 500, "{total} samples");
            Self { samples, books, total }
        }

        /// Samples that were taken before the tables of the program's files were there.
        fn early(&self) -> u64 {
            self.books.kernel("user_table_pending")
                + self.books.kernel("user_stack_unknown_process")
        }

        /// How many samples have a stack that ends at `_start` and fulfils a condition.
        fn complete(&self, condition: impl Fn(&[&str]) -> bool) -> u64 {
            let whole = |sample: &&Sample| {
                sample.functions.last().is_some_and(|name| name == "_start")
                    && condition(&sample.up_to("main"))
            };
            self.samples.iter().filter(whole).map(Sample::count).sum()
        }

        #[track_caller]
        fn all(&self, condition: impl Fn(&[&str]) -> bool) {
            let (right, total, early) = (self.complete(&condition), self.total, self.early());
            // How long tables take depends on what else the machine does.
            let enough = (right + early) * 1000 >= total * 995 && right * 10 >= total * 3;
            let wrong: Vec<_> = self
                .samples
                .iter()
                .filter(|sample| !condition(&sample.up_to("main")))
                .map(|sample| (sample.count(), &sample.functions))
                .collect();
            assert!(enough, "{right} of {total}, {early} early: {wrong:#?}");
        }
    }

    /// A stack's own functions, whatever the kernel or libc have on top.
    fn ends_with(chain: &[&str]) -> impl Fn(&[&str]) -> bool {
        move |stack: &[&str]| stack.ends_with(chain)
    }

    fn profile_of(mode: &str, flags: &[&str], more: &[&str]) -> Option<Profile> {
        require!(Root, None);
        let (spanprof, reader) = (require!(Spanprof, None), require!(Go, None));
        let program = Program::compile_with("unwind", &[&[NO_FRAME_POINTERS], flags].concat());
        let program = program.unwrap();
        let workload = program.start(&[mode, "0"]).unwrap();
        let profile = Profile::of(spanprof, reader, &workload, more);
        workload.end().unwrap();
        Some(profile)
    }

    const CHAIN: [&str; 5] = ["leaf", "third", "second", "first", "main"];
    /// From `main` on it is the chain, as far as it goes: between the calls, `main` polls its stdin.
    fn chain(stack: &[&str]) -> bool {
        let from_main = stack.iter().rev();
        let ours: Vec<_> = from_main.take_while(|name| CHAIN.contains(*name)).collect();
        let others = stack.len() - ours.len();
        let expected = CHAIN.iter().rev();
        !ours.is_empty()
            && ours.iter().zip(expected).all(|(found, expected)| *found == expected)
            && stack.iter().take(others).all(|name| !CHAIN.contains(name))
    }

    #[track_caller]
    fn check_chain(flags: &[&str], more: &[&str]) {
        let Some(profile) = profile_of("chain", flags, more) else { return };
        profile.all(chain);
        let whole = profile.complete(ends_with(&CHAIN));
        assert!((whole + profile.early()) * 100 >= profile.total * 95, "{whole}");
    }

    #[test]
    fn position_independent() {
        check_chain(&["-fPIE", "-pie"], &[]);
    }

    #[test]
    fn position_dependent() {
        check_chain(&["-no-pie"], &[]);
    }

    #[test]
    fn static_position_independent() {
        check_chain(&["-static-pie"], &[]);
    }

    #[test]
    fn static_position_dependent() {
        check_chain(&["-static", "-no-pie"], &[]);
    }

    /// As on a kernel before Linux 5.17.
    #[test]
    fn by_a_bounded_loop() {
        check_chain(&[], &["--bpf-sampler", "bounded"]);
    }

    #[test]
    fn without_reuse_of_stacks() {
        check_chain(&[], &["--stack-reuse", "off"]);
    }

    /// Its segments' addresses are not their offsets in the file.
    #[test]
    fn linked_by_lld() {
        let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().unwrap();
        let sysroot = String::from_utf8(sysroot.stdout).unwrap();
        let linkers = "lib/rustlib/x86_64-unknown-linux-gnu/bin/gcc-ld";
        let linkers = format!("-B{}/{linkers}", sysroot.trim());
        check_chain(&["-fuse-ld=lld", &linkers], &[]);
    }

    #[track_caller]
    fn check_recursion(depth: usize) {
        let Some(profile) = profile_of(&format!("recurse-{depth}"), &[], &[]) else { return };
        let whole = [&["leaf"][..], &vec!["recurse"; depth], &["main"]].concat();
        let exact = profile.complete(|stack| stack == whole);
        assert!((exact + profile.early()) * 100 >= profile.total * 95, "{exact}");
        profile.all(|stack| stack.ends_with(&["main"]));
    }

    #[test]
    fn a_recursion_of_20() {
        check_recursion(20);
    }

    /// With the leaf, `main` and three frames above it, as many as fit.
    #[test]
    fn a_recursion_that_just_fits() {
        check_recursion(123);
    }

    #[test]
    fn a_recursion_that_does_not_fit_is_cut_and_says_so() {
        for depth in [127, 128, 500] {
            let profile = profile_of(&format!("recurse-{depth}"), &[], &[]);
            let Some(profile) = profile else { return };
            let cut = profile.samples.iter().filter(|sample| {
                let chain = [&["leaf"][..], &["recurse"; 127], &["[more frames]"]].concat();
                sample.functions == chain
            });
            let cut: u64 = cut.map(Sample::count).sum();
            assert!((cut + profile.early()) * 100 >= profile.total * 95, "{cut}");
            assert!(profile.books.kernel("user_stack_truncated") >= cut);
        }
    }

    #[track_caller]
    fn check(mode: &str, chain: &[&str], least: u64) {
        let Some(profile) = profile_of(mode, &[], &[]) else { return };
        profile.all(|stack| stack.ends_with(&["main"]));
        let there = profile.complete(|stack| stack.windows(chain.len()).any(|part| part == chain));
        let early = profile.early();
        assert!((there + early) * 100 >= profile.total * least, "{there} of {}", profile.total);
    }

    #[test]
    fn a_frame_of_unknown_size() {
        check("alloca", &["leaf", "with_alloca", "main"], 95);
    }

    #[test]
    fn a_frame_whose_caller_is_in_memory() {
        check("expression", &["leaf", "aligned_frame", "main"], 95);
    }

    #[test]
    fn a_leaf_whose_caller_is_in_a_register() {
        check("register", &["in_register", "main"], 95);
    }

    #[test]
    fn a_system_call() {
        check("read", &["in_kernel", "main"], 95);
    }

    #[test]
    fn the_kernels_own_library() {
        check("vdso", &["in_vdso", "main"], 95);
    }

    #[test]
    fn the_procedure_linkage_table() {
        let Some(profile) = profile_of("plt", &["-Wl,-z,lazy", "-fno-builtin"], &[]) else {
            return;
        };
        profile.all(|stack| stack.ends_with(&["main"]));
        let through = profile.complete(|stack| {
            stack.ends_with(&["through_plt", "main"]) && stack != ["through_plt", "main"]
        });
        // Most of the time is in the table and behind it.
        assert!(through * 3 >= profile.total, "{through} of {}", profile.total);
    }

    /// A task that exits has given its memory back before it is gone: there is no stack any more.
    #[test]
    fn a_child_that_borrows_its_parents_memory() {
        let Some(profile) = profile_of("vfork", &[], &[]) else { return };
        let gone = |sample: &&Sample| sample.functions.iter().any(|name| name == "do_exit");
        let gone: u64 = profile.samples.iter().filter(gone).map(Sample::count).sum();
        let right = profile.complete(|stack| stack.ends_with(&["forks", "main"]));
        let (total, early) = (profile.total, profile.early());
        assert!((right + gone + early) * 100 >= total * 98, "{right} + {gone} of {total}");
        let complete = profile.complete(|stack| stack.ends_with(&["main"]));
        assert!((complete + gone + early) * 1000 >= total * 995, "{complete} + {gone} of {total}");
    }

    #[test]
    fn a_signal_handler_on_its_own_stack() {
        let Some(profile) = profile_of("signal", &[], &[]) else { return };
        profile.all(|stack| stack.ends_with(&["main"]));
        let in_handler = profile.complete(|stack| {
            stack.starts_with(&["leaf", "on_signal"]) && stack.ends_with(&["interrupted", "main"])
        });
        let early = profile.early();
        assert!((in_handler + early) * 100 >= profile.total * 95, "{in_handler}");
    }
    /// The C library's own name for it is in no file that is stripped.
    #[test]
    fn where_a_signal_handler_returns_to() {
        let Some(profile) = profile_of("signal", &["-static"], &[]) else { return };
        let names = ["leaf", "on_signal", "__restore_rt"];
        let named = profile.complete(|stack| stack.starts_with(&names));
        let early = profile.early();
        assert!((named + early) * 100 >= profile.total * 95, "{named} of {}", profile.total);
    }
}
