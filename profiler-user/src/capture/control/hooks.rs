//! The thread that puts probes on span-marker's hooks: a process of a file that has one is known in
//! the kernel before its first span.
//!
//! It is a thread of its own because the kernel reads the file for it, which may be on a network,
//! and goes through all processes that have it mapped.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use serde::Serialize;

use crate::capture::uprobe::{HookProbe, Probe, ProbeError, Uprobes};
use crate::privilege::keep_steady;
use crate::process::{ElfId, HookFact};

/// Facts that may wait. At the start there is one for each file with a hook.
const FACTS: usize = 4096;

/// What became of the files with a hook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HookStats {
    /// How the kernel probes: `multi`, `perf`, or `off` where it cannot.
    pub probed_by: &'static str,
    /// Files that have a probe.
    pub attached: u64,
    /// Probes that ended: their file was forgotten.
    pub detached: u64,
    /// Probes that ended: as many as may be were used later.
    pub detached_over_limit: u64,
    /// Files without a probe: what they say is their hook is none.
    pub refused_no_hook: u64,
    /// Files without a probe: the kernel does not permit it.
    pub failed_not_permitted: u64,
    /// Files without a probe: the kernel cannot probe this instruction or this file.
    pub failed_not_supported: u64,
    /// Files without a probe: another error.
    pub failed: u64,
    /// Files without a probe: too many were found at once.
    pub facts_dropped: u64,
}

/// The way to the thread. It is not waited for: it may be in the middle of a probe.
#[derive(Debug)]
pub struct Hooks {
    /// Without a thread where the kernel has no probes.
    facts: Option<SyncSender<(ElfId, HookFact)>>,
    stats: Arc<Mutex<HookStats>>,
}

impl Hooks {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// There is no thread to be had.
    pub(in crate::capture) fn start(
        uprobes: Option<Uprobes>,
        least_privilege: bool,
    ) -> io::Result<Self> {
        let probed_by = match uprobes.as_ref().map(Uprobes::kind) {
            Some(HookProbe::Multi) => "multi",
            Some(HookProbe::Perf) => "perf",
            Some(HookProbe::Off) | None => "off",
        };
        let stats = Arc::new(Mutex::new(HookStats { probed_by, ..HookStats::default() }));
        let Some(uprobes) = uprobes else { return Ok(Self { facts: None, stats }) };
        let (facts, received) = sync_channel(FACTS);
        let shared = Arc::clone(&stats);
        std::thread::Builder::new().name("hooks".to_owned()).spawn(move || {
            // A perf event on a uprobe takes CAP_SYS_ADMIN each time; a link does not.
            let gives_up = least_privilege && uprobes.kind() == HookProbe::Multi;
            if gives_up && let Err(error) = keep_steady() {
                tracing::warn!(%error, "the hooks' thread keeps its capabilities");
            }
            run(&uprobes, &received, &shared);
        })?;
        Ok(Self { facts: Some(facts), stats })
    }

    /// Tells the thread.
    pub fn tell(&self, told: BTreeMap<ElfId, HookFact>) {
        let Some(facts) = &self.facts else { return };
        for fact in told {
            if facts.try_send(fact).is_err() {
                lock(&self.stats).facts_dropped += 1;
            }
        }
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> HookStats {
        lock(&self.stats).clone()
    }
}

fn run(uprobes: &Uprobes, facts: &Receiver<(ElfId, HookFact)>, stats: &Mutex<HookStats>) {
    let mut attached: HashMap<ElfId, Probe> = HashMap::new();
    for (id, fact) in facts {
        match fact {
            // It lost its probe and got it back before this thread heard of it.
            HookFact::Attach { .. } if attached.contains_key(&id) => {}
            HookFact::Attach { file, path, offset } => {
                let probe = uprobes.attach(&file, offset);
                match &probe {
                    Ok(_) => tracing::debug!(%path, "a hook has a probe"),
                    Err(error) => {
                        let error = error as &dyn std::error::Error;
                        tracing::debug!(%path, error, "a hook without a probe");
                    }
                }
                *count(&mut lock(stats), &probe) += 1;
                attached.extend(probe.ok().map(|probe| (id, probe)));
            }
            HookFact::Detach { over_limit } => {
                // The kernel waits here until nobody runs the program any more.
                let was_attached = attached.remove(&id).is_some();
                let mut stats = lock(stats);
                stats.attached -= u64::from(was_attached);
                stats.detached += u64::from(was_attached && !over_limit);
                stats.detached_over_limit += u64::from(was_attached && over_limit);
            }
        }
    }
}

/// The counter of what came of a probe.
fn count<'a>(stats: &'a mut HookStats, probe: &Result<Probe, ProbeError>) -> &'a mut u64 {
    let error = match probe {
        Ok(_) => return &mut stats.attached,
        Err(ProbeError::NoHook) => return &mut stats.refused_no_hook,
        Err(ProbeError::Refused(error)) => error,
    };
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => &mut stats.failed_not_permitted,
        Some(libc::EINVAL | libc::ENOTSUP | libc::EIO | libc::ENOEXEC) => {
            &mut stats.failed_not_supported
        }
        _ => &mut stats.failed,
    }
}

fn lock(stats: &Mutex<HookStats>) -> MutexGuard<'_, HookStats> {
    // Numbers are numbers, also after a panic.
    stats.lock().unwrap_or_else(PoisonError::into_inner)
}
