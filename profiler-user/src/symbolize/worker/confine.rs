//! Gives up what the worker does not need, before it reads the first byte of anyone's file.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, getuid, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, clear_ambient_capability_set, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use thiserror::Error;

use crate::privilege::bound;

/// The user that the worker becomes if it may. Nobody else's: with the id of `nobody` it could
/// trace every process that runs as `nobody`. 1934622721 is in the range that systemd's list of user
/// ids calls unused, above those of containers.
const WORKER_ID: u32 = 0x7350_0001;

/// Which step failed.
#[derive(Debug, Error)]
#[error("cannot {step}")]
pub struct ConfineError {
    step: &'static str,
    #[source]
    cause: io::Error,
}

fn step(step: &'static str) -> impl FnOnce(Errno) -> ConfineError {
    move |errno| ConfineError { step, cause: errno.into() }
}

/// Closes what the profiler was started with and did not mark to be closed, except for standard
/// input, output and error and `socket`.
fn close_inherited(socket: &OwnedFd) -> io::Result<()> {
    let entries = fs::read_dir("/proc/self/fd")?;
    // All of them first: the folder's own is closed then, and is not to be closed again.
    let names: Vec<_> = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
    for name in names {
        let descriptor = name.to_str().and_then(|name| name.parse::<RawFd>().ok());
        let descriptor = descriptor.filter(|fd| *fd > 2 && *fd != socket.as_raw_fd());
        let is_open = fs::symlink_metadata(Path::new("/proc/self/fd").join(&name)).is_ok();
        if let Some(descriptor) = descriptor.filter(|_| is_open) {
            // SAFETY: it is open, and nothing in this process of one thread owns it: all that this
            // process has opened itself is `socket`.
            unsafe { rustix::io::close(descriptor) };
        }
    }
    Ok(())
}

/// Gives up user, groups, capabilities and the way to get new ones; dies with its parent; leaves no
/// core dump; writes no file. The calling thread must be the only one: credentials are a thread's.
pub(super) fn confine(socket: &OwnedFd) -> Result<(), ConfineError> {
    let threads = fs::read_dir("/proc/self/task").map(Iterator::count);
    if !matches!(threads, Ok(1)) {
        let cause = threads.map_or_else(|error| error, |_| io::ErrorKind::Unsupported.into());
        return Err(ConfineError { step: "be sure that there is one thread", cause });
    }
    close_inherited(socket)
        .map_err(|cause| ConfineError { step: "close what it was started with", cause })?;
    // When memory is short, this process goes before the profiler and before the workload. Only a
    // wish: in a container `/proc` may be read-only.
    drop(fs::write("/proc/self/oom_score_adj", "1000"));
    bound(CapabilitySet::empty());
    become_nobody_else()?;
    clear_ambient_capability_set().map_err(step("clear the ambient capabilities"))?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, sets).map_err(step("give up the capabilities"))?;
    set_no_new_privs(true).map_err(step("refuse new privileges"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(step("refuse to be dumped and traced"))?;
    // A change of user clears it, so it comes after.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(step("die with the parent"))?;
    for resource in [Resource::Core, Resource::Fsize] {
        limit(resource, 0)?;
    }
    Ok(())
}

/// Lets the worker have no more than this much address space.
pub(super) fn limit_memory(bytes: u64) -> Result<(), ConfineError> {
    limit(Resource::As, bytes)
}

fn limit(resource: Resource, most: u64) -> Result<(), ConfineError> {
    setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
        .map_err(step("lower a resource limit"))
}

/// Leaves root, whose files the worker could read even without capabilities. Where that is not
/// permitted, because the profiler was started without `CAP_SETUID` or in a user namespace without
/// this id, it stays root without capabilities. Who is not root may not change and has little to
/// protect.
fn become_nobody_else() -> Result<(), ConfineError> {
    if !getuid().is_root() {
        return Ok(());
    }
    set_thread_groups(&[]).or_else(if_not_permitted).map_err(step("leave the groups"))?;
    let gid = Gid::from_raw(WORKER_ID);
    set_thread_res_gid(gid, gid, gid)
        .or_else(if_not_permitted)
        .map_err(step("change the group"))?;
    let uid = Uid::from_raw(WORKER_ID);
    set_thread_res_uid(uid, uid, uid).or_else(if_not_permitted).map_err(step("change the user"))
}

fn if_not_permitted(errno: Errno) -> Result<(), Errno> {
    if matches!(errno, Errno::PERM | Errno::INVAL) { Ok(()) } else { Err(errno) }
}
