//! How the agent begins and ends where not all goes well.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::TcpListener;
    use std::path::Path;
    use std::process::Command;

    use spanprof_tests::agent::{Agent, Process, poll_until};
    use spanprof_tests::relay::{Act, Outcome, Relay, STORED};
    use spanprof_tests::require;

    fn burn() -> Process {
        Process::start(Command::new("sh").args(["-c", "while :; do :; done"])).unwrap()
    }

    /// The processes that run this program.
    fn running(program: &Path) -> usize {
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let exe = fs::read_link(entry.ok()?.path().join("exe")).ok()?;
            (exe == program).then_some(())
        });
        processes.count()
    }

    #[test]
    fn two_agents_on_a_node_do_not_disturb_each_other() {
        require!(Root);
        let spanprof = require!(Spanprof);
        let relays = [(); 2].map(|()| Relay::alone(Act::Answer(STORED)).unwrap());
        let _burning = burn();
        let mut agents = relays.each_ref().map(|relay| {
            // The default address: only one can have it.
            let arguments = ["--pyroscope-url", &relay.url(), "--window", "1s"];
            Agent::start(&spanprof, &arguments).unwrap()
        });
        for agent in &mut agents {
            agent.wait_for_windows(2).unwrap();
        }
        let logs = agents.each_ref().map(Agent::log_end);
        assert!(logs[1].contains("there is no /metrics, /healthz and /readyz"), "{}", logs[1]);
        for (agent, relay) in agents.into_iter().zip(&relays) {
            let stats = agent.stop().unwrap();
            let exported = stats.samples("samples_exported");
            assert_eq!(exported, relay.samples(Outcome::Stored).unwrap());
            // A machine that is slow may lose some, to itself.
            assert!(exported * 10 >= stats.kernel("samples_taken") * 9, "{}", stats.json);
        }
    }

    #[test]
    fn an_address_that_was_asked_for_and_is_taken_is_an_error() {
        require!(Root);
        let spanprof = require!(Spanprof);
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let run = Command::new(spanprof)
            .args(["run", "--pyroscope-url", "http://127.0.0.1:1", "--listen", &address])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("--listen {address}: cannot listen there")), "{said}");
    }

    #[test]
    fn an_agent_that_was_killed_leaves_nothing_and_the_next_one_starts() {
        require!(Root);
        let spanprof = require!(Spanprof).canonicalize().unwrap();
        let _burning = burn();
        let relay = Relay::alone(Act::Answer(STORED)).unwrap();
        let url = relay.url();
        let arguments = ["--pyroscope-url", &url, "--window", "1s", "--listen", "off"];
        let before = running(&spanprof);
        let mut agent = Agent::start(&spanprof, &arguments).unwrap();
        agent.wait_for_windows(1).unwrap();
        // Itself and its symbolizing worker.
        assert!(running(&spanprof) >= before + 2);
        agent.kill().unwrap();
        poll_until(
            "the worker has ended, too",
            || Ok((running(&spanprof) == before).then_some(())),
        )
        .unwrap();
        // What was under way when it was killed has come or not.
        let relay = Relay::alone(Act::Answer(STORED)).unwrap();
        let url = relay.url();
        let arguments = ["--pyroscope-url", &url, "--window", "1s", "--listen", "off"];
        let mut agent = Agent::start(&spanprof, &arguments).unwrap();
        agent.wait_for_windows(1).unwrap();
        let stats = agent.stop().unwrap();
        assert_eq!(stats.samples("samples_exported"), relay.samples(Outcome::Stored).unwrap());
    }
}
