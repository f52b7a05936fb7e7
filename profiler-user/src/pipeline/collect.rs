//! The collecting thread: records in, windows out. Decodes, attributes and aggregates; what it
//! finds out of processes goes back to the kernel.

use std::{
    io::{self, BufWriter},
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError},
    },
    time::{Duration, Instant},
};

use super::clock::{boot_now, unix_now};
use crate::aggregate::{Aggregator, Window};
use crate::attribute::{SpanScope, attribute};
use crate::capture::{Batch, Capture, Control, Next, RecordKind};
use crate::decode::{self, Frame};
use crate::export::file::AtomicFile;
use crate::process::{ControlFact, Process, ProcessTable, TableStats, Unreadable};
use crate::recording;
use crate::stats::{Count, Stats};

/// How often the process table gets its turn when no records come.
const TICK: Duration = Duration::from_millis(20);

/// A window, and what the process table did so far.
#[derive(Debug)]
pub struct Collected {
    /// The samples.
    pub window: Window,
    /// Counters since the start.
    pub process: TableStats,
}

/// A recorded file under way.
pub type Recorder = recording::Writer<BufWriter<AtomicFile>>;

/// What the thread owns.
pub struct Collector {
    /// What is known of processes.
    pub table: ProcessTable,
    /// The way back to the kernel.
    pub control: Control,
    /// Which span a sample is charged to.
    pub scope: SpanScope,
    /// The books.
    pub stats: Arc<Stats>,
    /// How much CPU time one sample stands for.
    pub period_ns: u64,
    /// Where what came from the kernel is stored.
    pub recorder: Option<Recorder>,
}

/// The recorded file, if there is one, or the first error in writing it.
pub type Ended = Option<io::Result<Recorder>>;

impl Collector {
    /// Collects until the capture ends, a window each `length`, or one window of everything.
    ///
    /// A window that the next stage has no room for is dropped and counted; the last one waits.
    pub fn run(
        self,
        mut capture: Capture,
        length: Option<Duration>,
        windows: &SyncSender<Collected>,
    ) -> Ended {
        let Self { table, control, scope, stats, period_ns, recorder } = self;
        let mut state = State {
            table,
            control,
            scope,
            stats,
            period_ns,
            recorder: recorder.map(Ok),
            aggregator: Aggregator::default(),
            start_unix_ns: unix_now(),
        };
        let mut window_end = length.map(|length| Instant::now() + length);
        loop {
            let tick = Instant::now() + TICK;
            match capture.next(window_end.map_or(tick, |end| end.min(tick))) {
                Next::Batch(batch) => state.take(&batch),
                Next::Deadline => {}
                Next::End => break,
            }
            state.tick();
            if let (Some(end), Some(length)) = (window_end, length) {
                let now = Instant::now();
                if now >= end {
                    window_end = Some(next_end(end, length, now));
                    state.hand_on(windows);
                }
            }
        }
        let last = state.window();
        let samples = last.window.samples();
        if windows.send(last).is_err() {
            // Nobody finishes windows any more; it says itself why.
            state.stats.add(Count::LostWindowQueueFull, samples);
        }
        state.recorder
    }
}

/// When the window that begins now ends: in step with the earlier ones, and not before half of its
/// length.
///
/// After a stop (a suspended machine, a frozen container) several ends have passed. A window for
/// each of them would hold nothing, fill the queue of the next stage, and begin at the same
/// millisecond as others, which a server takes for one that it has already.
fn next_end(end: Instant, length: Duration, now: Instant) -> Instant {
    let least = now + length / 2;
    let behind = least.saturating_duration_since(end).as_nanos();
    let steps = behind.div_ceil(length.as_nanos().max(1)).max(1);
    end + length.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX))
}

struct State {
    table: ProcessTable,
    control: Control,
    scope: SpanScope,
    stats: Arc<Stats>,
    period_ns: u64,
    recorder: Option<io::Result<Recorder>>,
    aggregator: Aggregator,
    start_unix_ns: i64,
}

impl State {
    fn take(&mut self, batch: &Batch) {
        if batch.events_lost {
            self.table.on_events_lost();
        }
        for (kind, record) in batch.records() {
            match kind {
                RecordKind::Sample => self.take_sample(record),
                RecordKind::ProcessEvent => match decode::process_event(record) {
                    Ok(event) => self.table.on_event(event),
                    Err(error) => tracing::error!(%error, "a process event cannot be read"),
                },
            }
        }
    }

    fn take_sample(&mut self, record: &[u8]) {
        let sample = match decode::sample(record) {
            Ok(sample) => sample,
            Err(error) => {
                tracing::error!(%error, "a sample cannot be read");
                return self.stats.add(Count::LostMalformed, 1);
            }
        };
        let addresses: Vec<_> = sample
            .frames
            .iter()
            .filter_map(|frame| match frame {
                Frame::User(address) => Some(address.lookup()),
                Frame::Kernel(_) => None,
            })
            .collect();
        self.table.refresh(sample.pid, sample.at, &addresses);
        let process = self.table.view(sample.pid, sample.at).map_or_else(
            || Arc::new(Process::not_read(sample.pid, Some(Unreadable::NotRead))),
            Arc::clone,
        );
        self.record(record, &process);
        let attributed = attribute(&sample, &process, self.scope);
        let count = match self.aggregator.add(attributed) {
            Ok(()) => Count::SamplesAggregated,
            Err(_full) => Count::LostWindowFull,
        };
        self.stats.add(count, 1);
    }

    fn record(&mut self, record: &[u8], process: &Arc<Process>) {
        if let Some(Ok(recorder)) = &mut self.recorder
            && let Err(error) = recorder.sample(record, process)
        {
            tracing::error!(%error, "recording stops");
            self.recorder = Some(Err(error));
        }
    }

    /// Lets the table look at processes, and tells the kernel what it found.
    fn tick(&mut self) {
        self.table.tick(boot_now());
        for fact in self.table.take_control() {
            let told = match fact {
                ControlFact::SetSlot { pid, slot } => self.control.set_slot(pid, slot),
                ControlFact::ClearSlot { pid } => self.control.clear_slot(pid),
            };
            if let Err(error) = told {
                tracing::warn!(error = &error as &dyn std::error::Error, "no spans of a process");
            }
        }
    }

    fn hand_on(&mut self, windows: &SyncSender<Collected>) {
        let collected = self.window();
        if let Err(TrySendError::Full(lost) | TrySendError::Disconnected(lost)) =
            windows.try_send(collected)
        {
            self.stats.add(Count::LostWindowQueueFull, lost.window.samples());
            tracing::warn!("a window is lost: the ones before it are not finished yet");
        }
    }

    /// Ends the window and begins the next.
    fn window(&mut self) -> Collected {
        let end_unix_ns = unix_now();
        let start_unix_ns = std::mem::replace(&mut self.start_unix_ns, end_unix_ns);
        let duration_ns = end_unix_ns.saturating_sub(start_unix_ns);
        let window = self.aggregator.take(start_unix_ns, duration_ns, self.period_ns);
        Collected { window, process: self.table.stats().clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_keep_their_step_and_none_is_short() {
        let length = Duration::from_secs(10);
        let end = Instant::now();
        let next =
            |late_ms| (next_end(end, length, end + Duration::from_millis(late_ms)) - end).as_secs();
        assert_eq!(next(0), 10);
        assert_eq!(next(20), 10);
        assert_eq!(next(5_000), 10);
        assert_eq!(next(5_001), 20);
        assert_eq!(next(9_999), 20);
        assert_eq!(next(3_600_000), 3_610);
        assert_eq!(next(3_608_000), 3_620);
    }
}
