//! The walk up a user stack: its memory, its loop, and what it tells of how it went.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use profiler_common::{
    counter,
    sample::{
        FLAG_FRAME_POINTER_SHIFT, USER_FRAMES_MAX, USER_STACK_COMPAT, USER_STACK_COMPLETE,
        USER_STACK_KERNEL_THREAD, USER_STACK_NO_FRAME_POINTER, USER_STACK_NO_REGISTERS,
        USER_STACK_TRUNCATED, USER_STACK_UNKNOWN_PROCESS, USER_STACK_UNMAPPED,
        USER_STACK_UNREADABLE, USER_STACK_UNSUPPORTED_RULE, USER_STACK_ZERO_FRAME_POINTER,
    },
    settings::REUSE_AND_CHECK,
    unwind::{MAPPING_OVER_LIMIT, MAPPING_PENDING, SLICE_ENTRIES_MAX},
};
use profiler_ebpf::bounded::bounded;
use profiler_ebpf::lookup::entry;
use profiler_ebpf::unwind::{Cursor, GO_ON, step};

use crate::maps::{MAPPINGS, PAGES, PROCESSES, REUSE_STACKS, RULES, SCRATCH_WORDS, Scratch, count};
use crate::process::unknown_code;
use crate::reuse::{self, DIFFERS, MATCHED, Use};
use crate::stack::{Stack, Tables, copy_stack};
use crate::volatile::{keep, load};

/// Frames that a program walks where it has to be a loop that the verifier can follow.
const BOUNDED_FRAMES: u32 = 64;

/// What a walk carries from frame to frame.
#[repr(C)]
pub(crate) struct Walk {
    pub(crate) at: Cursor,
    /// Where it began.
    leaf: Cursor,
    /// Which mapping was hit last.
    mapping: u64,
    /// The address of the window's first word, and how many bytes it has.
    pub(crate) window_at: u64,
    pub(crate) window_len: u64,
    /// The next of the scratch's words to be written.
    pub(crate) next_word: u64,
    /// The first of them.
    first_word: u64,
    /// Bit `MAPPING_*`: a caller was looked for by frame pointer.
    pub(crate) by_frame_pointer: u64,
    /// A `USER_STACK_*`, or `GO_ON` until it ended; in between one of `reuse`.
    pub(crate) outcome: u64,
    /// Where in the remembered stack it stands.
    pub(crate) remembered: u64,
    /// The number of the slice's publication, 0 if there is none.
    publication: u64,
    /// Where the process's slice is, and how many mappings it has, 0 if there is none.
    slice: u64,
    slice_len: u64,
}

impl Walk {
    /// How many frames it gave.
    #[inline(always)]
    pub(crate) fn frames(&self) -> u64 {
        load(&raw const self.next_word).wrapping_sub(load(&raw const self.first_word))
    }
}

/// Prepares a walk of `tgid` that begins at `leaf` and writes its frames from word `first_word` on.
#[inline(always)]
pub(crate) fn begin(scratch: &mut Scratch, tgid: u32, leaf: Cursor, first_word: usize) {
    // SAFETY: the value is copied at once; user space replaces elements, it does not modify them.
    let slice = unsafe { PROCESSES.get(tgid) }.copied();
    let mut slice_len = 0;
    let (mut epoch, mut publication) = (0, 0);
    if let Some(slice) = slice
        && let Some(segment) = MAPPINGS.get(slice / SLICE_ENTRIES_MAX as u32)
    {
        // The slice's head: a `SliceHead` is where a mapping could be, and has the same size.
        let head = entry(segment, u64::from(slice));
        (epoch, publication) = (head.begin, head.bias);
        slice_len = head.end & (SLICE_ENTRIES_MAX as u64 - 1);
    }
    scratch.header.epoch = epoch;
    let walk = &mut scratch.walk;
    keep(&mut walk.at, leaf);
    keep(&mut walk.leaf, leaf);
    keep(&mut walk.mapping, 0);
    keep(&mut walk.window_at, 0);
    keep(&mut walk.window_len, 0);
    keep(&mut walk.next_word, first_word as u64);
    keep(&mut walk.first_word, first_word as u64);
    keep(&mut walk.by_frame_pointer, 0);
    keep(&mut walk.outcome, u64::from(GO_ON));
    keep(&mut walk.slice, u64::from(slice.unwrap_or(0)));
    keep(&mut walk.slice_len, slice_len);
    keep(&mut walk.remembered, 0);
    keep(&mut walk.publication, publication);
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
pub(crate) fn go_on<const BOUNDED: bool>(scratch: &mut Scratch, tid: u64) {
    let slice = load(&raw const scratch.walk.slice);
    let segment = (slice / SLICE_ENTRIES_MAX as u64) as u32;
    let (Some(mappings), Some(pages), Some(rules)) =
        (MAPPINGS.get_ptr(segment), PAGES.get_ptr(0), RULES.get_ptr(0))
    else {
        return;
    };
    let publication = load(&raw const scratch.walk.publication);
    let remembered = core::ptr::null_mut();
    let mut tables = Tables { scratch, remembered, mappings, pages, rules };
    if BOUNDED {
        for index in 0..BOUNDED_FRAMES {
            // SAFETY: the pointers were looked up just above.
            if unsafe { frame::<BY_RULE>(index, &raw mut tables) } != 0 {
                break;
            }
        }
        return;
    }
    // The global is frozen: where stacks are not reused, this is not verified, nor does it cost.
    let reuse = REUSE_STACKS.load();
    if reuse != 0
        && publication != 0
        && let Some(remembered) = reuse::place(tid)
    {
        tables.remembered = remembered;
        reuse_stack(&mut tables, tid);
    }
    // In one place for all: each place is verified on its own.
    if is_under_way(scratch) {
        repeat(USER_FRAMES_MAX as u32, frame::<BY_RULE>, &mut tables);
    }
    if reuse == REUSE_AND_CHECK && !tables.remembered.is_null() {
        check_reuse(&mut tables);
    }
}

/// Walks by rule up to a frame that is remembered, and on by what is remembered; leaves the walk
/// under way where that is another stack. Or remembers this one.
#[inline(always)]
fn reuse_stack(tables: &mut Tables, tid: u64) {
    // SAFETY: the element is this CPU's own, and nothing else refers to it while this runs.
    let remembered = unsafe { &mut *tables.remembered };
    // SAFETY: as above.
    let scratch = unsafe { &mut *tables.scratch };
    let publication = load(&raw const scratch.walk.publication);
    if reuse::choose(remembered, publication, tid) == Use::Record {
        repeat(USER_FRAMES_MAX as u32, frame::<RECORDING>, tables);
        return reuse::finish(remembered, &scratch.walk, publication, tid);
    }
    repeat(USER_FRAMES_MAX as u32, frame::<COMPARING>, tables);
    let from = load(&raw const scratch.walk.remembered);
    if load(&raw const scratch.walk.outcome) != u64::from(MATCHED) {
        return reuse::rate(remembered, &mut scratch.walk, 0);
    }
    repeat(USER_FRAMES_MAX as u32, reuse::same_frames, tables);
    let reused = load(&raw const scratch.walk.remembered).wrapping_sub(from);
    reuse::rate(remembered, &mut scratch.walk, reused);
    if load(&raw const scratch.walk.outcome) == u64::from(DIFFERS) {
        reuse::resume(remembered, &mut scratch.walk);
        keep(&mut scratch.walk.outcome, u64::from(GO_ON));
    }
}

/// Walks once more by rule alone, and compares.
#[inline(always)]
fn check_reuse(tables: &mut Tables) {
    // SAFETY: the element is this CPU's own, and nothing else refers to it while this runs.
    let scratch = unsafe { &mut *tables.scratch };
    let (first, behind) =
        (load(&raw const scratch.walk.first_word), load(&raw const scratch.walk.next_word));
    let outcome = load(&raw const scratch.walk.outcome);
    let leaf = load(&raw const scratch.walk.leaf);
    keep(&mut scratch.walk.at, leaf);
    keep(&mut scratch.walk.outcome, u64::from(GO_ON));
    keep(&mut scratch.walk.first_word, behind);
    repeat(USER_FRAMES_MAX as u32, frame::<BY_RULE>, tables);
    let mut different = (load(&raw const scratch.walk.outcome) ^ outcome)
        | (scratch.walk.frames() ^ behind.wrapping_sub(first));
    for index in 0..USER_FRAMES_MAX as u64 {
        if index >= behind.wrapping_sub(first) {
            break;
        }
        let reused = scratch.words[bounded::<SCRATCH_WORDS>(first + index)];
        different |= reused ^ scratch.words[bounded::<SCRATCH_WORDS>(behind + index)];
    }
    count(if different == 0 { counter::REUSE_SAME } else { counter::REUSE_DIFFERENT });
    keep(&mut scratch.walk.first_word, first);
    keep(&mut scratch.walk.next_word, behind);
    keep(&mut scratch.walk.outcome, outcome);
}

/// Calls a function until it returns something else than 0, `times` at most.
#[inline(always)]
fn repeat(times: u32, call: unsafe extern "C" fn(u32, *mut Tables) -> i64, tables: &mut Tables) {
    let tables = core::ptr::from_mut(tables).cast::<c_void>();
    // SAFETY: the helper calls `call` with `tables`, which lives until it returns.
    _ = unsafe { bpf_loop(times, call as *mut c_void, tables, 0) };
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
    let frames = walk.frames();
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

/// How a frame is found: by its unwind rule.
const BY_RULE: u8 = 0;
/// And remembered.
const RECORDING: u8 = 1;
/// Unless it is a remembered one.
const COMPARING: u8 = 2;

/// One frame up. Returns 0 to be called again.
#[inline(never)]
unsafe extern "C" fn frame<const HOW: u8>(_index: u32, tables: *mut Tables) -> i64 {
    // SAFETY: the caller's pointer is valid while this runs.
    let tables = unsafe { &*tables };
    // SAFETY: the element is this CPU's own, and nothing else refers to it while this runs.
    let scratch = unsafe { &mut *tables.scratch };
    let mut at = load(&raw const scratch.walk.at);
    if HOW != BY_RULE {
        // SAFETY: as above.
        let remembered = unsafe { &mut *tables.remembered };
        let mut index = load(&raw const scratch.walk.remembered);
        if HOW == RECORDING {
            reuse::record(remembered, index, &at);
            index += 1;
        } else if reuse::is_remembered(remembered, &mut index, &at) {
            let next_word = load(&raw const scratch.walk.next_word);
            scratch.words[bounded::<SCRATCH_WORDS>(next_word)] = at.ip;
            keep(&mut scratch.walk.next_word, next_word + 1);
            keep(&mut scratch.walk.outcome, u64::from(MATCHED));
            keep(&mut scratch.walk.remembered, index);
            return 1;
        }
        keep(&mut scratch.walk.remembered, index);
    }
    if scratch.walk.frames() >= USER_FRAMES_MAX as u64 {
        return 1;
    }
    let walk = &scratch.walk;
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
