//! What crosses a boundary of spanprof: between the BPF program and user space, and between a
//! process that publishes its spans and whoever reads them.
//!
//! Only bytes live here: layouts, their limits and their constants. No logic, no `String`, nothing
//! that only one side needs. Every layout derives zerocopy's `FromBytes` and `IntoBytes`, so that
//! padding, a `bool` or an `enum` is a compile error on both sides.

#![no_std]

pub mod counter;
pub mod process;
pub mod sample;
pub mod settings;
pub mod span;
pub mod span_note;
pub mod unwind;
