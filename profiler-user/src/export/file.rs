//! Output files: all or nothing.
//!
//! An output is written under a temporary name in the directory that it will be in, and renamed
//! when it is complete. A reader never sees half of it, and an earlier file of that name stays
//! whole until then.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Tries at a temporary name that nobody has. Names are random: one is enough in practice.
const NAME_ATTEMPTS: u32 = 16;

/// Why an output file cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The path names no file.
    #[error("{} does not name a file", path.display())]
    NoFileName {
        /// The path.
        path: PathBuf,
    },
    /// Something that is not a regular file has that name.
    #[error("{} exists and is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// No file can be made in the directory.
    #[error("cannot create a file in {}", directory.display())]
    Create {
        /// The directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The content could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The output.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The complete file could not be given its name.
    #[error("cannot move the complete output to {}", path.display())]
    Rename {
        /// The output.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Writes an output with `write`, so that either all of it is there or nothing has changed.
///
/// # Errors
///
/// When the directory or the disk refuses, or `write` fails: the temporary file is removed then.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), FileError> {
    let file = AtomicFile::create(path)?;
    let failed = |source| FileError::Write { path: path.to_owned(), source };
    let mut writer = BufWriter::new(file);
    write(&mut writer).map_err(failed)?;
    let file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
    file.commit()
}

/// Tells whether [`write_atomically`] can write there, before the work that it is for.
///
/// # Errors
///
/// What [`write_atomically`] would say.
pub fn check_writable(path: &Path) -> Result<(), FileError> {
    AtomicFile::create(path).map(drop)
}

/// A file without its final name, which [`commit`](Self::commit) gives it. Dropped without that, it
/// is removed.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    renamed: bool,
}

impl AtomicFile {
    /// Makes a file beside the one that it will be.
    ///
    /// # Errors
    ///
    /// The directory does not take one, or something that is not a file has the name.
    pub fn create(target: &Path) -> Result<Self, FileError> {
        let name = match (target.file_name(), target.as_os_str().as_encoded_bytes().last()) {
            (Some(name), Some(last)) if *last != b'/' => name,
            _ => return Err(FileError::NoFileName { path: target.to_owned() }),
        };
        // A rename would replace a device such as /dev/null, or the symbolic link that
        // /dev/stdout is.
        if std::fs::symlink_metadata(target).is_ok_and(|found| !found.is_file()) {
            return Err(FileError::NotAFile { path: target.to_owned() });
        }
        let directory = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut attempt = 0;
        loop {
            let mut temporary = std::ffi::OsString::from(".");
            temporary.push(name);
            temporary.push(format!(".{:08x}.tmp", fastrand::u32(..)));
            let path = directory.join(temporary);
            // Profiles tell what a host runs: not for everyone to read.
            let created = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&path);
            match created {
                Ok(file) => {
                    let target = target.to_owned();
                    return Ok(Self { file, temporary: path, target, renamed: false });
                }
                Err(error)
                    if error.kind() == io::ErrorKind::AlreadyExists && attempt < NAME_ATTEMPTS =>
                {
                    attempt += 1;
                }
                Err(source) => {
                    return Err(FileError::Create { directory: directory.to_owned(), source });
                }
            }
        }
    }

    /// The file is complete: it gets its name, in place of an earlier one.
    ///
    /// # Errors
    ///
    /// The disk refuses; the file is removed then.
    pub fn commit(mut self) -> Result<(), FileError> {
        // Without it a crash of the host can leave the name on an empty file.
        self.file
            .sync_all()
            .map_err(|source| FileError::Write { path: self.target.clone(), source })?;
        std::fs::rename(&self.temporary, &self.target)
            .map_err(|source| FileError::Rename { path: self.target.clone(), source })?;
        self.renamed = true;
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.renamed
            && let Err(error) = std::fs::remove_file(&self.temporary)
        {
            let path = self.temporary.display();
            tracing::warn!(%path, %error, "cannot remove a temporary file");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_complete_output_replaces_the_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.pb.gz");
        for content in [&b"first"[..], b"second, longer"] {
            check_writable(&path).unwrap();
            write_atomically(&path, |out| out.write_all(content)).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), content);
            assert_eq!(names(dir.path()), ["out.pb.gz"]);
        }
    }

    #[test]
    fn a_failed_write_leaves_the_earlier_output_and_no_other_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.svg");
        std::fs::write(&path, "earlier").unwrap();
        let result = write_atomically(&path, |out| {
            out.write_all(&[b'x'; 100_000])?;
            Err(io::Error::other("the renderer gave up"))
        });
        assert!(matches!(result, Err(FileError::Write { .. })), "{result:?}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "earlier");
        assert_eq!(names(dir.path()), ["out.svg"]);
    }

    #[test]
    fn the_target_is_absent_until_the_output_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        write_atomically(&path, |out| {
            out.write_all(b"half")?;
            out.flush()?;
            assert!(!path.exists());
            out.write_all(b" and half")
        })
        .unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "half and half");
    }

    #[test]
    fn checking_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        check_writable(&dir.path().join("out")).unwrap();
        assert!(names(dir.path()).is_empty());
    }

    #[track_caller]
    fn check_refused(path: &Path, expected: &str) {
        let error = check_writable(path).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(write_atomically(path, |_| Ok(())).unwrap_err().to_string(), expected);
    }

    #[test]
    fn what_cannot_be_written_is_refused_up_front() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        check_refused(
            &missing.join("out"),
            &format!("cannot create a file in {}", missing.display()),
        );
        check_refused(
            dir.path(),
            &format!("{} exists and is not a regular file", dir.path().display()),
        );
        check_refused(Path::new("/dev/null"), "/dev/null exists and is not a regular file");
        check_refused(Path::new("/"), "/ does not name a file");
        check_refused(Path::new(""), " does not name a file");
        check_refused(Path::new("out/"), "out/ does not name a file");
        // Even root cannot create files there.
        check_refused(Path::new("/proc/out"), "cannot create a file in /proc");
    }
}
