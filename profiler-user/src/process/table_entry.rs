//! What the table keeps of one process id.

use std::sync::Arc;

use super::hooked::KernelSlots;
use super::images::Images;
use super::looks::{Allowance, Backoff, SECOND};
use super::reader::Facts;
use super::replaced::Replaced;
use super::snapshot::Mapping;
use super::span_slot::FoundSlot;
use super::table::TICK;
use super::use_order::Stamp;
use crate::decode::{Addr, BootTime};

/// One process id.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) images: Images,
    pub(super) state: State,
    /// When its exit was reported or noticed.
    pub(super) exited_at: Option<BootTime>,
    /// It was seen to be gone.
    pub(super) gone: bool,
    pub(super) backoff: Backoff,
    /// Of reads for the names of attributes.
    pub(super) keys_backoff: Backoff,
    pub(super) slots: Vec<FoundSlot>,
    /// What the kernel side knows of its slots.
    pub(super) kernel: KernelSlots,
    /// It is a copy of its parent: it was forked, and runs no program of its own yet.
    pub(super) is_copy: bool,
    /// When it was read last.
    pub(super) read_at: BootTime,
    /// Grows with each program that the process runs.
    pub(super) generation: u64,
    pub(super) replaced: Replaced,
    /// How many more of the mappings that it makes are looked at.
    pub(super) mapped_allowance: Allowance,
    /// When there were more.
    pub(super) code_mappings_lost_at: BootTime,
    pub(super) used: Stamp,
    /// How many mappings of the table's count are its.
    pub(super) mappings: usize,
}

/// How what is known of a process came to be known.
#[derive(Debug)]
pub(super) enum State {
    /// It was not: the program that it runs was not read yet.
    Unread,
    /// From its parent.
    Inherited,
    /// By reading it.
    Read(Box<Facts>),
}

impl State {
    /// How many bytes of text its mappings are.
    pub(super) fn maps_len(&self) -> usize {
        match self {
            Self::Read(facts) => facts.maps_len,
            Self::Unread | Self::Inherited => 0,
        }
    }
}

impl Entry {
    /// How many of a sample's addresses could become known by reading the process; `None` if
    /// reading is of no use.
    pub(super) fn missing(
        &self,
        at: BootTime,
        addresses: &[Addr],
        is_doubtful: bool,
    ) -> Option<usize> {
        let (from, newest) = self.images.newest()?;
        match &self.state {
            _ if self.gone => None,
            // Of the program that ran before, nothing more can be learnt.
            State::Unread => (from <= at).then_some(usize::MAX),
            State::Read(facts) if facts.is_kernel_thread() => None,
            State::Inherited | State::Read(_) if is_doubtful => Some(usize::MAX),
            State::Inherited | State::Read(_) => {
                let current = self.images.at(at).is_some_and(|it| Arc::ptr_eq(it, newest));
                // This runs for each sample, and most frames are where the one before was.
                let mut last = None;
                let is_unknown = |addr: &&Addr| {
                    if !last.is_some_and(|mapping: &Mapping| mapping.holds(**addr)) {
                        last = newest.snapshot.find(**addr);
                    }
                    last.is_none()
                };
                let missing = addresses.iter().filter(is_unknown).count();
                (current && missing > 0).then_some(missing)
            }
        }
    }

    /// Whether the process that a fork made at a time has been read since: its samples can be
    /// faster than the event.
    pub(super) fn is_read_after_fork(&self, at: BootTime) -> bool {
        let State::Read(facts) = &self.state else { return false };
        let started = facts.start_time.saturating_mul(TICK);
        let same = started <= at.0.saturating_add(TICK) && at.0.saturating_sub(started) < SECOND;
        same && self.read_at >= at && !self.gone
    }
}
