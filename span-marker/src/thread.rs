//! What the calling thread has entered, and so what its slot points to.
//!
//! Two sources: records entered by hand or through `tracing`, which form a stack, and the record of
//! opentelemetry's current context. The latest of the two is published. A record on the stack
//! remembers the context under which it was entered: while another one is current, that one is the
//! later.
//!
//! Nothing here owns a record: whoever enters one keeps it until it has left. So entering and leaving
//! are a few plain stores, and a thread that ends has nothing to drop.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use crate::record::Record;
use crate::{slot, stats};

/// How many records a thread can have entered at once. Fixed, so that entering never allocates.
pub const DEPTH_MAX: usize = 64;

thread_local! {
    /// The record of opentelemetry's current context, or null. Neither this nor the next one has a
    /// destructor: they can be read and written until the thread is gone.
    static OBSERVED: Cell<*const u8> = const { Cell::new(ptr::null()) };

    static MARKS: Marks = const { Marks::new() };
}

/// Publishes `record` as what this thread works for, until the guard is dropped.
///
/// Neither allocates nor panics, and costs a few nanoseconds. Below [`DEPTH_MAX`] others on one
/// thread the record is not published, and counted.
///
/// A guard that is leaked ([`std::mem::forget`]) leaves the record entered. If the record is freed
/// nevertheless, this thread publishes it no longer; but if another thread frees it, readers see the
/// memory that it was in. Where guards may be leaked, use [`enter_owned`].
#[inline]
pub fn enter(record: &Record) -> Guard<'_> {
    Guard { position: push(record, 0), _owned: None, borrowed: PhantomData }
}

/// As [`enter`], with a guard that keeps the record: for guards that are stored.
///
/// A guard that is leaked leaves the record entered, and in memory, for good.
#[inline]
pub fn enter_owned(record: Arc<Record>) -> Guard<'static> {
    Guard { position: push(&record, 0), _owned: Some(record), borrowed: PhantomData }
}

/// Unpublishes a record when dropped, and publishes what was entered before it.
///
/// Guards may be dropped in any order: a record below others is taken out, and what is published
/// stays.
#[derive(Debug)]
#[must_use = "the record is unpublished when the guard is dropped"]
pub struct Guard<'record> {
    position: Option<usize>,
    /// Dropped after the record has left.
    _owned: Option<Arc<Record>>,
    /// Not `Send`: what was entered is this thread's.
    borrowed: PhantomData<(&'record Record, *const ())>,
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(position) = self.position {
            MARKS.with(|marks| marks.take(position));
        }
    }
}

#[inline]
fn push(record: &Record, key: u64) -> Option<usize> {
    MARKS.with(|marks| marks.push(record.as_ptr(), key))
}

/// Publishes a record until [`leave`] is called with the same key, which is not zero.
///
/// The caller keeps the record alive until then.
#[cfg(feature = "tracing")]
#[inline]
pub(crate) fn enter_as(key: u64, record: &Record) {
    // Too deep is counted, and `leave` finds nothing.
    let _position = push(record, key);
}

/// Unpublishes the latest record that was entered with this key, if there is one.
#[cfg(feature = "tracing")]
#[inline]
pub(crate) fn leave(key: u64) {
    MARKS.with(|marks| {
        if let Some(position) = marks.position_of(|mark| mark.key.get() == key) {
            marks.take(position);
        }
    });
}

/// Publishes the record of the context that opentelemetry has made current, null for none.
///
/// The caller keeps the record alive until it says otherwise on the same thread.
#[cfg(feature = "opentelemetry")]
#[inline]
pub(crate) fn observe(record: *const u8) {
    OBSERVED.set(record);
    MARKS.with(Marks::publish);
}

/// A record is about to be freed: if this thread still publishes it, it stops.
pub(crate) fn forget(record: *const u8) {
    MARKS.with(|marks| {
        while let Some(position) = marks.position_of(|mark| mark.record.get() == record) {
            marks.take(position);
        }
        if OBSERVED.get() == record {
            OBSERVED.set(ptr::null());
            marks.publish();
        }
    });
}

/// A record that was entered.
struct Mark {
    /// Null once it has left.
    record: Cell<*const u8>,
    /// The observed record at the time of entering; only ever compared.
    observed: Cell<*const u8>,
    /// By what it is found when it leaves, zero if by its position.
    key: Cell<u64>,
}

impl Mark {
    const fn none() -> Self {
        let null = ptr::null();
        Self { record: Cell::new(null), observed: Cell::new(null), key: Cell::new(0) }
    }
}

/// Records that were entered, oldest first.
struct Marks {
    /// One more than the position of the latest mark that is still entered.
    len: Cell<usize>,
    marks: [Mark; DEPTH_MAX],
}

impl Marks {
    const fn new() -> Self {
        Self { len: Cell::new(0), marks: [const { Mark::none() }; DEPTH_MAX] }
    }

    #[inline]
    fn push(&self, record: *const u8, key: u64) -> Option<usize> {
        let position = self.len.get();
        let Some(mark) = self.marks.get(position) else {
            stats::ENTERED_TOO_DEEP.add();
            return None;
        };
        mark.record.set(record);
        mark.observed.set(OBSERVED.get());
        mark.key.set(key);
        self.len.set(position + 1);
        slot::set(record);
        Some(position)
    }

    /// Takes out a mark. Once this returns, nothing here or in the slot points to its record.
    #[inline]
    fn take(&self, position: usize) {
        let Some(mark) = self.marks.get(position) else { return };
        mark.record.set(ptr::null());
        if position + 1 == self.len.get() {
            let mut len = position;
            // Marks below that were taken out of order.
            while let Some(below) = len.checked_sub(1)
                && self.marks.get(below).is_some_and(|mark| mark.record.get().is_null())
            {
                len = below;
            }
            self.len.set(len);
            self.publish();
        }
    }

    /// The latest mark of which this is true.
    #[inline]
    fn position_of(&self, wanted: impl Fn(&Mark) -> bool) -> Option<usize> {
        let entered = self.marks.get(..self.len.get())?;
        entered.iter().rposition(|mark| !mark.record.get().is_null() && wanted(mark))
    }

    #[inline]
    fn publish(&self) {
        let observed = OBSERVED.get();
        let latest = self.len.get().checked_sub(1).and_then(|top| self.marks.get(top));
        let latest = latest.filter(|mark| mark.observed.get() == observed);
        slot::set(latest.map_or(observed, |mark| mark.record.get()));
    }
}
