//! The kernel's addresses, by a copy of its symbols.

use std::ops::Range;
use std::os::fd::AsFd as _;
use std::time::Instant;

use super::answer::LocationNames;
use super::kallsyms::Kallsyms;
use super::service::{Ask, Located, WorkerService};
use super::stats::Unsymbolized;
use crate::symbolize::protocol::{Answer, LOCATIONS_MAX, Request};

/// How often a request about the kernel is tried: its symbols are not hostile, so that a death was
/// about something else.
const TRIES: u8 = 2;

impl WorkerService {
    /// Copies the kernel's symbols if there is no copy, or if an address outside the kernel proper
    /// asks for a newer one. Then the kernel proper's addresses are returned.
    pub(super) fn refresh_kallsyms(&mut self, addresses: &[u64]) -> Option<Range<u64>> {
        if let Some(kallsyms) = &self.kallsyms {
            let is_hidden = kallsyms.symbol_count == 0;
            let is_outside = addresses.iter().any(|address| !kallsyms.image.contains(address));
            let is_old = kallsyms.taken.elapsed() >= self.config.kallsyms_age;
            if !((is_outside || is_hidden) && is_old) {
                return None;
            }
        }
        let kallsyms = Kallsyms::copy(&self.config.kallsyms).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the kernel's symbols");
            Kallsyms::hidden()
        });
        if kallsyms.symbol_count == 0 && self.kallsyms.is_none() {
            tracing::warn!("kernel symbols are hidden; set kernel.kptr_restrict=0 or run as root");
        }
        let image = kallsyms.image.clone();
        self.kallsyms = Some(kallsyms);
        self.is_kallsyms_sent = false;
        Some(image)
    }

    pub(super) fn name_kernel(&mut self, addresses: &[u64], end: Instant) -> Vec<Located> {
        let mut located = Vec::with_capacity(addresses.len());
        for chunk in addresses.chunks(LOCATIONS_MAX) {
            let mut result = Err(Unsymbolized::WorkerUnavailable);
            for _ in 0..TRIES {
                result = match self.ask_kernel(chunk, end) {
                    Ok(names) => Ok(names),
                    Err(Ask::Refused(reason)) => Err(reason),
                    Err(Ask::Died) => continue,
                };
                break;
            }
            match result {
                Ok(names) => located.extend(names.into_iter().map(|names| Ok(names?))),
                Err(reason) => located.extend(chunk.iter().map(|_| Err(reason))),
            }
        }
        located
    }

    fn ask_kernel(&mut self, addresses: &[u64], end: Instant) -> Result<Vec<LocationNames>, Ask> {
        if self.kallsyms.as_ref().is_none_or(|kallsyms| kallsyms.symbol_count == 0) {
            return Err(Ask::Refused(Unsymbolized::KernelHidden));
        }
        if Instant::now() >= end {
            return Err(Ask::Refused(Unsymbolized::OutOfTime));
        }
        self.start_worker()?;
        if let Some(kallsyms) = self.kallsyms.as_ref().filter(|_| !self.is_kallsyms_sent) {
            let copy = kallsyms.copy.as_ref().and_then(|copy| copy.try_clone().ok());
            let copy = copy.ok_or(Ask::Refused(Unsymbolized::WorkerUnavailable))?;
            match self.call(&Request::Kallsyms, Some(copy.as_fd()))? {
                Answer::Done => self.is_kallsyms_sent = true,
                _ => return Err(self.protocol_death()),
            }
        }
        let request = Request::Kernel { addresses: addresses.to_vec() };
        self.call_for_names(&request, addresses.len())
    }
}
