//! Finds the separate file with a stripped file's symbols.
//!
//! blazesym would look next to the path that it was given, which leads to a descriptor, and in the
//! worker's own root. So the candidates are opened here, in the process's root, and passed on. The
//! worker checks that they belong together (build ID, else checksum).

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, open};

use crate::process::{BuildId, Located, open_in_container};

/// A file that may have the symbols, and the checksum that it then has.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) file: File,
    pub(super) crc: Option<u32>,
}

/// The folder of debug files in a container, which has no option to say otherwise.
const DEBUG_DIR: &str = "/usr/lib/debug";

/// The files that exist of those that may have the symbols of `path`, best first. `root` is the
/// file system that `path` is in if that is not ours, `debug_dirs` are folders of ours.
pub(super) fn candidates(
    path: &str,
    build_id: Option<&BuildId>,
    debug_link: Option<&(String, u32)>,
    root: Option<&Path>,
    debug_dirs: &[PathBuf],
) -> impl Iterator<Item = Candidate> {
    let ours = (Path::new("/"), debug_dirs.to_vec());
    let theirs = root.map(|root| (root, vec![PathBuf::from(DEBUG_DIR)]));
    let (home, home_dirs) = theirs.clone().unwrap_or_else(|| ours.clone());
    let mut paths = Vec::new();
    if let Some(relative) = build_id.and_then(by_build_id) {
        for (root, dirs) in theirs.into_iter().chain([ours]) {
            paths.extend(dirs.iter().map(|dir| (root.to_owned(), dir.join(&relative), None)));
        }
    }
    // A path of another file system means nothing in ours.
    if let Some((linked, crc)) = by_debug_link(path, debug_link, &home_dirs) {
        paths.extend(linked.into_iter().map(|path| (home.to_owned(), path, Some(crc))));
    }
    paths.into_iter().filter_map(|(root, path, crc)| {
        let file = open_regular(&root, &path)?;
        Some(Candidate { file, crc })
    })
}

/// `.build-id/ab/cdef….debug`
fn by_build_id(build_id: &BuildId) -> Option<PathBuf> {
    let hex = build_id.to_string();
    let (folder, name) = hex.split_at_checked(2).filter(|(_, name)| !name.is_empty())?;
    Some(Path::new(".build-id").join(folder).join(format!("{name}.debug")))
}

/// The link is what the file says: only a plain name is followed.
fn by_debug_link(
    path: &str,
    link: Option<&(String, u32)>,
    debug_dirs: &[PathBuf],
) -> Option<(Vec<PathBuf>, u32)> {
    let (name, crc) = link?;
    let is_plain = !matches!(&**name, "" | "." | "..") && !name.contains(['/', '\0']);
    let folder = Path::new(path).parent().filter(|_| is_plain && path.starts_with('/'))?;
    let mut paths = vec![folder.join(name), folder.join(".debug").join(name)];
    let relative = folder.strip_prefix("/").ok()?.join(name);
    paths.extend(debug_dirs.iter().map(|dir| dir.join(&relative)));
    Some((paths, *crc))
}

/// Opens a file below `root`, wherever the links in there want to lead.
fn open_regular(root: &Path, path: &Path) -> Option<File> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let is_host = root == Path::new("/");
    let root = open(root, directory, Mode::empty()).ok()?;
    // A process can mount a file system whose owner lets us wait for ever.
    let also = if is_host { ResolveFlags::empty() } else { ResolveFlags::NO_XDEV };
    let found = open_in_container(root, path, also, OFlags::empty()).ok()?;
    Located::new(found).ok()?.open().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_id_is_a_folder_and_a_name() {
        let path = by_build_id(&BuildId([0xab, 0xcd, 0xef].into())).unwrap();
        assert_eq!(path, Path::new(".build-id/ab/cdef.debug"));
        assert!(by_build_id(&BuildId([0xab].into())).is_none());
        assert!(by_build_id(&BuildId([].into())).is_none());
    }

    #[test]
    fn a_debug_link_is_looked_for_where_gdb_does() {
        let link = ("app.debug".to_owned(), 7);
        let dirs = [PathBuf::from("/usr/lib/debug")];
        let (paths, crc) = by_debug_link("/opt/app/app", Some(&link), &dirs).unwrap();
        let expected =
            ["/opt/app/app.debug", "/opt/app/.debug/app.debug", "/usr/lib/debug/opt/app/app.debug"];
        assert_eq!(paths, expected.map(PathBuf::from));
        assert_eq!(crc, 7);
    }

    #[test]
    fn a_debug_link_that_leads_elsewhere_is_not_followed() {
        for name in ["", ".", "..", "../../etc/shadow", "/etc/shadow", "a\0b"] {
            let link = (name.to_owned(), 0);
            assert!(by_debug_link("/opt/app", Some(&link), &[]).is_none(), "{name:?}");
        }
        let link = ("app.debug".to_owned(), 0);
        assert!(by_debug_link("[vdso]", Some(&link), &[]).is_none());
    }
}
