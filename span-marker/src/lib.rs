//! Publishes the current trace span of each thread, so that a profiler outside can read it.
//!
//! A sampling profiler that interrupts a thread wants to know for which span the thread is working.
//! This crate leaves the answer where the profiler can read it without the process's help: a
//! thread-local pointer, `otel_thread_ctx_v1`, to a small record with the span's ids and names
//! (OTEP 4947), and one description of the process (OTEP 4719). There is no agent, socket or thread,
//! and nobody is told anything: entering a span is a handful of instructions.
//!
//! # With opentelemetry
//!
//! With the feature `opentelemetry` one line marks all spans of opentelemetry, and those of
//! `tracing` through tracing-opentelemetry:
//!
//! ```
//! # #[cfg(feature = "opentelemetry")] {
//! let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder()
//!     .with_span_processor(span_marker::opentelemetry::processor())
//!     // .with_batch_exporter(...)
//!     .build();
//! # }
//! ```
//!
//! # With `tracing` alone
//!
//! With the feature `tracing` there is a layer for services without opentelemetry: see
//! `span_marker::tracing`.
//!
//! # By hand
//!
//! ```
//! use span_marker::{MarkFuture, Record, SpanIds};
//! use std::sync::Arc;
//!
//! span_marker::init_with(span_marker::Config::default().service_name("checkout"))?;
//!
//! let ids = SpanIds { trace_id: [1; 16], span_id: [2; 8], trace_flags: 1 };
//! let record = Record::builder(ids).name("price").attr("http.route", "/cart").build();
//! {
//!     let _guard = span_marker::enter(&record);
//!     // What this thread does here is the span's.
//! }
//! let future = async { /* and so is this, on any thread */ }.marked(Arc::new(record));
//! # drop(future);
//! # Ok::<(), span_marker::InitError>(())
//! ```
//!
//! # Memory model
//!
//! There is one discipline. A record is built in full before anything points to it and never changes
//! afterwards; entering and leaving swap the thread's pointer.
//!
//! *What a reader sees.* A reader looks at a thread that is stopped, on the CPU on which it stopped,
//! so it sees what the thread's own instructions have done up to one of them. The swap is one
//! aligned eight-byte store between two compiler fences: the reader finds the pointer before or
//! after it, and all of the record that it points to, because the thread that builds a record
//! finishes before it hands the record on, and handing on (`Arc`, a channel, a lock) orders that
//! before the swap. No barrier for other CPUs is needed.
//!
//! *What keeps a record alive.* Whoever enters it:
//!
//! - The guard of [`enter`] borrows the record, the guard of [`enter_owned`] owns a reference to it.
//!   Dropping the guard points the slot elsewhere before the borrow ends or the reference is dropped.
//!   The guard holds only a position in a stack of the thread, so it may be dropped out of order
//!   (the record is taken out of the middle, the slot stays). A leaked guard that owns keeps its
//!   record for good. A leaked guard that borrows does not: a record that is freed by the thread
//!   that publishes it is unpublished first, and any record loses its `valid` before it is freed,
//!   but a record that another thread frees leaves a pointer to what comes into its place.
//! - With opentelemetry, the slot points to the record of the thread's current `Context`, which the
//!   SDK keeps on a stack of its own. It tells the observer before it replaces the current context,
//!   never after. Only the end of the thread drops it unannounced, if its guard was leaked: the
//!   observer's own thread-local is initialised after the SDK's, and so destroyed before it, and
//!   from then on the thread publishes nothing.
//! - With `tracing`, the record is in the span's extensions, and the registry keeps a span that is
//!   entered.
//!
//! This process never reads through the slot, so no bug here can become a read of freed memory in
//! it: the reader is outside, and takes every byte as hostile.
//!
//! # Limits
//!
//! Linux on `x86_64` and `aarch64`; elsewhere everything compiles and does nothing. A record has at
//! most 640 bytes, a value 255, a key 128; there are at most 256 keys. What does not fit is cut or
//! left out, and counted in [`stats()`].
//!
//! # Processes
//!
//! The first record that a process builds publishes the process context, if [`init`] has not; so does
//! the first one of a child after `fork`. `SPAN_MARKER_DISABLE=1` in the environment switches
//! everything off: records are built as invalid, and no process context is published.
//! `SPAN_MARKER_DEBUG=1` has each process say in one line how it is found: see [`diagnose()`].

pub mod abi;
mod diagnose;
mod future;
mod keys;
mod note;
#[cfg(feature = "opentelemetry")]
pub mod opentelemetry;
mod own_elf;
mod process_context;
mod record;
mod slot;
mod static_tls;
mod stats;
mod thread;
#[cfg(feature = "tracing")]
pub mod tracing;

pub use diagnose::{Diagnosis, diagnose};
pub use future::{MarkFuture, Marked};
pub use keys::{ATTRIBUTE_KEY_MAX, KeyError, register_key};
pub use own_elf::Symbol;
pub use process_context::{Backing, Config, InitError, InitReport, init, init_with};
pub use record::{ATTRIBUTE_VALUE_MAX, Record, RecordBuilder, SpanIds};
pub use stats::{Stats, stats};
pub use thread::{DEPTH_MAX, Guard, enter, enter_owned};
