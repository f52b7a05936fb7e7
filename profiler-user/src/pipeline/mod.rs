//! Wires the stages with bounded queues: start, windows, drain, flush. Owns no logic of theirs.
//!
//! ```text
//! drain thread ──▶ collect thread ──▶ finish thread ──▶ export tasks
//!   rings          32 batches          2 windows         64 MiB of profiles
//! ```
//!
//! Each arrow is a bounded queue: what the next one has no room for is dropped and counted, and the
//! drain never waits.

pub mod books;
pub mod collect;
mod counted;
pub mod coverage;
pub mod launch;
mod meta;
pub mod outputs;
pub mod own_cost;
pub mod place;
pub mod record;
mod reload;
pub mod replay;
pub mod run;
pub mod running;
pub mod series;
mod servers;
pub mod unwinding;
