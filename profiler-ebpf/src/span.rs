//! The thread's span: which of the process's slots has one, and a copy of its OTEP 4947 record, or
//! of its labels.
//!
//! All slots are probed in one loop, which reads little; what was found is copied behind it, once.

use aya_ebpf::{
    helpers::{bpf_get_current_task, bpf_probe_read_kernel, generated::bpf_probe_read_user},
    programs::PerfEventContext,
};
use aya_log_ebpf::debug;
use profiler_common::{
    counter,
    sample::{SPAN_INVALID, SPAN_NO_SLOT, SPAN_NONE, SPAN_READ, SPAN_UNREADABLE},
    span::{SLOT_CUSTOM_LABELS, SLOT_EMPTY, SLOT_GO, SLOT_RECORD, SPAN_HEADER_LEN, SpanSlot},
};
use profiler_ebpf::bounded::bounded;
use profiler_ebpf::label_list::{CUSTOM, GO_MAP, GO_SLICE};
use profiler_ebpf::span_record::{
    ATTRIBUTES_LEN, VALID, attributes_to_copy, has_block, length_of_dtv, padded_len,
};

use crate::labels;
use crate::maps::{SCRATCH_WORDS, SPAN_SLOTS, Scratch, TASK_THREAD_POINTER, count};
use crate::sample::read_user;
use crate::volatile::{keep, load};

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
    pub(crate) const fn nothing(status: u8) -> Self {
        Self { status, len: 0, padded_len: 0 }
    }
}

/// What a slot turned out to have. Of several slots the greatest is what the sample says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u64)]
enum Probe {
    SlotUnreadable = 0,
    RecordUnreadable = 1,
    None = 2,
    Invalid = 3,
    Found = 4,
}

/// What the loop over slots found: in map memory, for the verifier.
#[repr(C)]
pub(crate) struct Found {
    /// The greatest [`Probe`] so far.
    best: u64,
    /// What the slot points to, if that is [`Probe::Found`].
    pointer: u64,
    /// How the labels are laid out that it points to; [`RECORD`] if it is a record.
    form: u64,
}

/// `Found::form`: none of `label_list`'s.
const RECORD: u64 = 0;

/// Copies the current thread's record behind the first `at` words.
#[inline(always)]
pub(crate) fn read_span<const BOUNDED: bool>(
    ctx: &PerfEventContext,
    tgid: u32,
    scratch: &mut Scratch,
    at: usize,
) -> SpanRead {
    // SAFETY: each element is copied at once; user space replaces the value, it does not modify it.
    let Some(slots) = (unsafe { SPAN_SLOTS.get(tgid) }) else {
        count(counter::SPAN_NO_SLOT);
        return SpanRead::nothing(SPAN_NO_SLOT);
    };
    let Some(thread_pointer) = thread_pointer() else {
        count(counter::SPAN_NO_THREAD_POINTER);
        return SpanRead::nothing(SPAN_UNREADABLE);
    };
    // The mask is for the verifier: at most 255 frames come before.
    let first = at & (SCRATCH_WORDS / 2 - 1);
    keep(&mut scratch.span.best, Probe::SlotUnreadable as u64);
    for slot in &slots.slots {
        if slot.format == SLOT_EMPTY {
            break;
        }
        let probe = probe(thread_pointer, slot, scratch, first) as u64;
        if probe > load(&raw const scratch.span.best) {
            keep(&mut scratch.span.best, probe);
        }
        if probe == Probe::Found as u64 {
            break;
        }
    }
    let best = load(&raw const scratch.span.best);
    if best == Probe::Found as u64 {
        let form = load(&raw const scratch.span.form);
        if form != RECORD {
            let pointer = load(&raw const scratch.span.pointer);
            return labels::read::<BOUNDED>(scratch, first, form, pointer);
        }
        count(counter::SPAN_READ);
        return copy_attributes(scratch, first);
    }
    let (status, counter) = if best == Probe::Invalid as u64 {
        (SPAN_INVALID, counter::SPAN_INVALID)
    } else if best == Probe::None as u64 {
        (SPAN_NONE, counter::SPAN_NONE)
    } else if best == Probe::RecordUnreadable as u64 {
        (SPAN_UNREADABLE, counter::SPAN_RECORD_UNREADABLE)
    } else {
        (SPAN_UNREADABLE, counter::SPAN_SLOT_UNREADABLE)
    };
    count(counter);
    if status == SPAN_UNREADABLE {
        debug!(ctx, "process {}: neither span slot nor record can be read", tgid);
    }
    SpanRead::nothing(status)
}

/// Looks what a slot has, by its format; keeps the pointer of one that is found.
#[inline(always)]
fn probe(thread_pointer: u64, slot: &SpanSlot, scratch: &mut Scratch, first: usize) -> Probe {
    let slot_at = match slot_address(thread_pointer, slot) {
        Ok(Some(address)) => address,
        Ok(None) => return Probe::None,
        Err(_) => return Probe::SlotUnreadable,
    };
    let Ok(pointer) = read_user::<u64>(slot_at) else { return Probe::SlotUnreadable };
    if pointer == 0 {
        return Probe::None;
    }
    keep(&mut scratch.span.pointer, pointer);
    match slot.format {
        SLOT_RECORD => {
            keep(&mut scratch.span.form, RECORD);
            probe_record(pointer, scratch, first)
        }
        SLOT_GO => {
            let is_map = slot.go.labels_are_map != 0;
            keep(&mut scratch.span.form, if is_map { GO_MAP } else { GO_SLICE });
            match labels::of_goroutine(pointer, slot.go) {
                Ok(0) => Probe::None,
                Ok(labels) => {
                    keep(&mut scratch.span.pointer, labels);
                    Probe::Found
                }
                Err(_) => Probe::RecordUnreadable,
            }
        }
        SLOT_CUSTOM_LABELS => {
            keep(&mut scratch.span.form, CUSTOM);
            Probe::Found
        }
        _ => Probe::None,
    }
}

/// Where the current thread has the variable of a slot; `None` if it has no copy of it.
#[inline(always)]
fn slot_address(thread_pointer: u64, slot: &SpanSlot) -> Result<Option<u64>, i32> {
    if slot.module == 0 {
        return Ok(Some(thread_pointer.wrapping_add_signed(slot.offset)));
    }
    let dtv: u64 = read_user(thread_pointer.wrapping_add_signed(i64::from(slot.dtv_offset)))?;
    let shift = u32::from(slot.dtv_entry_shift) & 63;
    if u64::from(slot.module) > read_user::<u64>(length_of_dtv(dtv, shift))? {
        return Ok(None);
    }
    let block: u64 = read_user(dtv.wrapping_add(u64::from(slot.module) << shift))?;
    Ok(has_block(block).then_some(block.wrapping_add_signed(slot.offset)))
}

/// Copies a record's header.
#[inline(always)]
fn probe_record(record: u64, scratch: &mut Scratch, first: usize) -> Probe {
    let words = &mut scratch.words;
    let last_of_header = bounded::<SCRATCH_WORDS>((first + SPAN_HEADER_LEN / 8) as u64);
    words[last_of_header] = 0;
    // SAFETY: `first` leaves room for a header and the longest attributes in `words`.
    let to = unsafe { words.as_mut_ptr().add(first) }.cast::<u8>();
    // SAFETY: `to` has room for the bytes; the helper fails on an address that cannot be read.
    let failed =
        unsafe { bpf_probe_read_user(to.cast(), SPAN_HEADER_LEN as u32, record as *const _) };
    if failed != 0 {
        return Probe::RecordUnreadable;
    }
    let valid = words[last_of_header] >> (8 * (VALID as u32 - LAST_WORD));
    if valid & 0xff == 1 { Probe::Found } else { Probe::Invalid }
}

/// Where the header's last word begins, of which it has the low half: bytes 24 to 27.
const LAST_WORD: u32 = ((SPAN_HEADER_LEN / 8) * 8) as u32;

/// Copies the attributes of the record that was found behind its header.
#[inline(always)]
fn copy_attributes(scratch: &mut Scratch, first: usize) -> SpanRead {
    let record = load(&raw const scratch.span.pointer);
    let words = &mut scratch.words;
    let last_of_header = bounded::<SCRATCH_WORDS>((first + SPAN_HEADER_LEN / 8) as u64);
    let claimed = (words[last_of_header] >> (8 * (ATTRIBUTES_LEN as u32 - LAST_WORD))) as u16;
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
    // SAFETY: `first` leaves room for a header and the longest attributes in `words`.
    let to = unsafe { words.as_mut_ptr().cast::<u8>().add(8 * first + SPAN_HEADER_LEN) };
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
