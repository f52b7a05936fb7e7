//! Names of code made at run time, from the perf maps of the processes that made it.
//!
//! A perf map is read when a window ends that has code of it, from where the last read stopped.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::Arc;
use std::time::Instant;

use super::stats::{PerfMapStats, Unsymbolized};
use crate::process::{JitId, PerfMapRegistry};
use crate::symbolize::perf_map::PerfMap;

/// What of a perf map is read. Node's grow by 100 bytes a function.
const TEXT_MAX: u64 = 64 << 20;

/// The most memory of one perf map, and of all.
const MAP_BYTES_MAX: usize = 32 << 20;
const MAPS_BYTES_MAX: usize = 64 << 20;

/// How much is read before the time is looked at.
const CHUNK: usize = 256 << 10;

/// How much of what was read last is compared: a file that was written anew is not what it was.
const SEAM: usize = 64;

/// The perf maps that were read.
#[derive(Debug, Default)]
pub(super) struct JitNames {
    registry: PerfMapRegistry,
    maps: HashMap<JitId, ReadMap>,
    /// Grows with each window.
    round: u64,
    pub(super) stats: PerfMapStats,
}

#[derive(Debug)]
struct ReadMap {
    map: PerfMap,
    /// Up to where the file was read.
    read_to: u64,
    /// What is before that.
    seam: Vec<u8>,
    /// The round it was used in last.
    used: u64,
    is_cut: bool,
}

impl JitNames {
    pub(super) fn new(registry: PerfMapRegistry) -> Self {
        Self { registry, ..Self::default() }
    }

    /// From here on each perf map that is asked for is read once more.
    pub(super) fn begin_window(&mut self) {
        self.round = self.round.wrapping_add(1);
    }

    /// The next read of a perf map is one from its start.
    pub(super) fn forget(&mut self, id: JitId) {
        self.maps.remove(&id);
    }

    /// The functions at these addresses of one process.
    pub(super) fn names(
        &mut self,
        id: JitId,
        addresses: &[u64],
        end: Instant,
    ) -> Vec<Result<Arc<str>, Unsymbolized>> {
        let all = |reason| addresses.iter().map(|_| Err(reason)).collect();
        let Some(file) = self.registry.get(id) else {
            self.maps.remove(&id);
            return all(Unsymbolized::FileUnavailable);
        };
        let mut read = self.maps.remove(&id).unwrap_or_else(ReadMap::new);
        read.used = self.round;
        let is_whole = match read.catch_up(&file, end, &mut self.stats) {
            Ok(is_whole) => is_whole,
            Err(_) => {
                self.stats.read_failed += 1;
                return all(Unsymbolized::FileUnavailable);
            }
        };
        let counts = read.map.take_counts();
        self.stats.entries += counts.named;
        self.stats.malformed_lines += counts.malformed;
        self.stats.entries_over_limit += counts.over_limit;
        // Names of a part of the file may have been replaced in the other.
        let missing = if is_whole { Unsymbolized::NoSymbol } else { Unsymbolized::OutOfTime };
        let name = |address: &u64| {
            let name = read.map.name(*address).filter(|_| is_whole);
            name.map(Arc::clone).ok_or(missing)
        };
        let names = addresses.iter().map(name).collect();
        self.maps.insert(id, read);
        self.keep_within();
        names
    }

    /// Forgets the maps used longest ago; they are read from the start when they are needed again.
    fn keep_within(&mut self) {
        loop {
            let bytes: usize = self.maps.values().map(|read| read.map.bytes()).sum();
            let oldest = self.maps.iter().min_by_key(|(id, read)| (read.used, **id));
            let Some(oldest) = oldest.map(|(id, _)| *id) else { return };
            if bytes <= MAPS_BYTES_MAX {
                return;
            }
            self.maps.remove(&oldest);
            self.stats.forgotten += 1;
        }
    }
}

impl ReadMap {
    fn new() -> Self {
        let map = PerfMap::new(MAP_BYTES_MAX);
        Self { map, read_to: 0, seam: Vec::new(), used: 0, is_cut: false }
    }

    /// Reads what was written since; whether that is all.
    fn catch_up(
        &mut self,
        file: &File,
        end: Instant,
        stats: &mut PerfMapStats,
    ) -> std::io::Result<bool> {
        let len = file.metadata()?.size();
        if len < self.read_to || !self.is_where_it_was(file)? {
            stats.restarts += 1;
            *self = Self { used: self.used, ..Self::new() };
        }
        if len > TEXT_MAX && !std::mem::replace(&mut self.is_cut, true) {
            stats.cut += 1;
        }
        let stop = len.min(TEXT_MAX);
        let mut chunk = vec![0; CHUNK];
        while self.read_to < stop {
            if Instant::now() >= end {
                return Ok(false);
            }
            let wanted = usize::try_from(stop - self.read_to).unwrap_or(CHUNK).min(CHUNK);
            let Some(room) = chunk.get_mut(..wanted) else { break };
            let read = file.read_at(room, self.read_to)?;
            let Some(text @ [_, ..]) = chunk.get(..read) else { break };
            self.map.read(text);
            stats.bytes += text.len() as u64;
            self.read_to += text.len() as u64;
            self.seam.extend_from_slice(text);
            self.seam.drain(..self.seam.len().saturating_sub(SEAM));
        }
        Ok(true)
    }

    fn is_where_it_was(&self, file: &File) -> std::io::Result<bool> {
        let mut there = vec![0; self.seam.len()];
        let at = self.read_to.saturating_sub(self.seam.len() as u64);
        match file.read_exact_at(&mut there, at) {
            Ok(()) => Ok(there == self.seam),
            // It shrank meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek as _, Write as _};
    use std::time::Duration;

    struct Fixture {
        file: File,
        read: ReadMap,
        stats: PerfMapStats,
    }

    impl Fixture {
        fn new() -> Self {
            let file = tempfile::tempfile().unwrap();
            Self { file, read: ReadMap::new(), stats: PerfMapStats::default() }
        }

        fn write(&mut self, text: &str) {
            self.file.write_all(text.as_bytes()).unwrap();
        }

        fn name(&mut self, address: u64) -> Option<String> {
            let end = Instant::now() + Duration::from_secs(60);
            assert!(self.read.catch_up(&self.file, end, &mut self.stats).unwrap());
            self.read.map.name(address).map(ToString::to_string)
        }
    }

    #[test]
    fn only_what_was_written_since_is_read() {
        let mut fixture = Fixture::new();
        fixture.write("1000 10 first\n2000 10 sec");
        assert_eq!(fixture.name(0x1000).as_deref(), Some("first"));
        assert_eq!(fixture.name(0x2000), None);
        fixture.write("ond\n1000 10 moved\n");
        assert_eq!(fixture.name(0x2000).as_deref(), Some("second"));
        assert_eq!(fixture.name(0x1000).as_deref(), Some("moved"));
        let len = fixture.file.metadata().unwrap().len();
        assert_eq!((fixture.stats.bytes, fixture.stats.restarts), (len, 0));
    }

    #[test]
    fn a_file_written_anew_is_read_anew() {
        for text in ["1000 10 b\n", "2000 10 other\n3000 10 longer than it was before\n"] {
            let mut fixture = Fixture::new();
            fixture.write("1000 10 first\n2000 10 second\n");
            assert_eq!(fixture.name(0x2000).as_deref(), Some("second"));
            fixture.file.set_len(0).unwrap();
            fixture.file.rewind().unwrap();
            fixture.write(text);
            assert_ne!(fixture.name(0x1000).as_deref(), Some("first"), "{text}");
            assert_ne!(fixture.name(0x2000).as_deref(), Some("second"), "{text}");
            assert_eq!(fixture.stats.restarts, 1);
        }
    }

    #[test]
    fn a_huge_file_is_read_up_to_the_limit() {
        let mut fixture = Fixture::new();
        fixture.write("1000 10 first\n");
        fixture.file.set_len(1 << 40).unwrap();
        assert_eq!(fixture.name(0x1000).as_deref(), Some("first"));
        assert_eq!(fixture.name(0x1000).as_deref(), Some("first"));
        assert_eq!((fixture.stats.bytes, fixture.stats.cut), (TEXT_MAX, 1));
        assert!(fixture.read.map.bytes() <= MAP_BYTES_MAX);
    }

    #[test]
    fn no_time_is_no_error() {
        let mut fixture = Fixture::new();
        fixture.write("1000 10 first\n");
        let is_whole =
            fixture.read.catch_up(&fixture.file, Instant::now(), &mut fixture.stats).unwrap();
        assert!(!is_whole);
        assert_eq!(fixture.name(0x1000).as_deref(), Some("first"));
    }

    #[test]
    fn a_map_that_is_not_open_any_more_has_no_names() {
        let mut names = JitNames::default();
        let end = Instant::now() + Duration::from_secs(60);
        let named = names.names(JitId(1), &[1, 2], end);
        assert_eq!(named, [Err(Unsymbolized::FileUnavailable), Err(Unsymbolized::FileUnavailable)]);
    }
}
