//! Options of a file: what it says is done, and done anew when it says something else.

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::process::Command;

    use spanprof_tests::agent::{Agent, Process};
    use spanprof_tests::ports::free_ports;
    use spanprof_tests::relay::{Act, Outcome, Relay, STORED};
    use spanprof_tests::require;

    /// A shell that does nothing but burn, under a name of its own.
    fn burn(service: &str) -> Process {
        let mut shell = Command::new("sh");
        Process::start(shell.args(["-c", "while :; do :; done"]).env("OTEL_SERVICE_NAME", service))
            .unwrap()
    }

    /// The services of the pushes from `from` on.
    fn services(relay: &Relay, from: usize) -> BTreeSet<String> {
        let pushes = relay.pushes().unwrap();
        let names = pushes.iter().skip(from).filter_map(|(pushed, _)| pushed.label("service_name"));
        names.map(str::to_owned).collect()
    }

    #[test]
    fn a_check_finds_what_a_start_would() {
        let spanprof = require!(Spanprof);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("spanprof.yaml");
        let check = |text: &str| {
            fs::write(&file, text).unwrap();
            let mut check = Command::new(&spanprof);
            check.args(["config", "check", "--config"]).arg(&file).env_clear();
            let done = check.output().unwrap();
            (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
        };
        let good = "pyroscope_url: http://p:4040\n";
        assert_eq!(check(good), (Some(0), String::new()));
        for (more, because) in [
            (
                "windwo: 5s\n",
                "spanprof.yaml:2: there is no option \"windwo\"; did you mean \"window\"?",
            ),
            ("frequency: often\n", "spanprof.yaml:2: "),
            ("bearer_token_file: /no/such/token\n", "cannot read the credential in /no/such/token"),
            ("tls_ca_file: /no/such/ca\n", "cannot read the CA file /no/such/ca"),
            (
                "endpoints: [{name: a, pyroscope_url: 'ftp://a'}]\n",
                "it must begin with http:// or https://",
            ),
            (
                "endpoints: [{name: a, pyroscope_url: 'http://a', bearer_token_file: /none}]\n",
                "/none",
            ),
            ("relabel_configs: [{regex: '('}]\n", "rule 1"),
            ("drop: [colour=red]\n", "NAME one of namespace"),
            ("tenant: [a]\n", "a single value is wanted"),
        ] {
            let (code, said) = check(&format!("{good}{more}"));
            assert_eq!(code, Some(2), "{more}: {said}");
            assert!(said.contains(because), "{more}: {said}");
        }
        let (code, said) = check("window: 5s\n");
        assert!(code == Some(2) && said.contains("there is no server"), "{said}");
    }

    #[test]
    fn a_secret_is_in_no_log_and_in_nothing_that_the_agent_tells() {
        const SECRET: &str = "hunter2-and-more";
        require!(Root);
        let spanprof = require!(Spanprof);
        let relay = Relay::alone(Act::Answer(STORED)).unwrap();
        // A server that refuses makes the agent say much.
        let refusing =
            Relay::alone(Act::Answer(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("token"), SECRET).unwrap();
        let [port] = free_ports().unwrap();
        let token = at("token");
        let text = format!(
            "pyroscope_url: {}\nwindow: 1s\nlisten: 127.0.0.1:{port}\nbearer_token_file: {}\n\
             header: ['X-Key: {SECRET}']\nendpoints:\n  \
             - {{name: no, pyroscope_url: '{}', basic_auth_user: u, basic_auth_password_file: '{}', header: ['X-Key: {SECRET}']}}\n",
            relay.url(),
            token.display(),
            refusing.url(),
            token.display(),
        );
        let file = at("spanprof.yaml");
        fs::write(&file, text).unwrap();
        let printed = Command::new(&spanprof)
            .args(["config", "print", "--config"])
            .arg(&file)
            .env_clear()
            .output()
            .unwrap();
        let _burning = burn("burn-red");
        let arguments = ["-vv", "--config", file.to_str().unwrap()];
        let mut agent = Agent::start(&spanprof, &arguments).unwrap();
        agent.wait_for_windows(2).unwrap();
        let mut told = vec![String::from_utf8(printed.stdout).unwrap()];
        for path in ["metrics", "debug/targets", "healthz"] {
            let answer = reqwest::blocking::get(format!("http://127.0.0.1:{port}/{path}"));
            told.push(answer.unwrap().text().unwrap());
        }
        // Half of a file is no options: what is wrong with it is told.
        fs::write(&file, format!("header: [\"{SECRET}\n")).unwrap();
        agent.hang_up().unwrap();
        agent.wait_for("it was refused", |it| it.json["config"]["reloads_failed"] == 1).unwrap();
        fs::write(&file, format!("pyroscope_url: x\nheader: {{a: {SECRET}}}\n")).unwrap();
        agent.hang_up().unwrap();
        agent.wait_for("it was refused", |it| it.json["config"]["reloads_failed"] == 2).unwrap();
        told.push(agent.log().unwrap());
        let stats = agent.stop().unwrap();
        assert!(told.iter().all(|text| !text.is_empty()), "{told:?}");
        let log = told.last().unwrap();
        assert!(log.contains("401") && log.contains("DEBUG"), "{log}");
        told.push(stats.json.to_string());
        for text in told {
            assert!(!text.contains(SECRET), "{text}");
        }
    }

    #[test]
    fn each_server_has_its_own_queue_and_a_server_that_is_away_holds_up_no_other() {
        require!(Root);
        let spanprof = require!(Spanprof);
        let (first, archive) = (
            Relay::alone(Act::Answer(STORED)).unwrap(),
            Relay::alone(Act::Answer(STORED)).unwrap(),
        );
        // Nobody listens there.
        let [away] = free_ports().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("spanprof.yaml");
        let text = format!(
            "pyroscope_url: {}\nwindow: 1s\nlisten: off\nendpoints:\n  \
             - {{name: archive, pyroscope_url: '{}', tenant: t}}\n  \
             - {{name: away, pyroscope_url: 'http://127.0.0.1:{away}', queue_mib: 1}}\n",
            first.url(),
            archive.url()
        );
        fs::write(&file, text).unwrap();
        let _burning = burn("burn-red");
        let mut agent = Agent::start(&spanprof, &["--config", file.to_str().unwrap()]).unwrap();
        agent.wait_for_windows(3).unwrap();
        let stats = agent.stop().unwrap();
        let of = |endpoint: &str, count: &str| stats.json["endpoints"][endpoint][count].as_u64();
        let encoded = Some(stats.samples("samples_encoded"));
        assert!(encoded > Some(100), "{}", stats.json);
        assert_eq!(Some(stats.samples("samples_exported")), encoded);
        assert_eq!(of("archive", "samples_exported"), encoded);
        assert_eq!(
            (of("away", "samples_exported"), of("away", "samples_encoded")),
            (Some(0), encoded)
        );
        // Its own queue is a small one.
        let lost = ["lost_export_shutdown", "lost_export_queue_full"].map(|it| of("away", it));
        assert_eq!(lost[0].zip(lost[1]).map(|(end, full)| end + full), encoded);
        for relay in [&first, &archive] {
            assert_eq!(Some(relay.samples(Outcome::Stored).unwrap()), encoded);
        }
        let same = |relay: &Relay| -> Vec<_> {
            let pushes = relay.pushes().unwrap().into_iter();
            let mut pushes: Vec<_> = pushes
                .map(|(it, _)| (format!("{:?}", it.label("service_name")), it.total()))
                .collect();
            pushes.sort();
            pushes
        };
        assert_eq!(same(&first), same(&archive));
    }

    #[test]
    fn a_file_is_taken_at_the_start_and_on_sighup_and_whole_or_not_at_all() {
        require!(Root);
        let spanprof = require!(Spanprof);
        let relay = Relay::alone(Act::Answer(STORED)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("spanprof.yaml");
        let write = |more: &str| {
            let text = format!("pyroscope_url: {}\nwindow: 1s\nlisten: off\n{more}", relay.url());
            fs::write(&file, text).unwrap();
        };
        write(
            "keep: [service=burn-.*]\nrelabel_configs:\n  \
             - {source_labels: [service_name], regex: burn-(.*), target_label: colour}\n",
        );
        let (_red, _blue) = (burn("burn-red"), burn("burn-blue"));
        let mut agent = Agent::start(&spanprof, &["--config", file.to_str().unwrap()]).unwrap();
        agent.wait_for_windows(3).unwrap();
        let both = BTreeSet::from(["burn-blue".to_owned(), "burn-red".to_owned()]);
        assert_eq!(services(&relay, 0), both);
        for (pushed, outcome) in relay.pushes().unwrap() {
            let expected = pushed.label("service_name").unwrap().strip_prefix("burn-");
            assert_eq!((pushed.label("colour"), outcome), (expected, Outcome::Stored));
        }

        // What cannot be leaves everything as it was.
        write("keep: [service=burn-red]\nrelabel_configs: [{action: explode}]\n");
        agent.hang_up().unwrap();
        let failed = |stats: &spanprof_tests::agent::AgentStats| stats.json["config"].clone();
        let stats =
            agent.wait_for("it was refused", |it| failed(it)["reloads_failed"] == 1).unwrap();
        assert_eq!(failed(&stats)["last_reload_successful"], 0);
        let before = relay.pushes().unwrap().len();
        agent.wait_for_windows(2).unwrap();
        assert_eq!(services(&relay, before), both);

        write("keep: [service=burn-red]\nfrequency: 19\n");
        agent.hang_up().unwrap();
        agent.wait_for("it was taken", |it| failed(it)["reloads"] == 1).unwrap();
        // Windows that were under way may be of the old rules.
        agent.wait_for_windows(2).unwrap();
        let before = relay.pushes().unwrap().len();
        agent.wait_for_windows(2).unwrap();
        assert_eq!(services(&relay, before), BTreeSet::from(["burn-red".to_owned()]));
        let log = agent.log_end();
        assert!(log.contains("only read at the start: frequency"), "{log}");

        // Rules that want nothing: every sample is counted, and none is sent.
        write("relabel_configs: [{action: drop}]\n");
        agent.hang_up().unwrap();
        agent.wait_for("it was taken", |it| failed(it)["reloads"] == 2).unwrap();
        agent.wait_for_windows(2).unwrap();
        let before = relay.pushes().unwrap().len();
        agent.wait_for_windows(2).unwrap();
        assert_eq!(relay.pushes().unwrap().len(), before);
        let stats = agent.stop().unwrap();
        assert!(stats.samples("lost_dropped_by_rule") > 0, "{}", stats.json);
        assert_eq!(stats.samples("samples_exported"), relay.samples(Outcome::Stored).unwrap());
    }
}
