//! `/proc`: the only place that builds its paths.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::fd::{OwnedFd, RawFd},
    path::PathBuf,
};

use rustix::fs::{AtFlags, Mode, OFlags, Statx, StatxFlags, openat, readlinkat, statx};

use super::maps;
use crate::decode::Pid;

/// How much of the list of a process's control groups is read.
const CGROUP_MAX: u64 = 64 << 10;
/// How much of a process's environment is read.
const ENVIRONMENT_MAX: u64 = 128 << 10;

/// `stat` has some 50 numbers and a name of 16 bytes.
const STAT_MAX: u64 = 4096;

/// `TASK_COMM_LEN` is 16.
const COMM_MAX: u64 = 64;

/// `status` has some 60 lines; those of groups and CPUs can be long.
const STATUS_MAX: u64 = 256 << 10;

/// A container has some 50 mounts, a host some hundreds.
const MOUNT_INFO_MAX: u64 = 4 << 20;

/// How many threads are asked for the mappings of a process whose first thread has exited.
const THREADS_TRIED: usize = 4;

/// A mount of `procfs`. Tests put a folder of files in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proc {
    /// Where it is mounted.
    pub root: PathBuf,
}

impl Default for Proc {
    fn default() -> Self {
        Self { root: PathBuf::from("/proc") }
    }
}

impl Proc {
    /// The processes there are, kernel threads too.
    pub(super) fn pids(&self) -> io::Result<Vec<Pid>> {
        let names = fs::read_dir(&self.root)?.filter_map(|entry| Some(entry.ok()?.file_name()));
        Ok(names.filter_map(|name| Some(Pid(name.to_str()?.parse().ok()?))).collect())
    }

    /// These processes and all that descend from them.
    ///
    /// # Errors
    ///
    /// The list of processes cannot be read.
    pub fn with_descendants(&self, of: &[Pid]) -> io::Result<Vec<Pid>> {
        let parents: Vec<(Pid, Pid)> = self
            .pids()?
            .into_iter()
            // One that is gone meanwhile has no parent to tell.
            .filter_map(|pid| Some((pid, self.process(pid).ok()?.stat().ok()?.parent)))
            .collect();
        let mut found = of.to_vec();
        let mut next = 0;
        while let Some(&pid) = found.get(next) {
            let children = parents.iter().filter(|(_, parent)| *parent == pid);
            for (child, _) in children {
                if !found.contains(child) {
                    found.push(*child);
                }
            }
            next += 1;
        }
        Ok(found)
    }

    /// The threads of a process, in no order; none if it is gone.
    #[must_use]
    pub fn threads(&self, pid: Pid) -> Vec<u32> {
        self.process(pid).map(|process| process.threads()).unwrap_or_default()
    }

    /// What the kernel calls a thread.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn thread_name(&self, pid: Pid, tid: u32) -> io::Result<String> {
        let mut name = Vec::new();
        self.process(pid)?.read(&format!("task/{tid}/comm"), COMM_MAX, &mut name)?;
        Ok(String::from_utf8_lossy(name.trim_ascii_end()).into_owned())
    }

    /// The memory of a process, as it is now: after an `exec` there is nothing to read.
    ///
    /// # Errors
    ///
    /// It is gone, or reading it is not permitted.
    pub fn memory(&self, pid: Pid) -> io::Result<File> {
        self.process(pid)?.memory()
    }

    /// Takes hold of a process: what is read through it is of this very process, also if the
    /// kernel gives its id to another one meanwhile.
    pub(super) fn process(&self, pid: Pid) -> io::Result<ProcessDir> {
        let path = self.root.join(pid.0.to_string());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(ProcessDir { dir })
    }
}

/// The folder of one process, held open.
#[derive(Debug)]
pub(super) struct ProcessDir {
    dir: OwnedFd,
}

impl ProcessDir {
    /// `stat`: alive or not, since when.
    pub(super) fn stat(&self) -> io::Result<ProcessStat> {
        let mut text = Vec::new();
        self.read("stat", STAT_MAX, &mut text)?;
        ProcessStat::parse(&text)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed process status"))
    }

    /// `maps` into `text`; whether there was more than is read.
    ///
    /// A process whose first thread has exited shows no mappings, its other threads do.
    pub(super) fn maps(&self, text: &mut Vec<u8>) -> io::Result<bool> {
        let limit = u64::try_from(maps::TEXT_MAX).unwrap_or(u64::MAX);
        let truncated = self.read("maps", limit, text)?;
        if !text.is_empty() {
            return Ok(truncated);
        }
        for thread in self.threads().into_iter().take(THREADS_TRIED) {
            let truncated = self.read(&format!("task/{thread}/maps"), limit, text)?;
            if !text.is_empty() {
                return Ok(truncated);
            }
        }
        Ok(false)
    }

    /// `status`: whose it is, and its id where it lives.
    pub(super) fn status(&self) -> io::Result<ProcessStatus> {
        let mut text = Vec::new();
        self.read("status", STATUS_MAX, &mut text)?;
        ProcessStatus::parse(&text)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed process status"))
    }

    /// `mountinfo`: the mounts that the process sees.
    pub(super) fn mount_info(&self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        self.read("mountinfo", MOUNT_INFO_MAX, &mut text)?;
        Ok(text)
    }

    /// The environment that the process was started with.
    pub(super) fn environment(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read("environ", ENVIRONMENT_MAX, &mut bytes)?;
        Ok(bytes)
    }

    /// The control groups that the process is in.
    pub(super) fn cgroup(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read("cgroup", CGROUP_MAX, &mut bytes)?;
        Ok(bytes)
    }

    /// The path of the main executable.
    pub(super) fn executable_path(&self) -> io::Result<Vec<u8>> {
        Ok(readlinkat(&self.dir, "exe", Vec::new())?.into_bytes())
    }

    /// The memory of the process, as it is now: after an `exec` there is nothing to read.
    ///
    /// Not `process_vm_readv`: where a process handles its page faults by itself (`userfaultfd`)
    /// that one waits for it, for ever if it likes; a read of this file fails (seen on Linux 6.18).
    pub(super) fn memory(&self) -> io::Result<File> {
        self.open_for_reading("mem")
    }

    /// The folder of the process's own root.
    pub(super) fn root(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(openat(&self.dir, "root", flags, Mode::empty())?)
    }

    /// What is known of the file behind a link of the kernel's (`exe`, `map_files/…`), without
    /// opening it and without asking its file system, which may not answer (FUSE, NFS).
    pub(super) fn identify(&self, link: &str) -> io::Result<Statx> {
        let mask = StatxFlags::BASIC_STATS;
        Ok(statx(&self.dir, link, AtFlags::STATX_DONT_SYNC, mask)?)
    }

    /// A handle on that file that cannot be read yet; opening it like this runs no driver's code.
    pub(super) fn locate(&self, link: &str) -> io::Result<OwnedFd> {
        Ok(openat(&self.dir, link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
    }

    fn threads(&self) -> Vec<u32> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(folder) = openat(&self.dir, "task", flags, Mode::empty()) else { return Vec::new() };
        let Ok(entries) = rustix::fs::Dir::new(folder) else { return Vec::new() };
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_owned()));
        names.filter_map(|name| name.to_str().ok()?.parse().ok()).collect()
    }

    fn open_for_reading(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(openat(&self.dir, name, flags, Mode::empty())?.into())
    }

    /// Replaces `bytes` by the first `limit` of a file; whether there were more.
    fn read(&self, name: &str, limit: u64, bytes: &mut Vec<u8>) -> io::Result<bool> {
        bytes.clear();
        self.open_for_reading(name)?.take(limit).read_to_end(bytes)?;
        Ok(u64::try_from(bytes.len()).unwrap_or(u64::MAX) >= limit)
    }
}

/// What the kernel says of a descriptor of this very process.
pub(super) fn own_fdinfo(descriptor: RawFd) -> io::Result<Vec<u8>> {
    fs::read(format!("/proc/self/fdinfo/{descriptor}"))
}

/// What `/proc/PID/status` says, and `stat` does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProcessStatus {
    /// The user that it acts as.
    pub(super) effective_uid: u32,
    /// The user that the files it makes belong to.
    pub(super) file_system_uid: u32,
    /// Its id in the innermost PID namespace that it is in: what it knows itself by.
    pub(super) innermost_pid: u32,
}

impl ProcessStatus {
    /// `proc_pid_status(5)`. The kernel escapes line feeds in the name, which is the process's
    /// choice.
    fn parse(text: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(text);
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let mut uids = field("Uid:")?.split_ascii_whitespace().map(str::parse);
        let effective_uid = uids.nth(1)?.ok()?;
        let file_system_uid = uids.nth(1)?.ok()?;
        // There since Linux 4.1, with CONFIG_PID_NS; without, there is one namespace.
        let pid = field("NSpid:").or_else(|| field("Pid:"))?;
        let innermost_pid = pid.split_ascii_whitespace().next_back()?.parse().ok()?;
        Some(Self { effective_uid, file_system_uid, innermost_pid })
    }
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProcessStat {
    /// The kernel's name of the first thread.
    pub(super) comm: String,
    /// The first thread's state, `Z` for a zombie.
    pub(super) state: u8,
    /// The process that made it, or that adopted it.
    pub(super) parent: Pid,
    /// `PF_*`.
    pub(super) flags: u64,
    /// How many threads there are.
    pub(super) threads: u64,
    /// When the process was made, in clock ticks since boot: with the id, it names the process.
    pub(super) start_time: u64,
    /// How many bytes are mapped.
    pub(super) mapped_bytes: u64,
}

impl ProcessStat {
    /// `PF_KTHREAD` of `linux/sched.h`, since Linux 2.6.27.
    const KERNEL_THREAD: u64 = 0x0020_0000;

    pub(super) fn is_kernel_thread(&self) -> bool {
        self.flags & Self::KERNEL_THREAD != 0
    }

    /// Exited, and no other thread goes on.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.state, b'Z' | b'X') && self.threads <= 1
    }

    /// The name is the process's choice and may hold `)` and spaces: the last `)` ends it.
    fn parse(text: &[u8]) -> Option<Self> {
        let open = text.iter().position(|byte| *byte == b'(')?;
        let close = text.iter().rposition(|byte| *byte == b')')?;
        let comm = String::from_utf8_lossy(text.get(open + 1..close)?).into_owned();
        let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
        // proc_pid_stat(5) numbers the fields from 1; the state, the first one here, is field 3.
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse().ok();
        Some(Self {
            comm,
            state: *fields.first()?.as_bytes().first()?,
            parent: Pid(u32::try_from(number(4)?).ok()?),
            flags: number(9)?,
            threads: number(20)?,
            start_time: number(22)?,
            mapped_bytes: number(23)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_a_status() {
        let text = b"42 (a) b (c)) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 1234 5678 90\n";
        assert_eq!(
            ProcessStat::parse(text),
            Some(ProcessStat {
                comm: "a) b (c)".into(),
                state: b'S',
                parent: Pid(1),
                flags: 4_194_560,
                threads: 9,
                start_time: 1234,
                mapped_bytes: 5678,
            })
        );
        assert_eq!(ProcessStat::parse(b"42 (a) S 1 2 3"), None);
    }

    #[test]
    fn reads_who_a_process_is_where_it_lives() {
        let text =
            b"Name:\ta\\nUid:\nUid:\t1\t2\t3\t4\nGid:\t0\t0\t0\t0\nPid:\t70\nNSpid:\t70\t7\n";
        let status = ProcessStatus { effective_uid: 2, file_system_uid: 4, innermost_pid: 7 };
        assert_eq!(ProcessStatus::parse(text), Some(status));
        let old = ProcessStatus { innermost_pid: 70, ..status };
        assert_eq!(ProcessStatus::parse(b"Uid:\t1\t2\t3\t4\nPid:\t70\n"), Some(old));
        assert_eq!(ProcessStatus::parse(b"Uid:\t1\t2\nPid:\t70\n"), None);
        assert_eq!(ProcessStatus::parse(b"NSpid:\t70\n"), None);
    }

    #[test]
    fn descendants_are_found_through_each_parent() {
        let root = tempfile::tempdir().unwrap();
        for (pid, parent) in [(1, 0), (7, 1), (8, 7), (9, 8), (10, 1)] {
            let folder = root.path().join(pid.to_string());
            fs::create_dir(&folder).unwrap();
            let stat = format!("{pid} (a) S {parent} 1 1 0 -1 0 1 2 3 4 5 6 7 8 20 0 9 0 1 2 3\n");
            fs::write(folder.join("stat"), stat).unwrap();
        }
        let proc = Proc { root: root.path().to_owned() };
        let mut found = proc.with_descendants(&[Pid(7), Pid(10)]).unwrap();
        found.sort();
        assert_eq!(found, [Pid(7), Pid(8), Pid(9), Pid(10)]);
    }

    #[test]
    fn knows_this_process() {
        let process = Proc::default().process(Pid(std::process::id())).unwrap();
        let stat = process.stat().unwrap();
        assert!(!stat.is_kernel_thread() && !stat.is_gone() && stat.start_time > 0);
        let mut text = Vec::new();
        assert!(!process.maps(&mut text).unwrap());
        let libs = maps::Maps::parse(&text).executable;
        assert!(libs.len() > 1);
        let path = std::env::current_exe().unwrap();
        assert_eq!(process.executable_path().unwrap(), path.as_os_str().as_encoded_bytes());
        assert!(Proc::default().pids().unwrap().contains(&Pid(std::process::id())));
    }

    #[test]
    fn a_file_of_any_size_is_read_to_the_limit() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("7")).unwrap();
        let environment = File::create(root.path().join("7/environ")).unwrap();
        environment.set_len(1 << 40).unwrap();
        let process = Proc { root: root.path().into() }.process(Pid(7)).unwrap();
        assert_eq!(process.environment().unwrap().len(), 128 << 10);
    }

    proptest! {
        #[test]
        fn any_status(text in prop::collection::vec(any::<u8>(), 0..256)) {
            ProcessStat::parse(&text);
        }
    }
}
