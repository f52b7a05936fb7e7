//! The files of a virtual machine, as the archive that a Linux kernel unpacks into its root
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use cpio::newc::{Builder, ModeFileType, trailer};

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Initramfs {
    archive: Vec<u8>,
    names: BTreeSet<PathBuf>,
}

impl Initramfs {
    /// What the kernel and every program needs: a console, and places for other file systems.
    ///
    /// # Errors
    ///
    /// Writing to memory does not fail.
    pub fn new() -> Result<Self> {
        let mut new = Self::default();
        for folder in ["/dev", "/proc", "/sys", "/tmp"] {
            new.folder(Path::new(folder))?;
        }
        // The streams of the first program: major and minor of `/dev/console`.
        let console = Builder::new("dev/console")
            .mode(0o600)
            .set_mode_file_type(ModeFileType::Char)
            .rdev_major(5)
            .rdev_minor(1);
        new.entry(console, &[])?;
        Ok(new)
    }

    /// A program with the shared libraries that it runs with here, and without debug information,
    /// which an emulated CPU takes minutes to read.
    ///
    /// # Errors
    ///
    /// It or a library cannot be read, a library is not found, or there is no `strip`.
    pub fn program(&mut self, to: &str, from: &Path) -> Result<()> {
        let stripped = tempfile::NamedTempFile::new()?.into_temp_path();
        let mut strip = Command::new("strip");
        strip.arg("--strip-debug").arg(from).arg("-o").arg(&stripped);
        let status = strip.status().context("`strip` is needed")?;
        ensure!(status.success(), "strip {}: {status}", from.display());
        fs::set_permissions(&stripped, fs::Permissions::from_mode(0o755))?;
        self.file(Path::new(to), &stripped)?;
        for library in libraries(from)? {
            self.file(&library, &library)?;
        }
        Ok(())
    }

    /// A copy of a file.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn file(&mut self, to: &Path, from: &Path) -> Result<()> {
        if !self.names.insert(to.to_owned()) {
            return Ok(());
        }
        if let Some(folder) = to.parent() {
            self.folder(folder)?;
        }
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mode = fs::metadata(from)?.permissions().mode() & 0o777;
        let entry = Builder::new(name(to)?).mode(mode).set_mode_file_type(ModeFileType::Regular);
        self.entry(entry, &content)
    }

    /// A folder, and those that it is in.
    fn folder(&mut self, path: &Path) -> Result<()> {
        let above: Vec<_> = path.ancestors().filter(|it| it.parent().is_some()).collect();
        for folder in above.into_iter().rev() {
            if self.names.insert(folder.to_owned()) {
                let entry = Builder::new(name(folder)?).mode(0o755);
                self.entry(entry.set_mode_file_type(ModeFileType::Directory), &[])?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: Builder, content: &[u8]) -> Result<()> {
        // Entries of the same number would be links to one file.
        let number = u32::try_from(self.names.len())?;
        let mut writer = entry.ino(number).write(&mut self.archive, u32::try_from(content.len())?);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }

    /// The archive.
    ///
    /// # Errors
    ///
    /// Writing to memory does not fail.
    pub fn finish(self) -> Result<Vec<u8>> {
        Ok(trailer(self.archive)?)
    }
}

/// A path as the archive has it.
fn name(path: &Path) -> Result<&str> {
    path.to_str().and_then(|path| path.strip_prefix('/')).context("an absolute path of text")
}

/// The shared libraries of a program, and what loads them, by `ldd`.
pub(crate) fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("`ldd` is needed")?;
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    if said.concat().contains("not a dynamic executable") || said[0].contains("statically linked") {
        return Ok(Vec::new());
    }
    ensure!(output.status.success(), "ldd {}: {}", program.display(), said[1]);
    loaded(&said[0])
}

/// From lines such as `libc.so.6 => /lib/libc.so.6 (0x00007f00)`.
fn loaded(table: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in table.lines() {
        ensure!(!line.contains("not found"), "{}", line.trim());
        let path = line.split_once("=>").map_or(line, |(_, path)| path).trim();
        let path = path.split_whitespace().next().unwrap_or_default();
        // The kernel's own library is no file.
        if path.starts_with('/') {
            paths.push(path.into());
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_that_are_loaded() {
        let table = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                     \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f9b)\n\
                     \t/lib64/ld-linux-x86-64.so.2 (0x00007f9c)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(loaded(table).unwrap(), expected.map(PathBuf::from));
        assert!(loaded("\tlibx.so => not found\n").is_err());
    }

    #[test]
    fn a_file_is_there_once_with_its_folders() {
        let mut initramfs = Initramfs::new().unwrap();
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        for _ in 0..2 {
            initramfs.file(Path::new("/a/b/file"), &here).unwrap();
        }
        let archive = initramfs.finish().unwrap();
        let text = String::from_utf8_lossy(&archive);
        for name in ["dev/console\0", "a\0", "a/b\0", "a/b/file\0", "TRAILER!!!\0"] {
            assert_eq!(text.matches(&format!("00{name}")).count(), 1, "{name}");
        }
        assert!(text.contains(&fs::read_to_string(here).unwrap()));
    }
}
