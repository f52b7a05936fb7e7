//! What a process says with labels is read as it is meant; what is hostile is no span, or the right
//! one, is counted, and harms nobody.

#[cfg(test)]
mod tests {
    use std::process::Command;

    use spanprof_tests::profile::SpanTable;
    use spanprof_tests::require;
    use spanprof_tests::spanprof::{Books, Spanprof};
    use spanprof_tests::workload::{Program, Workload};

    const SPAN_ID: &str = "00f067aa0ba902b7";
    const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
    const NAME: &str = "GET /cart";

    /// What a process of a mode has.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Has {
        /// A span of this name.
        Span(Option<&'static str>),
        /// None, and no reason but that.
        None,
        /// None, and it is counted.
        Counted,
    }

    /// Of all kinds of labels: the modes of `fixtures/labels.c`.
    const MODES: [(&str, Has); 18] = [
        ("good", Has::Span(Some(NAME))),
        ("null", Has::None),
        ("dangling", Has::Counted),
        ("kernel", Has::Counted),
        ("not-canonical", Has::Counted),
        ("labels-dangling", Has::Counted),
        // A length is an address: there are more labels than are looked at, and none is a span's.
        ("itself", Has::None),
        ("long-id", Has::None),
        ("endless-id", Has::None),
        ("no-id", Has::None),
        ("unreadable-id", Has::Counted),
        ("unreadable-key", Has::Counted),
        ("long-key", Has::None),
        ("unreadable-name", Has::Span(None)),
        ("long-name", Has::Span(Some(LONG_NAME))),
        ("no-labels", Has::None),
        ("endless", Has::Span(Some(NAME))),
        // The first counts.
        ("twice", Has::Span(Some(NAME))),
    ];

    /// As much of a name as is taken: 255 bytes.
    const LONG_NAME: &str = {
        const BYTES: [u8; 255] = [b'n'; 255];
        match str::from_utf8(&BYTES) {
            Ok(name) => name,
            Err(_) => panic!("it is a text"),
        }
    };

    /// Of each process: how they share the CPUs is the kernel's choice.
    const SAMPLES_MIN: u64 = 20;

    /// What is counted for another reason, at a moment when nothing is wrong.
    const BY_CHANCE: u64 = 4;

    struct Outcome {
        table: SpanTable,
        books: Books,
    }

    /// Profiles a process of each mode, all at the same time, each a service of its own.
    fn profile(spanprof: &Spanprof, program: &Program, options: &[&str]) -> Outcome {
        let start = |mode: &str| {
            let mut command = Command::new(program.path());
            Workload::start(command.arg(mode).env("OTEL_SERVICE_NAME", mode)).unwrap()
        };
        let processes: Vec<_> = MODES.iter().map(|(mode, _)| start(mode)).collect();
        let pids: Vec<_> = processes.iter().map(|process| process.pid().to_string()).collect();
        let mut arguments = vec!["-F", "997", "-d", "4s", "-o", "p.json"];
        arguments.extend(options);
        arguments.extend(pids.iter().flat_map(|pid| ["-p", pid]));
        let (_, books) = spanprof.record(&arguments).unwrap();
        // They go on until they are told, and end well: none was stopped.
        processes.into_iter().for_each(|process| drop(process.end().unwrap()));
        Outcome { table: spanprof.span_table("p.json").unwrap(), books }
    }

    impl Outcome {
        /// That each mode has the span that it is to have, and no other.
        #[track_caller]
        fn has_the_right_spans(&self) {
            for (mode, has) in MODES {
                let all = self.table.service(mode);
                assert!(all.samples >= SAMPLES_MIN, "{mode}: {all:?}");
                let spans: Vec<_> =
                    self.table.spans.iter().filter(|span| span.service == mode).collect();
                let Has::Span(name) = has else {
                    assert!(spans.is_empty(), "{mode}: {spans:?}");
                    continue;
                };
                let [span] = spans[..] else { panic!("{mode}: {spans:?}") };
                assert_eq!((&*span.span_id, &*span.trace_id), (SPAN_ID, TRACE_ID), "{mode}");
                assert_eq!(span.span_name.as_deref(), name, "{mode}");
                // The others are from before the first look at the process.
                let early = self.books.kernel("span_no_slot");
                let told = format!("{mode}: {} of {all:?}, {early} early", span.samples);
                assert!(span.samples + early + BY_CHANCE >= all.samples, "{told}");
                assert!(2 * span.samples >= SAMPLES_MIN, "{told}");
            }
        }

        /// That as many samples are counted as these modes have, but for those of before the first
        /// look at their process.
        #[track_caller]
        fn counted(&self, counted: u64, modes: impl Fn(&str, Has) -> bool) {
            let modes = MODES.iter().filter(|(mode, has)| modes(mode, *has));
            let samples: u64 = modes.map(|(mode, _)| self.table.service(mode).samples).sum();
            let early = self.books.kernel("span_no_slot");
            let told = format!("{counted} counted of {samples}, {early} early: {:?}", self.books);
            assert!(counted > 0 && counted <= samples + BY_CHANCE, "{told}");
            assert!(counted + early + BY_CHANCE >= samples, "{told}");
        }

        #[track_caller]
        fn is_right(&self) {
            self.has_the_right_spans();
            let kernel = |name| self.books.kernel(name);
            self.counted(kernel("span_record_unreadable"), |_, has| has == Has::Counted);
            self.counted(kernel("span_labels_cut"), |mode, _| mode == "itself");
            self.counted(self.books.samples("span_labels_malformed"), |mode, _| {
                ["long-id", "endless-id", "no-id"].contains(&mode)
            });
            self.counted(kernel("span_attributes_cut"), |mode, _| {
                ["unreadable-name", "endless"].contains(&mode)
            });
            assert!(kernel("span_slot_unreadable") <= BY_CHANCE, "{:?}", self.books);
            assert!(kernel("span_invalid") <= BY_CHANCE, "{:?}", self.books);
        }
    }

    /// The program of `fixtures/labels.c` that these flags make of it.
    #[track_caller]
    fn check(flags: &[&str], options: &[&str]) {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        profile(&spanprof, &Program::compile_with("labels", flags).unwrap(), options).is_right();
    }

    #[test]
    fn a_slice_of_gos_runtime_is_read() {
        check(&[r#"-DGO="go1.26.8""#], &[]);
    }

    #[test]
    fn a_map_of_gos_runtime_before_1_24_is_read() {
        check(&[r#"-DGO="go1.23.4""#, "-DGO_MAP"], &[]);
    }

    #[test]
    fn a_label_set_of_custom_labels_is_read() {
        check(&["-rdynamic"], &[]);
    }

    #[test]
    fn they_are_read_by_a_bounded_loop() {
        check(&[r#"-DGO="go1.26.8""#], &["--bpf-sampler", "bounded"]);
    }

    #[test]
    fn a_go_program_that_is_not_understood_is_not_read_and_counted() {
        require!(Root);
        for (flags, counter) in [
            (&[r#"-DGO="go1.99.1""#][..], "go_version_unknown"),
            (&[r#"-DGO="go1.26.8""#, "-DTWO"], "go_place_unknown"),
        ] {
            let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
            let program = Program::compile_with("labels", flags).unwrap();
            let Outcome { table, books } = profile(&spanprof, &program, &[]);
            assert!(table.spans.is_empty(), "{:?}", table.spans);
            assert_eq!(books.process(counter), 1, "{counter}: {books:?}");
        }
    }
}
