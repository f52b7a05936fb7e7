//! A thread's labels: of the goroutine that runs, or of custom-labels. Those that name a span are
//! put together as a record of their own, [`LabelRecord`].
//!
//! What the loop carries is in map memory, as for the walk: the verifier sees one state.

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_user};
use profiler_common::{
    counter,
    sample::{SPAN_NONE, SPAN_READ, SPAN_UNREADABLE},
    span::{GoLayout, LABEL_NAME_MAX, LABELS_MAX, LabelRecord, SPAN_HEADER_LEN},
};
use profiler_ebpf::bounded::bounded;
use profiler_ebpf::label_list::{
    GO_MAP, KEY_LEN, NAME, PROFILE_ID, Place, SPAN_ID, pair, pairs, place, string,
};
use profiler_ebpf::span_record::ATTRIBUTES_LEN;

use crate::maps::{SCRATCH_WORDS, Scratch, count};
use crate::sample::read_user;
use crate::span::SpanRead;
use crate::volatile::{keep, load};

/// What the loop over labels carries.
#[repr(C)]
pub(crate) struct Labels {
    /// How they are laid out: one of `label_list`'s.
    form: u64,
    /// Where they are.
    at: u64,
    /// The first word of the record.
    first_word: u64,
    /// The bits of the labels that were copied, and [`UNREADABLE`].
    seen: u64,
    /// The length of the name that was copied.
    name_len: u64,
}

/// `Labels::seen`: something could not be read.
const UNREADABLE: u64 = 1 << 8;

/// The labels of the goroutine that the current thread runs, by the goroutine that its stack is of:
/// that is the thread's own while the runtime works for itself or for the goroutine. 0 without
/// either.
#[inline(always)]
pub(crate) fn of_goroutine(goroutine: u64, layout: GoLayout) -> Result<u64, i32> {
    let machine: u64 = read_user(goroutine.wrapping_add(u64::from(layout.g_m)))?;
    if machine == 0 {
        return Ok(0);
    }
    let current: u64 = read_user(machine.wrapping_add(u64::from(layout.m_curg)))?;
    if current == 0 {
        return Ok(0);
    }
    read_user(current.wrapping_add(u64::from(layout.g_labels)))
}

/// Makes a record of the labels at `pointer`, behind the first words.
#[inline(always)]
pub(crate) fn read<const BOUNDED: bool>(
    scratch: &mut Scratch,
    first: usize,
    form: u64,
    pointer: u64,
) -> SpanRead {
    let Ok((list, cut)) = begin(scratch, first, form, pointer) else {
        count(counter::SPAN_RECORD_UNREADABLE);
        return SpanRead::nothing(SPAN_UNREADABLE);
    };
    if BOUNDED {
        for index in 0..LABELS_MAX as u64 {
            if index >= list || label(scratch, index) != 0 {
                break;
            }
        }
    } else {
        let mut context = Context { scratch };
        let context = core::ptr::from_mut(&mut context).cast::<c_void>();
        // SAFETY: the helper calls `next` with `context`, which lives until it returns.
        _ = unsafe { bpf_loop(list as u32, next as *mut c_void, context, 0) };
    }
    end(scratch, first, cut)
}

/// Writes a record without labels; gives how many there are to look at, and whether there are more.
#[inline(always)]
fn begin(scratch: &mut Scratch, first: usize, form: u64, pointer: u64) -> Result<(u64, bool), i32> {
    let list = if form == GO_MAP { read_user::<u64>(pointer)? } else { pointer };
    let pairs = pairs(form, read_user::<[u64; 3]>(list)?);
    let labels = &mut scratch.labels;
    keep(&mut labels.form, form);
    keep(&mut labels.at, pairs.at);
    keep(&mut labels.first_word, first as u64);
    keep(&mut labels.seen, 0);
    keep(&mut labels.name_len, 0);
    for (index, word) in LabelRecord::EMPTY_WORDS.into_iter().enumerate() {
        scratch.words[bounded::<SCRATCH_WORDS>((first + index) as u64)] = word;
    }
    Ok((pairs.count, pairs.cut))
}

/// What `bpf_loop` hands on.
struct Context<'a> {
    scratch: &'a mut Scratch,
}

#[inline(never)]
unsafe extern "C" fn next(index: u32, context: *mut Context<'_>) -> i64 {
    // SAFETY: the caller's pointer is valid while this runs.
    let context = unsafe { &mut *context };
    label(context.scratch, u64::from(index))
}

/// Copies a label, if it is of a span. Returns 0 to go on.
#[inline(always)]
fn label(scratch: &mut Scratch, index: u64) -> i64 {
    let form = load(&raw const scratch.labels.form);
    let seen = load(&raw const scratch.labels.seen);
    let (key_at, to_value) = pair(form, load(&raw const scratch.labels.at), index);
    let Ok(key) = read_user::<[u64; 2]>(key_at) else {
        keep(&mut scratch.labels.seen, seen | UNREADABLE);
        return 1;
    };
    let (key, key_len) = string(form, key);
    // An empty place has neither.
    if key == 0 || !KEY_LEN.contains(&key_len) {
        return 0;
    }
    let mut text = [0_u64; 2];
    let to = text.as_mut_ptr().cast();
    let len = bounded::<16>(key_len) as u32;
    // SAFETY: `text` has room for 16 bytes; the helper fails on an address that cannot be read.
    if unsafe { bpf_probe_read_user(to, len, key as *const _) } != 0 {
        keep(&mut scratch.labels.seen, seen | UNREADABLE);
        return 0;
    }
    let Some(place) = place(key_len, text) else { return 0 };
    // Of a key that is there twice the first counts (custom-labels v1).
    if seen & place.bit != 0 {
        return 0;
    }
    let seen = match copy(scratch, form, key_at.wrapping_add(to_value), place) {
        Ok(()) => seen | place.bit,
        Err(_) => seen | UNREADABLE,
    };
    keep(&mut scratch.labels.seen, seen);
    0
}

/// Copies the value at `at` to its place.
#[inline(always)]
fn copy(scratch: &mut Scratch, form: u64, at: u64, place: Place) -> Result<(), i32> {
    let (value, len) = string(form, read_user::<[u64; 2]>(at)?);
    let len = if len < place.most { len } else { place.most };
    let len = bounded::<256>(len);
    let first = bounded::<{ SCRATCH_WORDS / 2 }>(load(&raw const scratch.labels.first_word));
    if place.at == NAME.at {
        // What is behind the name up to a whole word is zeros. The first such word has the end of
        // what is before the name.
        let last = (NAME.at + len).saturating_sub(1) / 8;
        if last > NAME.at / 8 {
            scratch.words[bounded::<SCRATCH_WORDS>((first + last) as u64)] = 0;
        }
    }
    // SAFETY: `first` leaves room for the longest record.
    let record = unsafe { scratch.words.as_mut_ptr().add(first) }.cast::<u8>();
    // SAFETY: a place is within that record.
    let to = unsafe { record.add(place.at) };
    // SAFETY: `to` has room for the bytes; the helper fails on an address that cannot be read, and
    // then writes zeros.
    if unsafe { bpf_probe_read_user(to.cast(), len as u32, value as *const _) } != 0 {
        return Err(-1);
    }
    if place.at == NAME.at {
        keep(&mut scratch.labels.name_len, len as u64);
    }
    Ok(())
}

/// Completes the record; it is none without an id.
#[inline(always)]
fn end(scratch: &mut Scratch, first: usize, cut: bool) -> SpanRead {
    let seen = load(&raw const scratch.labels.seen);
    if seen & (SPAN_ID.bit | PROFILE_ID.bit) == 0 {
        if seen & UNREADABLE != 0 {
            count(counter::SPAN_RECORD_UNREADABLE);
            return SpanRead::nothing(SPAN_UNREADABLE);
        }
        if cut {
            count(counter::SPAN_LABELS_CUT);
        }
        count(counter::SPAN_NONE);
        return SpanRead::nothing(SPAN_NONE);
    }
    count(counter::SPAN_READ);
    if seen & UNREADABLE != 0 {
        count(counter::SPAN_ATTRIBUTES_CUT);
    }
    let name_len = load(&raw const scratch.labels.name_len) & LABEL_NAME_MAX as u64;
    let len = NAME.at + name_len as usize;
    add(scratch, first, ATTRIBUTES_LEN, (len - SPAN_HEADER_LEN) as u64);
    add(scratch, first, offset_of!(LabelRecord, name_len), name_len);
    SpanRead { status: SPAN_READ, len, padded_len: len.next_multiple_of(8) }
}

/// Puts a value into the record where there were zeros.
#[inline(always)]
fn add(scratch: &mut Scratch, first: usize, at: usize, value: u64) {
    let word = bounded::<SCRATCH_WORDS>((first + at / 8) as u64);
    scratch.words[word] |= value << (8 * (at % 8));
}
