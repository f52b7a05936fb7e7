//! What Go's pprof package reads in our file is what the workload did, and what our other outputs
//! say.

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use spanprof_tests::profile::{Sample, ValueType};
    use spanprof_tests::require;
    use spanprof_tests::span_writer::{CHILD, Known, OUTSIDE, ROOT, SERVICE, SpanWriter};
    use spanprof_tests::spanprof::Spanprof;

    const HZ: i64 = 499;

    /// The labels that say which span a sample is charged to.
    fn span_of(sample: &Sample) -> Option<[&str; 3]> {
        let keys = ["trace_id", "span_id", "span_name"];
        let has = keys.map(|key| sample.label(key));
        assert!(
            has.iter().all(Option::is_some) || has.iter().all(Option::is_none),
            "all of a span's labels or none: {has:?}"
        );
        let [Some(trace), Some(span), Some(name)] = has else { return None };
        Some([trace, span, name])
    }

    fn known(span: &Known) -> Option<[&'static str; 3]> {
        Some([span.trace_id, span.root, span.root_name])
    }

    #[test]
    fn an_independent_reader_sees_types_period_functions_labels_and_sums() {
        require!(Root);
        let (spanprof, reader) = (require!(Spanprof), require!(Go));
        let spanprof = Spanprof::new(spanprof).unwrap();
        let writer = SpanWriter::compile().unwrap();
        let command = writer.arguments("good", 1500);
        let mut arguments = vec!["-F", "499", "-o", "p.pb.gz", "-o", "p.json", "--"];
        arguments.extend(command.iter().map(String::as_str));
        let (_, books) = spanprof.record(&arguments).unwrap();
        let pprof = spanprof.pprof(&reader, "p.pb.gz").unwrap();
        let table = spanprof.span_table("p.json").unwrap();

        let value_type =
            |what: &str, unit: &str| ValueType { r#type: what.into(), unit: unit.into() };
        let types = [value_type("samples", "count"), value_type("cpu", "nanoseconds")];
        assert_eq!(pprof.sample_types, types);
        assert_eq!(pprof.period_type, Some(value_type("cpu", "nanoseconds")));
        assert_eq!(pprof.period, 1_000_000_000 / HZ);
        assert!((1_400_000_000..60_000_000_000).contains(&pprof.duration_nanos));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let age = i64::try_from(now.as_nanos()).unwrap() - pprof.time_nanos;
        assert!((0..120_000_000_000).contains(&age), "it began {age} ns ago");
        let main = pprof.mappings.first().unwrap();
        assert!(main.file.ends_with("/spans"), "the service's binary is the first: {main:?}");
        assert_eq!(main.build_id.len(), 40, "{main:?}");

        // Each function in its span and in no other. The slot is found some milliseconds after the
        // program's start: what comes before is in no span.
        let mut samples_of: BTreeMap<(&str, Option<[&str; 3]>), u64> = BTreeMap::new();
        let mut unwalked = 0;
        let functions = [CHILD.function, ROOT.function, OUTSIDE];
        for sample in pprof.of_service(SERVICE) {
            let leaf = sample.functions.first().map(String::as_str);
            if let Some(leaf) = leaf.filter(|leaf| functions.contains(leaf)) {
                if sample.functions[1].starts_with('[') {
                    // Walked before the program's table was there, and marked so.
                    unwalked += sample.count();
                    continue;
                }
                assert_eq!(sample.functions[1], "main");
                *samples_of.entry((leaf, span_of(sample))).or_default() += sample.count();
            }
        }
        let early = samples_of.remove(&(CHILD.function, None)).unwrap_or(0)
            + samples_of.remove(&(ROOT.function, None)).unwrap_or(0);
        assert!(early <= 25, "{early} samples before the slot was found, more than 50 ms");
        assert!(unwalked <= 25, "{unwalked} stacks ended early, more than 50 ms");
        let samples_of: Vec<_> = samples_of.into_iter().collect();
        let [(other, n_other), (child, n_child), (outside, n_outside)] = samples_of[..] else {
            panic!("{samples_of:?}")
        };
        assert_eq!(other, (ROOT.function, known(&ROOT)));
        assert_eq!(child, (CHILD.function, known(&CHILD)));
        assert_eq!(outside, (OUTSIDE, None));
        // Two, one and one parts of its time, each a loop of the same length.
        let total = n_other + n_child + n_outside + early + unwalked;
        for (found, expected) in
            [(n_child, total / 2), (n_other, total / 4), (n_outside, total / 4)]
        {
            assert!(found.abs_diff(expected) <= total / 10, "{found}, not {expected} of {total}");
        }

        // The same sums everywhere.
        let sum = |of: usize| -> i64 { pprof.samples.iter().map(|sample| sample.values[of]).sum() };
        assert_eq!(sum(0).cast_unsigned(), table.totals.samples);
        assert_eq!(sum(0).cast_unsigned(), books.samples("samples_exported"));
        assert_eq!(sum(1).cast_unsigned(), table.totals.cpu_ns);
        assert_eq!(sum(1), sum(0) * pprof.period);
        for span in [CHILD, ROOT] {
            let in_pprof: u64 = pprof
                .samples
                .iter()
                .filter(|sample| span_of(sample) == known(&span))
                .map(Sample::count)
                .sum();
            let row = table.spans.iter().find(|row| row.span_id == span.root).unwrap();
            assert_eq!(row.samples, in_pprof);
            assert_eq!(row.span_name.as_deref(), Some(span.root_name));
            assert_eq!(row.trace_id, span.trace_id);
        }
        assert_eq!(table.spans.len(), 2);
    }
}
