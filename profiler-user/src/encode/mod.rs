//! Windows to pprof bytes. The only module that knows pprof; pure and deterministic.
//!
//! The bytes depend on what a window holds, not on the order in which it was met: everything is
//! sorted by content first (`content`), then written into tables (`table`) part by part (`part`).
//!
//! What a reader may rely on, because pprof or Pyroscope demand it; [`validate`] checks it:
//!
//! - Strings are unique, the first is empty; ids are not 0; every reference exists.
//! - Every location is in a mapping and has a line with a function that has a name; every mapping
//!   says that it has functions, so that no reader tries to find them itself.
//! - The first mapping is the service's main binary, where it is known.
//! - Lines of a location are innermost first: what was inlined, then what it was inlined into.
//! - A location's address is its offset in the *file* of its mapping, whose `memory_start` and
//!   `file_offset` are 0; of the kernel, `[kernel.kallsyms]`, the address in the running kernel;
//!   of code made at run time, `[jit]`, the address in its process; of a frame without a file, in the mapping `[unresolved]`, 0. A stack without frames has one,
//!   `[no stack]`: whoever adds up a flame graph finds all of the CPU time.
//! - Samples with the same stack and the same labels are one; none has only zeroes.
//! - `period_type` is `cpu/nanoseconds` and `period` is the window's; `default_sample_type` is not
//!   set: Pyroscope does not renumber it when it prunes the string table.

mod admitted;
mod content;
mod options;
mod part;
mod proto;
mod split;
mod table;
#[cfg(test)]
pub(crate) mod test_window;
#[cfg(test)]
mod tests;
mod validate;

use std::io::Write as _;
use std::ops::ControlFlow;

use flate2::{Compression, GzBuilder};

pub use admitted::{AdmittedValues, OTHER, cap_attributes};
pub use options::{EncodeOptions, Limits, SampleTypes};
pub use split::split_by_span_name;
pub use validate::{Invalid, Totals, validate};

use crate::aggregate::{Group, Window};
use crate::symbolize::Names;
use content::Content;
pub(crate) use content::{NO_STACK, unnamed};
use part::Part;

/// A profile of one service, as one or more pprof files whose samples add up to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Each is complete; none is empty. More than one only where the limits demand it.
    pub parts: Vec<EncodedProfile>,
    /// How many of the group's samples are in no part: their rows have no value other than 0, and
    /// pprof's readers drop such samples. A timer never makes one.
    pub zero_value_samples: u64,
}

/// One pprof file and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedProfile {
    /// The file, not compressed.
    pub pprof: Vec<u8>,
    /// How many samples the profiler took for it.
    pub samples: u64,
    /// Their CPU time in nanoseconds.
    pub cpu_ns: u64,
    /// How many entries they are in the file: distinct stacks with labels.
    pub entries: usize,
}

impl EncodedProfile {
    /// The file as `.pb.gz`. The same file gives the same bytes: no time stamp, no name.
    ///
    /// At level 2, a profile of 10,000 samples takes a quarter of the time of the default level 6,
    /// and is 5 % larger.
    #[must_use]
    pub fn gzip(&self) -> Vec<u8> {
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::new(2));
        gzip.write_all(&self.pprof).expect("writing to a Vec does not fail");
        gzip.finish().expect("writing to a Vec does not fail")
    }
}

/// Encodes the samples of one service.
///
/// A part is within the limits, except that a part of one sample may be larger than
/// `max_bytes`: there is no smaller one, and whether to send it is the exporter's decision.
#[must_use]
pub fn encode(window: &Window, group: &Group, names: &Names, options: &EncodeOptions) -> Encoded {
    let content = Content::new(&[group], names, options);
    Encoded {
        parts: parts(window, &content, options),
        zero_value_samples: content.zero_value_samples,
    }
}

/// Encodes a whole window as one file with every label: those of the service
/// ([`ServiceIdentity::labels`](crate::process::ServiceIdentity::labels)), `span_id`, `span_name`,
/// chosen attributes and `trace_id`. A window without samples is a valid file as well.
#[must_use]
pub fn encode_window(window: &Window, names: &Names) -> EncodedProfile {
    let options = EncodeOptions::file();
    let groups: Vec<_> = window.groups.iter().collect();
    let content = Content::new(&groups, names, &options);
    let mut part = Part::new(window, &content, &options, 0);
    for sample in &content.samples {
        part.add(sample);
    }
    part.finish()
}

fn parts(window: &Window, content: &Content<'_>, options: &EncodeOptions) -> Vec<EncodedProfile> {
    let mut parts = Vec::new();
    let mut part = Part::new(window, content, options, 0);
    for sample in &content.samples {
        part = match part.add_within_limits(sample) {
            ControlFlow::Continue(part) => part,
            ControlFlow::Break(full) => {
                parts.push(full);
                let mut part = Part::new(window, content, options, parts.len());
                part.add(sample);
                part
            }
        };
    }
    if !part.is_empty() {
        parts.push(part.finish());
    }
    parts
}
