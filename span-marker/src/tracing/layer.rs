//! The layer: a record for each span, entered and left with it.

use std::sync::Arc;

use tracing_core::Subscriber;
use tracing_core::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::fields::Fields;
use super::ids;
use crate::record::{Record, SpanIds};
use crate::{process_context, thread};

/// Marks all spans that the subscriber sees: see the [module](super).
///
/// Publishes the process context. If that fails, the spans are published all the same:
/// [`diagnose`](crate::diagnose) says why.
#[must_use]
pub fn layer() -> MarkerLayer {
    // What becomes of a failure: see above.
    drop(process_context::init());
    MarkerLayer { _private: () }
}

/// See [`layer()`].
#[derive(Clone, Copy, Debug)]
pub struct MarkerLayer {
    _private: (),
}

/// The outermost span above a span, or the span itself.
#[derive(Debug)]
struct Root {
    span_id: [u8; 8],
    name: &'static str,
}

/// What a span carries for us. The registry keeps it as long as the span is entered anywhere; a span
/// that it closes while it is entered takes its record out of the slot by dropping it.
struct Marked {
    record: Record,
    trace_id: [u8; 16],
    root: Arc<Root>,
}

impl Marked {
    fn new(fields: &Fields, name: &'static str, parent: Option<&Self>) -> Self {
        // With another trace's id, it begins what this process does for that trace.
        let parent = parent.filter(|parent| fields.trace_id.is_none_or(|id| id == parent.trace_id));
        let trace_id = parent.map(|parent| parent.trace_id).or(fields.trace_id);
        let trace_id = trace_id.unwrap_or_else(ids::random_trace_id);
        let span_id = fields.span_id.unwrap_or_else(ids::random_span_id);
        let root = match parent {
            Some(parent) => Arc::clone(&parent.root),
            None => Arc::new(Root { span_id, name }),
        };
        let builder = Record::builder(SpanIds { trace_id, span_id, trace_flags: 1 });
        let root_name = parent.map(|parent| parent.root.name);
        let record = builder.local_root(root.span_id, root_name).name(name).build();
        Self { record, trace_id, root }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for MarkerLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let fields = Fields::of(attributes);
        let parent = span.parent();
        let marked = {
            let extensions = parent.as_ref().map(|parent| parent.extensions());
            let parent = extensions.as_ref().and_then(|extensions| extensions.get::<Marked>());
            Marked::new(&fields, span.name(), parent)
        };
        span.extensions_mut().insert(marked);
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(marked) = span.extensions().get::<Marked>() {
            thread::enter_as(id.into_u64(), &marked.record);
        }
    }

    fn on_exit(&self, id: &Id, _context: Context<'_, S>) {
        thread::leave(id.into_u64());
    }
}
