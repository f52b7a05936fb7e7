//! Prints what marking costs, in nanoseconds of CPU time, as one line of JSON: medians of several
//! rounds.

use std::hint::black_box;
use std::sync::Arc;

use opentelemetry::Context;
use opentelemetry::trace::{TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_sdk::trace::SdkTracerProvider;
use span_marker::{Record, SpanIds};
use tracing_subscriber::prelude::*;

#[path = "enter_exit/measure.rs"]
mod measure;

use measure::measure;

const IDS: SpanIds = SpanIds { trace_id: [1; 16], span_id: [2; 8], trace_flags: 1 };

/// A context with a span of a provider's own.
fn context(provider: &SdkTracerProvider) -> Context {
    Context::current_with_span(provider.tracer("enter_exit").start("context"))
}

fn attach_and_detach(context: &Context) {
    let guard = black_box(context).clone().attach();
    drop(black_box(guard));
}

fn span_in_context(provider: &SdkTracerProvider) -> impl FnMut() {
    let tracer = provider.tracer("enter_exit");
    move || drop(black_box(Context::current_with_span(tracer.start("span"))))
}

/// Entering and leaving a span of `tracing`, below another one; and making one.
fn tracing_span<S>(subscriber: S) -> [f64; 2]
where
    S: tracing::Subscriber + Send + Sync + 'static,
{
    tracing::subscriber::with_default(subscriber, || {
        let _outer = tracing::info_span!("outer").entered();
        let span = tracing::info_span!("span");
        let enter_exit = measure(|| black_box(&span).in_scope(|| black_box(())));
        [enter_exit, measure(|| drop(black_box(tracing::info_span!("span"))))]
    })
}

/// What a service does for each span: its own name, and its local root.
fn build() -> Record {
    let builder = Record::builder(black_box(IDS));
    builder.local_root(black_box([3; 8]), Some(black_box("GET /cart"))).name("price").build()
}

#[expect(clippy::print_stdout, reason = "a program that prints its result")]
fn main() {
    let empty = measure(|| {
        black_box(());
    });
    let record = build();
    let enter_exit = measure(|| drop(black_box(span_marker::enter(black_box(&record)))));
    let shared = Arc::new(build());
    let owned = measure(|| drop(black_box(span_marker::enter_owned(Arc::clone(&shared)))));
    let building = measure(|| drop(black_box(build())));

    let [registry, registry_span] = tracing_span(tracing_subscriber::registry());
    let layered = tracing_subscriber::registry().with(span_marker::tracing::layer());
    let [layered, layered_span] = tracing_span(layered);

    let provider = SdkTracerProvider::builder().build();
    let plain = context(&provider);
    let attach_without = measure(|| attach_and_detach(&plain));
    let span_without = measure(span_in_context(&provider));

    let processor = span_marker::opentelemetry::processor();
    let provider = SdkTracerProvider::builder().with_span_processor(processor).build();
    let marked = context(&provider);
    let attach_with = measure(|| attach_and_detach(&marked));
    let span_with = measure(span_in_context(&provider));

    let line = serde_json::json!({
        "enter_exit_ns": enter_exit - empty,
        "enter_owned_exit_ns": owned - empty,
        "build_ns": building - empty,
        "tracing_enter_exit_ns": registry - empty,
        "tracing_enter_exit_extra_ns": layered - registry,
        "tracing_span_ns": registry_span - empty,
        "tracing_span_extra_ns": layered_span - registry_span,
        "otel_attach_detach_ns": attach_without - empty,
        "otel_attach_detach_extra_ns": attach_with - attach_without,
        "otel_span_ns": span_without - empty,
        "otel_span_extra_ns": span_with - span_without,
    });
    println!("{line}");
}
