//! What the calling thread has entered, and so what its slot points to.
//!
//! Two sources: records entered by hand, which form a stack that owns them, and the record of
//! opentelemetry's current context, which that context owns. The latest of the two is published. A
//! hand-entered record remembers the context under which it was entered: while another one is
//! current, that one is the later.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use crate::record::Record;
use crate::{slot, stats};

/// How many records a thread can have entered by hand at once. Fixed, so that entering never
/// allocates.
pub const DEPTH_MAX: usize = 64;

thread_local! {
    /// The record of opentelemetry's current context, or null. No destructor: it can be read and
    /// written until the thread is gone.
    static OBSERVED: Cell<*const u8> = const { Cell::new(ptr::null()) };

    static MARKS: Marks = const { Marks::new() };
}

/// Publishes `record` as what this thread works for, until the guard is dropped.
///
/// Neither allocates nor panics. Below [`DEPTH_MAX`] others on one thread the record is not
/// published, and counted.
#[inline]
pub fn enter(record: &Arc<Record>) -> Guard {
    let position = MARKS.try_with(|marks| marks.push(record)).unwrap_or(None);
    Guard { position, not_send: PhantomData }
}

/// Unpublishes a record when dropped, and publishes what was entered before it.
///
/// Guards may be dropped in any order: a record below others is taken out, and what is published
/// stays. A guard that is leaked leaves its record entered until the thread ends.
#[derive(Debug)]
#[must_use = "the record is unpublished when the guard is dropped"]
pub struct Guard {
    position: Option<usize>,
    /// The mark is this thread's.
    not_send: PhantomData<*const ()>,
}

impl Drop for Guard {
    #[inline]
    fn drop(&mut self) {
        if let Some(position) = self.position {
            // After the thread's marks are gone, so is this one.
            drop(MARKS.try_with(|marks| marks.take(position)));
        }
    }
}

/// Publishes the record of the context that opentelemetry has made current, null for none.
///
/// The caller keeps the record alive until it says otherwise on the same thread.
#[cfg(feature = "opentelemetry")]
#[inline]
pub(crate) fn observe(record: *const u8) {
    OBSERVED.set(record);
    if MARKS.try_with(Marks::publish).is_err() {
        slot::set(record);
    }
}

/// The record is about to be freed: if this thread still publishes it, it stops.
#[cfg(feature = "opentelemetry")]
pub(crate) fn forget(record: *const u8) {
    if OBSERVED.get() == record {
        observe(ptr::null());
    }
}

/// A record entered by hand.
struct Mark {
    record: Arc<Record>,
    /// The observed record at that time; only ever compared.
    observed: *const u8,
}

/// Records entered by hand, oldest first.
///
/// The slot points to a record in here or to the observed one. So a record leaves in two steps:
/// first the slot points elsewhere, then the strong reference is dropped.
struct Marks {
    /// One more than the position of the latest mark that is still entered.
    len: Cell<usize>,
    marks: [Cell<Option<Mark>>; DEPTH_MAX],
}

impl Marks {
    const fn new() -> Self {
        Self { len: Cell::new(0), marks: [const { Cell::new(None) }; DEPTH_MAX] }
    }

    #[inline]
    fn push(&self, record: &Arc<Record>) -> Option<usize> {
        let position = self.len.get();
        let Some(mark) = self.marks.get(position) else {
            stats::ENTERED_TOO_DEEP.add();
            return None;
        };
        mark.set(Some(Mark { record: Arc::clone(record), observed: OBSERVED.get() }));
        self.len.set(position + 1);
        slot::set(record.as_ptr());
        Some(position)
    }

    /// Takes out a mark, after its record is unpublished.
    #[inline]
    fn take(&self, position: usize) -> Option<Mark> {
        let mark = self.marks.get(position)?.take();
        if position + 1 == self.len.get() {
            let mut len = position;
            // Marks below that were taken out of order.
            while let Some(below) = len.checked_sub(1)
                && self.peek(below, Option::is_none)
            {
                len = below;
            }
            self.len.set(len);
            self.publish();
        }
        mark
    }

    #[inline]
    fn publish(&self) {
        let observed = OBSERVED.get();
        let latest = self.len.get().checked_sub(1).and_then(|top| {
            self.peek(top, |mark| {
                let latest = mark.as_ref().filter(|mark| mark.observed == observed);
                latest.map(|mark| mark.record.as_ptr())
            })
        });
        slot::set(latest.unwrap_or(observed));
    }

    #[inline]
    fn peek<T: Default>(&self, position: usize, look: impl FnOnce(&Option<Mark>) -> T) -> T {
        let Some(cell) = self.marks.get(position) else { return T::default() };
        let mark = cell.take();
        let seen = look(&mark);
        cell.set(mark);
        seen
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        // Guards that were leaked, or that outlive this in another thread-local.
        self.len.set(0);
        slot::set(OBSERVED.get());
    }
}
