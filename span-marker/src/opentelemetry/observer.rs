//! Publishes the span of the context that opentelemetry makes current.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::ptr;
use std::sync::{Arc, OnceLock};

use opentelemetry::Context;
use opentelemetry::context::{ContextObserver, GlobalContextObserver, ObserverContextView};
use opentelemetry::trace::TraceContextExt as _;

use super::spans::SPANS;
use crate::record::{Record, SpanIds};
use crate::{stats, thread};

/// Something else observes opentelemetry's contexts, and there can be one observer only: spans are
/// not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlreadySet;

impl fmt::Display for AlreadySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another observer of opentelemetry's contexts was installed first")
    }
}

impl Error for AlreadySet {}

/// Publishes, from here on, the current span of each thread. [`processor()`](super::processor()) calls it.
///
/// # Errors
///
/// See [`AlreadySet`]. Idempotent.
pub fn install() -> Result<(), AlreadySet> {
    static INSTALLED: OnceLock<Result<(), AlreadySet>> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        let observer = Arc::new(Observer);
        GlobalContextObserver::set(Arc::<Observer>::clone(&observer));
        // opentelemetry only logs a refusal. A refused observer is dropped.
        if Arc::strong_count(&observer) > 1 { Ok(()) } else { Err(AlreadySet) }
    })
}

/// The local root of a span: the first span that this process started for the trace.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) span_id: [u8; 8],
    pub(super) name: Box<str>,
}

/// What a context carries for us: the record of its span.
pub(super) struct View {
    pub(super) ids: SpanIds,
    pub(super) record: Record,
    /// None for a span that the SDK does not record.
    pub(super) root: Option<Arc<Root>>,
}

impl View {
    /// The view that a context has, if it is of a span that is recorded here.
    pub(super) fn of(context: &Context) -> Option<&Self> {
        context.observer_view().as_ref()?.as_any().downcast_ref()
    }
}

impl ObserverContextView for View {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Destroyed before the thread's stack of contexts, because it is initialised after it: thread-locals
/// are destroyed in the reverse order, by std's own list and by `__cxa_thread_atexit_impl` alike.
struct EndOfThread;

impl Drop for EndOfThread {
    fn drop(&mut self) {
        thread::observe(ptr::null());
    }
}

thread_local! {
    static END_OF_THREAD: EndOfThread = const { EndOfThread };
}

struct Observer;

impl Observer {
    #[inline]
    fn publish(to: &Context) {
        let record = match View::of(to) {
            // From its end on, a thread publishes nothing: nobody would say when to stop.
            Some(view) if END_OF_THREAD.try_with(|_| ()).is_ok() => view.record.as_ptr(),
            _ => ptr::null(),
        };
        thread::observe(record);
    }
}

/// opentelemetry calls these while it holds its stack of contexts: nothing here may call back into
/// `Context`'s functions that use it.
impl ContextObserver for Observer {
    fn on_context_enter(&self, _from: &Context, to: &Context) {
        Self::publish(to);
    }

    fn on_context_exit(&self, _from: &Context, to: &Context) {
        Self::publish(to);
    }

    fn make_view(&self, context: &Context) -> Option<Arc<dyn ObserverContextView>> {
        let span = context.span();
        let span = span.span_context();
        if !span.is_valid() || span.is_remote() {
            return None;
        }
        let ids = SpanIds {
            trace_id: span.trace_id().to_bytes(),
            span_id: span.span_id().to_bytes(),
            trace_flags: span.trace_flags().to_u8(),
        };
        if let Some(view) = SPANS.get(&ids) {
            return Some(view);
        }
        if span.is_sampled() {
            stats::NOT_TRACKED.add();
        } else {
            stats::NOT_SAMPLED.add();
        }
        Some(Arc::new(View { ids, record: Record::builder(ids).build(), root: None }))
    }
}
