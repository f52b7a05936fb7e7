//! What processes map to run it, as the kernel's perf events report it. No BPF program hears of
//! that without a kprobe or a tracepoint that slows every system call.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    sync::atomic::{Ordering, fence},
};

use super::control::unwind_maps::MapMemory;
use crate::decode::{Addr, BootTime, Pid, ProcessEvent, ProcessEventKind};

/// Of the ring, besides the page that leads it: 300 records of a mapping each.
const RING_BYTES: usize = 32 << 10;
/// `struct perf_event_mmap_page`: words of 8 bytes.
const DATA_HEAD: usize = 1024 / 8;
const DATA_TAIL: usize = 1032 / 8;

const TYPE_SOFTWARE: u32 = 1;
const SOFTWARE_DUMMY: u64 = 9;
const SAMPLE_TIME: u64 = 1 << 2;
/// `mmap`, `sample_id_all`, `use_clockid`: the bits of the attributes' fifth word.
const FLAGS: u64 = 1 << 8 | 1 << 18 | 1 << 25;
const FLAG_CLOEXEC: u64 = 1 << 3;

const RECORD_MMAP: u32 = 1;
const RECORD_LOST: u32 = 2;

/// `struct perf_event_attr` up to Linux 4.1, which all that we run on know.
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
    tail: u64,
}

/// What came of reading a ring.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reported {
    pub(super) events: Vec<ProcessEvent>,
    /// There were more than there was room for.
    pub(super) lost: bool,
}

impl CodeMaps {
    /// Of all processes on a CPU.
    pub(super) fn open(cpu: u32) -> io::Result<Self> {
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
        Ok(Self { event, memory, first: page / 8, tail: 0 })
    }

    /// Readable when there is something.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Empties the ring.
    pub(super) fn read(&mut self, reported: &mut Reported) {
        let head = self.memory.load_u64(DATA_HEAD);
        // What the kernel wrote before the head is read after it.
        fence(Ordering::Acquire);
        let words = usize::try_from(head.wrapping_sub(self.tail) / 8).unwrap_or(0);
        let begin = usize::try_from(self.tail / 8).unwrap_or(0);
        let at =
            |word: usize| self.first.saturating_add(begin.wrapping_add(word) % (RING_BYTES / 8));
        let words = (0..words.min(RING_BYTES / 8)).map(|word| self.memory.load_u64(at(word)));
        parse(words.collect(), reported);
        self.tail = head;
        self.memory.store_u64(DATA_TAIL, &[head]);
    }
}

/// Reads records one behind the other, of 8 bytes each word.
fn parse(mut words: VecDeque<u64>, reported: &mut Reported) {
    while let Some(header) = words.front().copied() {
        // `struct perf_event_header`: type, 16 bits of flags, and 16 bits of length.
        let (kind, bytes) = (low(header), header >> 48);
        let len = usize::try_from(bytes / 8).unwrap_or(0).clamp(1, words.len());
        let record: Vec<u64> = words.drain(..len).collect();
        match (kind, record.as_slice()) {
            // The file's offset and name come before the time.
            (RECORD_MMAP, [_, ids, begin, len, .., time]) => reported.events.push(ProcessEvent {
                at: BootTime(*time),
                pid: Pid(low(*ids)),
                kind: ProcessEventKind::Mapped {
                    begin: Addr(*begin),
                    end: Addr(begin.saturating_add(*len)),
                },
            }),
            (RECORD_LOST, _) => reported.lost = true,
            _ => {}
        }
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

    #[test]
    fn a_mapping_is_reported_with_its_process_and_time() {
        let mut reported = Reported::default();
        let mapped = [header(RECORD_MMAP, 7), 9 << 32 | 7, 0x7000, 0x2000, 0, 0x2f61, 55];
        let other = [header(3, 2), 1];
        let lost = [header(RECORD_LOST, 3), 0, 4];
        parse([&mapped[..], &other, &lost].concat().into(), &mut reported);
        let kind = ProcessEventKind::Mapped { begin: Addr(0x7000), end: Addr(0x9000) };
        let event = ProcessEvent { at: BootTime(55), pid: Pid(7), kind };
        assert_eq!(reported, Reported { events: vec![event], lost: true });
    }

    #[test]
    fn records_that_make_no_sense_are_passed_over() {
        let mut reported = Reported::default();
        // Of no length, longer than what is there, too short to be one.
        parse([header(RECORD_MMAP, 0), header(RECORD_MMAP, 999)].to_vec().into(), &mut reported);
        parse([header(RECORD_MMAP, 2), 7].to_vec().into(), &mut reported);
        assert_eq!(reported, Reported::default());
    }
}
