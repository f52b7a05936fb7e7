//! The walk up a user stack: its memory, its loop, and what it tells of how it went.
//!
//! What the loop carries lives in map memory and is read back volatile: the verifier then sees one
//! state per iteration, not one per number of frames so far.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_user};
use profiler_common::{
    counter,
    sample::{
        FLAG_FRAME_POINTER_SHIFT, USER_FRAMES_MAX, USER_STACK_COMPAT, USER_STACK_COMPLETE,
        USER_STACK_KERNEL_THREAD, USER_STACK_NO_FRAME_POINTER, USER_STACK_NO_REGISTERS,
        USER_STACK_TRUNCATED, USER_STACK_UNKNOWN_PROCESS, USER_STACK_UNMAPPED,
        USER_STACK_UNREADABLE, USER_STACK_UNSUPPORTED_RULE, USER_STACK_ZERO_FRAME_POINTER,
    },
    unwind::{
        MAPPING_KIND_SHIFT, MAPPING_OVER_LIMIT, MAPPING_PENDING, MAPPING_TABLE, PAGE_SHIFT,
        PAGES_MAX, RULES_MAX, SEGMENT_WORDS, SLICE_ENTRIES_MAX,
    },
};
use profiler_ebpf::bounded::bounded;
use profiler_ebpf::lookup::{MappingSegment, entry, mapping_index, rule_number};
use profiler_ebpf::machine::{Machine, X86_64};
use profiler_ebpf::unwind::{
    Cursor, GO_ON, KIND_UNKNOWN_PROCESS, KIND_UNMAPPED, Lookup, Process, step,
};

use crate::maps::{
    MAPPINGS, PAGES, PROCESSES, ROWS, RULES, SCRATCH_WORDS, Scratch, WINDOW_WORDS, count,
};
use crate::process::unknown_code;
use crate::registers::REGISTERS;

/// Bytes of a window.
const WINDOW: u64 = 8 * WINDOW_WORDS as u64;
/// Frames that a program walks where it has to be a loop that the verifier can follow.
const BOUNDED_FRAMES: u32 = 64;

/// What a walk carries from frame to frame.
#[repr(C)]
pub(crate) struct Walk {
    at: Cursor,
    /// Which mapping was hit last.
    mapping: u64,
    /// The address of the window's first word, and how many bytes it has.
    window_at: u64,
    window_len: u64,
    /// The next of the scratch's words to be written.
    next_word: u64,
    /// The first of them.
    first_word: u64,
    /// Bit `MAPPING_*`: a caller was looked for by frame pointer.
    by_frame_pointer: u64,
    /// A `USER_STACK_*`, or `GO_ON` until it ended.
    outcome: u64,
    /// Where the process's slice is, and how many mappings it has, 0 if there is none.
    slice: u64,
    slice_len: u64,
}

/// Pointers, which stay the same through the loop.
struct Tables {
    scratch: *mut Scratch,
    mappings: *const MappingSegment,
    pages: *const [u64; PAGES_MAX],
    rules: *const [u64; RULES_MAX],
}

/// Prepares a walk of `tgid` that begins at `leaf` and writes its frames from word `first_word` on.
#[inline(always)]
pub(crate) fn begin(scratch: &mut Scratch, tgid: u32, leaf: Cursor, first_word: usize) {
    // SAFETY: the value is copied at once; user space replaces elements, it does not modify them.
    let slice = unsafe { PROCESSES.get(tgid) }.copied();
    let mut slice_len = 0;
    let mut epoch = 0;
    if let Some(slice) = slice
        && let Some(segment) = MAPPINGS.get(slice / SLICE_ENTRIES_MAX as u32)
    {
        // The slice's head: `SliceHead` has its epoch and length where a mapping has its bounds.
        let head = entry(segment, u64::from(slice));
        epoch = head.begin;
        slice_len = head.end & (SLICE_ENTRIES_MAX as u64 - 1);
    }
    scratch.header.epoch = epoch;
    let walk = &mut scratch.walk;
    keep(&mut walk.at, leaf);
    keep(&mut walk.mapping, 0);
    keep(&mut walk.window_at, 0);
    keep(&mut walk.window_len, 0);
    keep(&mut walk.next_word, first_word as u64);
    keep(&mut walk.first_word, first_word as u64);
    keep(&mut walk.by_frame_pointer, 0);
    keep(&mut walk.outcome, u64::from(GO_ON));
    keep(&mut walk.slice, u64::from(slice.unwrap_or(0)));
    keep(&mut walk.slice_len, slice_len);
}

/// There is no walk, for this reason (a `USER_STACK_*`).
#[inline(always)]
pub(crate) fn refuse(scratch: &mut Scratch, reason: u8) {
    let walk = &mut scratch.walk;
    keep(&mut walk.next_word, 0);
    keep(&mut walk.first_word, 0);
    keep(&mut walk.by_frame_pointer, 0);
    keep(&mut walk.outcome, u64::from(reason));
}

/// Copies a part of the stack, and makes frames of what there is.
#[inline(always)]
pub(crate) fn only_copy(scratch: &mut Scratch, leaf: Cursor, first_word: usize) {
    /// With the header, 300 bytes.
    const FRAMES: u64 = 28;
    scratch.header.epoch = 0;
    copy_stack(scratch, leaf.sp);
    let walk = &mut scratch.walk;
    keep(&mut walk.first_word, first_word as u64);
    keep(&mut walk.next_word, first_word as u64 + FRAMES);
    keep(&mut walk.by_frame_pointer, 0);
    keep(&mut walk.outcome, u64::from(USER_STACK_COMPLETE));
}

/// Walks on, by `bpf_loop` (Linux 5.17) or as far as a bounded loop goes.
#[inline(always)]
pub(crate) fn go_on<const BOUNDED: bool>(scratch: *mut Scratch) {
    // SAFETY: the caller's own, and of one thread.
    let slice = load(unsafe { &raw const (*scratch).walk.slice });
    let segment = (slice / SLICE_ENTRIES_MAX as u64) as u32;
    let (Some(mappings), Some(pages), Some(rules)) =
        (MAPPINGS.get_ptr(segment), PAGES.get_ptr(0), RULES.get_ptr(0))
    else {
        return;
    };
    let mut tables = Tables { scratch, mappings, pages, rules };
    let tables = &raw mut tables;
    if BOUNDED {
        for index in 0..BOUNDED_FRAMES {
            // SAFETY: the pointers were looked up just above.
            if unsafe { frame(index, tables) } != 0 {
                break;
            }
        }
    } else {
        let frame = frame as unsafe extern "C" fn(u32, *mut Tables) -> i64;
        // SAFETY: the helper calls `frame` with `tables`, which lives until it returns.
        _ = unsafe {
            bpf_loop(USER_FRAMES_MAX as u32, frame as *mut c_void, tables.cast::<c_void>(), 0)
        };
    }
}

/// Whether the walk has not come to an end.
#[inline(always)]
pub(crate) fn is_under_way(scratch: &Scratch) -> bool {
    load(&raw const scratch.walk.outcome) == u64::from(GO_ON)
}

/// Writes what came of the walk into the header, and counts it.
#[inline(always)]
pub(crate) fn end(scratch: &mut Scratch, tgid: u32) {
    let walk = &scratch.walk;
    let frames = load(&raw const walk.next_word).wrapping_sub(load(&raw const walk.first_word));
    let by_frame_pointer = load(&raw const walk.by_frame_pointer);
    let mut outcome = load(&raw const walk.outcome) as u8;
    if outcome == GO_ON {
        outcome = USER_STACK_TRUNCATED;
    }
    if outcome == USER_STACK_UNMAPPED || outcome == USER_STACK_UNKNOWN_PROCESS {
        // Of an unknown process it is the first frame that is most likely to be code.
        let first = scratch.words[bounded::<SCRATCH_WORDS>(load(&raw const walk.first_word))];
        let unmapped = outcome == USER_STACK_UNMAPPED;
        unknown_code(tgid, if unmapped { load(&raw const walk.at.ip) } else { first });
    }
    // A counter a reason; a kernel thread is none of these.
    if outcome != USER_STACK_KERNEL_THREAD {
        count(counter_of(outcome));
    }
    if by_frame_pointer & (1 << MAPPING_PENDING) != 0 {
        count(counter::USER_TABLE_PENDING);
    }
    if by_frame_pointer & (1 << MAPPING_OVER_LIMIT) != 0 {
        count(counter::USER_TABLE_OVER_LIMIT);
    }
    scratch.header.user_stack = outcome;
    scratch.header.user_frame_count = frames as u16;
    scratch.header.flags |= (by_frame_pointer as u16) << FLAG_FRAME_POINTER_SHIFT;
}

#[inline(always)]
fn counter_of(outcome: u8) -> u32 {
    match outcome {
        USER_STACK_COMPLETE => counter::USER_STACK_COMPLETE,
        USER_STACK_COMPAT => counter::USER_COMPAT_TASK,
        USER_STACK_NO_REGISTERS => counter::USER_REGISTERS_MISSING,
        USER_STACK_TRUNCATED => counter::USER_STACK_TRUNCATED,
        USER_STACK_UNKNOWN_PROCESS => counter::USER_STACK_UNKNOWN_PROCESS,
        USER_STACK_UNMAPPED => counter::USER_STACK_UNMAPPED,
        USER_STACK_NO_FRAME_POINTER => counter::USER_STACK_NO_FRAME_POINTER,
        USER_STACK_ZERO_FRAME_POINTER => counter::USER_STACK_ZERO_FRAME_POINTER,
        USER_STACK_UNREADABLE => counter::USER_STACK_UNREADABLE,
        USER_STACK_UNSUPPORTED_RULE => counter::USER_STACK_UNSUPPORTED_RULE,
        _ => counter::USER_STACK_BAD_STEP,
    }
}

/// One frame up. Returns 0 to be called again.
#[inline(never)]
unsafe extern "C" fn frame(_index: u32, tables: *mut Tables) -> i64 {
    // SAFETY: the caller's pointer is valid while this runs.
    let tables = unsafe { &*tables };
    // SAFETY: the element is this CPU's own, and nothing else refers to it while this runs.
    let scratch = unsafe { &mut *tables.scratch };
    let walk = &scratch.walk;
    let mut at = load(&raw const walk.at);
    let mut stack = Stack {
        mapping: load(&raw const walk.mapping),
        window_at: load(&raw const walk.window_at),
        window_len: load(&raw const walk.window_len),
        next_word: load(&raw const walk.next_word),
        by_frame_pointer: load(&raw const walk.by_frame_pointer),
        slice: load(&raw const walk.slice),
        slice_len: load(&raw const walk.slice_len),
        tables,
        scratch,
    };
    let outcome = step(&mut stack, &mut at);
    let Stack { mapping, window_at, window_len, next_word, by_frame_pointer, .. } = stack;
    let walk = &mut stack.scratch.walk;
    keep(&mut walk.at, at);
    keep(&mut walk.mapping, mapping);
    keep(&mut walk.window_at, window_at);
    keep(&mut walk.window_len, window_len);
    keep(&mut walk.next_word, next_word);
    keep(&mut walk.by_frame_pointer, by_frame_pointer);
    keep(&mut walk.outcome, u64::from(outcome));
    i64::from(outcome != GO_ON)
}

/// The running task, as a step sees it.
struct Stack<'a> {
    tables: &'a Tables,
    scratch: &'a mut Scratch,
    mapping: u64,
    window_at: u64,
    window_len: u64,
    next_word: u64,
    by_frame_pointer: u64,
    slice: u64,
    slice_len: u64,
}

impl Process for Stack<'_> {
    const MACHINE: Machine = X86_64;

    #[inline(always)]
    fn look_up(&mut self, pc: u64) -> Lookup {
        let nothing = |kind| Lookup { kind, rule: 0 };
        if self.slice_len == 0 {
            return nothing(KIND_UNKNOWN_PROCESS);
        }
        // SAFETY: a map element, valid for the whole program run.
        let mappings = unsafe { &*self.tables.mappings };
        let first = self.slice + 1;
        self.mapping = mapping_index(mappings, first, self.slice_len, self.mapping, pc);
        let mapping = entry(mappings, first + self.mapping);
        if pc < mapping.begin || pc >= mapping.end {
            return nothing(KIND_UNMAPPED);
        }
        let kind = (mapping.kind_and_pages >> MAPPING_KIND_SHIFT) as u8;
        if kind != MAPPING_TABLE {
            return nothing(kind);
        }
        let at = pc - mapping.bias;
        let page = at >> PAGE_SHIFT;
        if page >= u64::from(mapping.kind_and_pages & ((1 << MAPPING_KIND_SHIFT) - 1)) {
            return Lookup { kind: MAPPING_TABLE, rule: 0 };
        }
        let index = bounded::<PAGES_MAX>(u64::from(mapping.first_page) + page);
        // SAFETY: a map element, valid for the whole program run.
        let page = unsafe { &*self.tables.pages }[index];
        let segment = (page & 0xffff_ffff) >> 14;
        let Some(rows) = ROWS.get_value((segment >> 4) as u32, &((segment & 15) as u32)) else {
            return Lookup { kind: MAPPING_TABLE, rule: 0 };
        };
        let block = page & (SEGMENT_WORDS as u64 - 1);
        let number = rule_number(rows, block, page >> 32, at & 0xffff);
        // SAFETY: a map element, valid for the whole program run.
        let rule = unsafe { &*self.tables.rules }[bounded::<RULES_MAX>(number)];
        Lookup { kind: MAPPING_TABLE, rule }
    }

    #[inline(always)]
    fn word(&mut self, address: u64) -> Option<u64> {
        let offset = address.wrapping_sub(self.window_at);
        if offset < self.window_len && offset & 7 == 0 {
            return Some(self.scratch.window[bounded::<WINDOW_WORDS>(offset >> 3)]);
        }
        crate::sample::read_user(address).ok()
    }

    #[inline(always)]
    fn approach(&mut self, sp: u64, cfa: u64) {
        let last = cfa.wrapping_sub(8);
        if last.wrapping_sub(self.window_at) < self.window_len || cfa.wrapping_sub(sp) > WINDOW / 2
        {
            return;
        }
        self.window_at = sp;
        self.window_len = copy_stack(self.scratch, sp);
    }

    #[inline(always)]
    fn register(&mut self, number: u64) -> u64 {
        self.scratch.registers[bounded::<REGISTERS>(number)]
    }

    #[inline(always)]
    fn frame(&mut self, word: u64) {
        self.scratch.words[bounded::<SCRATCH_WORDS>(self.next_word)] = word;
        self.next_word += 1;
    }

    #[inline(always)]
    fn note_frame_pointer(&mut self, kind: u8) {
        self.by_frame_pointer |= 1 << (kind & 7);
    }
}

/// Copies a window from `from` on and returns how many bytes it has: up to the end of the page
/// where the rest is not there.
#[inline(always)]
fn copy_stack(scratch: &mut Scratch, from: u64) -> u64 {
    const PAGE: u64 = 4096;
    let to = scratch.window.as_mut_ptr().cast::<c_void>();
    // SAFETY: the window has this size, and the helper does not fault on what cannot be read.
    if unsafe { bpf_probe_read_user(to, WINDOW as u32, from as *const c_void) } == 0 {
        return WINDOW;
    }
    let len = PAGE - (from & (PAGE - 1));
    if len < WINDOW {
        // SAFETY: `len` is less than the window's size.
        if unsafe { bpf_probe_read_user(to, len as u32, from as *const c_void) } == 0 {
            return len & !7;
        }
    }
    0
}

#[inline(always)]
fn load<T: Copy>(from: *const T) -> T {
    // SAFETY: the caller's reference or map element is valid for reads.
    unsafe { core::ptr::read_volatile(from) }
}

#[inline(always)]
fn keep<T: Copy>(to: &mut T, value: T) {
    // SAFETY: an exclusive reference is valid for writes.
    unsafe { core::ptr::write_volatile(to, value) };
}
