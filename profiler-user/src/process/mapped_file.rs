//! Opens the file behind a mapping of another process, and no other file.
//!
//! First through the kernel's own link (`map_files`), which leads to that file wherever and
//! whatever it is; where that is not permitted, by its path inside the process's root, where every
//! step belongs to the process: symbolic links, `..`, FIFOs and devices included.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, open, statx};

use super::maps::MapsEntry;
use super::open_in_container;
use super::proc_fs::ProcessDir;

/// Names one state of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileIdentity {
    /// As `(major, minor)`.
    pub(super) device: (u32, u32),
    pub(super) inode: u64,
    pub(super) size: u64,
    /// Modification time.
    mtime: (i64, u32),
}

/// A file that was found, and could be opened.
#[derive(Debug)]
pub(crate) struct Located {
    /// What it is.
    pub(super) identity: FileIdentity,
    /// Its user.
    pub(super) owner: u32,
    /// When its state changed last, in nanoseconds since the Unix epoch.
    pub(super) changed_unix_ns: i64,
    regular: bool,
    handle: OwnedFd,
}

/// Why a mapping's file is not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotOpened {
    /// There is none of that name, or it is not permitted.
    Unreachable,
    /// Another file has that name.
    OtherFile,
    /// A device, a pipe, a folder.
    NotRegular,
}

impl FileIdentity {
    pub(super) fn new(status: &Statx) -> Self {
        Self {
            device: (status.stx_dev_major, status.stx_dev_minor),
            inode: status.stx_ino,
            size: status.stx_size,
            mtime: (status.stx_mtime.tv_sec, status.stx_mtime.tv_nsec),
        }
    }
}

pub(super) fn is_regular(status: &Statx) -> bool {
    FileType::from_raw_mode(status.stx_mode.into()) == FileType::RegularFile
}

/// The name of the kernel's link to the file of a mapping.
pub(super) fn map_files_link(entry: &MapsEntry) -> String {
    format!("map_files/{:x}-{:x}", entry.start, entry.end)
}

/// Finds the file by a link of the kernel's.
pub(super) fn locate_by_link(process: &ProcessDir, link: &str) -> io::Result<Located> {
    Located::new(process.locate(link)?)
}

/// Finds the file by its path in the process's root.
pub(super) fn locate_by_path(process: &ProcessDir, path: &Path) -> io::Result<Located> {
    let found = open_in_container(process.root()?, path, ResolveFlags::empty(), OFlags::empty());
    Located::new(found?)
}

impl Located {
    /// What is known of a file without asking its file system.
    pub(crate) fn new(handle: OwnedFd) -> io::Result<Self> {
        let status = status_of(&handle)?;
        let changed = status.stx_ctime;
        let changed_unix_ns =
            changed.tv_sec.saturating_mul(1_000_000_000).saturating_add(changed.tv_nsec.into());
        Ok(Self {
            identity: FileIdentity::new(&status),
            owner: status.stx_uid,
            changed_unix_ns,
            regular: is_regular(&status),
            handle,
        })
    }

    pub(super) fn is_regular(&self) -> bool {
        self.regular
    }

    /// Opens it for reading if it is a regular file. The handle pins the file, so nothing can be
    /// put in its place meanwhile, and a driver's `open` never runs.
    pub(crate) fn open(&self) -> Result<File, NotOpened> {
        if !self.regular {
            return Err(NotOpened::NotRegular);
        }
        let link = format!("/proc/self/fd/{}", self.handle.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        match open(link, flags, Mode::empty()) {
            Ok(file) => Ok(file.into()),
            Err(_) => Err(NotOpened::Unreachable),
        }
    }

    /// Whether it is the file that the kernel lists for the mapping. Its device is no argument:
    /// btrfs and overlayfs show another one in `maps` than in `stat`.
    pub(super) fn is_file_of(&self, entry: &MapsEntry) -> bool {
        self.identity.inode == entry.inode
    }
}

fn status_of(handle: &OwnedFd) -> io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    Ok(statx(handle, "", flags, StatxFlags::BASIC_STATS)?)
}
