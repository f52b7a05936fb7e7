//! A stack in the profile is the stack that the program had.

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use spanprof_tests::profile::{Folded, Sample};
    use spanprof_tests::require;
    use spanprof_tests::spanprof::{Books, Spanprof};
    use spanprof_tests::workload::Program;

    const SERVICE: &str = "unknown_service:stacks";
    const HZ: u32 = 997;
    const CPU_MS: u32 = 600;

    /// What the workload used its time for, as pprof and as folded stacks.
    struct Profile {
        samples: Vec<Sample>,
        folded: Vec<Folded>,
        books: Books,
        total: u64,
    }

    impl Profile {
        fn of(spanprof: PathBuf, reader: PathBuf, arguments: &[&str]) -> Self {
            let spanprof = Spanprof::new(spanprof).unwrap();
            let hz = HZ.to_string();
            let options = ["-F", &hz, "-o", "p.pb.gz", "-o", "p.folded", "--"];
            let (finished, books) = spanprof.record(&[&options[..], arguments].concat()).unwrap();
            let pprof = spanprof.pprof(&reader, "p.pb.gz").unwrap();
            let folded = spanprof.folded("p.folded").unwrap();
            let samples: Vec<Sample> = pprof.of_service(SERVICE).cloned().collect();
            let total: u64 = samples.iter().map(Sample::count).sum();
            // A second opinion on how many there must be: the program's own clock.
            let used = finished.stdout.lines().find_map(|line| {
                line.strip_prefix("used ")?.strip_suffix(" ms")?.parse::<u64>().ok()
            });
            let expected = used.expect("it says what it used") * u64::from(HZ) / 1000;
            assert!(total.abs_diff(expected) <= expected / 20 + 3, "{total}, not {expected}");
            Self { samples, folded, books, total }
        }

        /// How many samples have exactly these functions from the leaf to `main`.
        fn exactly(&self, chain: &[&str]) -> u64 {
            let exact = self.samples.iter().filter(|sample| sample.up_to("main") == chain);
            let in_pprof = exact.map(Sample::count).sum();
            let exact = self.folded.iter().filter(|folded| folded.up_to("main") == chain);
            let in_folded: u64 = exact.map(|folded| folded.count).sum();
            assert_eq!(in_pprof, in_folded, "both outputs hold the same stacks");
            in_pprof
        }

        #[track_caller]
        fn mostly(&self, chain: &[&str]) {
            let (exact, total) = (self.exactly(chain), self.total);
            assert!(exact * 100 >= total * 95, "{exact} of {total}: {:#?}", self.folded);
        }

        /// How many samples fulfil a condition.
        fn count(&self, condition: impl Fn(&Sample) -> bool) -> u64 {
            self.samples.iter().filter(|sample| condition(sample)).map(Sample::count).sum()
        }
    }

    fn profile(mode: &str) -> Option<Profile> {
        require!(Root, None);
        let (spanprof, reader) = (require!(Spanprof, None), require!(Go, None));
        let program = Program::compile("stacks").unwrap();
        Some(Profile::of(spanprof, reader, &[program.arg(), mode, &CPU_MS.to_string()]))
    }

    #[test]
    fn a_chain_of_calls_is_that_chain() {
        let Some(profile) = profile("chain") else { return };
        profile.mostly(&["leaf", "third", "second", "first", "main"]);
    }

    #[test]
    fn each_level_of_a_recursion_is_a_frame() {
        let Some(profile) = profile("recurse") else { return };
        let chain = [&["leaf"][..], &["recurse"; 20], &["main"]].concat();
        profile.mostly(&chain);
    }

    #[test]
    fn a_sample_in_the_kernel_has_the_kernels_frames_and_the_programs() {
        let Some(profile) = profile("read") else { return };
        let user = ["fill", "outer", "main"];
        // The kernel's own `read_zero` and the entry from user space are on the way.
        let in_kernel = profile.count(|sample| {
            let chain = sample.up_to("main");
            let kernel = chain.strip_suffix(&user).unwrap_or_default();
            let named = kernel.iter().all(|name| !name.starts_with('['));
            named && kernel.len() >= 3 && kernel.iter().any(|name| name.contains("read"))
        });
        // Filling a MiB with zeros takes the kernel far longer than the way in and out.
        assert!(in_kernel * 100 >= profile.total * 90, "{in_kernel}: {:#?}", profile.folded);
        let unnamed = profile
            .count(|sample| sample.functions.iter().any(|name| name.starts_with("[kernel]")));
        assert_eq!(unnamed, 0, "{:#?}", profile.folded);
    }

    #[test]
    fn a_stack_deeper_than_a_sample_holds_says_so_and_is_counted() {
        let Some(profile) = profile("deep") else { return };
        let cut = profile
            .count(|sample| sample.functions.last().is_some_and(|name| name == "[more frames]"));
        assert_eq!(cut, profile.books.kernel("user_stack_truncated"));
        let chain = [&["leaf"][..], &["recurse"; 127], &["[more frames]"]].concat();
        let exact = profile.count(|sample| sample.functions == chain);
        assert!(exact * 100 >= profile.total * 95, "{exact} of {}", profile.total);
    }

    #[test]
    fn code_that_is_in_no_file_says_so_and_keeps_its_callers() {
        let Some(profile) = profile("anonymous") else { return };
        profile.mostly(&["[anonymous code]", "call_generated", "main"]);
    }

    #[test]
    fn a_program_that_deletes_itself_keeps_its_names() {
        let Some(profile) = profile("deleted") else { return };
        profile.mostly(&["leaf", "third", "second", "first", "main"]);
    }

    #[test]
    fn a_library_that_is_unloaded_keeps_its_names() {
        require!(Root);
        let (spanprof, reader) = (require!(Spanprof), require!(Go));
        let program = Program::compile("stacks").unwrap();
        let library = program.with_library("library").unwrap();
        let library = library.to_str().unwrap();
        let arguments = [program.arg(), "library", &CPU_MS.to_string(), library];
        let profile = Profile::of(spanprof, reader, &arguments);
        // A third of its time with the library, two thirds without.
        let with = profile.exactly(&["library_leaf", "library_work", "call_library", "main"]);
        let without = profile.exactly(&["leaf", "third", "second", "first", "main"]);
        let third = profile.total / 3;
        assert!(with.abs_diff(third) <= profile.total / 20, "{with}: {:#?}", profile.folded);
        assert!(without.abs_diff(2 * third) <= profile.total / 20, "{without}");
    }
}
