//! The CPU time of a real traced service by span is what the service's own clocks say.

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use serde_json::Value;
    use spanprof_tests::profile::{Folded, SpanTable};
    use spanprof_tests::require;
    use spanprof_tests::spanprof::Spanprof;

    const SERVICE: &str = "checkout";
    const SECONDS: &str = "6";
    const HZ: &str = "499";

    /// How much of the CPU time inside spans must be labelled.
    const LABELLED_MIN: f64 = 0.97;

    /// How far a share of `samples` samples may be from the truth.
    ///
    /// As if each sample were drawn at random, a share `p` of `n` samples is off by
    /// `sqrt(p (1 - p) / n)` in two of three cases, by four times that in one of 16,000. (Ticks at
    /// equal distances do better.) 6 s on two busy CPUs are some 4,000 samples: 3.2 percentage
    /// points for a half. One point more for what the service does inside spans outside of its own
    /// clock, in the kernel and in the tracing layers before and after it is read. Never more than
    /// four points.
    fn tolerance(share: f64, samples: u64) -> f64 {
        (4.0 * (share * (1.0 - share) / real(samples)).sqrt() + 0.01).min(0.04)
    }

    /// The functions that burn a route's time.
    const ROUTES: [(&str, &str); 3] = [
        ("GET /cart", "price_cart"),
        ("GET /recommend", "rank_products"),
        ("GET /checkout", "sign_order"),
    ];

    #[expect(clippy::cast_precision_loss, reason = "within 2^53")]
    fn real(number: u64) -> f64 {
        number as f64
    }

    /// A run of the service, what it says of itself, and what spanprof says of it.
    struct Run {
        spanprof: Spanprof,
        truth: Value,
    }

    impl Run {
        /// `options` are options of `spanprof record`, `load` of the service.
        fn of(spanprof: PathBuf, checkout: &str, options: &[&str], load: &[&str]) -> Self {
            let spanprof = Spanprof::new(spanprof).unwrap();
            let outputs = ["-F", HZ, "-o", "spans.json", "-o", "stacks.folded"];
            let command = [&["--", checkout, "--demo"], load].concat();
            let (finished, _) = spanprof.record(&[&outputs, options, &command].concat()).unwrap();
            let mut said = finished.stdout.lines().filter_map(|line| {
                let said: Value = serde_json::from_str(line).ok()?;
                said.get("truth").cloned()
            });
            let truth = said.next_back().expect("the service says what it measured");
            Self { spanprof, truth }
        }

        /// CPU time of the service's truth by `name`, in the list `of`.
        fn truth(&self, of: &str, name: &str) -> BTreeMap<String, u64> {
            let mut by_name = BTreeMap::new();
            for row in self.truth[of].as_array().unwrap() {
                let name = row[name].as_str().unwrap().to_owned();
                *by_name.entry(name).or_default() += row["cpu_ns"].as_u64().unwrap();
            }
            by_name
        }
    }

    /// Shares within what the number of samples allows, and nothing that is not in the truth.
    #[track_caller]
    fn same_shares(table: &SpanTable, truth: &BTreeMap<String, u64>) {
        let found = table.cpu_by_name();
        let (labelled, inside) = (table.totals.span_cpu_ns, truth.values().sum::<u64>());
        let part = real(labelled) / real(inside);
        println!("{part:.4} of the CPU time inside spans is labelled");
        assert!((LABELLED_MIN..1.03).contains(&part), "{part} is labelled: {found:?}, {truth:?}");
        for (name, cpu_ns) in truth {
            let share = real(*cpu_ns) / real(inside);
            let found = real(found.get(&**name).copied().unwrap_or(0)) / real(labelled);
            println!("{name}: {found:.4}, in truth {share:.4}");
            let allowed = tolerance(share, table.totals.span_samples);
            assert!((share - found).abs() < allowed, "{name}: {found}, not {share} ± {allowed}");
        }
        let unknown: Vec<_> = found.keys().filter(|name| !truth.contains_key(**name)).collect();
        assert!(unknown.is_empty(), "spans that the service does not have: {unknown:?}");
    }

    /// Whether a function is in a stack, whatever its module.
    fn has(stack: &Folded, function: &str) -> bool {
        stack.frames.iter().any(|frame| frame.rsplit("::").next() == Some(function))
    }

    /// That a function is in no span; gives how often it was seen outside of any.
    #[track_caller]
    fn seen_in_no_span(stacks: &[Folded], function: &str) -> u64 {
        let (outside, inside): (Vec<_>, Vec<_>) = stacks
            .iter()
            .filter(|stack| has(stack, function))
            .partition(|stack| stack.span == "(no span)");
        assert!(inside.is_empty(), "{function} belongs to no request: {inside:#?}");
        outside.iter().map(|stack| stack.count).sum()
    }

    #[test]
    fn routes_and_their_child_spans_have_the_cpu_time_that_the_service_measured() {
        require!(Root);
        let (spanprof, checkout) = (require!(Spanprof), require!(Checkout));
        let load = ["--seconds", SECONDS];
        let run = Run::of(spanprof, checkout.to_str().unwrap(), &["--raw", "a.raw"], &load);

        let table = run.spanprof.span_table("spans.json").unwrap();
        same_shares(&table, &run.truth("roots", "root_span_name"));
        assert!(table.spans.iter().all(|span| span.service == SERVICE));
        let stacks = run.spanprof.folded("stacks.folded").unwrap();
        // Half a percent of its time: some 15 samples.
        assert!(seen_in_no_span(&stacks, "sweep_expired_carts") > 0);
        for (route, own) in ROUTES {
            let stacks = || stacks.iter().filter(|stack| stack.span == route);
            assert!(stacks().any(|stack| has(stack, own)), "{route} runs {own}");
            for (_, other) in ROUTES.iter().filter(|(_, function)| *function != own) {
                let found: Vec<_> = stacks().filter(|stack| has(stack, other)).collect();
                assert!(found.is_empty(), "{route} does not run {other}: {found:#?}");
            }
        }

        // The same samples by active span.
        let replay = ["replay", "a.raw", "--span-scope", "active", "--stats", "stats.json"];
        let outputs = ["-o", "active.json", "-o", "active.folded"];
        run.spanprof.run(&[&replay[..], &outputs].concat()).unwrap().succeeded().unwrap();
        run.spanprof.books().unwrap();
        let active = run.spanprof.span_table("active.json").unwrap();
        assert_eq!(active.totals, table.totals, "by another span, but no other samples");
        same_shares(&active, &run.truth("spans", "span_name"));
        let stacks = run.spanprof.folded("active.folded").unwrap();
        assert!(seen_in_no_span(&stacks, "sweep_expired_carts") > 0);
        for (span, own) in
            [("price", "price_cart"), ("rank", "rank_products"), ("sign", "sign_order")]
        {
            let found = stacks.iter().filter(|stack| stack.span == span);
            assert!(found.clone().any(|stack| has(stack, own)), "{span} runs {own}");
            for (_, other) in ROUTES.iter().filter(|(_, function)| *function != own) {
                assert!(!found.clone().any(|stack| has(stack, other)), "{span}: {other}");
            }
        }
    }

    #[test]
    fn traces_that_are_not_sampled_have_ids_and_no_names() {
        require!(Root);
        let (spanprof, checkout) = (require!(Spanprof), require!(Checkout));
        let (scope, load) = (["--span-scope", "active"], ["--seconds", "2", "--sample", "0.0"]);
        let run = Run::of(spanprof, checkout.to_str().unwrap(), &scope, &load);
        let table = run.spanprof.span_table("spans.json").unwrap();
        let inside: u64 = run.truth("roots", "root_span_name").values().sum();
        let part = real(table.totals.span_cpu_ns) / real(inside);
        println!("{part:.4} of the CPU time inside spans is labelled");
        // A third as many samples: 5 % is two in a thousand at random.
        assert!((0.95..1.05).contains(&part), "{part} is labelled");
        for span in &table.spans {
            assert_eq!(span.span_name, None);
            let zeros = |id: &str| id.bytes().all(|digit| digit == b'0');
            assert!(!zeros(&span.span_id) && span.span_id.len() == 16, "{span:?}");
            assert!(!zeros(&span.trace_id) && span.trace_id.len() == 32, "{span:?}");
            assert_eq!(span.service, SERVICE);
        }
        seen_in_no_span(&run.spanprof.folded("stacks.folded").unwrap(), "sweep_expired_carts");
    }
}
