//! Recorded files: what came from the kernel, with what is needed to make sense of it elsewhere.
//!
//! A file is [`MAGIC`], then a gzip stream of chunks, each a tag byte, a length (`u32`, little
//! endian) and that many bytes:
//!
//! | tag | content | when |
//! | --- | --- | --- |
//! | `P` | JSON: what was known of a process ([`RecordedProcess`](crate::process::RecordedProcess)); numbered 0, 1, … | before its first sample |
//! | `S` | the number of a process (`u32`, little endian), then a sample record | as taken |
//! | `E` | JSON: time, period and host ([`End`]), and the kernel's counters | once, last but one |
//! | `N` | JSON: the names of all locations ([`RecordedNames`](crate::symbolize::RecordedNames)) | once, last |
//!
//! Each sample names what was known of its process when it was taken, so that a replay depends on
//! no clock. A sample record is in the byte order of the machine that took it.

mod reader;
mod writer;

pub use reader::{ReadError, Reader, Recorded};
pub use writer::Writer;

use serde::{Deserialize, Serialize};

/// How a recorded file begins; the number is the version of the format.
pub const MAGIC: &[u8; 16] = b"spanprof-raw 2\n\0";

/// The longest chunk that is written or read.
const CHUNK_MAX: u32 = 256 << 20;

const TAG_PROCESS: u8 = b'P';
const TAG_SAMPLE: u8 = b'S';
const TAG_END: u8 = b'E';
const TAG_NAMES: u8 = b'N';

/// When and where a file was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// When sampling began, in nanoseconds since the Unix epoch.
    pub start_unix_ns: i64,
    /// How long it went on, in nanoseconds.
    pub duration_ns: i64,
    /// How much CPU time one sample stands for, in nanoseconds.
    pub period_ns: u64,
    /// The host's name.
    pub host: String,
    /// `profiler_common::counter`, by index.
    pub counters: Vec<u64>,
    /// Samples that the kernel gave and that are not in the file: the collecting thread was behind.
    pub lost_attribute_queue_full: u64,
}

#[cfg(test)]
mod tests;
