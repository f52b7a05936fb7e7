//! Learns the spans' names and local roots as they start, and marks those that have a profile.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::{Span as _, SpanContext, TraceContextExt as _};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};

use super::observer::{AlreadySet, Root, View, install};
use super::spans::SPANS;
use crate::process_context::{self, Identity, InitError, InitReport};
use crate::record::{Record, SpanIds};

/// The span attribute by which Grafana finds a span's profile: 16 lower-case hex digits.
pub const PROFILE_ID_KEY: &str = "pyroscope.profile.id";

/// Which spans have a profile of their own. The profiler has the same choice (`--span-scope`): both
/// must agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// The local root's profile holds the work of all spans below it.
    #[default]
    LocalRoot,
    /// Each span's profile holds its own work, without that of the spans below it.
    AllSpans,
    /// No span is marked.
    None,
}

/// Marks all spans of opentelemetry: give it to the tracer provider's builder, first.
///
/// Installs the observer at once, so contexts that are made before are not published, and publishes
/// the process context. [`Processor::status`] says how that went; a program may ignore it, as the
/// spans work either way.
#[must_use]
pub fn processor() -> Processor {
    Processor {
        scope: Scope::default(),
        observed: install(),
        published: process_context::init().map_err(Arc::new),
    }
}

/// See [`processor()`].
#[derive(Clone, Debug)]
pub struct Processor {
    scope: Scope,
    observed: Result<(), AlreadySet>,
    published: Result<InitReport, Arc<InitError>>,
}

impl Processor {
    /// Which spans get the attribute [`PROFILE_ID_KEY`]: local roots by default.
    #[must_use]
    pub fn with_scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// Whether threads publish their spans, and what was published of the process, before the
    /// provider is built and its resource known.
    pub fn status(&self) -> (Result<(), AlreadySet>, Result<&InitReport, &InitError>) {
        (self.observed, self.published.as_ref().map_err(|error| &**error))
    }
}

impl SpanProcessor for Processor {
    fn on_start(&self, span: &mut Span, parent: &Context) {
        let ids = span_ids(span.span_context());
        // The only way to the name. It copies the span's data, once per span.
        let Some(name) = span.exported_data().map(|data| data.name) else { return };
        let root = local_root(parent);
        let is_root = root.is_none();
        let builder = Record::builder(ids);
        let (builder, root) = match root {
            Some(root) => (builder.local_root(root.span_id, Some(&root.name)), root),
            None => {
                let root = Root { span_id: ids.span_id, name: name.as_ref().into() };
                (builder.local_root(root.span_id, None), Arc::new(root))
            }
        };
        let record = builder.name(&name).build();
        SPANS.insert(Arc::new(View { ids, record, root: Some(root) }));

        let has_profile = match self.scope {
            Scope::LocalRoot => is_root,
            Scope::AllSpans => true,
            Scope::None => false,
        };
        // Switched off, no span has one.
        if has_profile && process_context::ensure() {
            let id = span.span_context().span_id().to_string();
            span.set_attribute(KeyValue::new(PROFILE_ID_KEY, id));
        }
    }

    fn on_end(&self, span: SpanData) {
        SPANS.remove(span.span_context.span_id().to_bytes());
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        let attribute =
            |key| resource.get(&Key::from_static_str(key)).map(|value| value.to_string());
        let sdk = Identity {
            // What the SDK calls a service that nobody named.
            service_name: attribute("service.name").filter(|name| name != "unknown_service"),
            service_namespace: attribute("service.namespace"),
        };
        self.published = process_context::init_with_sdk(sdk).map_err(Arc::new);
    }
}

fn span_ids(span: &SpanContext) -> SpanIds {
    SpanIds {
        trace_id: span.trace_id().to_bytes(),
        span_id: span.span_id().to_bytes(),
        trace_flags: span.trace_flags().to_u8(),
    }
}

/// The local root above a new span; none if the span itself is it: it has no parent, a remote one,
/// or one that is not recorded here.
fn local_root(parent: &Context) -> Option<Arc<Root>> {
    let span = parent.span();
    let span = span.span_context();
    if !span.is_valid() || span.is_remote() {
        return None;
    }
    // The context knows even a parent that has ended.
    match View::of(parent) {
        Some(view) if view.ids.span_id == span.span_id().to_bytes() => view.root.clone(),
        _ => SPANS.get(&span_ids(span))?.root.clone(),
    }
}
