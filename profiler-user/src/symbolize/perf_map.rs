//! The text of a perf map to names: what a run time says of the code that it makes. Pure.
//!
//! A line is `START SIZE name`, both numbers in hex. The file only grows, and a run time that moves
//! or drops code says nothing of it: where a later line covers an earlier one, the later is right.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::protocol::printable;

/// The longest line that is looked at; longer ones are skipped.
const LINE_MAX: usize = 64 << 10;

/// The most bytes of a name; longer ones are cut. Run times put a whole path and type into one.
const NAME_MAX: usize = 1024;

/// What an entry takes beside its name: its place in the tree, the name's own head, and what the
/// allocator adds.
const ENTRY_BYTES: usize = 96;

/// The code of one process by address.
#[derive(Debug)]
pub(super) struct PerfMap {
    /// By the first address; they do not overlap.
    entries: BTreeMap<u64, Entry>,
    bytes: usize,
    bytes_max: usize,
    /// The beginning of a line whose end is not read yet.
    unfinished: Vec<u8>,
    /// The line that is being read is too long, and skipped.
    skipping: bool,
    counts: PerfMapCounts,
}

#[derive(Clone, Debug)]
struct Entry {
    /// Behind the last address.
    end: u64,
    name: Arc<str>,
}

/// What was in the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PerfMapCounts {
    /// Lines that name code.
    pub(super) named: u64,
    /// Lines that make no sense.
    pub(super) malformed: u64,
    /// Lines whose name is not kept: the map is full.
    pub(super) over_limit: u64,
}

impl PerfMap {
    /// An empty map that never takes more than `bytes_max`.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            bytes: 0,
            bytes_max,
            unfinished: Vec::new(),
            skipping: false,
            counts: PerfMapCounts::default(),
        }
    }

    /// Reads on. Text may end anywhere: half a line waits for its other half.
    pub(super) fn read(&mut self, mut text: &[u8]) {
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = text.split_at(end);
            text = rest.get(1..).unwrap_or_default();
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            if self.unfinished.is_empty() {
                self.line(line);
            } else {
                let mut whole = std::mem::take(&mut self.unfinished);
                whole.extend_from_slice(line);
                self.line(&whole);
            }
        }
        if self.skipping {
            return;
        }
        if self.unfinished.len().saturating_add(text.len()) > LINE_MAX {
            self.counts.malformed = self.counts.malformed.saturating_add(1);
            self.unfinished = Vec::new();
            self.skipping = true;
        } else {
            self.unfinished.extend_from_slice(text);
        }
    }

    /// The name of the code at an address.
    pub(super) fn name(&self, address: u64) -> Option<&Arc<str>> {
        let (_, entry) = self.entries.range(..=address).next_back()?;
        (address < entry.end).then_some(&entry.name)
    }

    /// About how much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.saturating_add(self.unfinished.capacity())
    }

    /// What was read since the last call.
    pub(super) fn take_counts(&mut self) -> PerfMapCounts {
        std::mem::take(&mut self.counts)
    }

    fn line(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return;
        }
        let Some(Line { start, end, name }) = Line::parse(line) else {
            self.counts.malformed = self.counts.malformed.saturating_add(1);
            return;
        };
        // Also where its own name has no room: a name of what was there before would be wrong.
        self.clear(start, end);
        let bytes = name.len().saturating_add(ENTRY_BYTES);
        if self.bytes.saturating_add(bytes) > self.bytes_max {
            self.counts.over_limit = self.counts.over_limit.saturating_add(1);
            return;
        }
        self.counts.named = self.counts.named.saturating_add(1);
        self.insert(start, Entry { end, name });
    }

    fn insert(&mut self, start: u64, entry: Entry) {
        let bytes = entry.name.len().saturating_add(ENTRY_BYTES);
        self.bytes = self.bytes.saturating_add(bytes);
        self.entries.insert(start, entry);
    }

    fn remove(&mut self, start: u64) -> Option<Entry> {
        let entry = self.entries.remove(&start)?;
        self.bytes = self.bytes.saturating_sub(entry.name.len().saturating_add(ENTRY_BYTES));
        Some(entry)
    }

    /// Nothing is known of these addresses any more.
    fn clear(&mut self, start: u64, end: u64) {
        if let Some((&before, entry)) = self.entries.range_mut(..start).next_back()
            && entry.end > start
        {
            let behind = Entry { end: entry.end, name: Arc::clone(&entry.name) };
            entry.end = start;
            if behind.end > end && self.bytes < self.bytes_max {
                // The new code lies within the old.
                debug_assert!(before < start);
                self.insert(end, behind);
                return;
            }
        }
        while let Some((&first, _)) = self.entries.range(start..end).next() {
            let Some(entry) = self.remove(first) else { return };
            if entry.end > end {
                self.insert(end, entry);
                return;
            }
        }
    }
}

struct Line {
    start: u64,
    end: u64,
    name: Arc<str>,
}

impl Line {
    fn parse(line: &[u8]) -> Option<Self> {
        if line.len() > LINE_MAX {
            return None;
        }
        let (start, rest) = word(line)?;
        let (size, name) = word(rest)?;
        let (start, size) = (hex(start)?, hex(size)?);
        let end = start.checked_add(size).filter(|end| *end > start)?;
        let name = String::from_utf8_lossy(name);
        let name = name.trim();
        let name = printable(&name[..name.floor_char_boundary(NAME_MAX)]);
        (!name.is_empty()).then(|| Self { start, end, name: name.into() })
    }
}

/// The first word, and what follows.
fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.trim_ascii_start();
    let end = text.iter().position(u8::is_ascii_whitespace)?;
    text.split_at_checked(end)
}

fn hex(text: &[u8]) -> Option<u64> {
    let digits = text.strip_prefix(b"0x").or_else(|| text.strip_prefix(b"0X")).unwrap_or(text);
    // `from_str_radix` takes a sign.
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(text: &str) -> PerfMap {
        let mut map = PerfMap::new(1 << 20);
        map.read(text.as_bytes());
        map
    }

    fn name(map: &PerfMap, address: u64) -> Option<&str> {
        map.name(address).map(|name| &**name)
    }

    #[test]
    fn reads_what_run_times_write() {
        let mut map = map("\
7f0a1c 40 LazyCompile:*work /srv/app.js:12:3\n\
0x1000 0x10 Ljava/lang/String;::hashCode\r\n\
00000000FFFF0000 20 void [a.dll] Program::Main(string[])[Optimized]\n\
  2000   8   spaced \n");
        assert_eq!(name(&map, 0x7f_0a1c), Some("LazyCompile:*work /srv/app.js:12:3"));
        assert_eq!(name(&map, 0x7f_0a5b), Some("LazyCompile:*work /srv/app.js:12:3"));
        assert_eq!(name(&map, 0x7f_0a5c), None);
        assert_eq!(name(&map, 0x100f), Some("Ljava/lang/String;::hashCode"));
        let net = "void [a.dll] Program::Main(string[])[Optimized]";
        assert_eq!(name(&map, 0xffff_0000), Some(net));
        assert_eq!(name(&map, 0x2007), Some("spaced"));
        assert_eq!(name(&map, 0), None);
        assert_eq!(map.take_counts(), PerfMapCounts { named: 4, ..PerfMapCounts::default() });
    }

    #[test]
    fn later_lines_win_where_they_are() {
        let map = map("1000 1000 old\n1400 100 inner\n1800 1000 tail\n800 900 head\n");
        let at = |address| name(&map, address);
        assert_eq!((at(0x7ff), at(0x800), at(0x10ff)), (None, Some("head"), Some("head")));
        assert_eq!((at(0x1100), at(0x13ff)), (Some("old"), Some("old")));
        assert_eq!((at(0x1400), at(0x14ff)), (Some("inner"), Some("inner")));
        assert_eq!((at(0x1500), at(0x17ff)), (Some("old"), Some("old")));
        assert_eq!((at(0x1800), at(0x27ff), at(0x2800)), (Some("tail"), Some("tail"), None));
    }

    #[test]
    fn a_line_may_come_in_pieces() {
        let text = "1000 10 first one\n2000 10 second\n";
        for cut in 0..=text.len() {
            let mut map = PerfMap::new(1 << 20);
            map.read(&text.as_bytes()[..cut]);
            map.read(&text.as_bytes()[cut..]);
            assert_eq!(name(&map, 0x1000), Some("first one"), "cut at {cut}");
            assert_eq!(name(&map, 0x2000), Some("second"), "cut at {cut}");
        }
    }

    #[test]
    fn lines_that_make_no_sense_are_counted() {
        let long = "x".repeat(LINE_MAX + 1);
        for line in [
            "root:x:0:0::/root:/bin/sh",
            "1000 10",
            "1000 10 ",
            "1000 0 empty",
            "+1000 10 signed",
            "ffffffffffffffff 2 behind the end",
            "10000000000000000 1 too long a number",
            "g000 10 no number",
            long.as_str(),
        ] {
            let mut map = map(&format!("{line}\n3000 10 good\n"));
            assert_eq!(name(&map, 0x3000), Some("good"), "{line}");
            assert_eq!((map.take_counts().malformed, map.entries.len()), (1, 1), "{line}");
        }
    }

    #[test]
    fn a_line_without_an_end_takes_no_memory() {
        let mut map = PerfMap::new(1 << 20);
        for _ in 0..100 {
            map.read(&[b'1'; 32 << 10]);
            assert!(map.unfinished.len() <= LINE_MAX);
        }
        map.read(b"\n1000 10 f\n");
        assert_eq!(name(&map, 0x1000), Some("f"));
        assert_eq!(map.take_counts().malformed, 1);
    }

    #[test]
    fn names_do_not_control_a_terminal() {
        let map = map(&format!("1000 10 a\u{1b}[2Jb\n2000 10 {}\n", "é".repeat(NAME_MAX)));
        assert_eq!(name(&map, 0x1000), Some("a?[2Jb"));
        assert_eq!(name(&map, 0x2000).unwrap().len(), NAME_MAX);
    }

    #[test]
    fn a_full_map_forgets_what_it_cannot_replace() {
        let mut map = PerfMap::new(2 * (ENTRY_BYTES + 1));
        map.read(b"1000 10 a\n2000 10 b\n3000 10 c\n1000 10 longer\n");
        assert_eq!((name(&map, 0x2000), name(&map, 0x3000)), (Some("b"), None));
        // Not `a`, which it was.
        assert_eq!(name(&map, 0x1000), None);
        assert_eq!(map.take_counts(), PerfMapCounts { named: 2, malformed: 0, over_limit: 2 });
    }

    /// What the map should say: each address has the name of the last line that covers it.
    fn by_hand(lines: &[(u8, u8)], address: u64) -> Option<String> {
        let covers = |&(_, &(start, size)): &(usize, &(u8, u8))| {
            let (start, size) = (u64::from(start), u64::from(size));
            start <= address && address < start + size
        };
        lines.iter().enumerate().rev().find(covers).map(|(index, _)| format!("f{index}"))
    }

    proptest! {
        #[test]
        fn every_address_has_its_last_name(lines in prop::collection::vec((0_u8..64, 1_u8..32), 0..40)) {
            let text: String = lines.iter().enumerate()
                .map(|(index, (start, size))| format!("{start:x} {size:x} f{index}\n"))
                .collect();
            let map = map(&text);
            for address in 0..100 {
                prop_assert_eq!(name(&map, address).map(str::to_owned), by_hand(&lines, address));
            }
            let held: usize = map.entries.values().map(|it| it.name.len() + ENTRY_BYTES).sum();
            prop_assert_eq!(map.bytes, held);
        }

        #[test]
        fn any_bytes(text in prop::collection::vec(any::<u8>(), 0..4096), limit in 0_usize..4096) {
            let mut map = PerfMap::new(limit);
            map.read(&text);
            prop_assert!(map.bytes <= limit + NAME_MAX + ENTRY_BYTES);
        }

        #[test]
        fn nearly_lines(lines in prop::collection::vec("(0x)?[0-9a-f]{0,17} {0,2}[0-9a-f]{0,17} [\\PC]{0,9}", 0..50), limit in 0_usize..4096) {
            let mut map = PerfMap::new(limit);
            map.read(lines.join("\n").as_bytes());
            prop_assert!(map.bytes <= limit + NAME_MAX + ENTRY_BYTES);
            let apart = |pair: &[(&u64, &Entry)]| pair[0].1.end <= *pair[1].0;
            prop_assert!(map.entries.iter().collect::<Vec<_>>().windows(2).all(apart));
        }
    }
}
