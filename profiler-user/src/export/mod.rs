//! Encoded profiles to where they are wanted, or why not. The only module that opens client sockets.
//!
//! Two destinations: a [file](mod@file) and a [Pyroscope](pyroscope::Pyroscope) server. And where the
//! agent's own telemetry goes: [`otlp`].

use bytes::Bytes;

pub mod file;
pub mod otlp;
pub mod pyroscope;
#[rustfmt::skip]
#[expect(
    unreachable_pub,
    unused_qualifications,
    reason = "generated code does not know where it is included"
)]
mod proto;
mod secret;

pub use secret::{Credential, CredentialError, Secret};

/// The labels of a series, each name once, sorted by name. `__name__` and `service_name` are among
/// them.
pub type Labels = Vec<(String, String)>;

/// One encoded profile on its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The series that it belongs to. Two profiles of one series must differ in their
    /// `time_nanos` by a millisecond or more, the parts of a split window too: a server with v1
    /// storage shows only the first of those that do not.
    pub labels: Labels,
    /// The pprof message. Plain: it is compressed here, once, however often it is sent. One that is
    /// gzip already is sent as it is.
    pub pprof: Bytes,
    /// How many samples of ours are inside: the unit of the books.
    pub samples: u64,
    /// When its window began, in nanoseconds since the Unix epoch.
    pub start_unix_ns: i64,
    /// How long its window was, in nanoseconds.
    pub duration_ns: i64,
}
