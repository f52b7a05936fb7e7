//! Kernel to record bytes: loads and attaches the BPF programs and drains their rings. The only
//! module that mentions aya.
//!
//! What comes after it takes [`Batch`]es of record bytes and knows nothing of the kernel.

pub mod batch;
pub mod control;
pub mod counters;
pub mod kernel_layout;
pub mod live;
pub mod support;
pub mod trial;

mod attach;
mod btf;
mod code_maps;
mod drain;
mod object;
mod sampler;
mod uprobe;
mod uprobe_multi;

pub use batch::{Batch, CodeMappings, Next};
pub use control::Control;
pub use control::hooks::{HookStats, Hooks};
pub use control::unwind_maps::{MEMORY_MIN, PlacedTable, Slice, UnwindMaps, UnwindMapsError};
pub use counters::Counters;
pub use live::{Capture, CaptureConfig, CaptureError, Started, Stop};
pub use object::StackReuse;
pub use sampler::Sampler;
pub use uprobe::HookProbe;
