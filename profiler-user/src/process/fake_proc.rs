//! A folder that looks like `/proc`.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::Proc;

pub(super) struct FakeProc {
    folder: TempDir,
}

impl FakeProc {
    pub(super) fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    pub(super) fn proc(&self) -> Proc {
        Proc { root: self.folder.path().join("proc") }
    }

    pub(super) fn path(&self, pid: u32, name: &str) -> PathBuf {
        self.proc().root.join(pid.to_string()).join(name)
    }

    /// Adds a process, with an empty root.
    pub(super) fn add(&self, pid: u32, start_time: u64, maps: &str) {
        fs::create_dir_all(self.path(pid, "root")).unwrap();
        self.set_stat(pid, 'S', 0, start_time, 4096);
        fs::write(self.path(pid, "maps"), maps).unwrap();
        fs::write(self.path(pid, "environ"), "PATH=/bin\0").unwrap();
    }

    pub(super) fn set_stat(&self, pid: u32, state: char, flags: u64, start: u64, mapped: u64) {
        let text = format!(
            "{pid} (fake) {state} 1 1 1 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 1 0 {start} {mapped} 0\n"
        );
        fs::write(self.path(pid, "stat"), text).unwrap();
    }

    pub(super) fn remove(&self, pid: u32) {
        fs::remove_dir_all(self.path(pid, "")).unwrap();
    }
}

/// A line of `maps` for a file that exists, which the process sees as `path`.
pub(super) fn maps_line(start: u64, file: &Path, path: &str) -> String {
    let inode = fs::symlink_metadata(file).unwrap().ino();
    format!("{start:x}-{:x} r-xp 00001000 08:01 {inode}    {path}\n", start + 0x1000)
}

/// The smallest file that is taken for an ELF file.
pub(super) fn write_elf(path: &Path) {
    fs::write(path, b"\x7fELF").unwrap();
}
