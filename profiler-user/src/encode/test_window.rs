//! Windows for tests of what encodes and reports them.

use std::{collections::BTreeMap, sync::Arc};

use indexmap::IndexSet;
use proptest::prelude::*;

use crate::aggregate::{Group, Row, Stack, Window};
use crate::attribute::{Location, SpanLabel, Unresolved};
use crate::decode::{Addr, SpanId, TraceId};
use crate::process::{BuildId, ElfId, ServiceIdentity};
use crate::symbolize::{Binary, NamedFrame, Names};

pub(crate) const PERIOD_NS: u64 = 10_000_000;

/// Samples by stack and span.
type Counts = BTreeMap<(usize, Option<usize>), u64>;

/// Samples of one stack under one span, in words.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) service: &'static str,
    /// Leaf first; a word of [`location`].
    pub(crate) stack: Vec<&'static str>,
    /// Its number and its name.
    pub(crate) span: Option<(u8, Option<&'static str>)>,
    pub(crate) samples: u64,
}

/// A location by name: `k:` is the kernel, `a:` and `b:` are binaries, `?` is unmapped. A function
/// `outer<inner` is `inner` inlined into `outer`; one that ends in `!` has no name.
fn location(word: &str, elf_ids: [u32; 2]) -> (Location, Vec<NamedFrame>) {
    let Some((kind, functions)) = word.split_once(':') else {
        return (Location::Unresolved(Unresolved::Unmapped), Vec::new());
    };
    let address = functions.bytes().fold(7, |sum, byte| (sum * 31 + u64::from(byte)) % 999_999 + 1);
    let location = match kind {
        "k" => Location::Kernel(Addr(0xffff_ffff_8000_0000 + address)),
        "a" => Location::Elf { elf: ElfId(elf_ids[0]), file_offset: address },
        "b" => Location::Elf { elf: ElfId(elf_ids[1]), file_offset: address },
        _ => panic!("unknown kind of location {word}"),
    };
    let named = |function: &str| NamedFrame {
        function: Arc::from(function),
        file: (kind == "a").then(|| Arc::from("src/main.rs")),
        line: if kind == "a" { 12 } else { 0 },
    };
    let names = functions.split('<').rev().map(named).collect();
    (location, if functions.ends_with('!') { Vec::new() } else { names })
}

/// A window in which all this was seen, in this order, with binaries numbered so.
pub(crate) fn window(seen: &[Seen], elf_ids: [u32; 2]) -> (Window, Names) {
    let mut names = Names::default();
    let binary = |path: &str, build_id: Option<&[u8]>| Binary {
        path: Arc::from(path),
        build_id: build_id.map(|bytes| BuildId(Box::from(bytes))),
    };
    names.binaries.insert(ElfId(elf_ids[0]), binary("/app/checkout", Some(&[0xab, 0x01])));
    names.binaries.insert(ElfId(elf_ids[1]), binary("/lib/libc.so.6", None));

    let mut groups: BTreeMap<&str, (Group, Counts)> = BTreeMap::new();
    for seen in seen {
        let mut stack = Vec::new();
        for word in &seen.stack {
            let (location, frames) = location(word, elf_ids);
            if !frames.is_empty() {
                names.frames.insert(location, Arc::from(frames));
            }
            stack.push(location);
        }
        let (group, rows) = groups.entry(seen.service).or_insert_with(|| {
            let service = ServiceIdentity::named(seen.service);
            let group = Group {
                service: Arc::new(service),
                main_elf: Some(ElfId(elf_ids[0])),
                stacks: IndexSet::new(),
                spans: IndexSet::new(),
                rows: Vec::new(),
            };
            (group, Counts::new())
        });
        let stack = group.stacks.insert_full(Stack::from(stack)).0;
        let span = seen.span.map(|(number, name)| {
            let span = SpanLabel {
                trace_id: TraceId([number; 16]),
                span_id: SpanId([number; 8]),
                name: name.map(Arc::from),
                attributes: Arc::default(),
            };
            group.spans.insert_full(span).0
        });
        *rows.entry((stack, span)).or_default() += seen.samples;
    }
    let groups = groups.into_values().map(|(mut group, rows)| {
        group.rows = rows
            .into_iter()
            .map(|((stack, span), samples)| Row {
                stack,
                span,
                samples,
                cpu_ns: samples * PERIOD_NS,
            })
            .collect();
        group
    });
    let window = Window {
        start_unix_ns: 1_760_000_000_000_000_000,
        duration_ns: 10_000_000_000,
        period_ns: PERIOD_NS,
        groups: groups.collect(),
    };
    (window, names)
}

/// See [`Seen`].
pub(crate) fn seen(
    service: &'static str,
    stack: &[&'static str],
    span: Option<(u8, Option<&'static str>)>,
    samples: u64,
) -> Seen {
    Seen { service, stack: stack.to_vec(), span, samples }
}

/// Two services, three named spans, one without a name, and samples outside of any.
pub(crate) fn checkout() -> (Window, Names) {
    let pay = Some((1, Some("POST /pay")));
    let cart = Some((2, Some("GET /cart")));
    window(
        &[
            seen("checkout", &["a:pay::sign<pay::hash", "a:pay", "a:main"], pay, 30),
            seen("checkout", &["k:do_write", "b:write!", "a:pay", "a:main"], pay, 5),
            seen("checkout", &["a:cart::sort", "a:cart", "a:main"], cart, 12),
            seen("checkout", &["a:cart", "a:main"], Some((3, Some("GET /cart"))), 3),
            seen("checkout", &["a:cart", "a:main"], Some((4, None)), 1),
            seen("checkout", &["?", "a:main"], None, 7),
            seen("unknown_service:sh", &["k:do_write"], None, 2),
            seen("unknown_service:sh", &[], None, 1),
        ],
        [1, 2],
    )
}

/// Gives spans other names; what becomes the same span is one.
pub(crate) fn rename_spans(group: &mut Group, name_of: impl Fn(Option<&str>) -> Option<String>) {
    let mut spans = IndexSet::new();
    let renamed = group.spans.iter().map(|span| {
        let name = name_of(span.name.as_deref()).map(Arc::from);
        spans.insert_full(SpanLabel { name, ..span.clone() }).0
    });
    let renamed: Vec<_> = renamed.collect();
    for row in &mut group.rows {
        row.span = row.span.map(|span| renamed[span]);
    }
    group.spans = spans;
}

/// Gives functions other names.
pub(crate) fn rename_functions(names: &mut Names, name_of: impl Fn(&str) -> String) {
    for frames in names.frames.values_mut() {
        let renamed = frames
            .iter()
            .map(|frame| NamedFrame { function: name_of(&frame.function).into(), ..frame.clone() });
        *frames = renamed.collect();
    }
}

/// Anything that a window may hold.
pub(crate) fn any_seen() -> impl Strategy<Value = Vec<Seen>> {
    let word = prop::sample::select(
        &[
            "k:do_write",
            "k:entry!",
            "a:main",
            "a:pay<hash",
            "a:pay<hash<mix",
            "a:cart",
            "a:x!",
            "b:write",
            "b:write!",
            "b:read",
            "?",
            "a:serve.go",
            "a:odd;name 12",
            "b:<script>",
        ][..],
    );
    let span = (1_u8..7, prop::option::of(prop::sample::select(&["GET /", "a;b", "é", ""][..])));
    let seen = (
        prop::sample::select(&["checkout", "shop 1", "# x"][..]),
        prop::collection::vec(word, 0..6),
        prop::option::of(span),
        0_u64..4,
    );
    let seen =
        seen.prop_map(|(service, stack, span, samples)| Seen { service, stack, span, samples });
    prop::collection::vec(seen, 0..60)
}
