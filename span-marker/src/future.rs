//! A future that marks the thread on which it is polled.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

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

pin_project! {
    /// A future whose polls are marked with a record.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Marked<F> {
        #[pin]
        future: F,
        record: Arc<Record>,
    }
}

impl<F: Future> Future for Marked<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _guard = enter(this.record);
        this.future.poll(cx)
    }
}
