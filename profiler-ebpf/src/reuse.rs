//! Reuse of the stack that a thread had at its last sample on this CPU.
//!
//! A frame's caller follows from the frame (ip, sp, fp), from the rule at its ip, and from the words
//! that the rule reads: the return address below the caller's sp and, if it was saved, the frame
//! pointer. If a frame is the same as a remembered one and these words, at the remembered addresses,
//! are still what they were, then the caller is the remembered one, and so on up to the outermost
//! frame, which is one by its rule. Rules are the same while the publication is: its number is never
//! given to another. So this compares words and searches no tables; and it goes on by rule where a
//! word differs, or where a frame was found in another way (signals, a CFA in memory).

use profiler_common::sample::{USER_FRAMES_MAX, USER_STACK_COMPLETE, USER_STACK_TRUNCATED};
use profiler_ebpf::bounded::bounded;
use profiler_ebpf::unwind::{Cursor, DEPENDS_ON_MORE, DEPENDS_ON_RETURN_ADDRESS, GO_ON};

use crate::maps::{REMEMBERED, SCRATCH_WORDS, Scratch, WINDOW_WORDS};
use crate::stack::{Tables, copy_stack};
use crate::volatile::{keep, load};
use crate::walk::Walk;

/// How many threads' stacks each CPU remembers.
pub(crate) const THREADS: u32 = 16;
/// After so many samples in a row of which less than half was reused, a stack is remembered anew.
const POOR_MAX: u64 = 7;
/// Frames that are compared in one call.
const AT_A_TIME: u32 = 4;

/// `Walk::outcome`: the frame is the remembered one.
pub(crate) const MATCHED: u8 = 0xfe;
/// `Walk::outcome`: a word of the remembered stack is another one.
pub(crate) const DIFFERS: u8 = 0xfd;

/// A thread's last stack, leaf first.
#[repr(C)]
pub(crate) struct Remembered {
    /// The publication that it was walked with; 0: there is none.
    publication: u64,
    tid: u64,
    /// How many frames there are.
    len: u64,
    /// How many samples in a row it served badly.
    poor: u64,
    by_frame_pointer: u64,
    frames: [RememberedFrame; USER_FRAMES_MAX],
}

#[derive(Clone, Copy)]
#[repr(C)]
struct RememberedFrame {
    ip: u64,
    sp: u64,
    fp: u64,
    depends: u64,
}

/// What a walk does with a remembered stack.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// The thread's is not remembered, or not worth it: this walk is remembered.
    Record,
    /// It may be the same.
    Compare,
}

/// Where a thread's stack is remembered on this CPU.
#[inline(always)]
pub(crate) fn place(tid: u64) -> Option<*mut Remembered> {
    REMEMBERED.get_ptr_mut(tid as u32 & (THREADS - 1))
}

/// What to do with what is there. What is to be recorded over is forgotten first.
#[inline(always)]
pub(crate) fn choose(remembered: &mut Remembered, publication: u64, tid: u64) -> Use {
    let same = remembered.publication == publication && remembered.tid == tid;
    if same && remembered.poor <= POOR_MAX {
        return Use::Compare;
    }
    keep(&mut remembered.publication, 0);
    Use::Record
}

/// Notes the frame that the walk stands at.
#[inline(always)]
pub(crate) fn record(remembered: &mut Remembered, index: u64, at: &Cursor) {
    let Cursor { ip, sp, fp, depends, returns, .. } = *at;
    // What a signal interrupted is looked up in another way than a return address.
    let depends = if returns == 0 { DEPENDS_ON_MORE } else { depends };
    remembered.frames[bounded::<USER_FRAMES_MAX>(index)] = RememberedFrame { ip, sp, fp, depends };
}

/// After a recorded walk: keeps it, if it came to an end by rule.
#[inline(always)]
pub(crate) fn finish(remembered: &mut Remembered, walk: &Walk, publication: u64, tid: u64) {
    let len = walk.frames();
    // A walk that ends at a return address of zero has visited one more than it gave.
    if load(&raw const walk.outcome) == u64::from(USER_STACK_COMPLETE)
        && load(&raw const walk.remembered) == len
    {
        remembered.tid = tid;
        remembered.len = len;
        remembered.poor = 0;
        remembered.by_frame_pointer = load(&raw const walk.by_frame_pointer);
        keep(&mut remembered.publication, publication);
    }
}

/// Whether the walk stands at a remembered frame that can be relied on; moves `index` to where that
/// would be.
#[inline(always)]
pub(crate) fn is_remembered(remembered: &Remembered, index: &mut u64, at: &Cursor) -> bool {
    let frame = |index: u64| &remembered.frames[bounded::<USER_FRAMES_MAX>(index)];
    // Two at most: the stack is a frame deeper than it was, or less deep.
    *index += u64::from(frame(*index).sp < at.sp);
    *index += u64::from(frame(*index).sp < at.sp);
    let RememberedFrame { ip, sp, fp, depends } = *frame(*index);
    let different = (ip ^ at.ip) | (sp ^ at.sp) | (fp ^ at.fp) | (at.returns ^ 1);
    different == 0
        && depends != DEPENDS_ON_MORE
        && *index >= 1
        && *index < load(&raw const remembered.len)
}

/// Up to four frames of the remembered stack. Returns 0 to be called again.
#[inline(never)]
pub(crate) unsafe extern "C" fn same_frames(_index: u32, tables: *mut Tables) -> i64 {
    // SAFETY: the caller's pointer is valid while this runs.
    let tables = unsafe { &*tables };
    // SAFETY: the element is this CPU's own, and nothing else refers to it while this runs.
    let scratch = unsafe { &mut *tables.scratch };
    // SAFETY: as above.
    let remembered = unsafe { &*tables.remembered };
    let mut index = load(&raw const scratch.walk.remembered);
    let mut outcome = GO_ON;
    for _ in 0..AT_A_TIME {
        if index + 1 >= load(&raw const remembered.len) {
            // The outermost frame, by its rule.
            outcome = USER_STACK_COMPLETE;
            break;
        }
        if scratch.walk.frames() >= USER_FRAMES_MAX as u64 {
            outcome = USER_STACK_TRUNCATED;
            break;
        }
        let caller = &remembered.frames[bounded::<USER_FRAMES_MAX>(index + 1)];
        let frame = &remembered.frames[bounded::<USER_FRAMES_MAX>(index)];
        if !still_leads_to(scratch, frame.sp, caller) {
            outcome = DIFFERS;
            break;
        }
        let next_word = load(&raw const scratch.walk.next_word);
        scratch.words[bounded::<SCRATCH_WORDS>(next_word)] = caller.ip;
        keep(&mut scratch.walk.next_word, next_word + 1);
        index += 1;
    }
    keep(&mut scratch.walk.remembered, index);
    if outcome != GO_ON {
        keep(&mut scratch.walk.outcome, u64::from(outcome));
    }
    i64::from(outcome != GO_ON)
}

/// Whether the words that `caller` was made from are still the same.
#[inline(always)]
fn still_leads_to(scratch: &mut Scratch, frame_sp: u64, caller: &RememberedFrame) -> bool {
    let return_address = caller.sp.wrapping_sub(8);
    let at = load(&raw const scratch.walk.window_at);
    if return_address.wrapping_sub(at) >= load(&raw const scratch.walk.window_len) {
        let len = copy_stack(scratch, frame_sp);
        keep(&mut scratch.walk.window_at, frame_sp);
        keep(&mut scratch.walk.window_len, len);
    }
    if window_word(scratch, return_address) != Some(caller.ip) {
        return false;
    }
    // `DEPENDS_ON_MORE` is no address, and so in no window.
    caller.depends == DEPENDS_ON_RETURN_ADDRESS
        || window_word(scratch, caller.depends) == Some(caller.fp)
}

#[inline(always)]
fn window_word(scratch: &Scratch, address: u64) -> Option<u64> {
    let offset = address.wrapping_sub(load(&raw const scratch.walk.window_at));
    let inside = offset < load(&raw const scratch.walk.window_len) && offset & 7 == 0;
    inside.then(|| scratch.window[bounded::<WINDOW_WORDS>(offset >> 3)])
}

/// Where the walk goes on by rule: at the last frame that was the same, which is given once more.
#[inline(always)]
pub(crate) fn resume(remembered: &Remembered, walk: &mut Walk) {
    let index = load(&raw const walk.remembered);
    let RememberedFrame { ip, sp, fp, depends } =
        remembered.frames[bounded::<USER_FRAMES_MAX>(index)];
    keep(&mut walk.at, Cursor { ip, sp, fp, depends, returns: 1, ..Cursor::default() });
    let next_word = load(&raw const walk.next_word);
    keep(&mut walk.next_word, next_word.wrapping_sub(1));
}

/// Notes how much of the stack was reused: `frames` from the one that was recognised on.
#[inline(always)]
pub(crate) fn rate(remembered: &mut Remembered, walk: &mut Walk, frames: u64) {
    let poor = load(&raw const remembered.poor);
    let whole = load(&raw const walk.outcome) != u64::from(DIFFERS);
    let served_well = whole && 2 * frames >= walk.frames();
    keep(&mut remembered.poor, if served_well { 0 } else { poor + 1 });
    if frames > 0 {
        let own = load(&raw const walk.by_frame_pointer);
        keep(&mut walk.by_frame_pointer, own | load(&raw const remembered.by_frame_pointer));
    }
}
