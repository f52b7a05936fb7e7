//! opentelemetry's and tracing's spans, as they show in the threads' slots.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part")]
mod reader;

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry::context::FutureExt as _;
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanProcessor};
use reader::{Process, ThreadContext, Value, this_thread};
use span_marker::opentelemetry::{PROFILE_ID_KEY, Processor, Scope, processor};
use span_marker::stats;
use tracing::Instrument as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;

/// The process has one context and one set of counts: one test at a time.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn provider(processor: Processor) -> SdkTracerProvider {
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", "from the SDK"),
            KeyValue::new("service.namespace", "shop"),
        ])
        .build();
    SdkTracerProvider::builder().with_resource(resource).with_span_processor(processor).build()
}

fn tracer() -> SdkTracer {
    provider(processor()).tracer("test")
}

/// What the thread shows must be the span of the current context, with these names.
#[track_caller]
fn check(name: &str, root: Option<&str>) -> ThreadContext {
    let shown = this_thread().expect("a span is published");
    let span = Context::current().span().span_context().clone();
    assert_eq!(shown.trace_id, span.trace_id().to_bytes());
    assert_eq!(shown.span_id, span.span_id().to_bytes());
    assert_eq!(shown.flags, 1);
    assert_eq!(shown.attribute("span_name"), Some(name));
    assert_eq!(shown.attribute("local_root_span_name"), root);
    shown
}

#[test]
fn follows_the_current_context() {
    let _one = one_at_a_time();
    let tracer = tracer();
    assert_eq!(this_thread(), None);
    let outer = Context::current_with_span(tracer.start("outer"));
    let outer_guard = outer.clone().attach();
    let root = check("outer", None);
    let id = outer.span().span_context().span_id().to_string();
    assert_eq!(root.attribute("local_root_span_id"), Some(&*id));

    let middle_guard = Context::current_with_span(tracer.start("middle")).attach();
    let inner_guard = Context::current_with_span(tracer.start("inner")).attach();
    let inner = check("inner", Some("outer"));
    assert_eq!(inner.attribute("local_root_span_id"), Some(&*id));
    // A context derived from the span's is the span's.
    let derived_guard = Context::current_with_value(17_u64).attach();
    check("inner", Some("outer"));
    drop(derived_guard);
    // Out of order: what is current stays.
    drop(middle_guard);
    check("inner", Some("outer"));
    drop(inner_guard);
    check("outer", None);
    // A context without a span is no span.
    let none = Context::new().attach();
    assert_eq!(this_thread(), None);
    drop(none);
    check("outer", None);
    drop(outer_guard);
    assert_eq!(this_thread(), None);
}

#[test]
fn a_child_knows_its_local_root_after_the_root_has_ended() {
    let _one = one_at_a_time();
    let tracer = tracer();
    let parent = Context::current_with_span(tracer.start("request"));
    parent.span().end();
    let child = parent.with_span(tracer.start_with_context("cleanup", &parent)).attach();
    let shown = check("cleanup", Some("request"));
    let id = parent.span().span_context().span_id().to_string();
    assert_eq!(shown.attribute("local_root_span_id"), Some(&*id));
    drop(child);
}

#[test]
fn a_remote_parent_is_no_span_of_this_process_and_its_child_a_local_root() {
    let _one = one_at_a_time();
    let tracer = tracer();
    let remote = SpanContext::new(
        TraceId::from_bytes([7; 16]),
        SpanId::from_bytes([8; 8]),
        TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    );
    let remote = Context::new().with_remote_span_context(remote);
    let guard = remote.clone().attach();
    assert_eq!(this_thread(), None);
    let child = remote.with_span(tracer.start_with_context("GET /cart", &remote)).attach();
    let shown = check("GET /cart", None);
    assert_eq!(shown.trace_id, [7; 16]);
    drop(child);
    drop(guard);
}

#[test]
fn a_span_that_is_not_sampled_has_its_ids_alone_and_is_counted() {
    let _one = one_at_a_time();
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::AlwaysOff)
        .with_span_processor(processor())
        .build();
    let before = stats();
    let context = Context::current_with_span(provider.tracer("test").start("unknown"));
    let guard = context.clone().attach();
    let shown = this_thread().unwrap();
    assert_eq!(shown.span_id, context.span().span_context().span_id().to_bytes());
    assert_eq!(shown.flags, 0);
    assert!(shown.attributes.is_empty());
    drop(guard);
    assert_eq!(stats().spans_not_sampled, before.spans_not_sampled + 1);
    assert_eq!(stats().spans_not_tracked, before.spans_not_tracked);
}

#[test]
fn a_span_of_another_provider_has_its_ids_alone_and_is_counted() {
    let _one = one_at_a_time();
    let _marked = tracer();
    let other = SdkTracerProvider::builder().build();
    let before = stats();
    let guard = Context::current_with_span(other.tracer("other").start("unknown")).attach();
    assert!(this_thread().unwrap().attributes.is_empty());
    drop(guard);
    assert_eq!(stats().spans_not_tracked, before.spans_not_tracked + 1);
}

#[test]
fn a_record_entered_by_hand_counts_while_its_context_is_current() {
    let _one = one_at_a_time();
    let tracer = tracer();
    let name = || this_thread().map(|shown| shown.attributes["span_name"].clone());
    let ids = span_marker::SpanIds { trace_id: [1; 16], span_id: [2; 8], trace_flags: 1 };
    let record = std::sync::Arc::new(span_marker::Record::builder(ids).name("by hand").build());
    let context = Context::current_with_span(tracer.start("context")).attach();
    let by_hand = span_marker::enter(&record);
    assert_eq!(name().as_deref(), Some("by hand"));
    let inner = Context::current_with_span(tracer.start("inner")).attach();
    assert_eq!(name().as_deref(), Some("inner"));
    drop(inner);
    assert_eq!(name().as_deref(), Some("by hand"));
    drop(by_hand);
    assert_eq!(name().as_deref(), Some("context"));
    drop(context);
    assert_eq!(name(), None);
}

/// Keeps the spans that ended.
#[derive(Clone, Debug, Default)]
struct Ended(std::sync::Arc<Mutex<Vec<SpanData>>>);

impl SpanProcessor for Ended {
    fn on_start(&self, _span: &mut opentelemetry_sdk::trace::Span, _parent: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.0.lock().unwrap().push(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

#[test]
fn spans_that_have_a_profile_are_marked() {
    let _one = one_at_a_time();
    for (scope, marked) in [
        (Scope::LocalRoot, vec!["root"]),
        (Scope::AllSpans, vec!["inner", "child", "root"]),
        (Scope::None, vec![]),
    ] {
        let ended = Ended::default();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor().with_scope(scope))
            .with_span_processor(ended.clone())
            .build();
        let tracer = provider.tracer("test");
        let root = Context::current_with_span(tracer.start("root"));
        let child = root.with_span(tracer.start_with_context("child", &root));
        drop(tracer.start_with_context("inner", &child));
        child.span().end();
        root.span().end();
        let ended = ended.0.lock().unwrap();
        assert_eq!(
            ended.iter().map(|span| &*span.name).collect::<Vec<_>>(),
            ["inner", "child", "root"]
        );
        let ids = ended.iter().filter_map(|span| {
            let id = span.attributes.iter().find(|pair| pair.key.as_str() == PROFILE_ID_KEY)?;
            assert_eq!(id.value.as_str(), span.span_context.span_id().to_string());
            assert_eq!(id.value.as_str().len(), 16);
            Some(&*span.name)
        });
        assert_eq!(ids.collect::<Vec<_>>(), marked);
    }
}

#[test]
fn the_service_is_the_sdks() {
    let _one = one_at_a_time();
    let _tracer = tracer();
    let (observed, published) = {
        let processor = processor();
        (processor.status().0, processor.status().1.is_ok())
    };
    assert_eq!((observed, published), (Ok(()), true));
    let context = Process::this().context().unwrap();
    assert_eq!(context.resource["service.name"], Value::text("from the SDK"));
    assert_eq!(context.resource["service.namespace"], Value::text("shop"));
}

thread_local! {
    /// The subscriber of a runtime's thread, for as long as the thread lives.
    static DEFAULT: std::cell::Cell<Option<tracing::dispatcher::DefaultGuard>> =
        const { std::cell::Cell::new(None) };
}

#[track_caller]
fn check_tracing(name: &str, root: Option<&str>) {
    check(name, root);
    let span = tracing::Span::current().context();
    assert_eq!(this_thread().unwrap().span_id, span.span().span_context().span_id().to_bytes());
}

#[test]
fn tracings_spans_are_followed_through_tasks_that_change_threads() {
    let _one = one_at_a_time();
    let layer = tracing_opentelemetry::layer().with_tracer(tracer());
    let subscriber = tracing_subscriber::registry().with(layer);
    let dispatch = tracing::Dispatch::new(subscriber);
    let _default = tracing::dispatcher::set_default(&dispatch);
    tracing::info_span!("outer").in_scope(|| {
        check_tracing("outer", None);
        tracing::info_span!("inner").in_scope(|| check_tracing("inner", Some("outer")));
        check_tracing("outer", None);
    });
    assert_eq!(this_thread(), None);

    let start = dispatch.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(3)
        .on_thread_start(move || {
            let default = tracing::dispatcher::set_default(&start);
            DEFAULT.set(Some(default));
        })
        .build()
        .unwrap();
    let request = async |number: usize| {
        let root = format!("request {number}");
        let mut threads = HashSet::new();
        for _ in 0..20 {
            check_tracing(&root, None);
            let work = async {
                check_tracing("work", Some(&root));
                tokio::task::yield_now().await;
                check_tracing("work", Some(&root));
            };
            work.instrument(tracing::info_span!("work")).await;
            threads.insert(std::thread::current().id());
        }
        threads.len()
    };
    let tasks: Vec<_> = (0..30)
        .map(|number| {
            let span = tracing::info_span!("request", otel.name = format!("request {number}"));
            runtime.spawn(request(number).instrument(span))
        })
        .collect();
    let threads: Vec<usize> =
        tasks.into_iter().map(|task| runtime.block_on(task).unwrap()).collect();
    assert!(threads.iter().any(|&threads| threads > 1), "no task changed its thread");
    assert!(
        runtime.block_on(async { tokio::spawn(async { this_thread().is_none() }).await.unwrap() })
    );
}

#[test]
fn a_future_with_a_context_is_followed() {
    let _one = one_at_a_time();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let context = Context::current_with_span(tracer().start("api"));
    let future = async {
        check("api", None);
        tokio::task::yield_now().await;
        check("api", None);
    };
    runtime.block_on(runtime.spawn(future.with_context(context))).unwrap();
    assert_eq!(this_thread(), None);
}
