//! The parts of the BPF programs that are plain Rust: no maps, no helpers, no context.
//!
//! They compile for the host too, so `cargo test` runs them without a kernel.

#![cfg_attr(not(test), no_std)]

pub mod frame_pointer;
pub mod span_record;
