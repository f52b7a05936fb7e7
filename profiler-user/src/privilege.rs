//! Gives up what only the start needs: who takes over the agent later gets as little as may be.
//!
//! Capabilities belong to threads, and new threads have those of the one that starts them. So the
//! start has a thread of its own, made while everything is there still, and all others come after
//! what is not needed for long is gone.

use std::{
    io,
    sync::mpsc::{SyncSender, sync_channel},
};

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

/// What sampling needs for as long as it goes on: `BPF` and `PERFMON` for unwind tables and for CPUs
/// that come later, `SYSLOG` for the kernel's names, the others to read of processes. `SETUID` and
/// `SETGID` let the symbolizing worker become nobody else.
const STEADY: CapabilitySet = CapabilitySet::BPF
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::CHECKPOINT_RESTORE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::SYSLOG)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID);

/// Those that older capabilities include, and which.
const STAND_INS: [(CapabilitySet, CapabilitySet); 2] = [
    (
        CapabilitySet::BPF.union(CapabilitySet::PERFMON).union(CapabilitySet::CHECKPOINT_RESTORE),
        CapabilitySet::SYS_ADMIN,
    ),
    (CapabilitySet::DAC_READ_SEARCH, CapabilitySet::DAC_OVERRIDE),
];

/// What is kept of `permitted`. Who was given an older capability in a newer one's place keeps it.
fn kept(permitted: CapabilitySet) -> CapabilitySet {
    let stand_ins = STAND_INS.iter().filter(|(newer, _)| !permitted.contains(*newer));
    let wanted = stand_ins.fold(STEADY, |all, (_, older)| all | *older);
    permitted & wanted
}

/// Leaves the calling thread what sampling needs for long, and so each that it starts from here on.
///
/// # Errors
///
/// The kernel refuses, which it does not where `capset` is not filtered.
pub fn keep_steady() -> io::Result<()> {
    let steady = kept(capabilities(None)?.permitted);
    bound(steady);
    clear_ambient_capability_set()?;
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: steady, permitted: steady, inheritable })?;
    set_no_new_privs(true)?;
    Ok(())
}

/// Programs that this thread starts from here on can get no other capabilities than these. To say so
/// is privileged itself; for who may not, `no_new_privs` is what counts.
pub fn bound(to: CapabilitySet) {
    for bit in 0..u64::BITS {
        // By number, so that capabilities of a kernel newer than this program go too.
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match capability_is_in_bounding_set(capability) {
            Ok(true) if to.contains(capability) => {}
            Ok(true) if remove_capability_from_bounding_set(capability).is_err() => break,
            Ok(_) => {}
            // The kernel has no more.
            Err(_) => break,
        }
    }
}

/// A thread that still has all of what the program was started with.
#[derive(Debug)]
pub struct Setup {
    work: SyncSender<Box<dyn FnOnce() + Send>>,
}

impl Setup {
    /// Makes the thread, and leaves the calling one what sampling needs for long.
    ///
    /// # Errors
    ///
    /// There is no thread to be had, or the kernel refuses.
    pub fn split() -> io::Result<Self> {
        let (work, received) = sync_channel::<Box<dyn FnOnce() + Send>>(1);
        // It ends with its work, or when nobody has any.
        std::thread::Builder::new().name("setup".to_owned()).spawn(move || {
            if let Ok(work) = received.recv() {
                work();
            }
        })?;
        keep_steady()?;
        Ok(Self { work })
    }

    /// Does this on it, and ends it.
    ///
    /// # Errors
    ///
    /// It has panicked.
    pub fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (done, result) = sync_channel(1);
        let work = move || drop(done.send(work()));
        let gone = || io::Error::other("the thread of the start has panicked");
        self.work.send(Box::new(work)).map_err(|_gone| gone())?;
        result.recv().map_err(|_gone| gone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_sampling_needs_is_kept() {
        assert_eq!(kept(CapabilitySet::all()), STEADY);
        let minimal = CapabilitySet::BPF
            | CapabilitySet::PERFMON
            | CapabilitySet::SYS_PTRACE
            | CapabilitySet::CHECKPOINT_RESTORE
            | CapabilitySet::DAC_READ_SEARCH
            | CapabilitySet::SYSLOG;
        assert_eq!(kept(minimal), minimal);
        assert_eq!(kept(minimal | CapabilitySet::SYS_ADMIN | CapabilitySet::CHOWN), minimal);
        assert_eq!(kept(CapabilitySet::empty()), CapabilitySet::empty());
    }

    #[test]
    fn an_older_capability_stands_in_for_a_newer_one() {
        let older = CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_OVERRIDE;
        assert_eq!(kept(older | CapabilitySet::CHOWN), older);
        assert_eq!(kept(older | CapabilitySet::BPF) & older, older);
    }

    /// Each in a thread of its own: what it loses does not come back.
    #[test]
    fn the_start_has_what_later_threads_have_not() {
        let own = || capabilities(None).unwrap().permitted;
        std::thread::spawn(move || {
            let before = own();
            let setup = Setup::split().unwrap();
            assert_eq!(own(), kept(before));
            let later = std::thread::spawn(own).join().unwrap();
            assert_eq!(later, kept(before));
            assert_eq!(setup.run(own).unwrap(), before);
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_start_that_panics_is_an_error() {
        std::thread::spawn(|| {
            let setup = Setup::split().unwrap();
            let panics: fn() = || std::panic::resume_unwind(Box::new("told to"));
            assert!(setup.run(panics).is_err());
        })
        .join()
        .unwrap();
    }
}
