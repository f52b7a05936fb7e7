//! The pods of this node: what the API server says of them, by the ids of their containers.

mod index;
mod pod;
mod watch;

pub use index::{Found, PodIndex};
pub(crate) use pod::kept;
pub use pod::{PodContainer, PodFacts};
pub use watch::{PodStats, Pods, is_in_cluster};
