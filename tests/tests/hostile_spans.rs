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

    /// Why it has none where no slot is known.
    const NO_SLOT: &str = "span_no_slot";

    /// One sample a millisecond of CPU time.
    const HZ: &str = "997";
    /// Long enough for the first looks at both, on a host that is busy with other things.
    const DURATION: &str = "2s";
    /// Of each process: how they share the CPUs with others is the kernel's choice.
    const SAMPLES_MIN: u64 = 50;

    /// What is counted for another reason, at a moment when nothing is wrong.
    const BY_CHANCE: u64 = 4;

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
        /// The good one's samples.
        good: u64,
        /// The hostile one's, and those from before the first look at either.
        others: u64,
    }

    /// Profiles a hostile process and a good one; the good one must have its spans.
    fn outcome(mode: &str, writers: &Writers) -> Option<Outcome> {
        require!(Root, None);
        let spanprof = Spanprof::new(require!(Spanprof, None)).unwrap();
        let both = [(&writers.hostile, mode), (&writers.good, "good")]
            .map(|(writer, mode)| writer.start(mode).unwrap());
        let [bad, good] = [&both[0], &both[1]].map(|process| process.pid().to_string());
        let options = ["-F", HZ, "-d", DURATION, "-o", "p.json", "-o", "p.folded"];
        let (_, books) =
            spanprof.record(&[&options[..], &["-p", &bad, "-p", &good]].concat()).unwrap();
        // They go on until they are told, and end well: none was stopped.
        both.into_iter().for_each(|process| drop(process.end().unwrap()));

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
        // Both were at work: none was hindered. A process is `unknown_service` until the first look
        // at it.
        let [good, hostile, early] =
            [SERVICE, HOSTILE, "unknown_service:spans"].map(|name| table.service(name).samples);
        let others = hostile + early;
        assert!(good.min(others) >= SAMPLES_MIN, "{mode}: {good} and {others}: {table:?}");
        Some(Outcome { table, books, good, others })
    }

    impl Outcome {
        /// That the hostile process's samples are counted for a reason, and those of before the
        /// first look at it for having no slot.
        #[track_caller]
        fn counted(&self, mode: &str, reason: &str) {
            let counted = self.books.kernel(reason);
            let no_slot = self.books.kernel(NO_SLOT);
            let (both, most) = match reason {
                // The good one has none, too, before the first look at it.
                NO_SLOT => (counted, self.others + self.good),
                _ => (counted + no_slot, self.others),
            };
            let told =
                format!("{mode}: {reason} is {counted}, {NO_SLOT} {no_slot}: {:?}", self.table);
            assert!((SAMPLES_MIN..=most + BY_CHANCE).contains(&counted), "{told}");
            assert!(both + BY_CHANCE >= self.others, "{told}");
        }

        /// That the hostile process's samples are counted for no reason but this one.
        #[track_caller]
        fn counted_only(&self, mode: &str, reason: Option<&str>) {
            for other in REASONS {
                match reason {
                    Some(reason) if reason == other => self.counted(mode, reason),
                    _ => {
                        let counted = self.books.kernel(other);
                        assert!(counted <= BY_CHANCE, "{mode}: {other} is {counted}");
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
        let with_early = counted + outcome.books.kernel(NO_SLOT);
        let Outcome { good, others, .. } = outcome;
        assert!(
            (SAMPLES_MIN..=others + good / 2).contains(&counted),
            "{counted}: {others} + {good}"
        );
        assert!(with_early + BY_CHANCE >= others, "{with_early} of {others}");
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
        let mut writers = Writers::compile();
        // Else the symbol tells where it is, too.
        writers.hostile = SpanWriter::compile_without_symbol().unwrap();
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
            ("context-torn", "context_torn"),
        ] {
            let Some(outcome) = no_span(mode, &writers, None) else { return };
            assert!(outcome.books.process(counter) > 0, "{mode}: {:?}", outcome.books);
            outcome.counted(mode, NO_SLOT);
            // The hostile one has no name.
            let named = outcome.table.service(HOSTILE).samples;
            assert_eq!(named, 0, "{mode}: {:?}", outcome.table);
        }
    }

    #[test]
    fn a_process_context_that_never_rests_harms_nobody() {
        let mut writers = Writers::compile();
        writers.hostile = SpanWriter::compile_without_symbol().unwrap();
        // As much as is read of one: keys, of which 8 KiB are kept.
        let key = "k".repeat(120);
        let payload = process_context::payload(HOSTILE, &vec![&*key; 500], None);
        assert!(((60 << 10)..(64 << 10)).contains(&payload.len()), "{}", payload.len());
        writers.hostile.context(&payload).unwrap();
        // Published again as fast as a thread can.
        let Some(outcome) = no_span("context-loop", &writers, None) else { return };
        outcome.counted("context-loop", NO_SLOT);
        // It was read in a moment of rest, or never.
        let named = outcome.table.service(HOSTILE).samples;
        let torn = outcome.books.process("context_torn");
        assert!(named > 0 || torn > 0, "{:?}, {:?}", outcome.table, outcome.books);
    }
}
