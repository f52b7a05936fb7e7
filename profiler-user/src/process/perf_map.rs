//! Finds the files in which run times name the code that they make: `/tmp/perf-PID.map`.
//!
//! The process writes `/tmp` and the file of its own root and by its own id, so both are taken from
//! it. What is found may be anything: it is opened only if it is what a run time writes.

use std::{
    collections::HashMap,
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::TableStats;
use super::mapped_file::{Located, NotOpened};
use super::mount_info::file_system_of;
use super::open_in_container;
use super::proc_fs::{ProcessDir, ProcessStatus};
use super::use_order::{Stamp, UseOrder};
use crate::clock::{boot_now, unix_now};

/// The most perf maps that are held open.
const OPEN_MAX: usize = 256;

/// The kernel counts start times in ticks of `USER_HZ`, 100 a second on every machine.
const TICK_NS: i64 = 10_000_000;

/// A process is made before its file is, but both times are rounded, and the wall clock is slewed.
const CLOCK_SLACK_NS: i64 = 2_000_000_000;

/// Stands for the perf map of one process. Given out in order of discovery, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JitId(pub u32);

/// The perf maps that are held open, so that they outlive their processes. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct PerfMapRegistry {
    shared: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    by_id: HashMap<JitId, Held>,
    by_use: UseOrder<JitId>,
    next: u32,
}

#[derive(Debug)]
struct Held {
    device: (u32, u32),
    inode: u64,
    file: Arc<File>,
    used: Stamp,
}

/// Why a file of that name is no perf map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// A FIFO, a device, a folder, a symbolic link.
    NotRegular,
    /// It belongs neither to the process's user nor to root.
    Owner,
    /// It was written before the process was made, by another one of the same id.
    Stale,
    /// Its file system is another machine's or another process's: it may not answer.
    FileSystem,
    /// It cannot be opened.
    Unreachable,
}

impl PerfMapRegistry {
    /// The file behind an id; `None` if it was closed to keep the number of descriptors bounded.
    #[must_use]
    pub fn get(&self, id: JitId) -> Option<Arc<File>> {
        let mut known = self.lock();
        let Known { by_id, by_use, .. } = &mut *known;
        let held = by_id.get_mut(&id)?;
        by_use.touch(&mut held.used);
        Some(Arc::clone(&held.file))
    }

    /// The perf map of a process. `known` is what was found for the same program before: it stays
    /// for as long as no other file has its place.
    pub(super) fn find(
        &self,
        process: &ProcessDir,
        start_time: u64,
        known: Option<JitId>,
        stats: &mut TableStats,
    ) -> Option<JitId> {
        let refused = match self.look(process, start_time, known) {
            Ok(found) => {
                stats.perf_maps_found += u64::from(found.is_some() && found != known);
                return found;
            }
            Err(refused) => refused,
        };
        match refused {
            Refused::NotRegular => stats.perf_map_refused_not_regular += 1,
            Refused::Owner => stats.perf_map_refused_owner += 1,
            Refused::Stale => stats.perf_map_refused_stale += 1,
            Refused::FileSystem => stats.perf_map_refused_file_system += 1,
            Refused::Unreachable => stats.perf_map_refused_unreachable += 1,
        }
        known
    }

    fn look(
        &self,
        process: &ProcessDir,
        start_time: u64,
        known: Option<JitId>,
    ) -> Result<Option<JitId>, Refused> {
        let status = process.status().map_err(|_error| Refused::Unreachable)?;
        let Some(folder) = Folder::open(process)? else { return Ok(known) };
        let name = format!("perf-{}.map", status.innermost_pid);
        // Removed since: what it said before still holds.
        let Some(located) = folder.locate(process, &name)? else { return Ok(known) };
        if let Some(known) = known.filter(|known| self.is(*known, &located)) {
            return Ok(Some(known));
        }
        check(&located, &status, start_time)?;
        folder.check(process)?;
        let file = located.open().map_err(|reason| match reason {
            NotOpened::NotRegular => Refused::NotRegular,
            NotOpened::Unreachable | NotOpened::OtherFile => Refused::Unreachable,
        })?;
        Ok(Some(self.add(&located, file)))
    }

    fn is(&self, id: JitId, located: &Located) -> bool {
        let known = self.lock();
        let identity = located.identity;
        known
            .by_id
            .get(&id)
            .is_some_and(|held| (held.device, held.inode) == (identity.device, identity.inode))
    }

    fn add(&self, located: &Located, file: File) -> JitId {
        let mut known = self.lock();
        while known.by_use.len() >= OPEN_MAX {
            let Some(oldest) = known.by_use.oldest() else { break };
            if let Some(held) = known.by_id.remove(&oldest) {
                known.by_use.remove(held.used);
            }
        }
        let id = JitId(known.next);
        // 2^32 programs with a perf map do not happen in a profiler's life.
        known.next = known.next.wrapping_add(1);
        let used = known.by_use.insert(id);
        let identity = located.identity;
        let (device, inode) = (identity.device, identity.inode);
        known.by_id.insert(id, Held { device, inode, file: Arc::new(file), used });
        id
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing panics half way through a change.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `/tmp` of a process's own root, where perf and every run time have agreed to look.
///
/// The process may have mounted a file system of its own there (FUSE), which need not answer. So
/// first only what the kernel has in its cache is looked at (`RESOLVE_CACHED`, Linux 5.12; older
/// kernels are asked as for any other file), then what kind of file system it is.
struct Folder {
    handle: OwnedFd,
}

impl Folder {
    /// `None`: there is none, or nobody has used it for so long that it is not in the cache.
    fn open(process: &ProcessDir) -> Result<Option<Self>, Refused> {
        let root = process.root().map_err(|_error| Refused::Unreachable)?;
        match open_cached(&root, "tmp", ResolveFlags::empty(), OFlags::DIRECTORY) {
            Ok(handle) => Ok(Some(Self { handle })),
            Err(Errno::NOENT | Errno::AGAIN) => Ok(None),
            Err(_) => Err(Refused::Unreachable),
        }
    }

    /// A file in it; not one that is mounted there, nor where a symbolic link leads.
    fn locate(&self, process: &ProcessDir, name: &str) -> Result<Option<Located>, Refused> {
        let (also, flags) = (ResolveFlags::NO_XDEV, OFlags::NOFOLLOW);
        let mut found = open_cached(&self.handle, name, also, flags);
        if matches!(found, Err(Errno::AGAIN)) {
            self.check(process)?;
            found = open_in_container(&self.handle, name, also, flags);
        }
        match found {
            Ok(handle) => Located::new(handle).map(Some).map_err(|_error| Refused::Unreachable),
            Err(Errno::NOENT) => Ok(None),
            Err(_) => Err(Refused::Unreachable),
        }
    }

    /// Whether its file system can be asked. Of one that is not known, that is not known either.
    fn check(&self, process: &ProcessDir) -> Result<(), Refused> {
        let name = file_system_of(process, self.handle.as_fd()).ok_or(Refused::FileSystem)?;
        if may_not_answer(&name) { Err(Refused::FileSystem) } else { Ok(()) }
    }
}

fn open_cached(
    folder: &OwnedFd,
    name: &str,
    also: ResolveFlags,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    /// The cache can be in the middle of a change.
    const TRIES: usize = 3;
    let open = |also| open_in_container(folder, name, also, flags);
    let mut found = Err(Errno::AGAIN);
    for _ in 0..TRIES {
        found = open(also | ResolveFlags::CACHED);
        if !matches!(found, Err(Errno::AGAIN)) {
            break;
        }
    }
    if matches!(found, Err(Errno::INVAL)) { open(also) } else { found }
}

fn check(located: &Located, status: &ProcessStatus, start_time: u64) -> Result<(), Refused> {
    if !located.is_regular() {
        return Err(Refused::NotRegular);
    }
    // perf asks the same; root, because agents that name Java's code run as root.
    if ![status.effective_uid, status.file_system_uid, 0].contains(&located.owner) {
        return Err(Refused::Owner);
    }
    // The time of the last change of the file's state: nobody can set it back.
    if located.changed_unix_ns.saturating_add(CLOCK_SLACK_NS) < made_unix_ns(start_time) {
        return Err(Refused::Stale);
    }
    Ok(())
}

/// When a process was made, on the wall clock as it goes now. Where that clock was set forward
/// since, a file that was not written since looks too old: no names, rather than another's.
fn made_unix_ns(start_time: u64) -> i64 {
    let boot_now = i64::try_from(boot_now().0).unwrap_or(i64::MAX);
    let after_boot = i64::try_from(start_time).unwrap_or(i64::MAX).saturating_mul(TICK_NS);
    unix_now().saturating_sub(boot_now).saturating_add(after_boot)
}

/// A read of such a file waits for a server or for a process of the user's.
fn may_not_answer(file_system: &str) -> bool {
    const REMOTE: [&str; 9] =
        ["cifs", "smb3", "9p", "ceph", "afs", "coda", "gfs2", "ocfs2", "autofs"];
    file_system.starts_with("fuse")
        || file_system.starts_with("nfs")
        || REMOTE.contains(&file_system)
}

#[cfg(test)]
#[path = "perf_map_tests.rs"]
mod tests;
