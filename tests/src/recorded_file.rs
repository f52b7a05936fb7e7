//! A recorded file of `spanprof record --raw`, written by hand from its description: it shares no
//! code with the writer and the reader under test, and holds nothing of the machine it is made on.

use std::io::{Read as _, Write as _};

use anyhow::{Context as _, Result, ensure};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

const MAGIC: &[u8; 16] = b"spanprof-raw 2\n\0";

const IN_KERNEL: u16 = 1 << 1;
const LEAF_RETURNS: u16 = 1;
/// What the user stack of a sample came to: see `profiler_common::sample`.
const KERNEL_THREAD: u8 = 1;
const TRUNCATED: u8 = 4;
const NO_FRAME_POINTER: u8 = 7;
const STALE: u8 = 12;
/// A bit of a user frame: it was interrupted by a signal.
const INTERRUPTED: u64 = 1 << 63;

const SPAN_READ: u8 = 0;
const NO_SLOT: u8 = 1;

const PERIOD_NS: u64 = 2_000_000;

/// One sample record, in the byte order of the machine that replays it.
#[derive(Clone, Copy, Debug, Default)]
struct Sample<'a> {
    process: u32,
    pid: u32,
    flags: u16,
    user_stack: u8,
    kernel: &'a [u64],
    user: &'a [u64],
    span: Option<&'a [u8]>,
}

impl Sample<'_> {
    fn chunk(&self) -> Vec<u8> {
        let len = |words: &[u64]| u16::try_from(words.len()).unwrap_or(u16::MAX);
        let span = self.span.unwrap_or_default();
        let mut bytes = self.process.to_le_bytes().to_vec();
        for word in [12_345_678_901_234, PERIOD_NS, 9, 77] {
            bytes.extend(word.to_ne_bytes());
        }
        for word in [self.pid, self.pid + 1, 3] {
            bytes.extend(word.to_ne_bytes());
        }
        let span_len = u16::try_from(span.len()).unwrap_or(u16::MAX);
        for half in [1, self.flags, len(self.kernel), len(self.user), span_len] {
            bytes.extend(half.to_ne_bytes());
        }
        bytes.extend([self.user_stack, if self.span.is_some() { SPAN_READ } else { NO_SLOT }]);
        bytes.extend(b"worker\0\0\0\0\0\0\0\0\0\0");
        for address in self.kernel.iter().chain(self.user) {
            bytes.extend(address.to_ne_bytes());
        }
        bytes.extend(span);
        // A record is whole words; the process's number is not part of it.
        bytes.resize((bytes.len() - 4).next_multiple_of(8) + 4, 0);
        bytes
    }
}

fn span(trace: u8, span_id: u64, attributes: &[(u8, &str)]) -> Vec<u8> {
    let mut list = Vec::new();
    for (key, value) in attributes {
        list.extend([*key, u8::try_from(value.len()).unwrap_or(u8::MAX)]);
        list.extend(value.as_bytes());
    }
    let len = u16::try_from(list.len()).unwrap_or(u16::MAX).to_ne_bytes();
    [&[trace; 16][..], &span_id.to_be_bytes(), &[1, 1], &len, &list].concat()
}

fn processes() -> [Value; 3] {
    let process = |pid: u32, name: &str, service: Value, mappings: Value, unreadable: Value| {
        json!({
            "pid": pid, "start_time": 1234, "name": name, "service": service,
            "main_elf": if pid == 100 { json!(1) } else { Value::Null },
            "mappings": mappings, "truncated": false,
            "attribute_keys": ["local_root_span_id", "span_name", "local_root_span_name"],
            "unreadable": unreadable,
        })
    };
    let mapping = |start: u64, backing: Value| json!({ "start": start, "end": start + 0x1_0000, "file_offset": 0x1000, "backing": backing });
    let mappings = json!([
        mapping(0x1_0000, json!({ "Elf": 1 })),
        mapping(0x7f00_0000, json!({ "Elf": 2 })),
        mapping(0x7fff_0000, json!("Anonymous")),
    ]);
    let service = |name: &str, namespace: Value| json!({ "name": name, "namespace": namespace });
    [
        process(100, "shop", service("shop", json!("eu")), mappings, Value::Null),
        process(2, "kthreadd", service("[kernel]", Value::Null), json!([]), Value::Null),
        process(300, "", service("unknown_service", Value::Null), json!([]), json!("Gone")),
    ]
}

fn samples() -> Vec<Vec<u8>> {
    let pay_child = span(0xaa, 0x0203, &[(0, "0000000000000102"), (1, "sign"), (2, "POST /pay")]);
    let pay = span(0xaa, 0x0102, &[(0, "0000000000000102"), (1, "POST /pay")]);
    let unnamed = span(0xbb, 0x0405, &[]);
    let none = span(0, 0, &[(1, "no such span")]);
    // A leaf, and two return addresses: each is looked up one byte before.
    let sign: &[u64] = &[0x1_0010, 0x1_0101, 0x1_0201];
    let shop = Sample { pid: 100, user: sign, ..Sample::default() };
    let in_read: &[u64] = &[0xffff_ffff_8100_0010, 0xffff_ffff_8100_0101];
    let all = [
        (5, Sample { span: Some(&pay_child), ..shop }),
        (3, Sample { span: Some(&pay), user: &[0x1_0101, 0x1_0201], ..shop }),
        (2, Sample { span: Some(&unnamed), ..shop }),
        (1, Sample { span: Some(&none), ..shop }),
        // In a system call: the first user frame is where it returns to.
        (
            4,
            Sample {
                span: Some(&pay),
                flags: IN_KERNEL | LEAF_RETURNS,
                kernel: in_read,
                user: &[0x7f00_0021, 0x1_0201],
                ..shop
            },
        ),
        (2, Sample { user_stack: TRUNCATED, user: &[0x7fff_0000, 0x1_0201], ..shop }),
        (1, Sample { user_stack: NO_FRAME_POINTER, ..shop }),
        // Of a stack that was walked as another program's, only the first frame is right.
        (2, Sample { user_stack: STALE, ..shop }),
        // What a signal interrupted is no return address.
        (1, Sample { user: &[0x1_0010, 0x1_0100 | INTERRUPTED, 0x1_0201], ..shop }),
        (1, Sample { user: &[0x6666_6666, 0x1_0201], ..shop }),
        (
            3,
            Sample {
                process: 1,
                pid: 2,
                flags: IN_KERNEL,
                user_stack: KERNEL_THREAD,
                kernel: in_read,
                ..Sample::default()
            },
        ),
        (1, Sample { process: 2, pid: 300, user: sign, ..Sample::default() }),
    ];
    all.iter().flat_map(|(count, sample)| vec![sample.chunk(); *count]).collect()
}

/// How many samples the file holds.
pub const SAMPLES: u64 = 26;

fn names() -> Value {
    let named = |location: Value, functions: &[&str]| {
        let frames = functions
            .iter()
            .map(|function| json!({ "function": function, "file": "src/shop.rs", "line": 7 }));
        json!([location, frames.collect::<Vec<_>>()])
    };
    let elf = |elf: u64, offset: u64| json!({ "Elf": { "elf": elf, "file_offset": offset } });
    json!({
        "entries": [
            named(json!({ "Kernel": 0xffff_ffff_8100_0010_u64 }), &["vfs_read"]),
            named(json!({ "Kernel": 0xffff_ffff_8100_0100_u64 }), &["ksys_read"]),
            // `hash` is inlined in `sign`.
            named(elf(1, 0x1010), &["hash", "sign"]),
            named(elf(1, 0x1100), &["pay"]),
            named(elf(1, 0x1200), &["main"]),
        ],
        "binaries": [
            [1, { "path": "/app/shop", "build_id": "00112233445566778899aabbccddeeff00112233" }],
            // Without names: its frame is `libssl.so.3+0x1020`.
            [2, { "path": "/lib/libssl.so.3", "build_id": null }],
        ],
    })
}

/// The chunks of the file: tag, length, content.
///
/// # Errors
///
/// A chunk is too long to say so.
pub fn chunks() -> Result<Vec<u8>> {
    // By index of the BPF programs' counters: taken, and then as many as are not in any span.
    let mut counters = vec![0; 18];
    counters[0] = SAMPLES;
    let end = json!({
        "start_unix_ns": 1_760_000_000_000_000_000_u64, "duration_ns": 1_000_000_000,
        "period_ns": PERIOD_NS, "host": "node-1", "counters": counters,
        "lost_attribute_queue_full": 0,
    });
    let json = |tag: u8, value: &Value| (tag, value.to_string().into_bytes());
    let mut all: Vec<(u8, Vec<u8>)> = Vec::new();
    all.extend(processes().iter().map(|process| json(b'P', process)));
    all.extend(samples().into_iter().map(|sample| (b'S', sample)));
    all.push(json(b'E', &end));
    all.push(json(b'N', &names()));
    let mut bytes = Vec::new();
    for (tag, content) in all {
        bytes.push(tag);
        bytes.extend(u32::try_from(content.len())?.to_le_bytes());
        bytes.extend(content);
    }
    Ok(bytes)
}

/// The file.
///
/// # Errors
///
/// Those of [`chunks`].
pub fn file() -> Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(MAGIC.to_vec(), Compression::best());
    gzip.write_all(&chunks()?)?;
    Ok(gzip.finish()?)
}

/// The chunks of a file.
///
/// # Errors
///
/// It is not a recorded file.
pub fn chunks_of(file: &[u8]) -> Result<Vec<u8>> {
    let gzip = file.strip_prefix(MAGIC).context("not a recorded file")?;
    let mut chunks = Vec::new();
    let mut decoder = GzDecoder::new(gzip);
    decoder.read_to_end(&mut chunks)?;
    ensure!(decoder.into_inner().is_empty(), "something follows the gzip stream");
    Ok(chunks)
}

/// As much of a sample as tests look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// When, on the boot clock.
    pub boot_ns: u64,
    /// On which CPU.
    pub cpu: u32,
}

/// The samples among the chunks of a file of this machine.
///
/// # Errors
///
/// A chunk is shorter than it says.
pub fn samples_of(chunks: &[u8]) -> Result<Vec<Taken>> {
    let taken = |record: &[u8]| {
        // The time first, the CPU at byte 40.
        let boot_ns = record.first_chunk().context("a record is cut")?;
        let cpu = record.get(40..).and_then(<[u8]>::first_chunk).context("a record is cut")?;
        Ok(Taken { boot_ns: u64::from_ne_bytes(*boot_ns), cpu: u32::from_ne_bytes(*cpu) })
    };
    records_of(chunks)?.into_iter().map(taken).collect()
}

/// The sample records among the chunks of a file, without the number of their process.
///
/// # Errors
///
/// A chunk is shorter than it says.
pub fn records_of(chunks: &[u8]) -> Result<Vec<&[u8]>> {
    let parts = parts(chunks)?.into_iter();
    let samples = parts.filter(|(tag, _)| *tag == b'S');
    samples.map(|(_, content)| content.get(4..).context("no record")).collect()
}

/// Each chunk's tag and content.
pub(crate) fn parts(mut chunks: &[u8]) -> Result<Vec<(u8, &[u8])>> {
    let mut parts = Vec::new();
    while let Some((head, rest)) = chunks.split_first_chunk::<5>() {
        let [tag, len @ ..] = *head;
        let len = usize::try_from(u32::from_le_bytes(len))?;
        let (content, rest) = rest.split_at_checked(len).context("a chunk is cut")?;
        chunks = rest;
        parts.push((tag, content));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_among_the_chunks() {
        let samples = samples_of(&chunks().unwrap()).unwrap();
        assert_eq!(samples.len() as u64, SAMPLES);
        let expected = Taken { boot_ns: 12_345_678_901_234, cpu: 3 };
        assert!(samples.iter().all(|sample| *sample == expected));
        assert_eq!(chunks_of(&file().unwrap()).unwrap(), chunks().unwrap());
        assert!(samples_of(b"S\x09\0\0\0short").is_err());
    }
}
