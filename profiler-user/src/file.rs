//! Reads small files whole.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read as _, Result};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The content of a small regular file: anything else would block or never end. An error if it has
/// more bytes than that.
pub(crate) fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    // A FIFO without a writer blocks in open(2) unless it is told not to.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file: File = OpenOptions::new().read(true).custom_flags(nonblock).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    let read = file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(read).is_ok_and(|read| read <= max_bytes) {
        Ok(bytes)
    } else {
        let reason = format!("it is larger than {max_bytes} bytes");
        Err(Error::new(ErrorKind::FileTooLarge, reason))
    }
}
