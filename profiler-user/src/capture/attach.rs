//! One CPU-clock perf event on every online CPU, CPUs that come and go included.
//!
//! The kernel stops the event of a CPU that goes offline, and does not start it again when the CPU
//! comes back. A CPU can do both between two looks: a host that is suspended takes all CPUs but one
//! offline while no process runs. So it is not enough to compare who is online: a timer that does
//! not fire any more is opened anew.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use aya::programs::{
    PerfEvent,
    perf_event::{PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy, SoftwareEvent},
};

use super::code_maps::CodeMaps;
use super::counters::Counters;
use super::live::CaptureError;

/// A timer that has not fired for twice so long has stopped, if it should have fired several times.
const SILENCE_MIN: Duration = Duration::from_millis(900);
/// How often it should have fired.
const SILENT_PERIODS: u32 = 4;

/// The perf events that are open, by CPU.
pub(super) struct CpuTimers {
    timers: BTreeMap<u32, Timer>,
    counters: Arc<Counters>,
    /// By CPU: they stop with it, as the timers do. None where the kernel refuses.
    code_maps: BTreeMap<u32, CodeMaps>,
    /// It was said that it refuses.
    said_no_code_maps: bool,
}

struct Timer {
    link: PerfEventLinkId,
    pulse: Pulse,
}

/// How often a timer has fired, and since when it has not.
#[derive(Clone, Copy, Debug)]
struct Pulse {
    ticks: u64,
    since: Instant,
    /// It was silent for long enough once already.
    is_suspect: bool,
}

impl Pulse {
    fn new(ticks: u64, since: Instant) -> Self {
        Self { ticks, since, is_suspect: false }
    }

    /// Whether it was silent for two stretches of time that each ended with a look. One is not enough:
    /// where a virtual machine was not run for a while, this may run before the CPU's timer does.
    fn has_stopped(&mut self, ticks: u64, now: Instant, hz: u32) -> bool {
        if self.ticks != ticks {
            *self = Self::new(ticks, now);
        }
        let periods = Duration::from_secs(1) * SILENT_PERIODS / hz.max(1);
        if now.saturating_duration_since(self.since) < periods.max(SILENCE_MIN) {
            return false;
        }
        self.since = now;
        std::mem::replace(&mut self.is_suspect, true)
    }
}

impl CpuTimers {
    /// None yet. The counters tell which of them fire.
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self {
            timers: BTreeMap::new(),
            counters,
            code_maps: BTreeMap::new(),
            said_no_code_maps: false,
        }
    }

    /// Opens events on CPUs that came online and forgets those of CPUs that went or were away;
    /// returns the CPUs that could not be opened, each with its error.
    pub(super) fn follow_online(
        &mut self,
        program: &mut PerfEvent,
        hz: u32,
    ) -> Result<Vec<(u32, CaptureError)>, CaptureError> {
        let online = aya::util::online_cpus()
            .map_err(|(path, source)| CaptureError::OnlineCpus { path, source })?;
        let now = Instant::now();
        let is_start = self.timers.is_empty();
        // Without counters nothing is known to have stopped.
        let ticks = self.counters.ticks_by_cpu().unwrap_or_default();
        let ticks = |cpu| usize::try_from(cpu).ok().and_then(|cpu: usize| ticks.get(cpu)).copied();
        let offline = self.take(|cpu, _| !online.contains(&cpu));
        let stopped = self.take(|cpu, timer| {
            ticks(cpu).is_some_and(|ticks| timer.pulse.has_stopped(ticks, now, hz))
        });
        let mut was_away = Vec::new();
        for (cpu, timer) in offline.into_iter().chain(stopped) {
            // The kernel stopped the event when the CPU went; closing it can only fail if it is
            // closed already.
            if let Err(error) = program.detach(timer.link) {
                tracing::debug!(cpu, %error, "cannot close the event of a CPU that was offline");
            }
            self.code_maps.remove(&cpu);
            was_away.extend(online.contains(&cpu).then_some(cpu));
        }
        let mut failed = Vec::new();
        for cpu in online {
            if self.timers.contains_key(&cpu) {
                continue;
            }
            match open(program, cpu, hz) {
                Ok(link) => {
                    let pulse = Pulse::new(ticks(cpu).unwrap_or(0), now);
                    self.timers.insert(cpu, Timer { link, pulse });
                    self.open_code_maps(cpu, is_start);
                    if was_away.contains(&cpu) {
                        tracing::warn!(
                            cpu,
                            "a CPU whose timer had stopped, as it does offline, is sampled again"
                        );
                    }
                }
                Err(source) => failed.push((cpu, CaptureError::PerfEvent { cpu, source })),
            }
        }
        Ok(failed)
    }

    /// Sampling goes on without.
    fn open_code_maps(&mut self, cpu: u32, is_start: bool) {
        match CodeMaps::open(cpu, !is_start) {
            Ok(code_maps) => {
                self.code_maps.insert(cpu, code_maps);
            }
            Err(error) if !std::mem::replace(&mut self.said_no_code_maps, true) => {
                tracing::warn!(cpu, %error, "a library in the place of another is noticed late");
            }
            Err(_) => {}
        }
    }

    /// What processes map to run it, by CPU.
    pub(super) fn code_maps(&self) -> impl Iterator<Item = &CodeMaps> {
        self.code_maps.values()
    }

    /// The same, to read them.
    pub(super) fn code_maps_mut(&mut self) -> impl Iterator<Item = &mut CodeMaps> {
        self.code_maps.values_mut()
    }

    /// How many CPUs are sampled.
    pub(super) fn len(&self) -> usize {
        self.timers.len()
    }

    /// Stops sampling. What was mapped until then can still be read.
    pub(super) fn stop(&mut self, program: &mut PerfEvent) {
        for (cpu, timer) in std::mem::take(&mut self.timers) {
            if let Err(error) = program.detach(timer.link) {
                tracing::debug!(cpu, %error, "cannot close a perf event");
            }
        }
    }

    fn take(&mut self, mut which: impl FnMut(u32, &mut Timer) -> bool) -> Vec<(u32, Timer)> {
        self.timers.extract_if(.., |cpu, timer| which(*cpu, timer)).collect()
    }
}

fn open(
    program: &mut PerfEvent,
    cpu: u32,
    hz: u32,
) -> Result<PerfEventLinkId, aya::programs::ProgramError> {
    program.attach(
        PerfEventConfig::Software(SoftwareEvent::CpuClock),
        PerfEventScope::AllProcessesOneCpu { cpu },
        // The kernel turns a CPU-clock frequency into a fixed period, and refuses one above
        // kernel.perf_event_max_sample_rate.
        SamplePolicy::Frequency(u64::from(hz)),
        false,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_that_does_not_fire_any_more_has_stopped() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut pulse = Pulse::new(7, start);
        assert!(!pulse.has_stopped(7, after(899), 97));
        assert!(!pulse.has_stopped(8, after(5000), 97), "it fired meanwhile");
        assert!(!pulse.has_stopped(8, after(5899), 97));
        assert!(!pulse.has_stopped(8, after(5900), 97), "nothing may have run meanwhile");
        assert!(!pulse.has_stopped(8, after(5901), 97), "nor since then");
        assert!(pulse.has_stopped(8, after(6800), 97));
        let mut slow = Pulse::new(7, start);
        assert!(!slow.has_stopped(7, after(3999), 1), "it may fire once a second");
        assert!(!slow.has_stopped(7, after(4000), 1));
        assert!(!slow.has_stopped(7, after(7999), 1));
        assert!(slow.has_stopped(7, after(8000), 1));
    }

    #[test]
    fn a_timer_that_fires_after_a_pause_has_not_stopped() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut pulse = Pulse::new(7, start);
        assert!(!pulse.has_stopped(7, after(3000), 97), "the host did not run");
        assert!(!pulse.has_stopped(8, after(4000), 97));
        assert!(!pulse.has_stopped(8, after(5000), 97), "silence is counted anew");
    }
}
