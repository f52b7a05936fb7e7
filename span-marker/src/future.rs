//! A future that marks the thread on which it is polled.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::record::Record;
use crate::thread::enter;

/// Marks the work of a future, on whichever thread it runs.
pub trait MarkFuture: Future + Sized {
    /// Enters the record for each poll of this future, and no longer.
    fn marked(self, record: Arc<Record>) -> Marked<Self> {
        Marked { future: self, record }
    }
}

impl<F: Future> MarkFuture for F {}

/// A future whose polls are marked with a record.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Marked<F> {
    future: F,
    record: Arc<Record>,
}

impl<F: Future> Future for Marked<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: nothing is moved out of it: `record` is only borrowed, and `future` is pinned again.
        let this = unsafe { self.get_unchecked_mut() };
        let _guard = enter(&this.record);
        // SAFETY: the future is pinned as the whole is: this type has no `Drop` that could move it,
        // and is `Unpin` only if the future is.
        let future = unsafe { Pin::new_unchecked(&mut this.future) };
        future.poll(cx)
    }
}
