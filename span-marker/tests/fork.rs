//! A child process. Alone in its program: a child of several threads may inherit a held lock.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part")]
mod reader;

use reader::{Process, this_thread};
use span_marker::{Record, SpanIds, enter};

fn record(name: &str) -> Record {
    let ids = SpanIds { trace_id: [1; 16], span_id: [2; 8], trace_flags: 1 };
    Record::builder(ids).name(name).build()
}

fn published() -> Option<String> {
    this_thread().map(|context| context.attributes["span_name"].clone())
}

/// In the child: what it inherited is not its own; what it does itself is.
fn child_publishes(inherited: &Record) -> bool {
    let before = Process::this().context().is_none();
    let _guard = enter(inherited);
    let entered = Process::this().context().is_none();
    let own = record("own");
    let own = enter(&own);
    let after = Process::this().context().is_some() && published().as_deref() == Some("own");
    drop(own);
    before && entered && after && published().as_deref() == Some("parent's")
}

#[test]
fn a_process_and_its_child_publish_from_their_first_record_on() {
    assert_eq!(Process::this().context(), None);
    let parent = record("parent's");
    assert!(Process::this().context().is_some());
    // SAFETY: this program's only other thread waits for this one, so no lock is held that the
    // child would wait for. The child exits without unwinding into the test harness.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let passed = child_publishes(&parent);
        // SAFETY: ends this process at once.
        unsafe { libc::_exit(if passed { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: writes to the integer that it is given.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!((waited, status), (pid, 0));
    assert!(Process::this().context().is_some());
}
