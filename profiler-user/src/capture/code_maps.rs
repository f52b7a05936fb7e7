//! What processes map to run it, as the kernel's perf events report it. No BPF program hears of
//! that without a kprobe, or a tracepoint that makes every system call slower.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    sync::atomic::{Ordering, fence},
};

use super::batch::CodeMappings;
use super::control::unwind_maps::MapMemory;
use crate::decode::{Addr, BootTime, CodeMapping, FileNumber, Pid};

/// Of the ring, besides the page that leads it: room for some 500 records with paths of 40 bytes.
const RING_BYTES: usize = 64 << 10;
const RING_WORDS: usize = RING_BYTES / 8;
/// A record with the longest path. Where so much is not free, one may be lost already.
const RECORD_WORDS_MAX: usize = (4096 + 128) / 8;
/// `struct perf_event_mmap_page`, as words of 8 bytes.
const DATA_HEAD: usize = 1024 / 8;
const DATA_TAIL: usize = 1032 / 8;

const TYPE_SOFTWARE: u32 = 1;
const SOFTWARE_DUMMY: u64 = 9;
const SAMPLE_TIME: u64 = 1 << 2;
/// `mmap`, `sample_id_all`, `mmap2`, `use_clockid`. Without `mmap_data`: only what can be run.
const FLAGS: u64 = 1 << 8 | 1 << 18 | 1 << 23 | 1 << 25;
const FLAG_CLOEXEC: u64 = 1 << 3;

const RECORD_LOST: u32 = 2;
const RECORD_MMAP2: u32 = 10;

/// `struct perf_event_attr` as of Linux 4.1, which all that we run on know.
#[derive(Default)]
#[repr(C)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint: u32,
    config1: u64,
    config2: u64,
    branch_sample_type: u64,
    user_registers: u64,
    user_stack: u32,
    clock: i32,
    interrupt_registers: u64,
}

/// The reports of one CPU.
#[derive(Debug)]
pub(super) struct CodeMaps {
    event: OwnedFd,
    memory: MapMemory,
    /// The ring's first word.
    first: usize,
    /// How many bytes were read.
    tail: u64,
    /// The CPU ran before, and nobody listened.
    missed: bool,
}

impl CodeMaps {
    /// Of all processes on a CPU, from now on. `missed`: it has run before that, and this counts as
    /// a loss.
    pub(super) fn open(cpu: u32, missed: bool) -> io::Result<Self> {
        let attributes = Attributes {
            kind: TYPE_SOFTWARE,
            size: u32::try_from(size_of::<Attributes>()).unwrap_or(0),
            config: SOFTWARE_DUMMY,
            sample_type: SAMPLE_TIME,
            flags: FLAGS,
            wakeup_events: 1,
            clock: libc::CLOCK_BOOTTIME,
            ..Attributes::default()
        };
        let (all, none) = (-1, -1);
        // SAFETY: the kernel reads the attributes, which have the size that they say.
        let opened = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                all,
                cpu,
                none,
                FLAG_CLOEXEC,
            )
        };
        let Ok(opened @ 0..) = i32::try_from(opened) else {
            return Err(io::Error::last_os_error());
        };
        // SAFETY: a new descriptor, which nobody else has.
        let event = unsafe { OwnedFd::from_raw_fd(opened) };
        // SAFETY: it reads a number, and changes nothing.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).map_err(io::Error::other)?;
        let memory = MapMemory::new(&event, page.saturating_add(RING_BYTES))?;
        Ok(Self { event, memory, first: page / 8, tail: 0, missed })
    }

    /// Readable when there is something.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Empties the ring.
    pub(super) fn read(&mut self, to: &mut CodeMappings) {
        let head = self.memory.load_u64(DATA_HEAD);
        // What the kernel wrote before the head is read after it.
        fence(Ordering::Acquire);
        let len = usize::try_from(head.wrapping_sub(self.tail) / 8).unwrap_or(usize::MAX);
        let begin = usize::try_from(self.tail / 8 % RING_WORDS as u64).unwrap_or(0);
        let word = |index: usize| {
            self.memory.load_u64(self.first + begin.wrapping_add(index) % RING_WORDS)
        };
        parse(len.min(RING_WORDS), word, to);
        self.tail = head;
        self.memory.store_u64(DATA_TAIL, &[head]);
        to.lost |= std::mem::take(&mut self.missed) || len > RING_WORDS - RECORD_WORDS_MAX;
    }
}

/// Reads records of so many words together, one behind the other.
fn parse(len: usize, word: impl Fn(usize) -> u64, to: &mut CodeMappings) {
    let mut at = 0;
    while at < len {
        // `struct perf_event_header`: type, 16 bits of flags, and 16 bits of length.
        let (kind, bytes) = (low(word(at)), word(at) >> 48);
        let size = usize::try_from(bytes / 8).unwrap_or(0).clamp(1, len - at);
        match kind {
            // What is fixed of it, the path, and the time.
            RECORD_MMAP2 if size > 10 => to.push(mapping(|field| word(at + field), size)),
            RECORD_LOST => to.lost = true,
            _ => {}
        }
        at += size;
    }
}

/// A `PERF_RECORD_MMAP2` of so many words.
fn mapping(field: impl Fn(usize) -> u64, size: usize) -> CodeMapping {
    let begin = field(2);
    CodeMapping {
        at: BootTime(field(size - 1)),
        pid: Pid(low(field(1))),
        begin: Addr(begin),
        end: Addr(begin.saturating_add(field(3))),
        file_offset: field(4),
        file: FileNumber { device: (low(field(5)), low(field(5) >> 32)), inode: field(6) },
    }
}

/// The lower half.
fn low(word: u64) -> u32 {
    u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u32, words: u64) -> u64 {
        u64::from(kind) | (words * 8) << 48
    }

    #[track_caller]
    fn check(words: &[u64], list: &[CodeMapping], lost: bool) {
        let mut read = CodeMappings::default();
        parse(words.len(), |index| words[index], &mut read);
        assert_eq!(read, CodeMappings { list: list.to_vec(), lost });
    }

    #[test]
    fn a_mapping_is_reported_with_its_process_file_and_time() {
        let path = u64::from_ne_bytes(*b"/a/b.so\0");
        let mapped = [
            header(RECORD_MMAP2, 11),
            9 << 32 | 7,
            0x7000,
            0x2000,
            0x3000,
            0x1a << 32 | 0xfd,
            42,
            5,
            2 << 32 | 5,
            path,
            55,
        ];
        let other = [header(3, 2), 1];
        let lost = [header(RECORD_LOST, 3), 0, 4];
        let expected = CodeMapping {
            at: BootTime(55),
            pid: Pid(7),
            begin: Addr(0x7000),
            end: Addr(0x9000),
            file_offset: 0x3000,
            file: FileNumber { device: (0xfd, 0x1a), inode: 42 },
        };
        check(&[&other[..], &mapped].concat(), &[expected], false);
        check(&[&mapped[..], &other, &lost, &mapped].concat(), &[expected, expected], true);
    }

    #[test]
    fn records_that_make_no_sense_are_passed_over() {
        // Of no length, longer than what is there, too short to be one.
        check(&[header(RECORD_MMAP2, 0), header(RECORD_MMAP2, 999)], &[], false);
        check(&[header(RECORD_MMAP2, 2), 7], &[], false);
    }
}
