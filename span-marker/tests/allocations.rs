//! Entering and leaving allocate nothing. Alone in its program: it counts what the program allocates.

#![cfg(test)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use opentelemetry::Context;
use opentelemetry::trace::{TraceContextExt as _, Tracer as _, TracerProvider as _};
use span_marker::{Record, SpanIds, enter};
use tracing_subscriber::prelude::*;

/// Counts, per thread, how often memory is asked for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u32> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations_of(mut work: impl FnMut()) -> u32 {
    // What is set up once, for the thread.
    work();
    let before = ALLOCATIONS.get();
    for _ in 0..100 {
        work();
    }
    ALLOCATIONS.get() - before
}

#[test]
fn entering_and_leaving_allocate_nothing() {
    assert!(allocations_of(|| drop(Box::new([1]))) >= 100, "allocations are counted");

    let ids = SpanIds { trace_id: [1; 16], span_id: [2; 8], trace_flags: 1 };
    let record = Record::builder(ids).name("by hand").build();
    assert_eq!(allocations_of(|| drop(enter(&record))), 0);

    let subscriber = tracing_subscriber::registry().with(span_marker::tracing::layer());
    tracing::subscriber::with_default(subscriber, || {
        let span = tracing::info_span!("span");
        assert_eq!(allocations_of(|| span.in_scope(|| ())), 0);
    });

    let processor = span_marker::opentelemetry::processor();
    let provider =
        opentelemetry_sdk::trace::SdkTracerProvider::builder().with_span_processor(processor);
    let provider = provider.build();
    let context = Context::current_with_span(provider.tracer("test").start("span"));
    assert_eq!(allocations_of(|| drop(context.clone().attach())), 0);
}
