//! Kernel to record bytes: loads and attaches the BPF programs and drains their rings. The only
//! module that mentions aya.
//!
//! Everything later takes its records from a [`Source`]: the running kernel ([`live`]), or a
//! recorded file.

pub mod control;
pub mod counters;
pub mod kernel_layout;
pub mod live;
pub mod source;
pub mod support;

mod attach;
mod drain;
mod object;

pub use control::Control;
pub use counters::Counters;
pub use live::{Capture, CaptureConfig, CaptureError, Started, Stop};
pub use source::{Batch, Next, RecordKind, Source};
