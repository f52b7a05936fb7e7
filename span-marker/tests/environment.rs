//! What the environment switches, in this program run again: the environment is the process's.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part")]
mod reader;

use std::process::{Command, Output};

use reader::Process;
use span_marker::{InitError, Record, SpanIds, Symbol, diagnose, init};

const CHILD: &str = "SPAN_MARKER_TEST_CHILD";

/// Runs the test `name` of this program with a variable set.
fn run(name: &str, variable: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env(CHILD, "1").env(variable, "1");
    let output = command.env("OTEL_SERVICE_NAME", "shop").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

fn record() -> Record {
    let ids = SpanIds { trace_id: [1; 16], span_id: [2; 8], trace_flags: 1 };
    Record::builder(ids).name("in the child").build()
}

#[test]
fn disabled_child() {
    if is_child() {
        for _ in 0..2 {
            assert_eq!(record().as_bytes()[24], 0, "not to be read");
            assert!(matches!(init(), Err(InitError::Disabled)));
        }
        assert_eq!(Process::this().context(), None);
        assert_eq!(Process::this().slot_by_note(), None);
        let line = "span-marker: nothing is published: SPAN_MARKER_DISABLE is set";
        assert_eq!(diagnose().to_string(), line);
    }
}

#[test]
fn a_variable_switches_everything_off() {
    run("disabled_child", "SPAN_MARKER_DISABLE");
}

#[test]
fn telling_child() {
    if is_child() {
        drop((record(), record()));
        let diagnosis = diagnose();
        assert_eq!(diagnosis.symbol.unwrap(), Symbol::Dynamic);
        assert_eq!(diagnosis.published.unwrap().tp_offset, Process::this().slot_by_symbol());
        println!("{}", diagnose());
    }
}

#[test]
fn a_variable_has_the_process_say_once_how_it_is_found() {
    let output = run("telling_child", "SPAN_MARKER_DEBUG");
    let [stdout, stderr] = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap());
    let lines: Vec<&str> =
        stderr.lines().filter(|line| line.starts_with("span-marker: ")).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    assert!(stdout.contains(lines[0]), "{stdout} has not {stderr}");
    for part in [", exported (.dynsym); static TLS, -", " in a memfd for the service \"shop\""] {
        assert!(lines[0].contains(part), "{}", lines[0]);
    }
    assert!(!String::from_utf8_lossy(&run("telling_child", "X").stderr).contains("span-marker:"));
}
