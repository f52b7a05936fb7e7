//! The one way to a file by a path that a process has a say in: its root, its symbolic links, what
//! it mounted, and what it put in a file's place.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::path::Arg;

/// Finds what is at `path` below `root`, without opening it: a handle (`O_PATH`), by which a
/// [`Located`](super::Located) opens a regular file, and no FIFO or device.
///
/// `..` and links, absolute ones too, stay below `root`; the kernel's magic links (`/proc/PID/fd`,
/// `exe`, …), which lead anywhere, are refused. `also` makes it stricter, `flags` may ask for a
/// folder or refuse a link at the end (openat2, Linux 5.6).
///
/// # Errors
///
/// Those of openat2: `ELOOP` for a magic link, `EXDEV` and `EAGAIN` for what `also` refuses.
pub(crate) fn open_in_container(
    root: impl AsFd,
    path: impl Arg,
    also: ResolveFlags,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | also;
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC | flags, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read as _;
    use std::os::unix::fs::symlink;

    use super::super::Located;
    use super::*;

    fn read(root: &File, path: &str) -> Option<String> {
        let handle = open_in_container(root, path, ResolveFlags::empty(), OFlags::empty()).ok()?;
        let mut text = String::new();
        Located::new(handle).ok()?.open().ok()?.read_to_string(&mut text).ok()?;
        Some(text)
    }

    #[test]
    fn links_do_not_lead_out_of_the_root_and_only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("inside"), "inside").unwrap();
        symlink("/etc/passwd", at("out")).unwrap();
        symlink("/inside", at("in")).unwrap();
        symlink("/proc/self/exe", at("magic")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("fifo"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        let root = File::open(folder.path()).unwrap();
        for path in ["/in", "inside", "/../../inside"] {
            assert_eq!(read(&root, path).as_deref(), Some("inside"), "{path}");
        }
        // Neither waits, the FIFO for a writer and the folder for nothing.
        for path in ["/out", "/magic", "/fifo", "/", "", "/none"] {
            assert_eq!(read(&root, path), None, "{path}");
        }
        let host = File::open("/").unwrap();
        for path in ["/dev/null", "/proc/self/exe", "/proc/self/fd/0", "/proc/self/root/etc"] {
            assert_eq!(read(&host, path), None, "{path}");
        }
    }
}
