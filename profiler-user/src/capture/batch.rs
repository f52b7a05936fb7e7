//! Records on their way from the drain to whoever reads them.

use crate::decode::CodeMapping;

/// What a record's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordKind {
    /// A `profiler_common::process` record.
    ProcessEvent,
    /// A `profiler_common::sample` record.
    Sample,
}

/// Records in the order in which they are to be read, in two allocations.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    events: Records,
    samples: Records,
    /// What processes have mapped to run it.
    pub code_mappings: CodeMappings,
    /// Process events were lost since the last batch: what is known of processes may be stale.
    pub events_lost: bool,
}

/// Mappings, as many as there is room for: those of a process that maps all the time are no reason to
/// drop samples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CodeMappings {
    /// In no order: each CPU reports its own.
    pub list: Vec<CodeMapping>,
    /// There were more since the last batch.
    pub lost: bool,
}

/// Records of one kind, one behind the other.
#[derive(Clone, Debug, Default)]
struct Records {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Batch {
    /// Appends one record.
    pub(super) fn push(&mut self, kind: RecordKind, record: &[u8]) {
        let records = match kind {
            RecordKind::ProcessEvent => &mut self.events,
            RecordKind::Sample => &mut self.samples,
        };
        records.bytes.extend_from_slice(record);
        records.ends.push(records.bytes.len());
    }

    /// The records of process events. They and the mappings come before the samples, because a
    /// sample after an exec must not be looked up in the program before it. (One before it is: what
    /// is known of a process is known by time.)
    pub fn events(&self) -> impl Iterator<Item = &[u8]> {
        self.events.iter()
    }

    /// The records of samples.
    pub fn samples(&self) -> impl Iterator<Item = &[u8]> {
        self.samples.iter()
    }

    /// How many of the records are samples.
    #[must_use]
    pub fn sample_count(&self) -> u64 {
        u64::try_from(self.samples.ends.len()).unwrap_or(u64::MAX)
    }

    /// Whether some of the records are process events.
    #[must_use]
    pub fn has_events(&self) -> bool {
        !self.events.ends.is_empty()
    }

    /// How many bytes the records have, without the mappings.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.bytes.len().saturating_add(self.samples.bytes.len())
    }

    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let no_records = self.events.ends.is_empty() && self.samples.ends.is_empty();
        no_records && self.code_mappings.is_empty() && !self.events_lost
    }
}

impl CodeMappings {
    /// A batch of which has 300 KiB.
    const MAX: usize = 4096;

    /// Appends one if there is room.
    pub(super) fn push(&mut self, mapping: CodeMapping) {
        if self.list.len() < Self::MAX {
            self.list.push(mapping);
        } else {
            self.lost = true;
        }
    }

    fn is_empty(&self) -> bool {
        self.list.is_empty() && !self.lost
    }
}

impl Records {
    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let record = self.bytes.get(start..end).unwrap_or_default();
            start = end;
            record
        })
    }
}

/// What a capture had.
#[derive(Debug)]
pub enum Next {
    /// Records.
    Batch(Batch),
    /// None by the deadline.
    Deadline,
    /// None, and there will be none.
    End,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_gives_back_what_was_put_in() {
        let mut batch = Batch::default();
        assert!(batch.is_empty() && !batch.has_events());
        batch.push(RecordKind::Sample, &[1, 2, 3]);
        batch.push(RecordKind::ProcessEvent, &[]);
        batch.push(RecordKind::Sample, &[4]);
        batch.push(RecordKind::ProcessEvent, &[5, 6]);
        assert_eq!(batch.events().collect::<Vec<_>>(), [&[][..], &[5, 6]]);
        assert_eq!(batch.samples().collect::<Vec<_>>(), [&[1_u8, 2, 3][..], &[4]]);
        assert_eq!((batch.sample_count(), batch.len()), (2, 6));
        assert!(!batch.is_empty() && batch.has_events());
    }
}
