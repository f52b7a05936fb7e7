//! The folder that holds the tools: what is in it is complete, or not there.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context as _, Result};

use crate::bpf_toolchain;

/// The cache folder, made if it is not there.
pub(crate) fn dir() -> Result<PathBuf> {
    let dir = bpf_toolchain::cache_dir()
        .context("no place for the cache: neither XDG_CACHE_HOME nor HOME is an absolute path")?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// Held while something is installed, so that two set-ups do not collide.
pub(crate) struct Lock(#[expect(dead_code, reason = "closing it releases the lock")] File);

/// Waits for other set-ups to end.
pub(crate) fn lock(cache: &Path) -> Result<Lock> {
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("       another set-up is at work: waiting for it to end");
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    remove_leftovers(cache)?;
    Ok(Lock(file))
}

/// What an interrupted set-up left. Only called under the lock, so that nobody uses it.
fn remove_leftovers(cache: &Path) -> Result<()> {
    for entry in fs::read_dir(cache).context("cannot read the cache")? {
        let entry = entry.context("cannot read the cache")?;
        if entry.file_name().to_string_lossy().starts_with(".partial-") {
            let path = entry.path();
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// A folder to build in, beside the finished ones so that a rename completes it. It is removed
/// with everything in it when it goes out of scope.
pub(crate) struct Partial(PathBuf);

impl Partial {
    pub(crate) fn new(cache: &Path, what: &str) -> Result<Self> {
        let path = cache.join(format!(".partial-{what}-{}", process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    /// A new folder in it.
    pub(crate) fn dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("warning: cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Gives a finished file or folder its name: from here on it counts as installed.
pub(crate) fn publish(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    if to.is_dir() {
        // Whoever asks for it found it incomplete.
        fs::remove_dir_all(to).with_context(|| format!("cannot replace {}", to.display()))?;
    }
    fs::rename(from, to)
        .with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
}

/// The environment variables that would change how a tool is built: a user's flags for spanprof
/// are not meant for the tools.
pub(crate) fn without_build_flags(command: &mut process::Command) -> &mut process::Command {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let prefixes = ["CARGO_BUILD_", "CARGO_PROFILE_", "CARGO_TARGET_", "CARGO_ENCODED_"];
        if text == "RUSTFLAGS" || prefixes.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

/// FNV-1a with 64 bits: the same on every machine and with every Rust.
pub(crate) fn hash(parts: &[Vec<u8>]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        // The length keeps ["ab", "c"] and ["a", "bc"] apart.
        for byte in part.len().to_le_bytes().iter().chain(part) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = env::temp_dir().join(format!("spanprof-xtask-{name}-{}", process::id()));
        fs::create_dir_all(&path).expect("a temporary folder");
        path
    }

    #[test]
    fn the_hash_keeps_parts_apart() {
        let hashes = [
            hash(&[b"ab".to_vec(), b"c".to_vec()]),
            hash(&[b"a".to_vec(), b"bc".to_vec()]),
            hash(&[b"abc".to_vec()]),
        ];
        assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2] && hashes[0] != hashes[2]);
        // FNV-1a's own test value is of the bytes alone: eight of length, then "a".
        assert_eq!(hash(&[]), 0xcbf2_9ce4_8422_2325);
    }

    #[test]
    fn an_interrupted_set_up_leaves_nothing_that_counts() {
        let cache = folder("interrupted");
        fs::create_dir_all(cache.join(".partial-x-1/deep")).expect("left over");
        fs::create_dir_all(cache.join("finished")).expect("finished");
        drop(lock(&cache).expect("free"));
        assert!(!cache.join(".partial-x-1").exists());
        assert!(cache.join("finished").exists());
        fs::remove_dir_all(&cache).expect("clean up");
    }

    #[test]
    fn a_partial_folder_goes_and_what_was_published_stays() {
        let cache = folder("partial");
        let partial = Partial::new(&cache, "tool").expect("made");
        fs::write(partial.dir("out").expect("made").join("bin"), "x").expect("written");
        publish(&partial.dir("out").expect("there"), &cache.join("tool-1")).expect("published");
        drop(partial);
        let left: Vec<_> = fs::read_dir(&cache).expect("there").collect();
        assert_eq!(left.len(), 1);
        assert_eq!(fs::read_to_string(cache.join("tool-1/bin")).expect("published"), "x");
        fs::remove_dir_all(&cache).expect("clean up");
    }
}
