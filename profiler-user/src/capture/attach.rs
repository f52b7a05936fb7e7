//! One CPU-clock perf event on every online CPU, CPUs that come and go included.

use std::collections::BTreeMap;

use aya::programs::{
    PerfEvent,
    perf_event::{PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy, SoftwareEvent},
};

use super::live::CaptureError;

/// The perf events that are open, by CPU.
#[derive(Default)]
pub(super) struct CpuTimers {
    links: BTreeMap<u32, PerfEventLinkId>,
}

impl CpuTimers {
    /// Opens events on CPUs that came online and forgets those of CPUs that went; returns the CPUs
    /// that could not be opened, each with its error.
    pub(super) fn follow_online(
        &mut self,
        program: &mut PerfEvent,
        hz: u32,
    ) -> Result<Vec<(u32, CaptureError)>, CaptureError> {
        let online = aya::util::online_cpus()
            .map_err(|(path, source)| CaptureError::OnlineCpus { path, source })?;
        for (cpu, link) in self.take_offline(&online) {
            // The kernel stopped the event when the CPU went; closing it can only fail if it is
            // closed already.
            if let Err(error) = program.detach(link) {
                tracing::debug!(cpu, %error, "cannot close the event of a CPU that is offline");
            }
        }
        let mut failed = Vec::new();
        for cpu in online {
            if self.links.contains_key(&cpu) {
                continue;
            }
            match open(program, cpu, hz) {
                Ok(link) => {
                    self.links.insert(cpu, link);
                }
                Err(source) => failed.push((cpu, CaptureError::PerfEvent { cpu, source })),
            }
        }
        Ok(failed)
    }

    /// How many CPUs are sampled.
    pub(super) fn len(&self) -> usize {
        self.links.len()
    }

    /// Stops sampling.
    pub(super) fn stop(&mut self, program: &mut PerfEvent) {
        for (cpu, link) in std::mem::take(&mut self.links) {
            if let Err(error) = program.detach(link) {
                tracing::debug!(cpu, %error, "cannot close a perf event");
            }
        }
    }

    fn take_offline(&mut self, online: &[u32]) -> Vec<(u32, PerfEventLinkId)> {
        let gone: Vec<u32> =
            self.links.keys().filter(|cpu| !online.contains(cpu)).copied().collect();
        gone.into_iter().filter_map(|cpu| self.links.remove_entry(&cpu)).collect()
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
