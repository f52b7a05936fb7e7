//! The collecting thread: records in, windows out. Decodes, attributes and aggregates; what it
//! finds out of processes goes back to the kernel.

use std::{
    collections::HashSet,
    io::{self, BufWriter},
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError},
    },
    time::{Duration, Instant},
};

use super::counted::{aggregate, count_span};
use super::unwinding::{Fact, UnwindStats, Unwinding};
use crate::aggregate::{Aggregator, Window};
use crate::attribute::{Location, SpanPolicy, attribute};
use crate::capture::{Batch, Capture, Control, HookStats, Hooks, Next};
use crate::clock::{boot_now, unix_now};
use crate::decode::{self, BootTime, Frame, UserStack};
use crate::export::file::AtomicFile;
use crate::process::{ControlFact, ElfId, Process, ProcessTable, TableStats, Unreadable};
use crate::recording;
use crate::serve::{Beat, Health};
use crate::stats::{Count, Stats};

/// How often the process table gets its turn at most, when no records come.
const TICK_MIN: Duration = Duration::from_millis(5);
/// And at least.
const TICK_MAX: Duration = Duration::from_millis(100);

/// How often the files that samples were in are told.
const USED_EVERY: Duration = Duration::from_secs(1);

/// A difference between the clocks that is no slow drift any more, but a step.
const CLOCK_STEP_NS: u64 = 100_000_000;

/// A window, and what the process table did so far.
#[derive(Debug)]
pub struct Collected {
    /// The samples.
    pub window: Window,
    /// Counters since the start.
    pub process: TableStats,
    /// And those of the probes of hooks.
    pub hooks: HookStats,
    /// And those of unwinding.
    pub unwind: UnwindStats,
}

/// A recorded file under way.
pub type Recorder = recording::Writer<BufWriter<AtomicFile>>;

/// What the thread owns.
pub struct Collector {
    /// What is known of processes.
    pub table: ProcessTable,
    /// The way back to the kernel.
    pub control: Control,
    /// And the one to the probes of hooks.
    pub hooks: Hooks,
    /// And the one of unwind tables.
    pub unwinding: Unwinding,
    /// Files that samples were in since the last time that was told.
    pub used: UsedFiles,
    /// Which span a sample is charged to.
    pub spans: SpanPolicy,
    /// The books.
    pub stats: Arc<Stats>,
    /// How much CPU time one sample stands for.
    pub period_ns: u64,
    /// Where what came from the kernel is stored, or the first error in doing so.
    pub recorder: Ended,
    /// The samples of this window.
    pub aggregator: Aggregator,
    /// When this window began.
    pub since: BootTime,
    /// Where the window before ended on the wall clock.
    pub previous_end_unix_ns: Option<i64>,
    /// Who wants to know whether the thread lives.
    pub health: Arc<Health>,
}

/// Files that samples were in.
#[derive(Debug)]
pub struct UsedFiles {
    files: HashSet<ElfId>,
    told: Instant,
}

impl Default for UsedFiles {
    fn default() -> Self {
        Self { files: HashSet::new(), told: Instant::now() }
    }
}

/// The recorded file, if there is one, or the first error in writing it.
pub type Ended = Option<io::Result<Recorder>>;

impl Collector {
    /// Collects until the capture ends, a window each `length`, or one window of everything.
    ///
    /// A window that the next stage has no room for is dropped and counted; the last one waits.
    ///
    /// # Errors
    ///
    /// The capture ended by a panic. What it had given until then is in the windows.
    pub fn run(
        mut self,
        mut capture: Capture,
        length: Option<Duration>,
        windows: &SyncSender<Collected>,
    ) -> io::Result<Ended> {
        let mut window_end = length.map(first_end);
        self.tell_kernel(false);
        loop {
            let tick = Instant::now() + self.until_due();
            match capture.next(window_end.map_or(tick, |end| end.min(tick))) {
                Next::Batch(batch) => self.take(&batch),
                Next::Deadline => {}
                Next::End => break,
            }
            self.tick();
            self.health.beat(Beat::Collect);
            let now = Instant::now();
            if let (Some(end), Some(length)) = (window_end, length)
                && now >= end
            {
                window_end = Some(next_end(end, length, now));
                self.hand_on(windows);
            }
        }
        self.health.rest(Beat::Collect);
        let last = self.window();
        let samples = last.window.samples();
        if windows.send(last).is_err() {
            // Nobody finishes windows any more; it says itself why.
            self.stats.add(Count::LostWindowQueueFull, samples);
        }
        if capture.has_panicked() {
            return Err(io::Error::other("the draining thread has panicked"));
        }
        Ok(self.recorder)
    }

    /// How long the process table can wait for its turn.
    fn until_due(&self) -> Duration {
        let due = self.table.next_due().0.saturating_sub(boot_now().0);
        Duration::from_nanos(due).clamp(TICK_MIN, TICK_MAX)
    }

    fn take(&mut self, batch: &Batch) {
        if batch.events_lost {
            self.table.on_events_lost();
        }
        if batch.code_mappings.lost {
            self.table.on_code_mappings_lost();
        }
        for record in batch.events() {
            match decode::process_event(record) {
                Ok(event) => self.table.on_event(event),
                Err(error) => tracing::error!(%error, "a process event cannot be read"),
            }
        }
        for mapping in &batch.code_mappings.list {
            self.table.on_code_mapped(*mapping);
        }
        for record in batch.samples() {
            self.take_sample(record);
        }
    }

    fn take_sample(&mut self, record: &[u8]) {
        let mut sample = match decode::sample(record) {
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
        count_span(&sample, &self.stats);
        self.table.refresh(sample.pid, sample.at, &addresses);
        let attributes = sample.span.iter().flat_map(|span| &span.attributes);
        if let Some(greatest) = attributes.map(|(key, _)| *key).max() {
            self.table.refresh_attribute_keys(sample.pid, sample.at, greatest);
        }
        let walked = self.table.walked(sample.pid, sample.at, sample.epoch, &addresses);
        let (process, stale) = walked.unwrap_or_else(|| {
            let unread = Process::not_read(sample.pid, Some(Unreadable::NotRead));
            (Arc::new(unread), false)
        });
        if stale {
            self.stats.add(Count::UserStackStale, 1);
            sample.user_stack = UserStack::Stale;
            self.record(&decode::stale(record), &process);
        } else {
            self.record(record, &process);
        }
        let attributed = attribute(&sample, &process, &self.spans);
        self.used.files.extend(attributed.stack.iter().filter_map(|location| match location {
            Location::Elf { elf, .. } => Some(*elf),
            _ => None,
        }));
        aggregate(attributed, &mut self.aggregator, &self.stats);
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
        self.tell_kernel(true);
        if self.used.told.elapsed() >= USED_EVERY && !self.used.files.is_empty() {
            self.used.told = Instant::now();
            let used = self.used.files.drain().collect();
            self.tell_unwinding(Fact::Used(used));
        }
    }

    /// `is_new`: what it is told of are processes that run now, not those that were found at first.
    fn tell_kernel(&mut self, is_new: bool) {
        for (pid, snapshot) in self.table.take_mappings() {
            self.tell_unwinding(match snapshot {
                // The tables of a busy host's other processes would come before those of the one.
                Some(_) if !self.control.is_sampled(pid) => continue,
                Some(snapshot) => Fact::Mappings { pid, snapshot, is_new },
                None => Fact::Forget { pid },
            });
        }
        self.hooks.tell(self.table.elfs().take_hooks());
        for fact in self.table.take_control() {
            let told = match fact {
                ControlFact::SetSlots { pid, slots } => self.control.set_slots(pid, slots),
                ControlFact::ClearSlot { pid } => self.control.clear_slot(pid),
                ControlFact::Gone { pid } => self.control.forget(pid),
            };
            if let Err(error) = told {
                tracing::warn!(error = &error as &dyn std::error::Error, "no spans of a process");
            }
        }
    }

    /// What is lost here is told again when a sample meets it.
    fn tell_unwinding(&self, fact: Fact) {
        if !self.unwinding.tell(fact) {
            tracing::debug!("the publisher of unwind tables is behind");
        }
    }

    fn hand_on(&mut self, windows: &SyncSender<Collected>) {
        let collected = self.window();
        if let Err(TrySendError::Full(lost) | TrySendError::Disconnected(lost)) =
            windows.try_send(collected)
        {
            self.stats.add(Count::LostWindowQueueFull, lost.window.samples());
            tracing::warn!("a window is lost: those before it are not finished");
        }
    }

    /// Ends the window and begins the next.
    ///
    /// It is measured on the boot clock, as samples are: a step of the wall clock does not stretch
    /// it. It begins where the one before ended, unless the wall clock is somewhere else by now.
    fn window(&mut self) -> Collected {
        let now = boot_now();
        let since = std::mem::replace(&mut self.since, now);
        let duration_ns = i64::try_from(now.0.saturating_sub(since.0)).unwrap_or(i64::MAX);
        let on_the_wall = unix_now().saturating_sub(duration_ns);
        let start_unix_ns = self
            .previous_end_unix_ns
            .filter(|end| end.abs_diff(on_the_wall) < CLOCK_STEP_NS)
            .unwrap_or(on_the_wall);
        self.previous_end_unix_ns = Some(start_unix_ns.saturating_add(duration_ns));
        let window = self.aggregator.take(start_unix_ns, duration_ns, self.period_ns);
        Collected {
            window,
            process: self.table.stats().clone(),
            hooks: self.hooks.stats(),
            unwind: self.unwinding.stats(),
        }
    }
}

/// When the first window ends: it is shorter by up to half, at random, so that agents that start
/// together do not push together ever after.
fn first_end(length: Duration) -> Instant {
    Instant::now() + length.mul_f64(1.0 - fastrand::f64() / 2.0)
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
