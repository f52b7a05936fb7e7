//! In the place of `mapping` on targets without a slot: nothing is ever published.

use super::InitError;

/// How readers find the process context among the mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backing {
    /// By the name of the file in memory that it maps.
    Memfd,
    /// By the mapping's own name: no file in memory could be made.
    Anonymous,
}

/// A process context that cannot be.
pub(super) enum Mapping {}

impl Mapping {
    pub(super) fn publish(_payload: Vec<u8>) -> Result<Self, InitError> {
        Err(InitError::Unsupported)
    }

    pub(super) fn is_ours(&self) -> bool {
        match *self {}
    }

    pub(super) fn backing(&self) -> Backing {
        match *self {}
    }

    pub(super) fn update(&mut self, _payload: Vec<u8>) {
        match *self {}
    }
}
