//! Whether this process has been announced to readers: asked for each record, decided once in a
//! process, and once more in each forked child.

use std::sync::Once;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// Set, and neither `0` nor `false`: nothing is published.
const DISABLE: &str = "SPAN_MARKER_DISABLE";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing was published, or only by this process's parent.
    Undecided,
    /// What could be published is.
    On,
    /// The environment says that nothing is to be published.
    Off,
}

static STATE: AtomicU8 = AtomicU8::new(State::Undecided as u8);

#[inline]
pub(super) fn state() -> State {
    const ON: u8 = State::On as u8;
    const OFF: u8 = State::Off as u8;
    match STATE.load(Ordering::Relaxed) {
        ON => State::On,
        OFF => State::Off,
        _ => State::Undecided,
    }
}

pub(super) fn is_disabled() -> bool {
    is_set(DISABLE)
}

/// Whether a switch in the environment is on.
pub(super) fn is_set(variable: &str) -> bool {
    let value = std::env::var_os(variable).unwrap_or_default();
    !["", "0", "false"].iter().any(|off| value == *off)
}

/// Whether the state was another before, in this process.
pub(super) fn decide(state: State) -> bool {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(watch_forks);
    STATE.swap(state as u8, Ordering::Relaxed) != state as u8
}

/// How many forks lead from the program's start to this process.
#[cfg(feature = "tracing")]
pub(crate) fn forks() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

static FORKS: AtomicU32 = AtomicU32::new(0);

/// A forked child has neither its parent's process context nor is it known to anybody. The C library
/// runs the function in the child, where it may not do more than this: the child's next record does
/// the rest.
#[cfg(target_os = "linux")]
fn watch_forks() {
    unsafe extern "C" fn in_the_child() {
        STATE.store(State::Undecided as u8, Ordering::Relaxed);
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: the function stays where it is and only writes to atomics. Out of memory, it is not
    // called, and a child publishes nothing until it calls `init`.
    unsafe { libc::pthread_atfork(None, None, Some(in_the_child)) };
}

#[cfg(not(target_os = "linux"))]
fn watch_forks() {}
