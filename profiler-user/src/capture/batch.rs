//! Records on their way from the drain to whoever reads them.

/// What a record's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A `profiler_common::sample` record.
    Sample,
    /// A `profiler_common::process` record.
    ProcessEvent,
}

/// Records in the order in which they were drained, in one allocation.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    ends: Vec<(RecordKind, usize)>,
    samples: u64,
    /// Process events were lost since the last batch: what is known of processes may be stale.
    pub events_lost: bool,
}

impl Batch {
    /// Appends one record.
    pub fn push(&mut self, kind: RecordKind, record: &[u8]) {
        self.bytes.extend_from_slice(record);
        self.ends.push((kind, self.bytes.len()));
        self.samples += u64::from(kind == RecordKind::Sample);
    }

    /// The records, oldest first within a kind.
    pub fn records(&self) -> impl Iterator<Item = (RecordKind, &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |&(kind, end)| {
            let record = self.bytes.get(start..end).unwrap_or_default();
            start = end;
            (kind, record)
        })
    }

    /// How many of the records are samples.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// How many bytes the records have.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty() && !self.events_lost
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
        assert!(batch.is_empty());
        batch.push(RecordKind::Sample, &[1, 2, 3]);
        batch.push(RecordKind::ProcessEvent, &[]);
        batch.push(RecordKind::Sample, &[4]);
        let records: Vec<_> = batch.records().collect();
        assert_eq!(
            records,
            [
                (RecordKind::Sample, &[1_u8, 2, 3][..]),
                (RecordKind::ProcessEvent, &[]),
                (RecordKind::Sample, &[4]),
            ]
        );
        assert_eq!((batch.samples(), batch.len(), batch.is_empty()), (2, 4, false));
    }
}
