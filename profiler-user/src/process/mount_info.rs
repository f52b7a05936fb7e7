//! What kind of file system a file is on, without asking that file system.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use super::proc_fs::{Proc, ProcessDir, own_fdinfo};
use crate::decode::Pid;

/// The name of the file system that an open file is on, as the mounts of the process that it was
/// found through name it; `None` if that cannot be told.
///
/// `fstatfs` would ask the file system, which a process may have made itself (FUSE) and need not
/// answer.
pub(super) fn file_system_of(process: &ProcessDir, file: BorrowedFd<'_>) -> Option<String> {
    let mount = mount_id(&own_fdinfo(file.as_raw_fd()).ok()?)?;
    // A process after `chroot` does not see the mount that its root is on. The numbers are the
    // kernel's own, the same in all lists.
    let own = || Proc::default().process(Pid(std::process::id()))?.mount_info();
    let hosts = || Proc::default().process(Pid(1))?.mount_info();
    let listed = |text: io::Result<Vec<u8>>| file_system(&text.ok()?, mount);
    listed(process.mount_info()).or_else(|| listed(own())).or_else(|| listed(hosts()))
}

/// `proc_pid_fdinfo(5)`: `mnt_id:\t29`.
fn mount_id(fdinfo: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(fdinfo).ok()?;
    text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

/// `proc_pid_mountinfo(5)`: `36 35 98:0 /a /b rw,noatime master:1 - ext3 /dev/root rw`. The kernel
/// writes spaces in paths as `\040`, so that fields end at spaces.
fn file_system(mount_info: &[u8], mount: u64) -> Option<String> {
    mount_info.split(|byte| *byte == b'\n').find_map(|line| {
        let line = String::from_utf8_lossy(line);
        let mut fields = line.split(' ');
        if fields.next()?.parse() != Ok(mount) {
            return None;
        }
        fields.find(|field| *field == "-")?;
        fields.next().map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn reads_both_files() {
        assert_eq!(mount_id(b"pos:\t0\nflags:\t012\nmnt_id:\t29\nino:\t7\n"), Some(29));
        assert_eq!(mount_id(b"pos:\t0\n"), None);
        let text = b"1 0 8:1 / / rw - ext4 /dev/sda rw\n\
            29 1 0:5 /- /a\\040b rw shared:1 master:2 - fuse.sshfs host rw\nnonsense\n";
        assert_eq!(file_system(text, 29).as_deref(), Some("fuse.sshfs"));
        assert_eq!(file_system(text, 1).as_deref(), Some("ext4"));
        assert_eq!(file_system(text, 2), None);
    }

    #[test]
    fn knows_procfs_by_its_name() {
        let process = Proc::default().process(Pid(std::process::id())).unwrap();
        let file = std::fs::File::open("/proc/self/status").unwrap();
        assert_eq!(file_system_of(&process, file.as_fd()).as_deref(), Some("proc"));
    }
}
