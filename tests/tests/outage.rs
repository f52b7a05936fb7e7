//! `spanprof run` while its server is away, answers badly or does not answer.

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use spanprof_tests::agent::{Agent, AgentStats, poll_until, start_checkout};
    use spanprof_tests::pushed::Pushed;
    use spanprof_tests::pyroscope::{Server, TimeRange};
    use spanprof_tests::relay::{Act, Outcome, Relay, STORED};
    use spanprof_tests::require;

    const SERVICE: &str = "outage";
    const HZ: u64 = 199;
    /// Windows of a second: 30 s without a server, and ten times the windows of the usual ten seconds.
    const OUTAGE_WINDOWS: usize = 30;
    const HALF_A_WINDOW: Duration = Duration::from_millis(500);
    const ENCODED: &str = "samples_encoded";
    const REJECTED: &str = "lost_export_rejected";
    const SHUTDOWN: &str = "lost_export_shutdown";
    const UNCERTAIN: &str = "uncertain_export";
    const LOAD_SECONDS: u32 = 600;

    /// One profile can be told from every other by its series and its time.
    fn key(pushed: &Pushed) -> (&BTreeMap<String, String>, i64) {
        (&pushed.labels, pushed.time_nanos)
    }

    /// A moment at which nothing is under way: all that was encoded has come to its end, which is
    /// so for most of a window.
    fn wait_until_settled(agent: &mut Agent, relay: &Relay) -> AgentStats {
        poll_until("nothing is under way", || {
            let stats = agent.wait_for_windows(1)?;
            // The counters were written while that window was on its way.
            let encoded = stats.samples(ENCODED);
            Ok(relay.reaches(encoded, HALF_A_WINDOW)?.then_some(stats))
        })
        .unwrap()
    }

    /// Every window is stored once, whether the server was there at its time or not, and whether
    /// the agent heard so or not.
    ///
    /// The server of this version answers 200 to what reaches it between SIGTERM and its exit, and
    /// forgets it. That is its fault and cannot be counted here, so nothing is sent in that gap: the
    /// relay refuses connections a moment before SIGTERM, as the operating system does after the
    /// exit.
    #[test]
    fn an_outage_loses_nothing_and_doubles_nothing() {
        require!(Root);
        let (spanprof, checkout) = (require!(Spanprof), require!(Checkout));
        require!(Pyroscope);
        let mut server = Server::start().unwrap();
        let mut relay = Relay::start(server.url()).unwrap();
        let (url, hz) = (relay.url(), HZ.to_string());
        let arguments = ["--pyroscope-url", &url, "--window", "1s", "-F", &hz];
        let mut agent = Agent::start(&spanprof, &arguments).unwrap();
        let load = start_checkout(&checkout, SERVICE, LOAD_SECONDS).unwrap();
        agent.wait_for_windows(2).unwrap();

        wait_until_settled(&mut agent, &relay);
        relay.refuse().unwrap();
        let before = relay.pushes().unwrap();
        server.stop().unwrap();
        let stats = agent.wait_for_windows(OUTAGE_WINDOWS).unwrap();
        let waiting = stats.queued();
        assert!(waiting > 0, "{}", stats.json);
        assert_eq!(relay.pushes().unwrap(), before);
        server.start_again().unwrap();
        relay.listen().unwrap();
        agent.wait_until_caught_up().unwrap();
        let stats = wait_until_settled(&mut agent, &relay);
        assert_eq!(stats.samples(UNCERTAIN), 0, "{}", stats.json);

        // Answers that never come: to a profile that is stored, and to one that is not.
        for (act, outcome) in
            [(Act::LoseAnswer, Outcome::StoredUnheard), (Act::LoseRequest, Outcome::Unheard)]
        {
            relay.next(act);
            poll_until("a profile went without an answer", || {
                Ok((relay.samples(outcome)? > 0).then_some(()))
            })
            .unwrap();
            agent.wait_for_windows(1).unwrap();
            wait_until_settled(&mut agent, &relay);
        }
        drop(load);
        let stats = agent.stop().unwrap();

        assert_eq!(stats.losses(), []);
        let became = |outcome| relay.samples(outcome).unwrap();
        let (heard, unheard) = (became(Outcome::Stored), became(Outcome::StoredUnheard));
        assert_eq!(stats.samples("samples_exported"), heard);
        assert_eq!(stats.samples(UNCERTAIN), unheard + became(Outcome::Unheard));
        assert_eq!(stats.kernel("samples_taken"), heard + unheard + became(Outcome::Unheard));

        let pushes = relay.pushes().unwrap();
        let once: BTreeSet<_> = pushes.iter().map(|(pushed, _)| key(pushed)).collect();
        assert_eq!(once.len(), pushes.len(), "a profile was sent twice");
        check_server(&server, &pushes, i64::try_from(heard + unheard).unwrap());
    }

    /// What the server has is, window by window, what was sent to it.
    fn check_server(server: &Server, pushes: &[(Pushed, Outcome)], samples: i64) {
        let everything = TimeRange::last(Duration::from_secs(1800)).unwrap();
        let found = server.select_merge_stacktraces(r#"{service_name=~".+"}"#, everything).unwrap();
        assert_eq!(found.total, samples * (1_000_000_000 / i64::try_from(HZ).unwrap()));

        let mut windows: BTreeMap<i64, i64> = BTreeMap::new();
        let mut ends = BTreeMap::new();
        for (pushed, outcome) in pushes {
            if pushed.label("service_name") == Some(SERVICE) {
                let stored = if *outcome == Outcome::Unheard { 0 } else { pushed.total() };
                *windows.entry(pushed.time_nanos).or_default() += stored;
                ends.insert(pushed.time_nanos, pushed.time_nanos + pushed.duration_nanos);
            }
        }
        // No window is missing in between: the service was busy in all of them.
        assert!(windows.len() > OUTAGE_WINDOWS, "{windows:?}");
        let next = ends.keys().skip(1);
        assert!(ends.values().zip(next).all(|(end, start)| end == start), "{ends:?}");
        let selector = format!(r#"{{service_name="{SERVICE}"}}"#);
        for (time, total) in windows {
            let ms = time / 1_000_000;
            let range = TimeRange { start_unix_ms: ms - 100, end_unix_ms: ms + 100 };
            let found = server.select_merge_stacktraces(&selector, range).unwrap();
            assert_eq!(found.total, total, "the window of {time}");
        }
    }

    /// The part of the expected timer ticks that came between two moments, in percent.
    fn rate_percent(from: &AgentStats, to: &AgentStats) -> u64 {
        let cpus = u64::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
        let elapsed = to.written.duration_since(from.written).unwrap();
        let expected = HZ * cpus * u64::try_from(elapsed.as_millis()).unwrap() / 1000;
        100 * (to.ticks() - from.ticks()) / expected.max(1)
    }

    const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n\
        Content-Length: 51\r\n\r\n{\"code\":\"invalid_argument\",\"message\":\"not like this\"}";
    const UNAVAILABLE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
    const GARBAGE: &[u8] = b"\x00\xff\x16\x03garbage\r\n\r\n\x00";

    #[test]
    fn sampling_goes_on_whatever_the_server_answers_and_all_is_counted() {
        require!(Root);
        let (spanprof, checkout) = (require!(Spanprof), require!(Checkout));
        let relay = Relay::alone(Act::Answer(STORED)).unwrap();
        let (url, hz) = (relay.url(), HZ.to_string());
        let arguments = ["--pyroscope-url", &url, "--window", "1s", "-F", &hz];
        let mut agent = Agent::start(&spanprof, &arguments).unwrap();
        let _load = start_checkout(&checkout, "trouble", LOAD_SECONDS).unwrap();
        let mut last = agent.wait_for_windows(1).unwrap();
        // The server, and the only reason for which anything is lost or in doubt by that.
        for (act, reason) in [
            (Act::Answer(BAD_REQUEST), Some(REJECTED)),
            (Act::Answer(UNAVAILABLE), None),
            (Act::Answer(GARBAGE), Some(UNCERTAIN)),
            (Act::KeepSilent, Some(UNCERTAIN)),
        ] {
            relay.set(act);
            // The profiles that find it out are on their way at the end of their window.
            let first = agent.wait_for_windows(2).unwrap();
            let during = agent.wait_for_windows(3).unwrap();
            let percent = rate_percent(&last, &during);
            assert!((50..=150).contains(&percent), "{act:?}: {percent} % of the ticks");
            if reason != Some(REJECTED) {
                // After the first requests no profile is risked: everything waits.
                let new = during.samples(ENCODED) - first.samples(ENCODED);
                assert!(new > 0, "{act:?}: {}", during.json);
                assert_eq!(during.queued() - first.queued(), new, "{act:?}: {}", during.json);
            }
            relay.set(Act::Answer(STORED));
            let after = agent.wait_until_caught_up().unwrap();
            for counter in [REJECTED, UNCERTAIN] {
                let grown = after.samples(counter) > last.samples(counter);
                assert_eq!(grown, reason == Some(counter), "{act:?}: {counter}: {}", after.json);
            }
            last = after;
        }
        assert!(relay.silenced() > 0);

        // And the program ends while nobody takes what is left.
        relay.set(Act::Answer(UNAVAILABLE));
        agent.wait_for_windows(2).unwrap();
        let stats = agent.stop().unwrap();
        assert!(stats.samples(SHUTDOWN) > 0, "{}", stats.json);
        assert_eq!(stats.samples("samples_exported"), relay.samples(Outcome::Stored).unwrap());
        assert_eq!(stats.samples(UNCERTAIN), relay.samples(Outcome::Unheard).unwrap());
        let reasons: BTreeSet<_> = stats.losses().into_iter().map(|(name, _)| name).collect();
        assert_eq!(reasons, BTreeSet::from([REJECTED, SHUTDOWN].map(str::to_owned)));
    }

    /// A server that keeps connections does not get one for each profile, nor any that was idle
    /// since the window before.
    #[test]
    fn the_profiles_of_a_window_share_connections() {
        require!(Root);
        let (spanprof, checkout) = (require!(Spanprof), require!(Checkout));
        let relay = Relay::alone(Act::Answer(STORED)).unwrap();
        relay.keep_connections();
        let names = (0..8).map(|number| format!("shared-{number}"));
        let _load: Vec<_> =
            names.map(|name| start_checkout(&checkout, &name, LOAD_SECONDS).unwrap()).collect();
        let arguments = ["--pyroscope-url", &relay.url(), "--window", "3s"];
        let mut agent = Agent::start(&spanprof, &arguments).unwrap();
        agent.wait_for_windows(4).unwrap();
        let stats = agent.stop().unwrap();
        let (pushes, connections) = (relay.pushes().unwrap().len(), relay.connections());
        assert!((3..pushes).contains(&connections), "{connections} for {pushes}");
        assert_eq!(stats.samples(UNCERTAIN), 0, "{}", stats.json);
        assert_eq!(stats.samples("samples_exported"), relay.samples(Outcome::Stored).unwrap());
    }
}
