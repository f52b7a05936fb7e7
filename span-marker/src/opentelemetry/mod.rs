//! Follows opentelemetry's current context, and lets traces point at profiles.
//!
//! [`processor()`] does it all: it installs a context observer, which publishes the current span of
//! each thread, and is a span processor, which tells the observer the spans' names and local roots
//! and sets `pyroscope.profile.id` where a profile can be found. tracing-opentelemetry makes its
//! spans current in opentelemetry's context (unless that is switched off), so the same line serves
//! `tracing`.
//!
//! What is published of a span:
//!
//! | span | record |
//! | --- | --- |
//! | recorded by the SDK | ids, flags, name, local root's id and name |
//! | not sampled | ids and flags; counted in `Stats::spans_not_sampled` |
//! | remote (a context taken from a request's headers) | nothing: it is another process's |
//!
//! The name is the one with which the span started. Contexts that were made before [`processor()`] or
//! [`install`] was called are not published.

mod observer;
mod processor;
mod spans;

pub use observer::{AlreadySet, install};
pub use processor::{PROFILE_ID_KEY, Processor, Scope, processor};
pub use spans::OPEN_SPANS_MAX;
