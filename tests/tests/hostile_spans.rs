//! A process that publishes garbage has no span, is counted, and harms nobody.

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use spanprof_tests::process_context;
    use spanprof_tests::profile::SpanTable;
    use spanprof_tests::require;
    use spanprof_tests::span_writer::{CHILD, KEYS, OUTSIDE, ROOT, SERVICE, SpanWriter};
    use spanprof_tests::spanprof::{Books, Spanprof};

    const HOSTILE: &str = "hostile";

    /// Why a sample has no span, as the BPF program counts it.
    const REASONS: [&str; 5] = [
        "span_no_thread_pointer",
        "span_slot_unreadable",
        "span_record_unreadable",
        "span_invalid",
        "span_attributes_cut",
    ];

    /// How much CPU time each of the two processes uses.
    const CPU_MS: u32 = 200;
    const HZ: &str = "997";
    /// About one a millisecond.
    const SAMPLES: u64 = 200;
    /// Starts two programs of three arguments each, and waits for them.
    const BOTH: &str = r#""$0" "$1" "$2" "$3" & "$4" "$5" "$6" "$7" & wait"#;

    /// A process that is sampled on its last way out has no memory that can be read.
    const AT_THE_END: u64 = 4;

    /// The program that is hostile, and one that is not.
    struct Writers {
        hostile: SpanWriter,
        good: SpanWriter,
    }

    impl Writers {
        /// The hostile one says well which service it is.
        fn compile() -> Self {
            let hostile = SpanWriter::compile().unwrap();
            hostile.context(&process_context::payload(HOSTILE, &KEYS, None)).unwrap();
            Self { hostile, good: SpanWriter::compile().unwrap() }
        }
    }

    /// What came of a hostile writer and a good one, side by side.
    struct Outcome {
        table: SpanTable,
        books: Books,
    }

    /// Profiles a hostile process and a good one; the good one must have its spans.
    fn outcome(mode: &str, writers: &Writers) -> Option<Outcome> {
        require!(Root, None);
        let spanprof = Spanprof::new(require!(Spanprof, None)).unwrap();
        let [bad, good] = [(&writers.hostile, mode), (&writers.good, "good")]
            .map(|(writer, mode)| writer.arguments(mode, CPU_MS));
        let mut arguments = vec!["-F", HZ, "-o", "p.json", "-o", "p.folded"];
        arguments.extend(["--", "sh", "-c", BOTH]);
        arguments.extend(bad.iter().chain(&good).map(String::as_str));
        let (_, books) = spanprof.record(&arguments).unwrap();

        let table = spanprof.span_table("p.json").unwrap();
        let found: BTreeSet<_> = table
            .spans
            .iter()
            .filter(|span| span.service == SERVICE)
            .map(|span| (&*span.trace_id, &*span.span_id, span.span_name.as_deref()))
            .collect();
        let known = [CHILD, ROOT].map(|it| (it.trace_id, it.root, Some(it.root_name)));
        assert_eq!(found, BTreeSet::from(known), "{mode}: the good process");
        for stack in spanprof.folded("p.folded").unwrap() {
            let loops = [CHILD.function, ROOT.function, OUTSIDE];
            let leaf = &**stack.frames.last().unwrap();
            if stack.service == SERVICE && stack.span != "(no span)" && loops.contains(&leaf) {
                let expected = [CHILD, ROOT].map(|it| (it.root_name, it.function));
                assert!(expected.contains(&(&*stack.span, leaf)), "{mode}: {stack:?}");
            }
        }
        // Both used the CPU time that they were given: none was stopped or hindered. A process is
        // `unknown_service` until the first look at it.
        let services = [SERVICE, HOSTILE, "unknown_service:spans"];
        let both: u64 = services.iter().map(|name| table.service(name).samples).sum();
        assert!(both.abs_diff(2 * SAMPLES) < SAMPLES / 5, "{mode}: {both} samples: {table:?}");
        Some(Outcome { table, books })
    }

    impl Outcome {
        /// That the hostile process's samples are counted for a reason, but for those that are
        /// taken before the first look at it is done.
        #[track_caller]
        fn counted(&self, mode: &str, reason: &str) {
            let counted = self.books.kernel(reason);
            let [least, most] = [SAMPLES / 2, SAMPLES * 11 / 10];
            assert!((least..=most).contains(&counted), "{mode}: {reason} is {counted}");
        }

        /// That the hostile process's samples are counted for no reason but this one.
        #[track_caller]
        fn counted_only(&self, mode: &str, reason: Option<&str>) {
            for other in REASONS {
                match reason {
                    Some(reason) if reason == other => self.counted(mode, reason),
                    _ => {
                        let counted = self.books.kernel(other);
                        assert!(counted <= AT_THE_END, "{mode}: {other} is {counted}");
                    }
                }
            }
        }
    }

    #[track_caller]
    fn no_span(mode: &str, writers: &Writers, reason: Option<&str>) -> Option<Outcome> {
        let outcome = outcome(mode, writers)?;
        let spans: Vec<_> = outcome.table.spans.iter().filter(|it| it.service != SERVICE).collect();
        assert!(spans.is_empty(), "{mode}: {spans:?}");
        outcome.counted_only(mode, reason);
        Some(outcome)
    }

    #[test]
    fn a_pointer_that_leads_nowhere_is_no_span() {
        let writers = Writers::compile();
        for mode in ["dangling", "kernel", "not-canonical", "half-mapped"] {
            no_span(mode, &writers, Some("span_record_unreadable"));
        }
    }

    #[test]
    fn a_thread_that_says_that_it_has_no_span_has_none() {
        let Some(outcome) = no_span("null", &Writers::compile(), None) else { return };
        // The good process says so for a quarter of its time.
        let counted = outcome.books.kernel("span_none");
        assert!((SAMPLES / 2..=SAMPLES * 3 / 2).contains(&counted), "{counted}");
    }

    #[test]
    fn a_record_that_is_not_valid_is_no_span() {
        let writers = Writers::compile();
        for mode in ["valid-0", "valid-2"] {
            no_span(mode, &writers, Some("span_invalid"));
        }
        // The BPF program reads them: user space finds that the ids are none.
        for mode in ["no-trace-id", "no-span-id"] {
            no_span(mode, &writers, None);
        }
    }

    #[test]
    fn a_slot_that_is_not_there_is_no_span() {
        let writers = Writers::compile();
        for tp_offset in [1 << 40, i64::MIN, i64::MAX, -(1 << 46)] {
            let payload = process_context::payload(HOSTILE, &KEYS, Some(tp_offset));
            writers.hostile.context(&payload).unwrap();
            no_span(&format!("slot at {tp_offset:x}"), &writers, Some("span_slot_unreadable"));
        }
    }

    /// The hostile process's only span.
    fn only_span(mode: &str, writers: &Writers) -> Option<(Option<String>, Outcome)> {
        let outcome = outcome(mode, writers)?;
        let spans: Vec<_> =
            outcome.table.spans.iter().filter(|span| span.service == HOSTILE).collect();
        let [span] = spans[..] else { panic!("{mode}: {spans:?}") };
        assert_eq!(span.trace_id, CHILD.trace_id, "{mode}");
        assert!([CHILD.root, CHILD.active].contains(&&*span.span_id), "{mode}: {span:?}");
        Some((span.span_name.clone(), outcome))
    }

    #[test]
    fn attributes_that_are_cut_leave_the_ids() {
        let writers = Writers::compile();
        // More than there can be: as many are read as of any record. What follows the good ones is
        // zeros: an empty attribute 0, the local root's id, which takes the place of the good one.
        let Some((name, outcome)) = only_span("too-long", &writers) else { return };
        assert_eq!(name.as_deref(), Some(CHILD.active_name));
        outcome.counted_only("too-long", Some("span_attributes_cut"));
        // None can be read: counted once a sample all the same.
        let Some((name, outcome)) = only_span("too-long-at-the-end", &writers) else { return };
        assert_eq!(name, None);
        outcome.counted_only("too-long-at-the-end", Some("span_attributes_cut"));
    }

    #[test]
    fn an_unaligned_record_is_read_as_it_is() {
        let Some((name, outcome)) = only_span("unaligned", &Writers::compile()) else { return };
        assert_eq!(name.as_deref(), Some(CHILD.root_name));
        outcome.counted_only("unaligned", None);
    }

    #[test]
    fn a_name_that_is_no_text_is_made_one() {
        let Some((name, _)) = only_span("no-text", &Writers::compile()) else { return };
        assert_eq!(name.as_deref(), Some("a\u{fffd}\u{fffd};\u{fffd}\u{fffd}"));
    }

    #[test]
    fn a_process_context_that_is_garbage_is_none() {
        let mut writers = Writers::compile();
        // Else the symbol tells where the slot is.
        writers.hostile = SpanWriter::compile_without_symbol().unwrap();
        for (mode, counter) in [
            ("context-garbage", "context_refused"),
            ("context-size", "context_refused"),
            ("context-signature", "context_refused"),
            ("context-address", "context_unreadable"),
        ] {
            let Some(outcome) = no_span(mode, &writers, None) else { return };
            assert!(outcome.books.process(counter) > 0, "{mode}: {:?}", outcome.books);
            outcome.counted(mode, "span_no_slot");
            let without_a_name = outcome.table.service("unknown_service:spans").samples;
            assert!(without_a_name > SAMPLES / 2, "{mode}: {:?}", outcome.table);
        }
    }
}
