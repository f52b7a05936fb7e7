//! A request body that knows whether the server can have it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// How much the connection gets at a time. It buffers a few hundred KiB before it writes, so that
/// of a large body the end is asked for only when most of it went out.
const FRAME_BYTES: usize = 64 << 10;

/// Whether the end of a body was handed to an open connection.
///
/// Until then the server cannot have the whole message, and cannot have stored it: sending it
/// again is safe, whatever went wrong (name, connect, TLS, time-out, a write). After that only an
/// answer can tell.
#[derive(Clone, Debug, Default)]
pub(super) struct HandedOver(Arc<AtomicBool>);

impl HandedOver {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A message as a request body.
#[derive(Debug)]
pub(super) struct Tracked {
    left: Bytes,
    handed_over: HandedOver,
}

impl Tracked {
    pub(super) fn new(message: Bytes, handed_over: HandedOver) -> Self {
        Self { left: message, handed_over }
    }
}

impl Body for Tracked {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.left.len().min(FRAME_BYTES);
        let frame = self.left.split_to(length);
        if self.left.is_empty() {
            self.handed_over.set();
        }
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        // usize is at most 64 bits wide.
        SizeHint::with_exact(self.left.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_handed_over_with_the_last_frame_and_no_earlier() {
        let handed_over = HandedOver::default();
        let message = Bytes::from(vec![7; 2 * FRAME_BYTES + 1]);
        let mut body = Tracked::new(message, handed_over.clone());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut sizes = Vec::new();
        while !body.is_end_stream() {
            assert!(!handed_over.get());
            let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut cx) else {
                panic!("the body ended early");
            };
            sizes.push(frame.into_data().unwrap().len());
        }
        assert!(handed_over.get());
        assert_eq!(sizes, [FRAME_BYTES, FRAME_BYTES, 1]);
        assert!(matches!(Pin::new(&mut body).poll_frame(&mut cx), Poll::Ready(None)));
    }
}
