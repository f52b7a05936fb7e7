//! No sample is charged to a span that its thread did not work on when it was taken.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;
    use std::time::Duration;

    use profiler_common::sample::{SPAN_NONE, SPAN_READ, SampleHeader};
    use spanprof_tests::recorded_file::{chunks_of, records_of};
    use spanprof_tests::require;
    use spanprof_tests::spanprof::{STATS, Spanprof};
    use spanprof_tests::switches::{Active, Truth};
    use spanprof_tests::workload::Workload;
    use zerocopy::FromBytes as _;

    const THREADS: &str = "16";
    const WORKERS: &str = "4";

    /// The id of the span in a sample's record; `None` if there is no record.
    fn span_of(header: &SampleHeader, rest: &[u8]) -> Option<u64> {
        if header.span != SPAN_READ {
            return None;
        }
        let frames = usize::from(header.kernel_frame_count) + usize::from(header.user_frame_count);
        let id = rest.get(8 * frames + 16..)?.first_chunk()?;
        Some(u64::from_be_bytes(*id))
    }

    #[test]
    fn spans_that_change_every_50_us_are_never_mixed_up() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let truth = spanprof.path("truth");
        let mut command = Command::new(env!("CARGO_BIN_EXE_switches"));
        let workload = Workload::start(command.args([THREADS, WORKERS]).arg(&truth)).unwrap();
        let pid = workload.pid().to_string();
        let options = ["-F", "997", "-d", "60s", "-p", &pid];
        let arguments = [&["record", "--stats", STATS, "--raw", "host.raw"], &options[..]].concat();
        let recording = spanprof.start(&arguments).unwrap();
        recording.finish_within(Duration::from_secs(180)).unwrap().succeeded().unwrap();
        let books = spanprof.books().unwrap();
        workload.end().unwrap();

        let truth = Truth::read(&fs::read(truth).unwrap());
        let chunks = chunks_of(&spanprof.bytes("host.raw").unwrap()).unwrap();
        let (mut right, mut wrong, mut missed, mut unknown) = (0_u32, Vec::new(), 0_u32, 0_u32);
        for record in records_of(&chunks).unwrap() {
            let (header, rest) = SampleHeader::read_from_prefix(record).unwrap();
            let Active::OneOf(active) = truth.at(header.tid, header.boot_ns) else {
                unknown += 1;
                continue;
            };
            match span_of(&header, rest) {
                Some(span) if active.contains(&span) => right += 1,
                Some(span) => wrong.push((header.tid, header.boot_ns, span, active)),
                // No span is wrong only where the thread surely had one.
                None if active.contains(&0) && header.span == SPAN_NONE => right += 1,
                None => missed += 1,
            }
        }
        let labelled = f64::from(right) / f64::from(right + missed);
        println!(
            "{} switches, {right} samples right, {} wrong, {missed} missed ({:.3} % labelled), \
             {unknown} of threads that do something else",
            truth.len(),
            wrong.len(),
            100.0 * labelled,
        );
        assert!(wrong.is_empty(), "{} wrong, {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
        assert!(labelled >= 0.99, "{labelled}");
        // A minute of two CPUs, if nobody else has them; and the threads do nothing else.
        assert!(right >= 15_000 && unknown < right / 50, "{right} {unknown}");
        assert_eq!(books.samples("lost_malformed"), 0);
    }
}
