//! The exporter against a real Pyroscope server.

#[cfg(test)]
mod pprof {
    //! A small pprof writer, for profiles whose every number is known.

    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    struct Profile {
        #[prost(message, repeated, tag = "1")]
        sample_type: Vec<ValueType>,
        #[prost(message, repeated, tag = "2")]
        sample: Vec<Sample>,
        #[prost(message, repeated, tag = "3")]
        mapping: Vec<Mapping>,
        #[prost(message, repeated, tag = "4")]
        location: Vec<Location>,
        #[prost(message, repeated, tag = "5")]
        function: Vec<Function>,
        #[prost(string, repeated, tag = "6")]
        string_table: Vec<String>,
        #[prost(int64, tag = "9")]
        time_nanos: i64,
        #[prost(int64, tag = "10")]
        duration_nanos: i64,
        #[prost(message, optional, tag = "11")]
        period_type: Option<ValueType>,
        #[prost(int64, tag = "12")]
        period: i64,
    }

    #[derive(Clone, PartialEq, Message)]
    struct ValueType {
        #[prost(int64, tag = "1")]
        kind: i64,
        #[prost(int64, tag = "2")]
        unit: i64,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Sample {
        #[prost(uint64, repeated, tag = "1")]
        location_id: Vec<u64>,
        #[prost(int64, repeated, tag = "2")]
        value: Vec<i64>,
        #[prost(message, repeated, tag = "3")]
        label: Vec<Label>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Label {
        #[prost(int64, tag = "1")]
        key: i64,
        #[prost(int64, tag = "2")]
        str: i64,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Mapping {
        #[prost(uint64, tag = "1")]
        id: u64,
        #[prost(int64, tag = "5")]
        filename: i64,
        #[prost(bool, tag = "7")]
        has_functions: bool,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Location {
        #[prost(uint64, tag = "1")]
        id: u64,
        #[prost(uint64, tag = "2")]
        mapping_id: u64,
        #[prost(message, repeated, tag = "4")]
        line: Vec<Line>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Line {
        #[prost(uint64, tag = "1")]
        function_id: u64,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Function {
        #[prost(uint64, tag = "1")]
        id: u64,
        #[prost(int64, tag = "2")]
        name: i64,
    }

    /// CPU time: stack (leaf first), nanoseconds, span id.
    pub(crate) type Row<'a> = (&'a [&'a str], i64, Option<&'a str>);

    /// A CPU profile.
    pub(crate) fn encode(rows: &[Row<'_>], time_nanos: i64) -> Vec<u8> {
        let mut profile =
            Profile { time_nanos, duration_nanos: 1_000_000_000, ..Profile::default() };
        let mut strings = vec![String::new()];
        let mut intern = |text: &str| {
            let index = strings.iter().position(|known| known == text).unwrap_or_else(|| {
                strings.push(text.to_owned());
                strings.len() - 1
            });
            i64::try_from(index).unwrap()
        };
        let cpu = ValueType { kind: intern("cpu"), unit: intern("nanoseconds") };
        profile.sample_type = vec![cpu.clone()];
        profile.period_type = Some(cpu);
        profile.period = 10_000_000;
        profile.mapping =
            vec![Mapping { id: 1, filename: intern("/usr/bin/checkout"), has_functions: true }];
        for (stack, value, span_id) in rows {
            let mut sample = Sample { value: vec![*value], ..Sample::default() };
            for name in *stack {
                let name = intern(name);
                let found = profile.function.iter().position(|function| function.name == name);
                let index = found.unwrap_or(profile.function.len());
                let id = index as u64 + 1;
                if found.is_none() {
                    profile.function.push(Function { id, name });
                    let line = vec![Line { function_id: id }];
                    profile.location.push(Location { id, mapping_id: 1, line });
                }
                sample.location_id.push(id);
            }
            if let Some(span_id) = span_id {
                sample.label.push(Label { key: intern("span_id"), str: intern(span_id) });
            }
            profile.sample.push(sample);
        }
        profile.string_table = strings;
        profile.encode_to_vec()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
    use std::time::Duration;

    use profiler_user::export::Profile;
    use profiler_user::export::pyroscope::{Pyroscope, PyroscopeConfig, Queued};
    use profiler_user::stats::{Count, Stats};
    use spanprof_tests::pyroscope::{Server, SpanProfile, TimeRange};
    use spanprof_tests::{require, wait};
    use tokio::runtime::Runtime;

    use crate::pprof::{self, Row};

    const TEN_MS: i64 = 10_000_000;
    /// Between two windows of the outage test.
    const PACE: Duration = Duration::from_millis(10);
    const GRACE: Duration = Duration::from_secs(60);

    fn unix_ns() -> i64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        i64::try_from(now.as_nanos()).unwrap()
    }

    fn range() -> TimeRange {
        TimeRange::last(Duration::from_secs(1800)).unwrap()
    }

    fn profile(service: &str, rows: &[Row<'_>]) -> Profile {
        profile_at(service, rows, unix_ns())
    }

    /// v1 storage takes two profiles of one series with the same time, to the millisecond, for one
    /// that was stored twice, and shows the first.
    fn profile_at(service: &str, rows: &[Row<'_>], start_unix_ns: i64) -> Profile {
        let value: i64 = rows.iter().map(|row| row.1).sum();
        Profile {
            labels: vec![
                ("__name__".into(), "process_cpu".into()),
                ("host".into(), "node-1".into()),
                ("service_name".into(), service.into()),
            ],
            pprof: pprof::encode(rows, start_unix_ns).into(),
            samples: u64::try_from(value / TEN_MS).unwrap(),
            start_unix_ns,
            duration_ns: 1_000_000_000,
        }
    }

    struct Exporter {
        runtime: Runtime,
        pyroscope: Pyroscope,
        stats: Arc<Stats>,
    }

    impl Exporter {
        fn start(config: &PyroscopeConfig) -> Self {
            let runtime = Runtime::new().unwrap();
            let stats = Arc::new(Stats::default());
            let pyroscope = {
                let _inside = runtime.enter();
                Pyroscope::start(config, Arc::clone(&stats)).unwrap()
            };
            Self { runtime, pyroscope, stats }
        }

        fn shutdown(&self) {
            self.runtime.block_on(self.pyroscope.shutdown(GRACE));
            assert_eq!(self.pyroscope.queued(), Queued::default());
        }
    }

    #[track_caller]
    fn check_span(server: &Server, spans: &[&str], total: i64, functions: &[&str]) {
        let found =
            server.select_merge_span_profile(r#"{service_name="shop"}"#, spans, range()).unwrap();
        let functions = functions.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(found, SpanProfile { total, functions });
    }

    #[test]
    fn each_span_has_exactly_its_own_time_and_functions() {
        let mut server = Server::start_binary(&require!(Pyroscope)).unwrap();
        let (browse, buy) = ("00f067aa0ba902b7", "b7ad6b7169203331");
        let rows: &[Row<'_>] = &[
            (&["sort", "handle_browse", "main"], 3 * TEN_MS, Some(browse)),
            (&["parse", "handle_browse", "main"], 2 * TEN_MS, Some(browse)),
            (&["hash", "handle_buy", "main"], 7 * TEN_MS, Some(buy)),
            (&["sweep", "main"], 11 * TEN_MS, None),
        ];
        let exporter = Exporter::start(&PyroscopeConfig::new(server.url()));
        let first = profile("shop", rows);
        // A second window in which one of the spans goes on.
        let rows: &[Row<'_>] = &[(&["hash", "handle_buy", "main"], 4 * TEN_MS, Some(buy))];
        let second = profile_at("shop", rows, first.start_unix_ns + TEN_MS);
        exporter.pyroscope.try_push(first);
        exporter.pyroscope.try_push(second);
        exporter.shutdown();
        assert_eq!(exporter.stats.get(Count::SamplesExported), 27, "{}", server.log_end());

        check_span(&server, &[browse], 5 * TEN_MS, &["handle_browse", "main", "parse", "sort"]);
        check_span(&server, &[buy], 11 * TEN_MS, &["handle_buy", "hash", "main"]);
        check_span(&server, &["0123456789abcdef"], 0, &[]);
        let selector = r#"{service_name="shop"}"#;
        let all = server.select_merge_stacktraces(selector, range()).unwrap();
        assert_eq!(all.total, 27 * TEN_MS);
        assert!(all.functions.contains("sweep"), "{all:?}");

        let names = server.label_names(selector, range()).unwrap();
        assert!(names.contains("host") && names.contains("service_name"), "{names:?}");
        assert!(!names.contains("span_id") && !names.contains("trace_id"), "{names:?}");
        let series = server.series(selector, &["service_name", "host"], range()).unwrap();
        assert_eq!(
            series,
            BTreeSet::from([vec!["service_name=shop".to_owned(), "host=node-1".to_owned()]])
        );
        server.stop().unwrap();
    }

    #[test]
    fn what_the_server_refuses_is_counted_and_said() {
        let server = Server::start_binary(&require!(Pyroscope)).unwrap();
        let exporter = Exporter::start(&PyroscopeConfig::new(server.url()));
        // Two hours old: above the server's limit, and above ours, which is asked first.
        let mut old = profile("shop", &[(&["main"], TEN_MS, None)]);
        old.start_unix_ns -= 7_200_000_000_000;
        exporter.pyroscope.try_push(old);
        // As old for the server alone.
        let mut lied = profile("shop", &[]);
        let two_hours_ago = unix_ns() - 7_200_000_000_000;
        lied.pprof = pprof::encode(&[(&["main"], 2 * TEN_MS, None)], two_hours_ago).into();
        lied.samples = 2;
        exporter.pyroscope.try_push(lied);
        // No pprof at all.
        let mut garbage = profile("shop", &[]);
        garbage.pprof = bytes::Bytes::from_static(b"\xff\xff\xff\xff");
        garbage.samples = 4;
        exporter.pyroscope.try_push(garbage);
        exporter.pyroscope.try_push(profile("shop", &[(&["main"], 8 * TEN_MS, None)]));
        exporter.shutdown();
        let books = [
            Count::SamplesExported,
            Count::LostExportRejected,
            Count::LostExportGaveUp,
            Count::LostExportShutdown,
            Count::UncertainExport,
        ]
        .map(|count| exporter.stats.get(count));
        // A damaged profile is 400 or 500, by version of the server.
        assert!(books == [8, 2 + 4, 1, 0, 0] || books == [8, 2, 1 + 4, 0, 0], "{books:?}");
    }

    /// Windows go on coming while the server is asked to end, is away, and is back.
    #[test]
    fn an_outage_of_the_server_loses_nothing_and_doubles_nothing() {
        let mut server = Server::start_binary(&require!(Pyroscope)).unwrap();
        let mut config = PyroscopeConfig::new(server.url());
        config.retry.max = Duration::from_secs(1);
        let exporter = Exporter::start(&config);
        let pushed = AtomicU64::new(0);
        let start_unix_ns = unix_ns();
        let span = |number: u64| format!("{:016x}", number + 1);
        let settled = || {
            exporter.stats.get(Count::SamplesExported) + exporter.stats.get(Count::UncertainExport)
        };
        let push_until = |ended: Receiver<()>| {
            while ended.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
                let number = pushed.load(Ordering::Relaxed);
                let time = start_unix_ns + i64::try_from(number).unwrap() * TEN_MS;
                let span = span(number);
                let rows: &[Row<'_>] = &[(&["work", "main"], TEN_MS, Some(&span))];
                exporter.pyroscope.try_push(profile_at("outage", rows, time));
                pushed.fetch_add(1, Ordering::Relaxed);
            }
        };
        let (first_in_doubt, first_after_end) = std::thread::scope(|scope| {
            // Dropped by an assertion that fails, too.
            let (end, ended) = mpsc::channel();
            let push = &push_until;
            scope.spawn(move || push(ended));
            wait_until(|| settled() >= 20, &server);
            let first_in_doubt = settled() - config.concurrency as u64;
            server.terminate().unwrap();
            server.wait().unwrap();
            let first_after_end = pushed.load(Ordering::Relaxed) + 1;
            wait_until(|| exporter.pyroscope.queued().profiles >= 50, &server);
            server.start_again().unwrap();
            wait_until(|| settled() >= first_after_end + 50, &server);
            drop(end);
            (first_in_doubt, first_after_end)
        });
        exporter.shutdown();

        let pushed = pushed.load(Ordering::Relaxed);
        let exported = exporter.stats.get(Count::SamplesExported);
        let uncertain = exporter.stats.get(Count::UncertainExport);
        assert_eq!(exported + uncertain, pushed, "{:?}\n{}", exporter.stats, server.log_end());
        let selector = r#"{service_name="outage"}"#;
        let mut missing = 0;
        for number in 0..pushed {
            let span = span(number);
            let found = server.select_merge_span_profile(selector, &[&span], range()).unwrap();
            // v1 storage says 200 to what it is given after it has flushed for the last time, and
            // forgets it: of these windows nothing is known but that they are not doubled.
            let in_doubt = (first_in_doubt..first_after_end).contains(&number);
            assert!(
                found.total == TEN_MS || (found.total == 0 && in_doubt),
                "window {number} of {pushed}, {first_in_doubt}..{first_after_end} in doubt: {found:?}"
            );
            missing += u64::from(found.total == 0);
        }
        let all = server.select_merge_stacktraces(selector, range()).unwrap();
        assert_eq!(all.total, i64::try_from(pushed - missing).unwrap() * TEN_MS);
        println!("{pushed} windows: {exported} exported, {uncertain} uncertain, {missing} missing");
        assert!(!server.has_v2_storage() || missing <= uncertain, "{missing} missing");
        // Only what was under way when the server ended can be uncertain.
        assert!(uncertain <= config.concurrency as u64, "{uncertain} uncertain");
    }

    #[track_caller]
    fn wait_until(condition: impl Fn() -> bool, server: &Server) {
        assert!(wait::until(GRACE, condition), "never came true; {}", server.log_end());
    }
}
