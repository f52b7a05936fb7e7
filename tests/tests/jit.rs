//! Code made at run time has the names that its process gives it, and nothing else that a process
//! puts in their place.

#[cfg(test)]
mod tests {
    use spanprof_tests::profile::Folded;
    use spanprof_tests::require;
    use spanprof_tests::spanprof::{Books, Finished, Spanprof};
    use spanprof_tests::workload::Program;

    const HZ: u64 = 997;
    const CPU_MS: u64 = 900;
    const SHORT: [&str; 3] = ["short work", "call_generated", "work"];
    const LONG: [&str; 3] = ["long work", "call_generated", "work"];
    const UNNAMED: [&str; 3] = ["[anonymous code]", "call_generated", "work"];

    struct Profile {
        spanprof: Spanprof,
        finished: Finished,
        folded: Vec<Folded>,
        books: Books,
        total: u64,
    }

    impl Profile {
        fn of(mode: &str) -> Option<Self> {
            require!(Root, None);
            let spanprof = Spanprof::new(require!(Spanprof, None)).unwrap();
            let program = Program::compile("jit").unwrap();
            let (hz, ms) = (HZ.to_string(), CPU_MS.to_string());
            let options = ["-F", &hz, "-o", "p.folded", "--raw", "p.raw", "--"];
            let arguments = [&options[..], &[program.arg(), mode, &ms]].concat();
            let (finished, books) = spanprof.record(&arguments).unwrap();
            let folded = spanprof.folded("p.folded").unwrap();
            // A second opinion on how many there must be: the program's own clock.
            let used = finished.stdout.lines().find_map(|line| {
                line.strip_prefix("used ")?.strip_suffix(" ms")?.parse::<u64>().ok()
            });
            let expected = used.expect("it says what it used") * HZ / 1000;
            let total = folded.iter().filter(|it| it.up_to("work").len() == 3);
            let total: u64 = total.map(|it| it.count).sum();
            assert!(total.abs_diff(expected) <= expected / 20 + 3, "{total}, not {expected}");
            Some(Self { spanprof, finished, folded, books, total })
        }

        fn count(&self, chain: [&str; 3]) -> u64 {
            let exact = self.folded.iter().filter(|folded| folded.up_to("work") == chain);
            exact.map(|folded| folded.count).sum()
        }

        #[track_caller]
        fn is_named(&self) {
            let (short, long, total) = (self.count(SHORT), self.count(LONG), self.total);
            assert!(short.abs_diff(total / 3) <= total / 20, "{short}: {:#?}", self.folded);
            assert!(long.abs_diff(2 * total / 3) <= total / 20, "{long}: {:#?}", self.folded);
            assert!(self.books.process("perf_maps_found") >= 1);
        }

        #[track_caller]
        fn is_not_named(&self) {
            let (unnamed, total) = (self.count(UNNAMED), self.total);
            assert!(unnamed * 100 >= total * 95, "{unnamed} of {total}: {:#?}", self.folded);
            assert_eq!(self.books.process("perf_maps_found"), 0);
        }
    }

    #[test]
    fn code_has_the_names_of_its_perf_map() {
        let Some(profile) = Profile::of("named") else { return };
        profile.is_named();
    }

    #[test]
    fn a_later_name_replaces_an_earlier_one() {
        let Some(profile) = Profile::of("replaced") else { return };
        profile.is_named();
    }

    #[test]
    fn a_process_of_other_namespaces_has_a_perf_map_of_its_own() {
        let Some(profile) = Profile::of("container") else { return };
        profile.is_named();
    }

    #[test]
    fn a_process_of_another_root_has_a_perf_map_of_its_own() {
        let Some(profile) = Profile::of("chroot") else { return };
        profile.is_named();
    }

    #[test]
    fn a_replay_has_the_same_names() {
        let Some(profile) = Profile::of("named") else { return };
        let arguments = ["replay", "p.raw", "-o", "again.folded"];
        profile.spanprof.run(&arguments).unwrap().succeeded().unwrap();
        let [first, again] =
            ["p.folded", "again.folded"].map(|name| profile.spanprof.bytes(name).unwrap());
        assert_eq!(first, again);
        assert!(profile.finished.stderr.is_empty(), "{}", profile.finished.stderr);
    }

    #[test]
    fn a_fifo_in_its_place_is_refused_and_nothing_waits_for_it() {
        let Some(profile) = Profile::of("fifo") else { return };
        profile.is_not_named();
        assert!(profile.books.process("perf_map_refused_not_regular") >= 1);
    }

    #[test]
    fn a_link_in_its_place_is_not_followed() {
        let Some(profile) = Profile::of("link") else { return };
        profile.is_not_named();
        assert!(profile.books.process("perf_map_refused_not_regular") >= 1);
    }

    /// The script does nothing but what `spin` does, so that its share is known.
    const SCRIPT: &str = "\
        function spin(until) { let x = 0; while (process.cpuUsage().user < until) \
            for (let i = 0; i < 1e5; i++) x = (x * 31 + i) | 0; return x; } \
        spin(process.cpuUsage().user + 1e6); \
        require('fs').unlinkSync('/tmp/perf-' + process.pid + '.map');";

    #[test]
    fn nodes_functions_have_their_names() {
        require!(Root);
        let node = require!(Node);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let options = ["-F", "997", "-o", "p.folded", "--"];
        let command = [node.to_str().unwrap(), "--perf-basic-prof", "-e", SCRIPT];
        spanprof.record(&[&options[..], &command].concat()).unwrap();
        let folded = spanprof.folded("p.folded").unwrap();
        let has = |folded: &&Folded, part: &str| folded.frames.iter().any(|it| it.contains(part));
        let sum = |part: &str| -> u64 {
            folded.iter().filter(|it| has(it, part)).map(|it| it.count).sum()
        };
        let (spin, unnamed) = (sum("spin [eval]"), sum("[anonymous code]"));
        // A second of CPU time, nearly all of it in one function.
        assert!(spin >= 900, "{spin}: {folded:#?}");
        assert!(unnamed * 100 <= spin * 2, "{unnamed}: {folded:#?}");
    }
}
