//! One pprof file while it grows, with its exact size.

use std::{num::NonZeroU64, ops::ControlFlow};

use prost::Message as _;

use crate::aggregate::Window;

use super::EncodedProfile;
use super::content::{Content, Sample};
use super::options::{EncodeOptions, SampleTypes};
use super::proto::{
    Function, Label, Line, Location, Mapping, Profile, Sample as ProtoSample, ValueType,
};
use super::table::{DenseTable, Strings, Table};

/// Strings and ids as they are given out, so far.
pub(super) struct Part<'c> {
    content: &'c Content<'c>,
    options: &'c EncodeOptions,
    strings: Strings<'c>,
    mapping_ids: DenseTable,
    location_ids: DenseTable,
    /// By name and file, indices in the string table.
    function_ids: Table<(i64, i64)>,
    /// Everything but the string table.
    profile: Profile,
    /// What the profile takes when it is encoded, with its string table.
    bytes: usize,
    samples: u64,
    cpu_ns: u64,
}

impl<'c> Part<'c> {
    pub(super) fn new(
        window: &Window,
        content: &'c Content<'c>,
        options: &'c EncodeOptions,
        index: usize,
    ) -> Self {
        let mut part = Self {
            content,
            options,
            strings: Strings::new(),
            mapping_ids: DenseTable::new(content.mappings.len()),
            location_ids: DenseTable::new(content.places.len()),
            function_ids: Table::new(),
            profile: Profile::default(),
            bytes: field_bytes(0),
            samples: 0,
            cpu_ns: 0,
        };
        let cpu = ValueType { r#type: part.string("cpu"), unit: part.string("nanoseconds") };
        if options.sample_types == SampleTypes::SamplesAndCpu {
            let samples = ValueType { r#type: part.string("samples"), unit: part.string("count") };
            part.profile.sample_type.push(samples);
        }
        part.profile.sample_type.push(cpu);
        part.profile.period_type = Some(cpu);
        part.profile.period = saturated(window.period_ns);
        part.profile.time_nanos = start_of_part(window.start_unix_ns, index);
        part.profile.duration_nanos = window.duration_ns;
        part.bytes += part.profile.encoded_len();
        if let Some(main) = content.main {
            part.mapping(main);
        }
        part
    }

    pub(super) fn is_empty(&self) -> bool {
        self.profile.sample.is_empty()
    }

    /// Adds a sample, or finishes the part if it would pass a limit with it. The first one always
    /// fits.
    pub(super) fn add_within_limits(
        mut self,
        sample: &Sample,
    ) -> ControlFlow<EncodedProfile, Self> {
        let limits = self.options.limits;
        if !self.is_empty() && self.profile.sample.len() >= limits.max_samples {
            return ControlFlow::Break(self.finish());
        }
        let before = Lengths::of(&self);
        let is_first = self.is_empty();
        self.add(sample);
        if is_first || self.bytes <= limits.max_bytes {
            ControlFlow::Continue(self)
        } else {
            before.restore(&mut self);
            ControlFlow::Break(self.finish())
        }
    }

    pub(super) fn add(&mut self, sample: &Sample) {
        let content = self.content;
        let location_id =
            content.stacks[sample.stack].iter().map(|place| self.location(*place).get()).collect();
        let label = content.labels[sample.labels]
            .iter()
            .map(|(key, value)| Label {
                key: self.string(key),
                str: self.string(value),
                ..Label::default()
            })
            .collect();
        let cpu_ns = saturated(sample.cpu_ns);
        let value = match self.options.sample_types {
            SampleTypes::Cpu => vec![cpu_ns],
            SampleTypes::SamplesAndCpu => vec![saturated(sample.samples), cpu_ns],
        };
        let message = ProtoSample { location_id, value, label };
        self.bytes += field_bytes(message.encoded_len());
        self.profile.sample.push(message);
        self.samples = self.samples.saturating_add(sample.samples);
        self.cpu_ns = self.cpu_ns.saturating_add(sample.cpu_ns);
    }

    pub(super) fn finish(mut self) -> EncodedProfile {
        self.profile.string_table = self.strings.into_table();
        let pprof = self.profile.encode_to_vec();
        debug_assert_eq!(pprof.len(), self.bytes, "the size was counted item by item");
        EncodedProfile {
            pprof,
            samples: self.samples,
            cpu_ns: self.cpu_ns,
            entries: self.profile.sample.len(),
        }
    }

    fn string(&mut self, string: &'c str) -> i64 {
        let (index, is_new) = self.strings.index(string);
        if is_new {
            self.bytes += field_bytes(string.len());
        }
        index
    }

    fn mapping(&mut self, mapping: usize) -> NonZeroU64 {
        let (id, is_new) = self.mapping_ids.id(mapping);
        if is_new {
            let known = self.content.known[mapping];
            let mapping = &self.content.mappings[mapping];
            let message = Mapping {
                id: id.get(),
                filename: self.string(&mapping.path),
                build_id: self.string(&mapping.build_id),
                has_functions: true,
                has_filenames: known.files,
                has_line_numbers: known.lines,
                has_inline_frames: known.inlined,
                ..Mapping::default()
            };
            self.bytes += field_bytes(message.encoded_len());
            self.profile.mapping.push(message);
        }
        id
    }

    fn location(&mut self, place: usize) -> NonZeroU64 {
        let (id, is_new) = self.location_ids.id(place);
        if is_new {
            let place = &self.content.places[place];
            let line = place
                .lines
                .iter()
                .map(|line| Line {
                    function_id: self.function(&line.function, &line.file).get(),
                    line: i64::from(line.line),
                    column: 0,
                })
                .collect();
            let message = Location {
                id: id.get(),
                mapping_id: self.mapping(place.mapping).get(),
                address: place.address,
                line,
                is_folded: false,
            };
            self.bytes += field_bytes(message.encoded_len());
            self.profile.location.push(message);
        }
        id
    }

    fn function(&mut self, name: &'c str, file: &'c str) -> NonZeroU64 {
        let (name, filename) = (self.string(name), self.string(file));
        let (id, is_new) = self.function_ids.id((name, filename));
        if is_new {
            let message =
                Function { id: id.get(), name, system_name: name, filename, start_line: 0 };
            self.bytes += field_bytes(message.encoded_len());
            self.profile.function.push(message);
        }
        id
    }
}

/// When a part of a window begins: a millisecond after the part before it. Pyroscope's first storage
/// shows only one of two profiles of a series that begin in the same millisecond.
fn start_of_part(start_unix_ns: i64, index: usize) -> i64 {
    const MILLISECOND: i64 = 1_000_000;
    let index = i64::try_from(index).unwrap_or(i64::MAX);
    start_unix_ns.saturating_add(index.saturating_mul(MILLISECOND))
}

/// How much a part holds, to take the latest sample out again before the part is finished. The ids
/// that it was given stay given: nothing is added to a part that is full.
struct Lengths {
    strings: usize,
    mappings: usize,
    locations: usize,
    functions: usize,
    entries: usize,
    bytes: usize,
    samples: u64,
    cpu_ns: u64,
}

impl Lengths {
    fn of(part: &Part<'_>) -> Self {
        Self {
            strings: part.strings.len(),
            mappings: part.profile.mapping.len(),
            locations: part.profile.location.len(),
            functions: part.profile.function.len(),
            entries: part.profile.sample.len(),
            bytes: part.bytes,
            samples: part.samples,
            cpu_ns: part.cpu_ns,
        }
    }

    fn restore(&self, part: &mut Part<'_>) {
        part.strings.truncate(self.strings);
        part.profile.mapping.truncate(self.mappings);
        part.profile.location.truncate(self.locations);
        part.profile.function.truncate(self.functions);
        part.profile.sample.truncate(self.entries);
        part.bytes = self.bytes;
        part.samples = self.samples;
        part.cpu_ns = self.cpu_ns;
    }
}

/// What a string or message of `len` bytes takes as an element of a repeated field of a profile.
fn field_bytes(len: usize) -> usize {
    // Field numbers below 16 make a key of one byte: all repeated fields of a profile that we use.
    1 + prost::length_delimiter_len(len) + len
}

/// pprof's numbers are signed; 2^63 ns are 292 years.
fn saturated(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
