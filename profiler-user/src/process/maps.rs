//! The text of `/proc/PID/maps` to mappings. Pure.
//!
//! The names in it are chosen by the process, and it is read while the process goes on mapping: a
//! line that makes no sense is counted and left out, whatever it holds.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::borrow::Cow;

/// The most text that is read. 65,530 mappings (`vm.max_map_count`'s default) with a path of 150
/// bytes each fit.
pub(super) const TEXT_MAX: usize = 16 << 20;

/// The most executable mappings that are kept of one process.
pub(super) const MAPPINGS_MAX: usize = 65_536;

/// The longest line that is looked at: `PATH_MAX` is 4096, and an escaped byte is four.
const LINE_MAX: usize = 4 * 4096 + 128;

/// A process has one process context; a few stale ones are no reason to miss it.
const CONTEXTS_MAX: usize = 4;

/// What the mapping of a process context can be called (OTEP 4719, "Publication"): named shared
/// memory, named private memory, or, where the kernel cannot name memory, a memfd.
const CONTEXT_NAMES: [&[u8]; 3] =
    [b"[anon_shmem:OTEL_CTX]", b"[anon:OTEL_CTX]", b"/memfd:OTEL_CTX"];

/// What a process has mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Maps {
    /// The executable mappings, in the order of the text.
    pub(super) executable: Vec<MapsEntry>,
    /// The mappings that are named like a process context.
    pub(super) contexts: Vec<ContextMapping>,
    /// Lines that could not be understood.
    pub(super) malformed_lines: u64,
    /// There were more executable mappings than are kept.
    pub(super) truncated: bool,
}

/// One executable mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MapsEntry {
    /// The first address.
    pub(super) start: u64,
    /// The address behind the last one; greater than `start`.
    pub(super) end: u64,
    /// Where in the file the mapping starts.
    pub(super) file_offset: u64,
    /// The file's inode, 0 where there is no file.
    pub(super) inode: u64,
    /// The device of the file, as `(major, minor)`.
    pub(super) device: (u32, u32),
    /// What the kernel calls it.
    pub(super) name: EntryName,
}

/// What an executable mapping is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EntryName {
    /// Nothing, or a name that the process gave to memory without a file.
    Anonymous,
    /// The kernel's own: `[vdso]`, `[vsyscall]`, `[uprobes]`.
    Special(Box<str>),
    /// A file, by its path in the process's root, any bytes.
    File(Box<[u8]>),
}

/// A mapping that is named like a process context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContextMapping {
    /// The first address.
    pub(super) start: u64,
    /// Must not be executable (OTEP 4719).
    pub(super) executable: bool,
}

impl Maps {
    /// Parses the whole text.
    pub(super) fn parse(text: &[u8]) -> Self {
        let mut maps = Self::default();
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match Line::parse(line) {
                Some(line) => maps.add(&line),
                None => maps.malformed_lines = maps.malformed_lines.saturating_add(1),
            }
        }
        maps
    }

    fn add(&mut self, line: &Line<'_>) {
        let context = CONTEXT_NAMES.iter().any(|name| line.name.starts_with(name));
        if context && self.contexts.len() < CONTEXTS_MAX {
            self.contexts.push(ContextMapping { start: line.start, executable: line.executable });
        }
        if !line.executable {
            return;
        }
        if self.executable.len() >= MAPPINGS_MAX {
            self.truncated = true;
            return;
        }
        self.executable.push(MapsEntry {
            start: line.start,
            end: line.end,
            file_offset: line.file_offset,
            inode: line.inode,
            device: line.device,
            name: EntryName::new(line.name),
        });
    }
}

impl EntryName {
    fn new(name: &[u8]) -> Self {
        if name.starts_with(b"/") {
            return Self::File(file_path(name).into());
        }
        let process_named = [&b"[anon:"[..], b"[anon_shmem:", b"[heap]", b"[stack"];
        if name.is_empty() || process_named.iter().any(|prefix| name.starts_with(prefix)) {
            return Self::Anonymous;
        }
        Self::Special(String::from_utf8_lossy(name).into())
    }
}

/// The path without the kernel's additions: it writes a line feed as `\012`, and ` (deleted)`
/// behind the path of a file that has no name any more. A path can end like that by itself; the
/// inode, which is compared after opening, tells.
fn file_path(name: &[u8]) -> Cow<'_, [u8]> {
    const ESCAPED: &[u8] = br"\012";
    let path = name.strip_suffix(b" (deleted)").unwrap_or(name);
    if !path.windows(ESCAPED.len()).any(|window| window == ESCAPED) {
        return Cow::Borrowed(path);
    }
    let mut unescaped = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        if let Some(tail) = rest.strip_prefix(ESCAPED) {
            unescaped.push(b'\n');
            rest = tail;
        } else {
            unescaped.push(*first);
            rest = tail;
        }
    }
    Cow::Owned(unescaped)
}

/// One line: `start-end perms offset major:minor inode    name`.
struct Line<'a> {
    start: u64,
    end: u64,
    executable: bool,
    file_offset: u64,
    device: (u32, u32),
    inode: u64,
    name: &'a [u8],
}

impl<'a> Line<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        if line.len() > LINE_MAX {
            return None;
        }
        let (range, rest) = split_at_byte(line, b' ')?;
        let (permissions, rest) = split_at_byte(rest, b' ')?;
        let (offset, rest) = split_at_byte(rest, b' ')?;
        let (device, rest) = split_at_byte(rest, b' ')?;
        let (inode, name) = split_at_byte(rest, b' ').unwrap_or((rest, b""));
        let (start, end) = split_at_byte(range, b'-')?;
        let (major, minor) = split_at_byte(device, b':')?;
        let (start, end) = (hex(start)?, hex(end)?);
        if start >= end || permissions.len() != 4 {
            return None;
        }
        Some(Self {
            start,
            end,
            executable: permissions.get(2) == Some(&b'x'),
            file_offset: hex(offset)?,
            device: (u32::try_from(hex(major)?).ok()?, u32::try_from(hex(minor)?).ok()?),
            inode: number(inode, 10)?,
            name: trim_leading_spaces(name),
        })
    }
}

fn split_at_byte(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == separator)?;
    let (head, tail) = text.split_at_checked(at)?;
    Some((head, tail.get(1..)?))
}

fn trim_leading_spaces(mut text: &[u8]) -> &[u8] {
    while let Some(rest) = text.strip_prefix(b" ") {
        text = rest;
    }
    text
}

fn hex(text: &[u8]) -> Option<u64> {
    number(text, 16)
}

fn number(text: &[u8], radix: u32) -> Option<u64> {
    // `from_str_radix` takes a sign, the kernel writes none.
    if !text.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(text).ok()?, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn only(text: &str) -> MapsEntry {
        let maps = Maps::parse(text.as_bytes());
        assert_eq!((maps.executable.len(), maps.malformed_lines), (1, 0), "{maps:?}");
        maps.executable[0].clone()
    }

    #[track_caller]
    fn check_name(name: &str, expected: &EntryName) {
        let line = format!("7f00-7f10 r-xp 00002000 fd:1a 42{:20}{name}\n", "");
        assert_eq!(only(&line).name, *expected, "{name:?}");
    }

    fn file(path: &str) -> EntryName {
        EntryName::File(path.as_bytes().into())
    }

    #[test]
    fn reads_every_field() {
        let entry = only("55d0c0de1000-55d0c0de5000 r-xp 0001a000 fd:1a 1837 /usr/bin/a b\n");
        assert_eq!(
            entry,
            MapsEntry {
                start: 0x55d0_c0de_1000,
                end: 0x55d0_c0de_5000,
                file_offset: 0x1_a000,
                inode: 1837,
                device: (0xfd, 0x1a),
                name: file("/usr/bin/a b"),
            }
        );
    }

    #[test]
    fn names() {
        check_name("", &EntryName::Anonymous);
        check_name("[anon:v8 code]", &EntryName::Anonymous);
        check_name("[anon_shmem:x]", &EntryName::Anonymous);
        check_name("[heap]", &EntryName::Anonymous);
        check_name("[stack]", &EntryName::Anonymous);
        check_name("[vdso]", &EntryName::Special("[vdso]".into()));
        check_name("[vsyscall]", &EntryName::Special("[vsyscall]".into()));
        check_name("anon_inode:[x]", &EntryName::Special("anon_inode:[x]".into()));
        check_name("/bin/x (deleted)", &file("/bin/x"));
        check_name("/memfd:jit (deleted)", &file("/memfd:jit"));
        check_name(r"/a\012b\012", &file("/a\nb\n"));
        check_name(r"/a\01", &file(r"/a\01"));
        check_name("/trailing ", &file("/trailing "));
    }

    #[test]
    fn keeps_only_executable_mappings_and_contexts() {
        let text = "\
1000-2000 r--p 00000000 08:01 7 /bin/x
2000-3000 r-xp 00001000 08:01 7 /bin/x
4000-5000 rw-p 00000000 00:01 9 /memfd:OTEL_CTX (deleted)
5000-6000 rw-p 00000000 00:00 0 [anon:OTEL_CTX]
6000-7000 r-xp 00000000 00:00 0 [anon_shmem:OTEL_CTX]
7000-8000 rw-p 00000000 00:00 0 [anon:OTHER]
";
        let maps = Maps::parse(text.as_bytes());
        assert_eq!(maps.executable.len(), 2);
        let contexts = maps.contexts.iter().map(|it| (it.start, it.executable));
        assert_eq!(
            contexts.collect::<Vec<_>>(),
            [(0x4000, false), (0x5000, false), (0x6000, true)]
        );
    }

    #[test]
    fn counts_lines_that_make_no_sense() {
        let long = format!("1000-2000 r-xp 0 08:01 7 /{}", "x".repeat(LINE_MAX));
        for line in [
            "garbage",
            "2000-1000 r-xp 0 08:01 7 /x",
            "1000-1000 r-xp 0 08:01 7 /x",
            "1000-2000 r-x 0 08:01 7 /x",
            "1000-2000 r-xp 0 0801 7 /x",
            "1000-2000 r-xp 0 08:01 7f /x",
            "+1000-2000 r-xp 0 08:01 7 /x",
            "10000000000000000-20000000000000000 r-xp 0 08:01 7 /x",
            long.as_str(),
        ] {
            let maps = Maps::parse(format!("{line}\n3000-4000 r-xp 0 08:01 7 /y\n").as_bytes());
            assert_eq!((maps.malformed_lines, maps.executable.len()), (1, 1), "{line}");
        }
    }

    #[test]
    fn keeps_a_bounded_number() {
        let text: String = (1..=MAPPINGS_MAX + 1)
            .map(|index| format!("{:x}-{:x} r-xp 0 0:0 0\n", index * 4096, (index + 1) * 4096))
            .collect();
        let maps = Maps::parse(text.as_bytes());
        assert_eq!((maps.executable.len(), maps.truncated), (MAPPINGS_MAX, true));
    }

    #[test]
    fn understands_every_line_of_this_process() {
        let text = std::fs::read("/proc/self/maps").unwrap();
        let maps = Maps::parse(&text);
        assert_eq!(maps.malformed_lines, 0);
        let here = u64::try_from((Maps::parse as *const ()).addr()).unwrap();
        assert!(maps.executable.iter().any(|entry| entry.start <= here && here < entry.end));
    }

    proptest! {
        #[test]
        fn any_bytes(text in prop::collection::vec(any::<u8>(), 0..4096)) {
            Maps::parse(&text);
        }

        #[test]
        fn nearly_a_line(text in "[0-9a-f]{0,17}[- ][0-9a-f]{0,17} [rwxps-]{0,5} [0-9a-f]{0,17} [0-9a-f]{0,9}:[0-9a-f]{0,9} [0-9]{0,21} {0,9}[\\PC\n]{0,40}") {
            let maps = Maps::parse(text.as_bytes());
            prop_assert!(maps.executable.iter().all(|entry| entry.start < entry.end));
        }
    }
}
