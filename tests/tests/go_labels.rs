//! Go's labels for profiles name the span of each sample, however the program was built, and as Go's
//! own profiler says.

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde::Deserialize;
    use spanprof_tests::profile::{Folded, Pprof, Sample};
    use spanprof_tests::require;
    use spanprof_tests::spanprof::Spanprof;
    use spanprof_tests::workload::Program;

    const HZ: &str = "997";
    const NO_SPAN: &str = "(no span)";

    /// How much may be taken before the program was looked at.
    const EARLY_MAX: f64 = 0.1;

    #[expect(clippy::cast_precision_loss, reason = "within 2^53")]
    fn real(number: u64) -> f64 {
        number as f64
    }

    /// That a function is in its span whenever it is seen, but for the program's first moments.
    #[track_caller]
    fn only_in(stacks: &[Folded], function: &str, span: &str) {
        let mut by_span: BTreeMap<&str, u64> = BTreeMap::new();
        for stack in stacks.iter().filter(|stack| stack.frames.iter().any(|it| it == function)) {
            *by_span.entry(&stack.span).or_default() += stack.count;
        }
        let all: u64 = by_span.values().sum();
        let right = by_span.remove(span).unwrap_or(0);
        let early = if span == NO_SPAN { 0 } else { by_span.remove(NO_SPAN).unwrap_or(0) };
        assert!(right > 20, "{function} is in {span}: {right} of {all}");
        assert!(
            real(early) <= EARLY_MAX * real(all),
            "{function}: {early} of {all} without a span"
        );
        assert!(by_span.is_empty(), "{function} is in no span but {span}: {by_span:?}");
    }

    /// That the spans have shares like their parts of all work.
    #[track_caller]
    fn shares(stacks: &[Folded], parts: &[(&str, f64)]) {
        let count = |span: &str| -> u64 {
            stacks.iter().filter(|stack| stack.span == span).map(|stack| stack.count).sum()
        };
        let all: u64 = stacks.iter().map(|stack| stack.count).sum();
        let whole: f64 = parts.iter().map(|(_, part)| part).sum();
        for (span, part) in parts {
            let (found, expected) = (real(count(span)) / real(all), part / whole);
            println!("{span}: {found:.3} of {all}, {expected:.3} of the work");
            // Four times what chance explains, and what is from before the first look.
            let allowed = 4.0 * (expected * (1.0 - expected) / real(all)).sqrt() + 0.03;
            assert!((found - expected).abs() < allowed, "{span}: {found}, not {expected}");
        }
        assert_eq!(parts.iter().map(|(span, _)| count(span)).sum::<u64>(), all, "no other span");
    }

    /// A flag for a program without symbols.
    const STRIP: &str = "-ldflags=-s -w";

    fn profile(spanprof: &Spanprof, program: &Program) -> Vec<Folded> {
        let options = ["-F", HZ, "-d", "2s", "-o", "p.json", "-o", "p.folded", "--"];
        spanprof.record(&[&options[..], &[program.arg()]].concat()).unwrap();
        spanprof.folded("p.folded").unwrap()
    }

    #[test]
    fn labels_are_found_in_go_programs_of_every_kind() {
        require!(Root);
        let (spanprof, go) = (require!(Spanprof), require!(GoToolchain));
        for flags in [&["build"][..], &["build", STRIP], &["build", "-buildmode=pie"]] {
            let spanprof = Spanprof::new(spanprof.clone()).unwrap();
            let program = Program::compile_by(&go, "labels.go", flags).unwrap();
            let stacks = profile(&spanprof, &program);
            shares(&stacks, &[("GET /cart", 3.0), ("GET /checkout", 2.0), (NO_SPAN, 2.0)]);
            if !flags.contains(&STRIP) {
                only_in(&stacks, "main.inSpan", "GET /cart");
                only_in(&stacks, "main.inOther", "GET /checkout");
                only_in(&stacks, "main.outside", NO_SPAN);
            }
            let spans = spanprof.span_table("p.json").unwrap().spans;
            let ids: BTreeSet<_> =
                spans.iter().map(|span| (&*span.span_id, &*span.trace_id)).collect();
            let known = [
                ("00f067aa0ba902b7", "0af7651916cd43dd8448eb211c80319c"),
                ("53995c3f000000a8", "00000000000000000000000000000000"),
            ];
            assert_eq!(ids, BTreeSet::from(known), "{flags:?}");
        }
    }

    #[test]
    fn labels_are_found_beside_thread_local_variables_of_c() {
        require!(Root);
        let (spanprof, go) = (require!(Spanprof), require!(GoToolchain));
        for flags in [
            &["build"][..],
            &["build", STRIP],
            &["build", "-buildmode=pie", "-ldflags=-s -w -linkmode=external"],
            &["build", "-ldflags=-s -w -linkmode=external -extldflags=-static"],
        ] {
            let spanprof = Spanprof::new(spanprof.clone()).unwrap();
            let program = Program::compile_by(&go, "labels_cgo.go", flags).unwrap();
            let stacks = profile(&spanprof, &program);
            shares(&stacks, &[("GET /cart", 2.0), (NO_SPAN, 1.0)]);
            if flags.len() == 1 {
                only_in(&stacks, "main.inSpan", "GET /cart");
                only_in(&stacks, "main.outside", NO_SPAN);
            }
        }
    }

    /// A local root span, as the service itself tells.
    #[derive(Debug, Deserialize)]
    struct Root {
        name: String,
        span_id: String,
        trace_id: String,
    }

    /// The labels of a span: id, trace and name.
    type Labels<'a> = (&'a str, &'a str, &'a str);

    fn labels(sample: &Sample) -> Option<Labels<'_>> {
        let of = |key| sample.label(key);
        Some((of("span_id")?, of("trace_id")?, of("span_name")?))
    }

    /// Samples by one of a span's labels, and in all.
    fn by<'a>(
        samples: &'a [Sample],
        key: impl Fn(Labels<'a>) -> &'a str,
    ) -> (BTreeMap<&'a str, u64>, u64) {
        let mut counts = BTreeMap::new();
        for sample in samples {
            *counts.entry(labels(sample).map_or("", &key)).or_default() += sample.count();
        }
        let all = counts.values().sum();
        (counts, all)
    }

    /// Both drew samples from the same time: four times what chance explains, and two points for
    /// what they do differently. Go's profiler begins when it is started, and takes a thread that
    /// sleeps and wakes often for less than it uses.
    #[track_caller]
    fn same_shares(ours: (BTreeMap<&str, u64>, u64), own: (BTreeMap<&str, u64>, u64)) {
        let keys: BTreeSet<_> = ours.0.keys().chain(own.0.keys()).copied().collect();
        for key in keys {
            let share = |(counts, all): &(BTreeMap<&str, u64>, u64)| {
                real(counts.get(key).copied().unwrap_or(0)) / real(*all)
            };
            let (ours_share, own_share) = (share(&ours), share(&own));
            let p = f64::midpoint(ours_share, own_share);
            let spread = (p * (1.0 - p) * (1.0 / real(ours.1) + 1.0 / real(own.1))).sqrt();
            let allowed = 4.0 * spread + 0.02;
            let told = format!("{key}: {ours_share:.4}, Go says {own_share:.4} ± {allowed:.4}");
            println!("{told}");
            assert!((ours_share - own_share).abs() < allowed, "{told}");
        }
    }

    #[test]
    fn grafanas_sdk_gives_the_spans_that_gos_own_profiler_sees() {
        require!(Root);
        let (spanprof, reader) = (require!(Spanprof), require!(Go));
        let service = require!(GrafanaGo);
        let spanprof = Spanprof::new(spanprof).unwrap();
        let own = spanprof.path("own.pb.gz");
        let options = ["-F", HZ, "--raw", "a.raw", "-o", "p.pb.gz", "-o", "p.folded", "--"];
        let command = [service.to_str().unwrap(), "6", own.to_str().unwrap()];
        let (finished, books) = spanprof.record(&[&options[..], &command].concat()).unwrap();
        let own = Pprof::read(&reader, &own).unwrap();
        let ours = spanprof.pprof(&reader, "p.pb.gz").unwrap();

        // Every span is one that there was, with its own name and trace.
        let roots: Vec<Root> =
            finished.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let known: BTreeSet<Labels<'_>> =
            roots.iter().map(|root| (&*root.span_id, &*root.trace_id, &*root.name)).collect();
        let found: BTreeSet<_> = ours.samples.iter().filter_map(labels).collect();
        let strange: Vec<_> = found.difference(&known).collect();
        assert!(strange.is_empty(), "spans that the service does not have: {strange:?}");
        // What Go's profiler saw more than by chance is there.
        let (own_ids, _) = by(&own.samples, |(id, ..)| id);
        let (our_ids, _) = by(&ours.samples, |(id, ..)| id);
        for (id, count) in own_ids.iter().filter(|(_, count)| **count >= 3) {
            assert!(our_ids.contains_key(id), "{id:?} has {count} samples in Go's own profile");
        }
        // As many of each span, and of each route.
        let name = |(_, _, name)| name;
        let id = |(id, _, _)| id;
        same_shares(by(&ours.samples, name), by(&own.samples, name));
        same_shares(by(&ours.samples, id), by(&own.samples, id));

        // By stack: the routes' own functions, on whatever thread, with the collector's work.
        let stacks = spanprof.folded("p.folded").unwrap();
        only_in(&stacks, "main.cart", "GET /cart");
        only_in(&stacks, "main.recommend", "GET /recommend");
        only_in(&stacks, "main.checkout", "GET /checkout");
        only_in(&stacks, "main.outside", NO_SPAN);
        for counter in ["span_slot_unreadable", "span_record_unreadable", "span_labels_cut"] {
            // The first instructions of a program are without a thread pointer.
            let times = books.kernel(counter);
            assert!(times <= 4, "{counter} is {times}");
        }

        // A replay says the same.
        let replay = ["replay", "a.raw", "-o", "again.pb.gz", "-o", "again.folded"];
        spanprof.run(&replay).unwrap().succeeded().unwrap();
        for [live, again] in [["p.pb.gz", "again.pb.gz"], ["p.folded", "again.folded"]] {
            assert!(spanprof.bytes(live).unwrap() == spanprof.bytes(again).unwrap(), "{live}");
        }
    }
}
