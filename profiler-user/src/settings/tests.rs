use std::fs;

use super::*;

/// `spanprof`, these words, and a file of this text as `--config`.
fn with_file(words: &str, yaml: &str) -> Result<Settings, SettingsError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spanprof.yaml");
    fs::write(&path, yaml).unwrap();
    let mut arguments: Vec<OsString> = words.split(' ').map(OsString::from).collect();
    arguments.extend(["--config".into(), path.into()]);
    settings(&arguments)
}

fn run(settings: Settings) -> cli::Run {
    match settings.cli.command {
        cli::Command::Run(run) | cli::Command::Config(ConfigCommand::Print(run)) => *run,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(yaml: &str, because: &str) {
    let error = with_file("spanprof run", yaml).unwrap_err().to_string();
    assert!(error.contains(because), "{error}");
}

const YAML: &str = "\
pyroscope_url: http://p:4040
window: 5s
frequency: 19
inline: true
span_name: false
kubernetes: off
span_attribute: [http.route, tenant]
relabel_configs:
  - {action: drop, source_labels: [namespace], regex: kube-.*}
drop: exe=/usr/bin/x
";

#[test]
fn what_a_file_says_is_as_if_typed_and_what_is_typed_goes_before_it() {
    let of_file = run(with_file("spanprof run", YAML).unwrap());
    assert_eq!(of_file.pyroscope_url.as_deref(), Some("http://p:4040"));
    assert_eq!((of_file.window.as_secs(), of_file.sampling.hz), (5, 19));
    assert_eq!((of_file.inline, of_file.span_name), (true, false));
    assert_eq!(of_file.kubernetes, cli::Kubernetes::Off);
    assert_eq!(of_file.spans.attributes, ["http.route", "tenant"]);
    assert_eq!(of_file.drop, ["exe=/usr/bin/x"]);
    let rules = crate::relabel::read(&of_file.relabel_configs.unwrap()).unwrap();
    assert_eq!(rules.len(), 1);

    let typed = "spanprof -v run --window 7s -F 97 --span-attribute other";
    let both = run(with_file(typed, YAML).unwrap());
    assert_eq!((both.window.as_secs(), both.sampling.hz), (7, 97));
    assert_eq!(both.spans.attributes, ["other"], "not both");
    assert_eq!(both.pyroscope_url.as_deref(), Some("http://p:4040"));
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    refused(
        "window: 5s\n\nwindwo: 5s\n",
        "spanprof.yaml:3: there is no option \"windwo\"; did you mean \"window\"?",
    );
    refused("colour: red\n", ":1: there is no option \"colour\"");
    refused("frequency: 19\nwindow: soon\n", ":2: invalid value 'soon' for '--window <DURATION>'");
    refused("window: [5s]\n", ":1: window: a single value is wanted, not a list");
    refused("host: {a: b}\n", ":1: host: a value is wanted, not a map");
    refused("inline: maybe\n", ":1: inline: true or false is wanted");
    refused("host:\n", ":1: host: there is no value");
    refused("kubernetes: maybe\n", ":1: invalid value 'maybe'");
    refused("window: 5s\nwindow: 6s\n", "uplicate");
    refused("- window\n", "spanprof.yaml");
    refused("bpf_sampler: loop\n", "there is no option");
    // Together they cannot be, each alone can.
    refused(
        "bearer_token_file: /x\nbasic_auth_user: u\nbasic_auth_password_file: /y\n",
        "cannot be used with",
    );
    let missing = settings(&["spanprof", "run", "--config", "/no/such/file"].map(OsString::from));
    assert!(missing.unwrap_err().to_string().contains("cannot read /no/such/file"));
}

#[test]
fn off_is_a_value_and_no_truth() {
    let run =
        run(with_file("spanprof run", "listen: off\nkubernetes: off\ninline: true\n").unwrap());
    assert_eq!(run.listen.as_deref(), Some("off"));
    assert_eq!(run.kubernetes, cli::Kubernetes::Off);
    refused("inline: off\n", ":1: inline: true or false is wanted, not \"off\"");
}

#[test]
fn an_empty_file_says_nothing() {
    assert_eq!(run(with_file("spanprof run", "").unwrap()).sampling.hz, cli::DEFAULT_HZ);
    assert_eq!(run(with_file("spanprof run", "# nothing\n").unwrap()).sampling.hz, cli::DEFAULT_HZ);
}

#[test]
fn what_is_printed_is_a_file_that_says_the_same_without_secrets() {
    let printed = |words: &str, yaml: &str| {
        let mut out = Vec::new();
        print(&with_file(words, yaml).unwrap(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    let first = printed("spanprof config print", YAML);
    for option in options() {
        let key = key(&option);
        assert!(
            first.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{key}:"))),
            "{key}"
        );
    }
    assert!(first.contains("window: \"5s\" # file"), "{first}");
    let typed = printed("spanprof config print --window 6s", YAML);
    assert!(typed.contains("window: \"6s\" # command line"), "{typed}");
    let values = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| line.rsplit_once(" # ").map_or(line, |(value, _)| value).to_owned())
            .collect()
    };
    assert_eq!(values(&printed("spanprof config print", &first)), values(&first));

    let secret = "pyroscope_url: https://user:hunter2@p/x\nheader: ['X-Key: hunter2', hunter2]\n\
        endpoints: [{name: a, pyroscope_url: 'https://u:hunter2@q', header: ['K: hunter2']}]\n";
    let text = printed("spanprof config print", secret);
    assert!(!text.contains("hunter2"), "{text}");
    assert!(text.contains("https://<hidden>@p/x") && text.contains("X-Key: <hidden>"), "{text}");
}

#[test]
fn what_differs_is_named_by_its_key() {
    let before = with_file("spanprof run", YAML).unwrap();
    assert_eq!(before.differing(&before), [""; 0]);
    let now =
        YAML.replace("window: 5s", "window: 6s").replace("kube-", "k-").replace("true", "false");
    let now = with_file("spanprof run", &now).unwrap();
    assert_eq!(now.differing(&before), ["relabel_configs", "window", "inline"]);
}
