//! A reader that shares nothing with the writer: it knows the two standards, ELF, and `/proc`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use object::read::elf::{FileHeader as _, ProgramHeader as _, Sym as _};
use object::{Endianness, elf};

/// A process that is looked at.
pub(crate) struct Process {
    proc: String,
    memory: File,
}

/// What the process says about itself.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ProcessContext {
    pub(crate) published_at_ns: u64,
    pub(crate) resource: BTreeMap<String, Value>,
    pub(crate) attributes: BTreeMap<String, Value>,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Number(i64),
    List(Vec<Self>),
}

impl Value {
    pub(crate) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// What a thread says about itself.
#[derive(Debug, PartialEq)]
pub(crate) struct ThreadContext {
    pub(crate) trace_id: [u8; 16],
    pub(crate) span_id: [u8; 8],
    pub(crate) flags: u8,
    pub(crate) attributes: BTreeMap<String, String>,
}

impl ThreadContext {
    pub(crate) fn attribute(&self, key: &str) -> Option<&str> {
        self.attributes.get(key).map(String::as_str)
    }
}

impl Process {
    pub(crate) fn new(pid: u32) -> Self {
        let proc = format!("/proc/{pid}");
        let memory = File::open(format!("{proc}/mem")).unwrap();
        Self { proc, memory }
    }

    pub(crate) fn this() -> Self {
        Self::new(std::process::id())
    }

    fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_exact_at(&mut bytes, address).unwrap();
        bytes
    }

    fn read_u64(&self, address: u64) -> u64 {
        u64::from_ne_bytes(self.read(address, 8).try_into().unwrap())
    }

    /// The process context, found by the name of its mapping.
    pub(crate) fn context(&self) -> Option<ProcessContext> {
        const NAMES: [&str; 3] = ["[anon_shmem:OTEL_CTX]", "[anon:OTEL_CTX]", "/memfd:OTEL_CTX"];
        let maps = fs::read_to_string(format!("{}/maps", self.proc)).unwrap();
        let mut found = maps.lines().filter(|line| {
            let name = line.splitn(6, ' ').nth(5).unwrap_or_default().trim_start();
            NAMES.iter().any(|prefix| name.starts_with(prefix))
        });
        let line = found.next()?;
        assert_eq!(found.next(), None, "one context per process");
        let mut fields = line.split(' ');
        let (start, _end) = fields.next().unwrap().split_once('-').unwrap();
        assert_eq!(fields.next().unwrap().as_bytes()[2], b'-', "not executable");
        let start = u64::from_str_radix(start, 16).unwrap();

        let header = self.read(start, 32);
        assert_eq!(&header[..8], b"OTEL_CTX");
        assert_eq!(header[8..12], 2_u32.to_ne_bytes());
        let len = u32::from_ne_bytes(header[12..16].try_into().unwrap());
        let published_at_ns = u64::from_ne_bytes(header[16..24].try_into().unwrap());
        assert_ne!(published_at_ns, 0);
        let payload = u64::from_ne_bytes(header[24..].try_into().unwrap());
        let payload = self.read(payload, len.try_into().unwrap());

        let mut context = ProcessContext { published_at_ns, ..ProcessContext::default() };
        for (field, bytes) in messages(&payload) {
            match field {
                1 => context.resource.extend(messages(bytes).map(|(_, pair)| key_value(pair))),
                2 => context.attributes.extend([key_value(bytes)]),
                other => panic!("unknown field {other}"),
            }
        }
        Some(context)
    }

    /// The slot's distance from the thread pointer: by the program's `.dynsym` and `PT_TLS`.
    pub(crate) fn slot_by_symbol(&self) -> Option<i64> {
        let file = fs::read(format!("{}/exe", self.proc)).unwrap();
        let header = elf::FileHeader64::<Endianness>::parse(&*file).unwrap();
        let endian = header.endian().unwrap();
        let programs = header.program_headers(endian, &*file).unwrap();
        let tls = programs.iter().find(|program| program.p_type(endian) == elf::PT_TLS)?;
        let sections = header.sections(endian, &*file).unwrap();
        let symbols = sections.symbols(endian, &*file, elf::SHT_DYNSYM).unwrap();
        let symbol = symbols.iter().find(|symbol| {
            symbol.name(endian, symbols.strings()) == Ok(b"otel_thread_ctx_v1")
                && symbol.st_type() == elf::STT_TLS
                && symbol.st_shndx(endian) != elf::SHN_UNDEF
        })?;
        assert_eq!(symbol.st_size(endian), 8);
        let weak = cfg!(feature = "external-slot");
        let expected = if weak { elf::STB_WEAK } else { elf::STB_GLOBAL };
        assert_eq!(symbol.st_bind(), expected);
        let signed = |value: u64| i64::try_from(value).unwrap();
        let align = signed(tls.p_align(endian)).max(1);
        let (vaddr, memsz) = (signed(tls.p_vaddr(endian)), signed(tls.p_memsz(endian)));
        let value = signed(symbol.st_value(endian));
        Some(if cfg!(target_arch = "x86_64") {
            value - memsz - (-vaddr - memsz).rem_euclid(align)
        } else {
            value + 16 + (vaddr - 16).rem_euclid(align)
        })
    }

    /// The slot's distance from the thread pointer: by the program's note and the block that it
    /// leads to. Panics if the hook is not what it should be.
    pub(crate) fn slot_by_note(&self) -> Option<i64> {
        let file = fs::read(format!("{}/exe", self.proc)).unwrap();
        let header = elf::FileHeader64::<Endianness>::parse(&*file).unwrap();
        let endian = header.endian().unwrap();
        let programs = header.program_headers(endian, &*file).unwrap();
        let (at, note) = programs.iter().find_map(|program| {
            let (at, bytes) = (program.p_vaddr(endian), program.data(endian, &*file).ok()?);
            let note = bytes.windows(12).position(|window| window == b"span-marker\0")?;
            let fixed = bytes.get(note.checked_sub(12)?..note)?;
            let expected = [12_u32, 16, 1].map(u32::to_ne_bytes).concat();
            let found = program.p_type(endian) == elf::PT_NOTE && fixed == expected;
            found.then(|| (at + u64::try_from(note + 12).unwrap(), bytes[note + 12..].to_vec()))
        })?;
        let distance = |at: usize| i64::from_ne_bytes(note[at..at + 8].try_into().unwrap());
        let maps = fs::read_to_string(format!("{}/maps", self.proc)).unwrap();
        let exe = fs::read_link(format!("{}/exe", self.proc)).unwrap();
        let first = maps.lines().find(|line| line.ends_with(exe.to_str().unwrap())).unwrap();
        let start = u64::from_str_radix(first.split('-').next().unwrap(), 16).unwrap();
        let load = programs.iter().find(|program| program.p_type(endian) == elf::PT_LOAD).unwrap();
        let at = start - load.p_vaddr(endian) + at;
        let info = self.read(at.wrapping_add_signed(distance(0)), 32);
        assert_eq!(&info[..8], b"SPANMRK1");
        assert_eq!(info[8..12], 1_u32.to_ne_bytes());
        let hook = self.read((at + 8).wrapping_add_signed(distance(8)), 6);
        if cfg!(target_arch = "x86_64") {
            assert_eq!(hook, [0x0f, 0x1f, 0x44, 0, 0, 0xc3]);
        }
        let filled = info[12..16] == 1_u32.to_ne_bytes();
        filled.then(|| i64::from_ne_bytes(info[16..24].try_into().unwrap()))
    }

    /// The record of the thread with this thread pointer.
    pub(crate) fn thread(&self, thread_pointer: u64) -> Option<ThreadContext> {
        let context = self.context().unwrap();
        let Some(Value::Number(offset)) = context.attributes.get("span_marker.tp_offset") else {
            panic!("no offset in {context:?}");
        };
        let Some(Value::List(keys)) = context.attributes.get("threadlocal.attribute_key_map")
        else {
            panic!("no keys in {context:?}");
        };
        let record = self.read_u64(thread_pointer.wrapping_add_signed(*offset));
        if record == 0 {
            return None;
        }
        assert_eq!(record % 2, 0, "aligned to two bytes");
        let header = self.read(record, 28);
        assert_eq!(header[24], 1, "valid");
        let len = usize::from(u16::from_ne_bytes([header[26], header[27]]));
        assert!(28 + len <= 640);
        let bytes = self.read(record + 28, len);
        let mut attributes = BTreeMap::new();
        let mut rest = &*bytes;
        while let [key, len, tail @ ..] = rest {
            let (value, tail) = tail.split_at(usize::from(*len));
            let Value::Text(key) = &keys[usize::from(*key)] else { panic!("{keys:?}") };
            attributes.insert(key.clone(), String::from_utf8(value.to_vec()).unwrap());
            rest = tail;
        }
        assert!(rest.is_empty(), "complete attributes");
        Some(ThreadContext {
            trace_id: header[..16].try_into().unwrap(),
            span_id: header[16..24].try_into().unwrap(),
            flags: header[25],
            attributes,
        })
    }
}

/// What the calling thread publishes.
pub(crate) fn this_thread() -> Option<ThreadContext> {
    Process::this().thread(thread_pointer())
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn thread_pointer() -> u64 {
    let thread_pointer;
    // SAFETY: the thread control block starts with a pointer to itself.
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) thread_pointer) };
    thread_pointer
}

#[cfg(target_arch = "aarch64")]
pub(crate) fn thread_pointer() -> u64 {
    let thread_pointer;
    // SAFETY: reads a register that any code may read.
    unsafe { std::arch::asm!("mrs {}, tpidr_el0", out(reg) thread_pointer) };
    thread_pointer
}

fn key_value(bytes: &[u8]) -> (String, Value) {
    let fields: BTreeMap<u64, &[u8]> = messages(bytes).collect();
    assert_eq!(fields.keys().collect::<Vec<_>>(), [&1, &2]);
    (String::from_utf8(fields[&1].to_vec()).unwrap(), value(fields[&2]))
}

fn value(bytes: &[u8]) -> Value {
    match bytes.split_first() {
        Some((0x0a, _)) => {
            let (_, text) = messages(bytes).next().unwrap();
            Value::Text(String::from_utf8(text.to_vec()).unwrap())
        }
        Some((0x18, mut rest)) => Value::Number(varint(&mut rest).cast_signed()),
        Some((0x2a, _)) => {
            let (_, list) = messages(bytes).next().unwrap();
            Value::List(messages(list).map(|(_, item)| value(item)).collect())
        }
        other => panic!("unknown value {other:?}"),
    }
}

/// The length-delimited fields of a protobuf message.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let tag = varint(&mut bytes);
        assert_eq!(tag & 7, 2, "length-delimited");
        let len = usize::try_from(varint(&mut bytes)).unwrap();
        let (field, rest) = bytes.split_at(len);
        bytes = rest;
        Some((tag >> 3, field))
    })
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (byte, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}
