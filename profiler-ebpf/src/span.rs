//! The thread's OTEP 4947 record: thread pointer, slot, header, attributes.

use aya_ebpf::{
    helpers::{bpf_get_current_task, bpf_probe_read_kernel, generated::bpf_probe_read_user},
    programs::PerfEventContext,
};
use aya_log_ebpf::debug;
use profiler_common::{
    counter,
    sample::{SPAN_INVALID, SPAN_NO_SLOT, SPAN_NONE, SPAN_READ, SPAN_UNREADABLE},
    span::SPAN_HEADER_LEN,
};
use profiler_ebpf::bounded::bounded;
use profiler_ebpf::span_record::{ATTRIBUTES_LEN, VALID, attributes_to_copy, padded_len};

use crate::maps::{SCRATCH_WORDS, SPAN_SLOTS, Scratch, TASK_THREAD_POINTER, count};
use crate::sample::read_user;

/// What [`read_span`] wrote.
pub(crate) struct SpanRead {
    /// One of `SPAN_*`.
    pub(crate) status: u8,
    /// Bytes of the record, 0 if there is none.
    pub(crate) len: usize,
    /// `len`, rounded up to whole words.
    pub(crate) padded_len: usize,
}

impl SpanRead {
    const fn nothing(status: u8) -> Self {
        Self { status, len: 0, padded_len: 0 }
    }
}

/// Copies the current thread's record behind the first `at` words.
#[inline(always)]
pub(crate) fn read_span(
    ctx: &PerfEventContext,
    tgid: u32,
    scratch: &mut Scratch,
    at: usize,
) -> SpanRead {
    // SAFETY: the value is copied at once; user space replaces elements, it does not modify them.
    let Some(slots) = (unsafe { SPAN_SLOTS.get(tgid) }) else {
        count(counter::SPAN_NO_SLOT);
        return SpanRead::nothing(SPAN_NO_SLOT);
    };
    let Some(thread_pointer) = thread_pointer() else {
        count(counter::SPAN_NO_THREAD_POINTER);
        return SpanRead::nothing(SPAN_UNREADABLE);
    };
    let slot_at = thread_pointer.wrapping_add_signed(slots.slots[0].offset);
    let Ok(record) = read_user::<u64>(slot_at) else {
        debug!(ctx, "process {}: span slot at {:x} cannot be read", tgid, slot_at);
        count(counter::SPAN_SLOT_UNREADABLE);
        return SpanRead::nothing(SPAN_UNREADABLE);
    };
    if record == 0 {
        count(counter::SPAN_NONE);
        return SpanRead::nothing(SPAN_NONE);
    }
    copy_record(ctx, tgid, record, scratch, at)
}

#[inline(always)]
fn copy_record(
    ctx: &PerfEventContext,
    tgid: u32,
    record: u64,
    scratch: &mut Scratch,
    at: usize,
) -> SpanRead {
    let words = &mut scratch.words;
    // The mask is for the verifier: at most 255 frames come before.
    let first = at & (SCRATCH_WORDS / 2 - 1);
    let last_of_header = bounded::<SCRATCH_WORDS>((first + SPAN_HEADER_LEN / 8) as u64);
    words[last_of_header] = 0;
    // SAFETY: `first` leaves room for a header and the longest attributes in `words`.
    let to = unsafe { words.as_mut_ptr().add(first) }.cast::<u8>();
    // SAFETY: `to` has room for the bytes; the helper fails on an address that cannot be read.
    let failed =
        unsafe { bpf_probe_read_user(to.cast(), SPAN_HEADER_LEN as u32, record as *const _) };
    if failed != 0 {
        debug!(ctx, "process {}: span record at {:x} cannot be read", tgid, record);
        count(counter::SPAN_RECORD_UNREADABLE);
        return SpanRead::nothing(SPAN_UNREADABLE);
    }
    // Bytes 24 to 27 of the header are the low half of its fourth word.
    let tail = words[last_of_header];
    const LOW: u32 = ((SPAN_HEADER_LEN / 8) * 8) as u32;
    if (tail >> (8 * (VALID as u32 - LOW))) & 0xff != 1 {
        count(counter::SPAN_INVALID);
        return SpanRead::nothing(SPAN_INVALID);
    }
    count(counter::SPAN_READ);
    let claimed = (tail >> (8 * (ATTRIBUTES_LEN as u32 - LOW))) as u16;
    let (len, whole) = attributes_to_copy(claimed);
    if !whole {
        count(counter::SPAN_ATTRIBUTES_CUT);
    }
    if len == 0 {
        return SpanRead { status: SPAN_READ, len: SPAN_HEADER_LEN, padded_len: padded_len(0) };
    }
    let padded = padded_len(len);
    let last = first + padded / 8 - 1;
    if last != last_of_header {
        words[bounded::<SCRATCH_WORDS>(last as u64)] = 0;
    }
    // SAFETY: as for `to`, and the header is followed by room for the longest attributes.
    let to = unsafe { to.add(SPAN_HEADER_LEN) };
    let from = record.wrapping_add(SPAN_HEADER_LEN as u64);
    // SAFETY: `len` is at most that room; the helper fails on an address that cannot be read.
    if unsafe { bpf_probe_read_user(to.cast(), len as u32, from as *const _) } != 0 {
        // Once a sample, however many reasons there are.
        if whole {
            count(counter::SPAN_ATTRIBUTES_CUT);
        }
        return SpanRead { status: SPAN_READ, len: SPAN_HEADER_LEN, padded_len: padded_len(0) };
    }
    SpanRead { status: SPAN_READ, len: SPAN_HEADER_LEN + len, padded_len: padded }
}

/// The current thread's thread pointer.
#[inline(always)]
fn thread_pointer() -> Option<u64> {
    let at = TASK_THREAD_POINTER.load();
    if at == 0 {
        return None;
    }
    // SAFETY: the helper takes no argument and cannot fail.
    let task = unsafe { bpf_get_current_task() };
    // SAFETY: the helper fails, and does not fault, on an address that cannot be read.
    unsafe { bpf_probe_read_kernel((task + u64::from(at)) as *const u64) }.ok()
}
