//! The parts of the BPF programs that are plain Rust: no maps, no helpers, no context.
//!
//! They compile for the host too, so `cargo test` runs them without a kernel.

#![cfg_attr(not(test), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod bounded;
pub mod label_list;
pub mod lookup;
pub mod machine;
pub mod span_record;
pub mod span_slot;
pub mod unwind;
