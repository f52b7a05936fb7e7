//! What a profile holds, sorted by content, so that neither the order in which stacks and spans
//! were met nor the numbers given to binaries show in the encoded bytes.

use std::{borrow::Cow, cmp::Reverse, collections::HashMap};

use crate::aggregate::Group;
use crate::attribute::{Location, SpanLabel, Unresolved};
use crate::decode::TraceId;
use crate::process::{BuildId, ElfId};
use crate::symbolize::{NamedFrame, Names};

use super::options::{EncodeOptions, SampleTypes};

/// The mapping of kernel frames, as perf names it.
const KERNEL: &str = "[kernel.kallsyms]";
/// The mapping of frames in no file.
const UNRESOLVED: &str = "[unresolved]";
/// The mapping of code that processes made at run time.
const JIT: &str = "[jit]";
/// A binary, or a function, that was not named. Names has all of them; a profile is valid anyway.
const UNKNOWN: &str = "[unknown]";
/// The frame of a stack without frames: a sample without a location is not in any flame graph.
pub(crate) const NO_STACK: &str = "[no stack]";

/// The longest string in a profile, in bytes. Pyroscope cuts at 65,535; demangled names beyond a
/// few thousand characters are template or generic expansions that nobody reads.
pub(super) const STRING_BYTES_MAX: usize = 4096;
/// The longest label value, in bytes: Pyroscope refuses a profile with one above 2048.
pub(super) const LABEL_BYTES_MAX: usize = 1024;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Mapping<'a> {
    pub(super) path: Cow<'a, str>,
    pub(super) build_id: Cow<'a, str>,
}

/// What is known of the locations in a mapping.
#[derive(Clone, Copy, Default)]
pub(super) struct Known {
    pub(super) files: bool,
    pub(super) lines: bool,
    pub(super) inlined: bool,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place<'a> {
    /// Index in `Content::mappings`.
    pub(super) mapping: usize,
    pub(super) address: u64,
    pub(super) lines: Vec<Line<'a>>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Line<'a> {
    pub(super) function: Cow<'a, str>,
    /// Empty if unknown.
    pub(super) file: Cow<'a, str>,
    pub(super) line: u32,
}

pub(super) type Labels<'a> = Vec<(&'a str, Cow<'a, str>)>;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sample {
    /// Index in `Content::stacks`.
    pub(super) stack: usize,
    /// Index in `Content::labels`.
    pub(super) labels: usize,
    pub(super) samples: u64,
    pub(super) cpu_ns: u64,
}

pub(super) struct Content<'a> {
    pub(super) mappings: Vec<Mapping<'a>>,
    /// For each mapping.
    pub(super) known: Vec<Known>,
    pub(super) places: Vec<Place<'a>>,
    /// Indices in `places`, leaf first.
    pub(super) stacks: Vec<Vec<usize>>,
    pub(super) labels: Vec<Labels<'a>>,
    /// By stack, then labels: neighbours share much of what they refer to.
    pub(super) samples: Vec<Sample>,
    /// The main binary, an index in `mappings`.
    pub(super) main: Option<usize>,
    pub(super) zero_value_samples: u64,
}

impl<'a> Content<'a> {
    pub(super) fn new(groups: &[&'a Group], names: &'a Names, options: &EncodeOptions) -> Self {
        // Numbers in the order of first use, for now.
        let mut rows = Vec::new();
        let mut stacks = Vec::new();
        let mut labels = Vec::new();
        // `None` stands for the frame of a stack that has none.
        let mut locations: HashMap<Option<Location>, usize> = HashMap::new();
        let mut zero_value_samples = 0_u64;
        for group in groups {
            let mut stack_numbers: Vec<Option<usize>> = vec![None; group.stacks.len()];
            let mut label_numbers: Vec<Option<usize>> = vec![None; group.spans.len() + 1];
            for row in &group.rows {
                let is_zero = match options.sample_types {
                    SampleTypes::Cpu => row.cpu_ns == 0,
                    SampleTypes::SamplesAndCpu => row.cpu_ns == 0 && row.samples == 0,
                };
                if is_zero {
                    zero_value_samples = zero_value_samples.saturating_add(row.samples);
                    continue;
                }
                let stack = *stack_numbers[row.stack].get_or_insert_with(|| {
                    let mut number = |location| {
                        let next = locations.len();
                        *locations.entry(location).or_insert(next)
                    };
                    let stack = &group.stacks[row.stack];
                    let mut numbers: Vec<_> =
                        stack.iter().map(|location| number(Some(*location))).collect();
                    if numbers.is_empty() {
                        numbers.push(number(None));
                    }
                    stacks.push(numbers);
                    stacks.len() - 1
                });
                let span = row.span.map(|span| &group.spans[span]);
                let label_set = *label_numbers[row.span.map_or(0, |span| span + 1)]
                    .get_or_insert_with(|| {
                        labels.push(labels_of(group, span, options));
                        labels.len() - 1
                    });
                let (samples, cpu_ns) = (row.samples, row.cpu_ns);
                rows.push(Sample { stack, labels: label_set, samples, cpu_ns });
            }
        }

        // Then ranks by content replace the numbers, from the bottom up.
        let mut numbered: Vec<_> = locations.into_iter().collect();
        numbered.sort_unstable_by_key(|(_, number)| *number);
        let main = main_binary(groups).and_then(|elf| mapping_of_elf(elf, names, options));
        let mut mappings: Vec<_> =
            numbered.iter().map(|(location, _)| mapping_of(*location, names, options)).collect();
        let has_main = main.is_some();
        mappings.extend(main);
        let mappings = Ranked::new(mappings);
        let main = if has_main { mappings.rank_of.last().copied() } else { None };

        let places = numbered.iter().zip(&mappings.rank_of).map(|((location, _), mapping)| {
            let path = &mappings.distinct[*mapping].path;
            Place {
                mapping: *mapping,
                address: address_of(*location),
                lines: lines_of(*location, path, names, options),
            }
        });
        let places = Ranked::new(places.collect());
        for number in stacks.iter_mut().flatten() {
            *number = places.rank_of[*number];
        }
        let stacks = Ranked::new(stacks);
        let labels = Ranked::new(labels);
        for row in &mut rows {
            row.stack = stacks.rank_of[row.stack];
            row.labels = labels.rank_of[row.labels];
        }

        let mut known = vec![Known::default(); mappings.distinct.len()];
        for place in &places.distinct {
            let known = &mut known[place.mapping];
            known.files |= place.lines.iter().any(|line| !line.file.is_empty());
            known.lines |= place.lines.iter().any(|line| line.line != 0);
            known.inlined |= place.lines.len() > 1;
        }
        Self {
            mappings: mappings.distinct,
            known,
            places: places.distinct,
            stacks: stacks.distinct,
            labels: labels.distinct,
            samples: merged(rows),
            main,
            zero_value_samples,
        }
    }
}

/// Items sorted, each once.
struct Ranked<T> {
    distinct: Vec<T>,
    /// Where each of the given items went.
    rank_of: Vec<usize>,
}

impl<T: Ord> Ranked<T> {
    fn new(items: Vec<T>) -> Self {
        let mut rank_of = vec![0; items.len()];
        let mut numbered: Vec<_> = items.into_iter().zip(0_usize..).collect();
        numbered.sort_unstable();
        let mut distinct: Vec<T> = Vec::with_capacity(numbered.len());
        for (item, number) in numbered {
            if distinct.last() != Some(&item) {
                distinct.push(item);
            }
            rank_of[number] = distinct.len() - 1;
        }
        Self { distinct, rank_of }
    }
}

/// Sorts, and adds up what has the same stack and the same labels.
fn merged(mut samples: Vec<Sample>) -> Vec<Sample> {
    samples.sort_unstable();
    samples.dedup_by(|next, kept| {
        let is_same = (next.stack, next.labels) == (kept.stack, kept.labels);
        if is_same {
            kept.samples = kept.samples.saturating_add(next.samples);
            kept.cpu_ns = kept.cpu_ns.saturating_add(next.cpu_ns);
        }
        is_same
    });
    samples
}

/// The main binary of the service that used most CPU time; the first of them if some are equal.
fn main_binary(groups: &[&Group]) -> Option<ElfId> {
    let cpu_ns =
        |group: &Group| group.rows.iter().fold(0_u64, |sum, row| sum.saturating_add(row.cpu_ns));
    groups
        .iter()
        .filter(|group| group.main_elf.is_some())
        .min_by_key(|group| (Reverse(cpu_ns(group)), &group.service))
        .and_then(|group| group.main_elf)
}

fn labels_of<'a>(
    group: &'a Group,
    span: Option<&'a SpanLabel>,
    options: &EncodeOptions,
) -> Labels<'a> {
    let mut labels = Labels::new();
    if options.service {
        let of_service = group.service.labels();
        labels.extend(of_service.map(|(name, value)| (name, clip(value, LABEL_BYTES_MAX))));
    }
    if let Some(span) = span {
        if options.span_id {
            labels.push(("span_id", Cow::Owned(span.span_id.to_string())));
        }
        if let (true, Some(name)) = (options.span_name, &span.name) {
            labels.push(("span_name", clip(name, LABEL_BYTES_MAX)));
        }
        labels.extend(
            span.attributes
                .iter()
                .filter(|_| options.span_attributes)
                .map(|attribute| (&*attribute.label, clip(&attribute.value, LABEL_BYTES_MAX))),
        );
        if options.trace_id && span.trace_id != TraceId::UNKNOWN {
            labels.push(("trace_id", Cow::Owned(span.trace_id.to_string())));
        }
    }
    // A label without a text would be read as the number 0.
    labels.retain(|(_, value)| !value.is_empty());
    labels
}

fn mapping_of<'a>(
    location: Option<Location>,
    names: &'a Names,
    options: &EncodeOptions,
) -> Mapping<'a> {
    let named = |path| Mapping { path: Cow::Borrowed(path), build_id: Cow::Borrowed("") };
    match location {
        Some(Location::Kernel(_)) => named(KERNEL),
        Some(Location::Jit { .. }) => named(JIT),
        Some(Location::Unresolved(_)) | None => named(UNRESOLVED),
        Some(Location::Elf { elf, .. }) => {
            mapping_of_elf(elf, names, options).unwrap_or_else(|| named(UNKNOWN))
        }
    }
}

fn mapping_of_elf<'a>(
    elf: ElfId,
    names: &'a Names,
    options: &EncodeOptions,
) -> Option<Mapping<'a>> {
    let binary = names.binaries.get(&elf)?;
    let path = if binary.path.is_empty() { UNKNOWN } else { &binary.path };
    let build_id = binary.build_id.as_ref().map(BuildId::to_string).unwrap_or_default();
    Some(Mapping { path: name(path, options), build_id: Cow::Owned(build_id) })
}

fn address_of(location: Option<Location>) -> u64 {
    match location {
        Some(Location::Kernel(address) | Location::Jit { address, .. }) => address.0,
        Some(Location::Elf { file_offset, .. }) => file_offset,
        Some(Location::Unresolved(_)) | None => 0,
    }
}

/// The function of a location that has no name, in the binary at `path`.
pub(crate) fn unnamed(location: Location, path: &str) -> Cow<'static, str> {
    match location {
        Location::Unresolved(reason) => Cow::Borrowed(reason.frame_name()),
        Location::Jit { .. } => Cow::Borrowed(Unresolved::Anonymous.frame_name()),
        Location::Kernel(address) => Cow::Owned(format!("{KERNEL}+{:#x}", address.0)),
        Location::Elf { file_offset, .. } => {
            let binary = path.rsplit('/').next().unwrap_or(path);
            Cow::Owned(format!("{binary}+{file_offset:#x}"))
        }
    }
}

fn lines_of<'a>(
    location: Option<Location>,
    path: &str,
    names: &'a Names,
    options: &EncodeOptions,
) -> Vec<Line<'a>> {
    let frames: &'a [NamedFrame] =
        location.and_then(|location| names.frames.get(&location)).map_or(&[], |frames| frames);
    if frames.is_empty() {
        let function = location.map_or(Cow::Borrowed(NO_STACK), |location| unnamed(location, path));
        return vec![Line { function, file: Cow::Borrowed(""), line: 0 }];
    }
    frames
        .iter()
        .map(|frame| {
            let function = if frame.function.is_empty() { UNKNOWN } else { &frame.function };
            let file = frame.file.as_deref().unwrap_or_default();
            let file = if options.avoid_go_names && is_go_name(file) { "" } else { file };
            Line {
                function: name(function, options),
                file: clip(file, STRING_BYTES_MAX),
                line: frame.line,
            }
        })
        .collect()
}

fn is_go_name(name: &str) -> bool {
    name.starts_with(".go") || name.ends_with(".go")
}

fn name<'a>(name: &'a str, options: &EncodeOptions) -> Cow<'a, str> {
    let mut name = clip(name, STRING_BYTES_MAX);
    if options.avoid_go_names {
        if name.ends_with(".go") {
            name.to_mut().push('_');
        }
        if name.starts_with(".go") {
            name.to_mut().insert(0, '_');
        }
    }
    name
}

/// Cuts after at most `bytes_max` bytes, and says so.
fn clip(text: &str, bytes_max: usize) -> Cow<'_, str> {
    const MARK: &str = "…";
    if text.len() <= bytes_max {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(bytes_max - MARK.len());
    Cow::Owned(format!("{}{MARK}", &text[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_between_characters() {
        assert_eq!(clip("abcdef", 6), "abcdef");
        assert_eq!(clip("abcdefg", 6), "abc…");
        assert_eq!(clip("aäöü", 6), "aä…");
    }

    #[test]
    fn go_names_are_avoided_only_for_pyroscope() {
        let options = EncodeOptions::pyroscope(false);
        assert_eq!(name("serve.go", &options), "serve.go_");
        assert_eq!(name(".gopclntab", &options), "_.gopclntab");
        assert_eq!(name(".go", &options), "_.go_");
        assert_eq!(name("golang.org", &options), "golang.org");
        assert_eq!(name("serve.go", &EncodeOptions::file()), "serve.go");
    }
}
