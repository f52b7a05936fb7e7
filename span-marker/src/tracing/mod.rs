//! Follows the spans of `tracing` in a service without opentelemetry.
//!
//! ```
//! use tracing_subscriber::prelude::*;
//!
//! tracing_subscriber::registry().with(span_marker::tracing::layer()).init();
//! ```
//!
//! What is published of a span: its name, its ids, and the id and name of its local root, which is
//! the outermost span. A span's fields `trace_id` (32 hex digits) and `span_id` (16) are its ids, if
//! it has them when it is made; without them a trace id is its parent's or random, and a span id
//! random.
//!
//! With tracing-opentelemetry use the feature `opentelemetry` instead: the ids are then those of the
//! traces.

mod fields;
mod ids;
mod layer;

pub use layer::{MarkerLayer, layer};
