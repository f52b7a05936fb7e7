//! What a program says by span-marker's hook: `span_marker_thread_slot_v1(slot, tp_offset)`, which
//! it calls once. From then on its samples have spans, without a round trip to user space.

use aya_ebpf::programs::ProbeContext;
use profiler_common::{
    counter,
    process::EVENT_SPAN_SLOT,
    span::{Added, SpanSlot, SpanSlots},
};
use profiler_ebpf::machine::X86_64;
use profiler_ebpf::span_slot::is_plausible;

use crate::maps::{SPAN_SLOTS, TARGETS_ONLY, count};
use crate::process::{current_tgid, is_target, send};

/// A process can call it with anything, and as often as it likes: only what is kept of this process
/// changes: four places, of which user space hears when they are taken.
#[inline(always)]
pub(crate) fn span_slot(ctx: &ProbeContext) {
    let tgid = current_tgid();
    if TARGETS_ONLY.load() != 0 && !is_target(tgid) {
        return;
    }
    let (Some(slot), Some(tp_offset)) = (ctx.arg::<u64>(0), ctx.arg::<i64>(1)) else { return };
    if !is_plausible(&X86_64, slot, tp_offset) {
        return count(counter::HOOK_REFUSED);
    }
    let place = SpanSlot::at_thread_pointer(tp_offset);
    // SAFETY: the value is copied at once; user space replaces elements, it does not modify them.
    let slots = match unsafe { SPAN_SLOTS.get(tgid) }.copied() {
        None => SpanSlots::one(place),
        // Its program has one, and so has a library.
        Some(mut slots) => match slots.add(place) {
            Added::New => slots,
            Added::Known => return,
            Added::NoRoom => return count(counter::HOOK_NO_ROOM),
        },
    };
    if SPAN_SLOTS.insert(tgid, slots, 0).is_err() {
        return count(counter::HOOK_NO_ROOM);
    }
    count(counter::HOOK_TAKEN);
    send(EVENT_SPAN_SLOT, tgid, 0, tp_offset.cast_unsigned());
}
