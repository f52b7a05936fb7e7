//! A process's samples have spans from its first one on: at once if its binary is known, by
//! span-marker's hook, and within 200 ms if it is not.

#[cfg(test)]
mod tests {
    use std::fs;

    use spanprof_tests::process_context;
    use spanprof_tests::profile::Folded;
    use spanprof_tests::require;
    use spanprof_tests::span_writer::{CHILD, KEYS, ROOT, SERVICE, SpanWriter};
    use spanprof_tests::spanprof::{Books, Running, STATS, Spanprof};
    use spanprof_tests::workload::Program;

    const HZ: &str = "997";
    /// What a short-lived process works in its span.
    const MS: &str = "50";
    /// Of the samples in a span, so many must be labelled.
    const LABELLED_MIN: f64 = 0.95;
    /// The function that runs in the span, and in nothing else.
    const IN_SPAN: &str = "in_span";
    const NO_SPAN: &str = "(no span)";
    /// What the log says when a file has got its probe; other programs on this host may have some.
    fn probed(program: &Program) -> String {
        format!("a hook has a probe path={}", program.arg())
    }

    /// A recording of this process's children that runs.
    struct Recording {
        spanprof: Spanprof,
        running: Running,
    }

    impl Recording {
        /// `targets` and their children are sampled.
        fn start(spanprof: Spanprof, options: &[&str], targets: &[u32]) -> Self {
            let pids: Vec<String> = targets.iter().map(|pid| format!("--pid={pid}")).collect();
            let pids = pids.iter().map(String::as_str).collect::<Vec<_>>();
            let fixed = ["record", "--stats", STATS, "-F", HZ, "-d", "10m", "-o", "p.folded"];
            let mut command = spanprof.command(&[&fixed, options, &pids].concat());
            command.env("RUST_LOG", "info,profiler_user::capture=debug");
            let running = Running::start(&mut command).unwrap();
            running.wait_until_sampling().unwrap();
            Self { spanprof, running }
        }

        fn end(self) -> Recorded {
            self.running.signal(rustix::process::Signal::INT).unwrap();
            self.running.finish().unwrap().succeeded().unwrap();
            let stacks = self.spanprof.folded("p.folded").unwrap();
            Recorded { stacks, books: self.spanprof.books().unwrap() }
        }
    }

    /// What came of it.
    struct Recorded {
        stacks: Vec<Folded>,
        books: Books,
    }

    impl Recorded {
        /// Samples in a function: all, and those with this span.
        fn samples(&self, function: &str, span: impl Fn(&str) -> bool) -> (u64, u64) {
            let here = self.stacks.iter().filter(|it| it.frames.iter().any(|it| it == function));
            let (with, without): (Vec<_>, Vec<_>) = here.partition(|stack| span(&stack.span));
            let sum = |stacks: Vec<&Folded>| stacks.iter().map(|stack| stack.count).sum::<u64>();
            let with = sum(with);
            (with + sum(without), with)
        }

        /// That most samples in the span are labelled.
        #[track_caller]
        fn labelled(&self, least: u64) {
            let (all, labelled) = self.samples(IN_SPAN, |span| span != NO_SPAN);
            println!("{labelled} of {all} samples in a span are labelled");
            println!("after the start: {}", self.books.of_process("slots_by_hook_after"));
            assert!(all >= least, "{all} samples are too few");
            let part = real(labelled) / real(all);
            assert!(part >= LABELLED_MIN, "{part} is labelled");
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "within 2^53")]
    fn real(number: u64) -> f64 {
        number as f64
    }

    /// Nothing but the call of its hook tells where its slot is.
    fn only_hooked() -> Program {
        Program::compile_with("hooked", &["-DONLY_HOOK"]).unwrap()
    }

    /// Runs short-lived copies of a program that spanprof has seen before, itself asleep.
    fn copies(
        program: &Program,
        options: &[&str],
        count: u32,
        context: Option<&str>,
    ) -> Option<Recorded> {
        require!(Root, None);
        let spanprof = Spanprof::new(require!(Spanprof, None)).unwrap();
        let count = count.to_string();
        let arguments = ["copies", &count, MS];
        let known = program.start(&[&arguments[..], context.as_slice()].concat()).unwrap();
        let mut recording = Recording::start(spanprof, options, &[known.pid()]);
        if !options.contains(&"off") {
            recording.running.log(&probed(program)).unwrap();
        }
        known.end().unwrap();
        Some(recording.end())
    }

    #[test]
    fn short_processes_of_a_known_binary_are_labelled() {
        let Some(recorded) = copies(&only_hooked(), &[], 200, None) else { return };
        recorded.labelled(2000);
        assert_eq!(recorded.books.kernel("hook_taken"), 200);
        assert_eq!(recorded.books.process("slots_by_hook"), 200);
        assert!(recorded.books.hooks("attached") >= 1);
    }

    /// As on kernels before Linux 6.6.
    #[test]
    fn short_processes_are_labelled_by_way_of_a_perf_event() {
        let Some(recorded) = copies(&only_hooked(), &["--hook-probe", "perf"], 40, None) else {
            return;
        };
        recorded.labelled(400);
        assert_eq!(recorded.books.kernel("hook_taken"), 40);
        assert_eq!(recorded.books.of_hooks("probed_by"), "perf");
    }

    /// Nothing but the hook says where the slot is: this is what the tests above would find.
    #[test]
    fn without_a_probe_they_are_not() {
        let Some(recorded) = copies(&only_hooked(), &["--hook-probe", "off"], 20, None) else {
            return;
        };
        let (all, labelled) = recorded.samples(IN_SPAN, |span| span != NO_SPAN);
        assert!(all >= 200 && labelled == 0, "{labelled} of {all}");
        assert_eq!(recorded.books.of_hooks("probed_by"), "off");
    }

    /// The name is an attribute, whose key the process context tells, which user space reads.
    #[test]
    fn short_processes_have_names_too() {
        let program = Program::compile("hooked").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let context = folder.path().join("context");
        fs::write(&context, process_context::payload(SERVICE, &KEYS, None)).unwrap();
        let Some(recorded) = copies(&program, &[], 100, context.to_str()) else { return };
        recorded.labelled(1000);
        let (all, named) = recorded.samples(IN_SPAN, |span| span == ROOT.root_name);
        println!("{named} of {all} have the span's name");
        // The process may be gone before it is looked at on a host that does much else.
        assert!(real(named) >= 0.9 * real(all), "{named} of {all}");
    }

    #[test]
    fn a_forked_child_that_says_it_again_is_labelled() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let program = only_hooked();
        let known = program.start(&["forks", "40", MS]).unwrap();
        let mut recording = Recording::start(spanprof, &[], &[known.pid()]);
        recording.running.log(&probed(&program)).unwrap();
        known.end().unwrap();
        recording.end().labelled(400);
    }

    #[test]
    fn a_binary_that_was_replaced_and_the_new_one_have_a_probe() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let (program, other) = (only_hooked(), Program::compile("hooked").unwrap());
        let start = || program.start(&["copies", "40", MS]).unwrap();
        let old = start();
        // As an upgrade does it. What runs goes on with the old file, which no path leads to.
        fs::rename(other.path(), program.path()).unwrap();
        let new = start();
        let mut recording = Recording::start(spanprof, &[], &[old.pid(), new.pid()]);
        recording.running.log(&probed(&program)).unwrap();
        recording.running.log(&probed(&program)).unwrap();
        old.end().unwrap();
        new.end().unwrap();
        let recorded = recording.end();
        recorded.labelled(800);
        assert_eq!(recorded.books.kernel("hook_taken"), 80);
    }

    #[test]
    fn what_is_no_hook_has_no_probe_and_goes_on() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let program = Program::compile_with("hooked", &["-DONLY_HOOK", "-DNOT_A_HOOK"]).unwrap();
        let known = program.start(&["copies", "4", "20"]).unwrap();
        let mut recording = Recording::start(spanprof, &[], &[known.pid()]);
        let refused = format!("a hook without a probe path={}", program.arg());
        recording.running.log(&refused).unwrap();
        // Each copy would end by a signal if it had one.
        known.end().unwrap();
        let books = recording.end().books;
        assert!(books.hooks("refused_no_hook") >= 1);
        assert_eq!(books.kernel("hook_taken"), 0);
    }

    #[test]
    fn a_process_that_says_garbage_all_the_time_harms_nobody() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let program = only_hooked();
        let known = program.start(&["copies", "40", MS]).unwrap();
        let hostile = program.start(&["garbage"]).unwrap();
        let mut recording = Recording::start(spanprof, &[], &[known.pid(), hostile.pid()]);
        recording.running.log(&probed(&program)).unwrap();
        known.end().unwrap();
        hostile.end().unwrap();
        let recorded = recording.end();
        recorded.labelled(400);
        let books = &recorded.books;
        assert!(books.kernel("hook_refused") > 1000 && books.kernel("hook_no_room") > 100);
        // Four places of it are kept, however often it calls. While user space has heard of one, two
        // or three of them, it tells the kernel these, and there is room for the rest once more.
        let taken = books.kernel("hook_taken");
        assert!((44..=44 + 3 + 2 + 1).contains(&taken), "{taken}");
        assert_eq!(books.process("slots_by_hook"), taken);
        assert_eq!(books.kernel("process_event_lost_ring_full"), 0);
    }

    /// What is found by looking only: its slot is a dynamic symbol, and it has no hook.
    #[test]
    fn an_unknown_binary_is_labelled_soon_after_its_start() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let writer = SpanWriter::compile().unwrap();
        let command = writer.arguments("good", 600);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let options = ["-F", HZ, "-o", "p.folded", "--"];
        let (_, books) = spanprof.record(&[&options[..], &command].concat()).unwrap();
        let recorded = Recorded { stacks: spanprof.folded("p.folded").unwrap(), books };
        let inside = [CHILD, ROOT].map(|it| recorded.samples(it.function, |span| span == NO_SPAN));
        let all: u64 = inside.iter().map(|(all, _)| all).sum();
        let early: u64 = inside.iter().map(|(_, early)| early).sum();
        println!("{early} of {all} samples in spans are not labelled");
        assert!(all >= 300, "{all} samples are too few");
        assert!(early <= 200, "a sample is a millisecond of CPU time: {early}");
        let after = recorded.books.of_process("slots_by_look_after");
        println!("after the start: {after}");
        let within = ["ms_5", "ms_20", "ms_80", "ms_200"].map(|key| after[key].as_u64().unwrap());
        assert!(within.iter().sum::<u64>() > 0, "{after}");
    }
}
