//! A thread that ends while a context is current: the record is unpublished before it is freed.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part")]
mod reader;

use std::cell::RefCell;
use std::mem;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use opentelemetry::Context;
use opentelemetry::trace::{TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_sdk::trace::SdkTracerProvider;
use reader::{Process, this_thread, thread_pointer};
use span_marker::opentelemetry::processor;

/// A value in a context: freed with it, just before the context's record.
struct InContext(u64, Sender<bool>);

impl Drop for InContext {
    fn drop(&mut self) {
        self.1.send(Process::this().thread(self.0).is_none()).unwrap();
    }
}

/// A thread-local that outlives the contexts' stack, and uses it.
struct AtEnd(Sender<bool>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        let unpublished = this_thread().is_none();
        self.0.send(unpublished).unwrap();
    }
}

thread_local! {
    static AT_END: RefCell<Option<AtEnd>> = const { RefCell::new(None) };
}

#[test]
#[expect(clippy::mem_forget, reason = "what is tested is a guard that is never dropped")]
fn a_leaked_context_is_unpublished_before_it_is_freed() {
    let provider = SdkTracerProvider::builder().with_span_processor(processor()).build();
    for mark_first in [false, true] {
        let (send, freed) = channel();
        let tracer = provider.tracer("test");
        let shared = thread::spawn(move || {
            // Thread-locals end in the reverse order: this one last.
            let at_end = AtEnd(send.clone());
            AT_END.with(|cell| *cell.borrow_mut() = Some(at_end));
            if mark_first {
                let record = span_marker::Record::builder(span_marker::SpanIds::default());
                drop(span_marker::enter(&record.build()));
            }
            let context = Context::current_with_span(tracer.start("leaked"));
            let context = context.with_value(InContext(thread_pointer(), send));
            mem::forget(context.clone().attach());
            assert_eq!(this_thread().unwrap().attribute("span_name"), Some("leaked"));
            // Half of the runs keep the record alive beyond the thread.
            mark_first.then_some(context)
        });
        let shared = shared.join().unwrap();
        if shared.is_none() {
            assert!(freed.recv().unwrap(), "unpublished when the context is freed");
        }
        assert!(freed.recv().unwrap(), "unpublished after the contexts are gone");
    }
}
