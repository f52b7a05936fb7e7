//! `spanprof run` against a real Pyroscope server: what the server says of a span is what the
//! profiler counted.
//!
//! The profiler's own count is read from the wire, by a relay between the two.

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use spanprof_tests::agent::{Agent, start_checkout};
    use spanprof_tests::pushed::Pushed;
    use spanprof_tests::pyroscope::{Server, TimeRange};
    use spanprof_tests::relay::{Outcome, Relay};
    use spanprof_tests::require;

    const HZ: u64 = 499;
    const LOAD_SECONDS: u32 = 7;

    fn range() -> TimeRange {
        TimeRange::last(Duration::from_secs(1800)).unwrap()
    }

    fn of(service: &str) -> String {
        format!(r#"{{service_name="{service}"}}"#)
    }

    /// What the agent pushed and the server took of one service; nothing else became of anything.
    fn stored_of(relay: &Relay, service: &str) -> Vec<Pushed> {
        let pushes = relay.pushes().unwrap();
        assert!(pushes.iter().all(|(_, outcome)| *outcome == Outcome::Stored), "{pushes:?}");
        pushes
            .into_iter()
            .map(|(pushed, _)| pushed)
            .filter(|pushed| pushed.label("service_name") == Some(service))
            .collect()
    }

    #[test]
    fn each_span_is_on_the_server_as_it_was_counted() {
        require!(Root);
        let (spanprof, checkout) = (require!(Spanprof), require!(Checkout));
        require!(Pyroscope);
        let service = "span-profiles";
        let server = Server::start().unwrap();
        let relay = Relay::start(server.url()).unwrap();
        let (url, hz) = (relay.url(), HZ.to_string());
        let arguments = ["--pyroscope-url", &url, "--window", "2s", "-F", &hz, "--host", "node-7"];
        let agent = Agent::start(&spanprof, &arguments).unwrap();
        let mut load = start_checkout(&checkout, service, LOAD_SECONDS).unwrap();
        assert!(load.wait().unwrap().success());
        let stats = agent.stop().unwrap();

        // Counted at the timer, on the wire and on the server: the same.
        assert_eq!(stats.losses(), []);
        let exported = stats.samples("samples_exported");
        assert_eq!(exported, stats.kernel("samples_taken"), "{}", stats.json);
        assert_eq!(exported, relay.samples(Outcome::Stored).unwrap());
        let everything =
            server.select_merge_stacktraces(r#"{service_name=~".+"}"#, range()).unwrap();
        let period = i64::try_from(1_000_000_000 / HZ).unwrap();
        assert_eq!(everything.total, i64::try_from(exported).unwrap() * period);

        let pushes = stored_of(&relay, service);
        let total: i64 = pushes.iter().map(Pushed::total).sum();
        let found = server.select_merge_stacktraces(&of(service), range()).unwrap();
        assert_eq!(found.total, total);
        let windows: BTreeSet<_> = pushes.iter().map(|pushed| pushed.time_nanos).collect();
        assert!(windows.len() >= 3, "{windows:?}");

        let mut spans: BTreeMap<&str, i64> = BTreeMap::new();
        for (span, ns) in pushes.iter().flat_map(|pushed| &pushed.spans) {
            *spans.entry(span).or_default() += ns;
        }
        let outside = spans.remove("").unwrap_or(0);
        let mut largest: Vec<_> = spans.iter().map(|(span, ns)| (*span, *ns)).collect();
        largest.sort_by_key(|(span, ns)| (-ns, *span));
        assert!(largest.len() >= 100, "{largest:?}");
        for (span, ns) in &largest[..3] {
            let found = server.select_merge_span_profile(&of(service), &[span], range()).unwrap();
            assert_eq!(found.total, *ns, "{span}");
            assert!(*ns >= 2 * period && !found.functions.is_empty(), "{span}: {found:?}");
        }
        let ids: Vec<_> = spans.keys().copied().collect();
        let all = server.select_merge_span_profile(&of(service), &ids, range()).unwrap();
        assert_eq!(all.total, total - outside);
        let random = "c0ffee5ca1ab1e00";
        assert!(!spans.contains_key(random));
        let none = server.select_merge_span_profile(&of(service), &[random], range()).unwrap();
        assert_eq!((none.total, none.functions.len()), (0, 0));

        // Neither a span nor a trace is a series. This server is too old for trace ids.
        let names = server.label_names(&of(service), range()).unwrap();
        let ours: Vec<_> = names.iter().filter(|name| !name.starts_with("__")).collect();
        assert_eq!(ours, ["host", "service_name", "service_namespace"]);
        let labels = ["service_name", "service_namespace", "host"];
        let series = server.series(&of(service), &labels, range()).unwrap();
        let one = ["service_name=span-profiles", "service_namespace=shop", "host=node-7"];
        assert_eq!(series, BTreeSet::from([one.map(str::to_owned).to_vec()]));
        let on_samples: BTreeSet<_> =
            pushes.iter().flat_map(|pushed| pushed.sample_labels.iter().cloned()).collect();
        if !server.has_v2_storage() {
            assert_eq!(on_samples, BTreeSet::from(["span_id".to_owned()]));
        }
    }

    #[test]
    fn span_names_are_series_up_to_a_cap() {
        require!(Root);
        let (spanprof, checkout) = (require!(Spanprof), require!(Checkout));
        require!(Pyroscope);
        let service = "span-names";
        let server = Server::start().unwrap();
        let relay = Relay::start(server.url()).unwrap();
        let (url, hz) = (relay.url(), HZ.to_string());
        let arguments = ["--pyroscope-url", &url, "--window", "2s", "-F", &hz];
        let capped = [&arguments[..], &["--span-name", "--span-name-max", "2"]].concat();
        let agent = Agent::start(&spanprof, &capped).unwrap();
        let mut load = start_checkout(&checkout, service, LOAD_SECONDS).unwrap();
        assert!(load.wait().unwrap().success());
        let stats = agent.stop().unwrap();
        assert_eq!(stats.losses(), []);
        assert_eq!(stats.samples("samples_exported"), relay.samples(Outcome::Stored).unwrap());

        let mut windows: BTreeMap<i64, BTreeSet<&str>> = BTreeMap::new();
        let mut totals: BTreeMap<&str, i64> = BTreeMap::new();
        let pushes = stored_of(&relay, service);
        for pushed in &pushes {
            let name = pushed.label("span_name").unwrap_or("");
            *totals.entry(name).or_default() += pushed.total();
            windows.entry(pushed.time_nanos).or_default().insert(name);
        }
        let routes = ["GET /cart", "GET /checkout", "GET /recommend"];
        for names in windows.values() {
            let own = names.iter().filter(|name| routes.contains(name)).count();
            assert!(own <= 2, "{names:?}");
            assert!(names.iter().all(|name| routes.contains(name) || ["", "other"].contains(name)));
        }
        assert!(windows.values().any(|names| names.len() == 4), "{windows:?}");

        // The server has the same series with the same time.
        let series = server.series(&of(service), &["span_name"], range()).unwrap();
        let sets = totals.keys().map(|name| match *name {
            "" => Vec::new(),
            name => vec![format!("span_name={name}")],
        });
        assert_eq!(series, sets.collect());
        for (name, total) in totals {
            let selector = format!(r#"{{service_name="{service}",span_name="{name}"}}"#);
            let found = server.select_merge_stacktraces(&selector, range()).unwrap();
            assert_eq!(found.total, total, "{name}");
        }
    }
}
