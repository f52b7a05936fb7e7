//! The thread that drains the rings. It never waits for anybody: what the next stage has no room
//! for is dropped and counted.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError},
    },
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use aya_log::EbpfLogger;
use profiler_common::counter;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::attach::CpuTimers;
use super::batch::{Batch, RecordKind};
use super::code_maps::CodeMaps;
use super::counters::Counters;
use super::sampler::Sampler;
use crate::stats::{Count, Stats};

/// How often the rings are emptied when no process event wakes the thread before.
const DRAIN_PERIOD: Duration = Duration::from_millis(100);
/// The least time between two drains, so that a storm of process events cannot make it spin.
const DRAIN_PAUSE: Duration = Duration::from_millis(5);
/// How often CPUs that came or went are looked for.
const CPU_PERIOD: Duration = Duration::from_secs(1);
/// A batch is handed on when it has that many bytes.
const BATCH_BYTES: usize = 512 << 10;

/// What the thread owns.
pub(super) struct Drain {
    pub(super) ebpf: Ebpf,
    pub(super) sampler: Sampler,
    pub(super) timers: CpuTimers,
    pub(super) hz: u32,
    pub(super) samples: RingBuf<MapData>,
    pub(super) events: RingBuf<MapData>,
    pub(super) logger: Option<EbpfLogger<&'static dyn log::Log>>,
    pub(super) batches: SyncSender<Batch>,
    pub(super) stats: Arc<Stats>,
    /// Readable when it is time to stop.
    pub(super) stop: OwnedFd,
    pub(super) counters: Arc<Counters>,
    /// Records that the next stage had no room for yet.
    pub(super) pending: Batch,
    /// How many the kernel had no room for, when it was asked last.
    pub(super) kernel_events_lost: u64,
    /// CPUs that were said to be not sampled.
    pub(super) failed_cpus: BTreeSet<u32>,
}

impl Drain {
    /// Drains until told to stop, then stops sampling and drains what is left.
    pub(super) fn run(mut self) {
        let mut cpus_at = Instant::now() + CPU_PERIOD;
        loop {
            let stopping = self.wait(DRAIN_PAUSE, false) || self.wait(DRAIN_PERIOD, true);
            if stopping {
                // Nothing is sampled after this, so this drain is the last.
                if let Ok(program) = self.sampler.program(&mut self.ebpf) {
                    self.timers.stop(program);
                }
            }
            self.drain();
            if stopping {
                return self.hand_on_the_last();
            }
            if Instant::now() >= cpus_at {
                cpus_at += CPU_PERIOD;
                self.follow_cpus();
                self.note_lost_events();
            }
        }
    }

    /// Waits, and says whether it is time to stop.
    fn wait(&self, at_most: Duration, for_records: bool) -> bool {
        let mut fds = vec![PollFd::new(&self.stop, PollFlags::IN)];
        if for_records {
            // Not the samples' ring: it is never empty on a busy host, and sized for two seconds.
            fds.push(PollFd::from_borrowed_fd(self.events.as_fd(), PollFlags::IN));
            let code_maps = self.timers.code_maps().map(CodeMaps::fd);
            fds.extend(code_maps.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        let timeout =
            Timespec { tv_sec: 0, tv_nsec: i64::try_from(at_most.as_nanos()).unwrap_or(i64::MAX) };
        // An interrupted wait is a short one.
        if poll(&mut fds, Some(&timeout)).is_err() {
            return false;
        }
        fds.first().is_some_and(|stop| !stop.revents().is_empty())
    }

    /// Empties the rings. Samples are read first and events after them, so that every event before
    /// a sample is in its batch or an earlier one.
    fn drain(&mut self) {
        loop {
            let mut samples = 0;
            while self.pending.len() < BATCH_BYTES
                && let Some(record) = self.samples.next()
            {
                self.pending.push(RecordKind::Sample, &record);
                samples += 1;
            }
            self.stats.add(Count::SamplesDrained, samples);
            while let Some(record) = self.events.next() {
                self.pending.push(RecordKind::ProcessEvent, &record);
            }
            for code_maps in self.timers.code_maps_mut() {
                code_maps.read(&mut self.pending.code_mappings);
            }
            if samples == 0 {
                break;
            }
            if self.pending.len() >= BATCH_BYTES {
                self.hand_on();
                self.make_room();
            }
        }
        self.hand_on();
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// Hands on what is pending, or keeps it while the next stage has no room.
    fn hand_on(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        match self.batches.try_send(std::mem::take(&mut self.pending)) {
            Ok(()) => {}
            Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) => {
                self.pending = batch;
            }
        }
    }

    /// Drops what is pending if it is a whole batch: the next stage is that far behind.
    fn make_room(&mut self) {
        if self.pending.len() >= BATCH_BYTES {
            let lost = std::mem::take(&mut self.pending);
            self.stats.add(Count::LostAttributeQueueFull, lost.sample_count());
            self.pending.events_lost = lost.events_lost || lost.has_events();
            self.pending.code_mappings.lost =
                lost.code_mappings.lost || !lost.code_mappings.list.is_empty();
        }
    }

    /// The last batch waits for room: nothing is sampled any more that could be lost meanwhile.
    fn hand_on_the_last(&mut self) {
        if !self.pending.is_empty()
            && let Err(error) = self.batches.send(std::mem::take(&mut self.pending))
        {
            self.stats.add(Count::LostAttributeQueueFull, error.0.sample_count());
        }
    }

    /// What is known of processes may be stale when the kernel had no room for their events.
    fn note_lost_events(&mut self) {
        if let Ok(lost) = self.counters.total(counter::EVENT_LOST_RING_FULL) {
            self.pending.events_lost |= lost > self.kernel_events_lost;
            self.kernel_events_lost = lost;
        }
    }

    fn follow_cpus(&mut self) {
        let (timers, hz) = (&mut self.timers, self.hz);
        let before = timers.len();
        let followed = self
            .sampler
            .program(&mut self.ebpf)
            .and_then(|program| timers.follow_online(program, hz));
        match followed {
            Ok(failed) => {
                for (cpu, error) in failed {
                    // Once a CPU, however often it is tried again.
                    if self.failed_cpus.insert(cpu) {
                        tracing::warn!(cpu, %error, "a CPU that came online is not sampled");
                    }
                }
                if timers.len() != before {
                    tracing::info!(cpus = timers.len(), "the number of sampled CPUs changed");
                }
            }
            Err(error) => tracing::debug!(%error, "cannot look for CPUs that came online"),
        }
    }
}
