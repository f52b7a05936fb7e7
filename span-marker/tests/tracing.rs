//! The layer for services without opentelemetry, read through the process's own memory.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part")]
mod reader;

use std::collections::HashSet;
use std::sync::{Arc, Barrier};
use std::thread;

use reader::{ThreadContext, this_thread};
use tracing::{Instrument as _, Span, info_span};
use tracing_subscriber::prelude::*;

/// The layer, for this thread as long as the result lives.
#[must_use]
fn subscribed() -> tracing::subscriber::DefaultGuard {
    tracing::subscriber::set_default(registry())
}

fn registry() -> impl tracing::Subscriber + Send + Sync {
    tracing_subscriber::registry().with(span_marker::tracing::layer())
}

fn name() -> Option<String> {
    this_thread().map(|context| context.attributes["span_name"].clone())
}

#[track_caller]
fn published() -> ThreadContext {
    this_thread().unwrap()
}

#[test]
fn a_root_and_what_is_below_it() {
    let _subscribed = subscribed();
    assert_eq!(name(), None);
    let root = info_span!("GET /cart");
    let in_root = root.clone().entered();
    let root = published();
    let id = root.attribute("local_root_span_id").unwrap().to_owned();
    assert_eq!(root.attribute("span_name"), Some("GET /cart"));
    assert_eq!(root.attribute("local_root_span_name"), None);
    let digits: String = root.span_id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(id, digits);
    assert_eq!(root.flags, 1);
    let child = info_span!("price");
    child.in_scope(|| {
        let child = published();
        assert_eq!(child.trace_id, root.trace_id);
        assert_ne!(child.span_id, root.span_id);
        assert_eq!(child.attribute("local_root_span_id"), Some(&*id));
        assert_eq!(child.attribute("local_root_span_name"), Some("GET /cart"));
        info_span!("sign").in_scope(|| {
            assert_eq!(name().as_deref(), Some("sign"));
            assert_eq!(published().attribute("local_root_span_id"), Some(&*id));
        });
        assert_eq!(published(), child);
    });
    assert_eq!(published(), root);
    drop(in_root);
    assert_eq!(name(), None);
}

#[test]
fn ids_are_those_of_the_fields() {
    let _subscribed = subscribed();
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    let root = info_span!("root", trace_id, span_id = %"00f067aa0ba902b7", other = 1).entered();
    assert_eq!(published().attribute("local_root_span_id"), Some("00f067aa0ba902b7"));
    assert_eq!(published().trace_id[..2], [0x0a, 0xf7]);
    let of_root = published().trace_id;
    let child = info_span!("child", span_id = 0x42_u64, trace_id = "no id").entered();
    assert_eq!(published().span_id, 0x42_u64.to_be_bytes());
    assert_eq!(published().trace_id, of_root);
    assert_eq!(published().attribute("local_root_span_name"), Some("root"));
    let another = info_span!("another", trace_id = 7_u128).entered();
    assert_eq!(published().trace_id, 7_u128.to_be_bytes());
    assert_eq!(published().attribute("local_root_span_name"), None);
    drop((another, child, root));
    assert_eq!(name(), None);
}

#[test]
fn spans_may_be_left_in_any_order_and_entered_again() {
    let _subscribed = subscribed();
    let (a, b) = (info_span!("a"), info_span!("b"));
    let (in_a, in_b) = (a.enter(), b.enter());
    drop(in_a);
    assert_eq!(name().as_deref(), Some("b"));
    let (first, second) = (a.enter(), a.enter());
    drop(first);
    assert_eq!(name().as_deref(), Some("a"));
    drop(second);
    assert_eq!(name().as_deref(), Some("b"));
    drop(in_b);
    assert_eq!(name(), None);
}

/// The subscriber hears of the exit after the registry, which may have closed the span by then.
#[test]
fn a_span_whose_last_handle_is_its_guard_is_unpublished() {
    let _subscribed = subscribed();
    for _ in 0..100 {
        let guard = info_span!("short").entered();
        assert_eq!(name().as_deref(), Some("short"));
        drop(guard);
        assert_eq!(name(), None);
    }
}

#[test]
fn an_explicit_parent_is_the_parent() {
    let _subscribed = subscribed();
    let (one, two) = (info_span!("one"), info_span!("two"));
    let _in_two = two.enter();
    info_span!(parent: &one, "child").in_scope(|| {
        assert_eq!(published().attribute("local_root_span_name"), Some("one"));
    });
    info_span!(parent: None, "root").in_scope(|| {
        assert_eq!(published().attribute("local_root_span_name"), None);
    });
}

#[test]
fn one_span_on_many_threads() {
    let dispatch = tracing::Dispatch::new(registry());
    let span = tracing::dispatcher::with_default(&dispatch, || info_span!("shared"));
    let together = Arc::new(Barrier::new(4));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let entered = span.enter();
                together.wait();
                assert_eq!(name().as_deref(), Some("shared"));
                drop(entered);
                assert_eq!(name(), None);
            });
        }
    });
}

#[test]
fn a_future_marks_whichever_thread_polls_it() {
    let dispatch = tracing::Dispatch::new(registry());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).build().unwrap();
    let tasks: Vec<_> = (0..30_u64)
        .map(|task| {
            let id = task + 1;
            let span = tracing::dispatcher::with_default(
                &dispatch,
                || info_span!(parent: None, "task", span_id = id),
            );
            let future = async move {
                let mut threads = HashSet::new();
                for _ in 0..20 {
                    assert_eq!(published().span_id, id.to_be_bytes());
                    let inner = async {
                        tokio::task::yield_now().await;
                        assert_eq!(published().span_id, (id << 8).to_be_bytes());
                    };
                    // A child, wherever the task has gone meanwhile.
                    let dispatch = Span::current().with_subscriber(|(_, it)| it.clone()).unwrap();
                    let child = tracing::dispatcher::with_default(&dispatch, || {
                        info_span!("inner", span_id = id << 8)
                    });
                    inner.instrument(child).await;
                    threads.insert(thread::current().id());
                }
                threads.len()
            };
            let future = tracing::instrument::WithSubscriber::with_subscriber(
                future.instrument(span),
                dispatch.clone(),
            );
            runtime.spawn(future)
        })
        .collect();
    let threads: Vec<usize> =
        tasks.into_iter().map(|task| runtime.block_on(task).unwrap()).collect();
    assert!(threads.iter().any(|&threads| threads > 1), "no task changed its thread");
    let left = runtime.block_on(async { tokio::spawn(async { this_thread().is_none() }).await });
    assert!(left.unwrap());
}
