//! Spans that a crate publishes which is not ours are found, and none is wrong.

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use spanprof_tests::cargo_fixture;
    use spanprof_tests::profile::Sample;
    use spanprof_tests::require;
    use spanprof_tests::spanprof::Spanprof;
    use spanprof_tests::workload::{Program, Workload};

    const TARGET: &str = env!("CARGO_TARGET_TMPDIR");
    const EXPORT: &str = "-Clink-arg=-Wl,--export-dynamic-symbol=otel_thread_ctx_v1";

    /// Its functions, and the span that each is in.
    const FUNCTIONS: [(&str, Option<&str>); 3] = [
        ("in_one", Some("b1b1b1b1b1b1b1b1")),
        ("in_other", Some("b2b2b2b2b2b2b2b2")),
        ("outside", None),
    ];

    /// In hundredths of a second of CPU time. The first ones are not looked at, and how many of the
    /// others are in spans depends on how fast the processor is.
    const WORK: u64 = 600;
    const SAMPLES_MIN: i64 = 100;
    const LABELLED_MIN: f64 = 0.99;

    /// What of the samples in a span is labelled; that no label is wrong.
    #[track_caller]
    fn labelled(samples: &[Sample]) -> f64 {
        let (mut inside, mut right) = (0, 0);
        for sample in samples {
            // What is inlined into them comes first.
            let is_in = |(name, _): &&(&str, _)| sample.functions.iter().any(|it| it == name);
            let Some((_, span)) = FUNCTIONS.iter().find(is_in) else { continue };
            let label = sample.labels.get("span_id").map(|ids| &*ids[0]);
            assert!(label.is_none() || label == *span, "a wrong span: {sample:?}");
            if span.is_some() {
                inside += sample.values[0];
                right += if label.is_some() { sample.values[0] } else { 0 };
            }
        }
        println!("{right} of {inside} samples inside spans are labelled");
        assert!(inside >= SAMPLES_MIN, "{inside} samples");
        #[expect(clippy::cast_precision_loss, reason = "within 2^53")]
        let part = right as f64 / inside as f64;
        part
    }

    #[track_caller]
    fn check(spanprof: &Path, reader: &Path, command: &mut Command) {
        let workload = Workload::start(command).unwrap();
        let spanprof = Spanprof::new(spanprof.to_owned()).unwrap();
        let options = ["-F", "997", "-o", "p.pb.gz", "--span-scope", "active"];
        spanprof.record_at_work(&options, &workload, WORK).unwrap();
        workload.end().unwrap();
        let part = labelled(&spanprof.pprof(reader, "p.pb.gz").unwrap().samples);
        assert!(part >= LABELLED_MIN, "{part} is labelled");
    }

    #[test]
    fn libdatadogs_in_a_program_and_in_a_library() {
        require!(Root);
        let (spanprof, reader) = (require!(Spanprof), require!(Go));
        let build =
            |what: &[&str]| cargo_fixture::build("libdatadog", what, TARGET.as_ref()).unwrap();
        // As its documentation says to link.
        let folder = build(&["--bin", "libdatadog-writer", "--", EXPORT]);
        check(&spanprof, &reader, &mut Command::new(folder.join("libdatadog-writer")));

        // As a library comes out without any setting: the symbol is in no `.dynsym`.
        let folder = build(&["--lib", "--crate-type", "cdylib"]);
        let opener = Program::compile("open").unwrap();
        let mut command = Command::new(opener.path());
        command.arg(folder.join("liblibdatadog_writer.so")).arg("write_spans");
        check(&spanprof, &reader, &mut command);
    }
}
