//! A child process. Alone in its program: a child of several threads may inherit a held lock.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part")]
mod reader;

use reader::Process;
use span_marker::init;

#[test]
fn a_forked_child_publishes_its_own_process_context() {
    init().unwrap();
    // SAFETY: this program's only other thread waits for this one, so no lock is held that the
    // child would wait for. The child exits without unwinding into the test harness.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let child = Process::this();
        let inherited = child.context().is_some();
        let published = init().is_ok() && child.context().is_some();
        // SAFETY: ends this process at once.
        unsafe { libc::_exit(if !inherited && published { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: writes to the integer that it is given.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!((waited, status), (pid, 0));
    assert!(Process::this().context().is_some());
}
