//! Another observer of opentelemetry's contexts: it stays, and the program is told.

#![cfg(test)]

use std::sync::Arc;

use opentelemetry::Context;
use opentelemetry::context::{ContextObserver, GlobalContextObserver};
use span_marker::opentelemetry::{AlreadySet, install, processor};

struct Another;

impl ContextObserver for Another {
    fn on_context_enter(&self, _from: &Context, _to: &Context) {}

    fn on_context_exit(&self, _from: &Context, _to: &Context) {}
}

#[test]
fn an_observer_that_came_first_is_reported() {
    GlobalContextObserver::set(Arc::new(Another));
    assert_eq!(install(), Err(AlreadySet));
    assert_eq!(install(), Err(AlreadySet));
    let processor = processor();
    let (observed, published) = processor.status();
    assert_eq!(observed, Err(AlreadySet));
    assert!(published.is_ok());
}
