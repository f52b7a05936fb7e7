//! A program that is told to publish nothing. Alone in it: the environment is the process's.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part")]
mod reader;

use std::process::Command;

use reader::Process;
use span_marker::{InitError, Record, SpanIds, init};

const CHILD: &str = "SPAN_MARKER_TEST_CHILD";

/// What is run with the variable set, which is this program again.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let ids = SpanIds { trace_id: [1; 16], span_id: [2; 8], trace_flags: 1 };
    for _ in 0..2 {
        let record = Record::builder(ids).name("disabled").build();
        assert_eq!(record.as_bytes()[24], 0, "not to be read");
        assert!(matches!(init(), Err(InitError::Disabled)));
    }
    assert_eq!(Process::this().context(), None);
}

#[test]
fn a_variable_switches_everything_off() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child"]).env(CHILD, "1").env("SPAN_MARKER_DISABLE", "1");
    assert!(command.status().unwrap().success());
}
