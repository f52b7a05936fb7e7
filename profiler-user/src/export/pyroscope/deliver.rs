//! Takes profiles from the queue and sees each of them to its end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, info, warn};

use super::answer::{Fate, PushError};
use super::body::HandedOver;
use super::config::RetryPolicy;
use super::gate::{Gate, Generation};
use super::queue::{Entry, Place, Queue};
use crate::stats::Count;

/// While the program ends, no wait is longer.
const MAX_WAIT_AT_END: Duration = Duration::from_secs(1);

/// Carries messages to a server.
pub(super) trait Transport: Clone + Send + Sync + 'static {
    /// Sends a message. Sets `handed_over` no later than the server can have the whole of it.
    fn push(
        &self,
        message: Bytes,
        handed_over: HandedOver,
    ) -> impl Future<Output = Result<(), PushError>> + Send;

    /// Finds out, without a profile, whether anybody answers.
    fn probe(&self) -> impl Future<Output = Result<(), PushError>> + Send;
}

pub(super) struct Delivery<T> {
    transport: T,
    queue: Arc<Queue>,
    gate: Gate,
    policy: RetryPolicy,
    concurrency: usize,
    jobs: JoinSet<Result<(), PushError>>,
    under_way: HashMap<Id, Job>,
    /// The server is back.
    recovered: Arc<Notify>,
    last_trouble: Option<String>,
}

enum Job {
    Push { place: Place, entry: Entry, handed_over: HandedOver, began: Generation },
    Probe { began: Generation },
}

impl<T: Transport> Delivery<T> {
    pub(super) fn new(
        transport: T,
        queue: Arc<Queue>,
        policy: RetryPolicy,
        concurrency: usize,
        recovered: Arc<Notify>,
    ) -> Self {
        Self {
            transport,
            queue,
            gate: Gate::new(policy, fastrand::Rng::new()),
            policy,
            concurrency,
            jobs: JoinSet::new(),
            under_way: HashMap::new(),
            recovered,
            last_trouble: None,
        }
    }

    /// Runs until a deadline is set, then until all is delivered or the deadline has passed.
    pub(super) async fn run(mut self, mut end: watch::Receiver<Option<Instant>>) {
        tokio::select! {
            () = self.work(false) => {}
            () = ended(&mut end) => {}
        }
        let deadline = *end.borrow();
        self.queue.close(Instant::now());
        self.gate.hurry(MAX_WAIT_AT_END);
        if let Some(deadline) = deadline {
            // The deadline is what is waited for; what is left then is counted below.
            drop(timeout_at(deadline, self.work(true)).await);
        }
        self.cut_off().await;
    }

    /// Delivers; returns only when `until_empty` and everything came to its end. Cancel safe:
    /// between two awaits, what is under way is in `under_way`.
    async fn work(&mut self, until_empty: bool) {
        loop {
            let now = Instant::now();
            self.queue.expire(now);
            self.start_jobs(now);
            if until_empty && self.under_way.is_empty() && self.queue.queued().profiles == 0 {
                return;
            }
            let wake = self.wake(now);
            tokio::select! {
                Some(done) = self.jobs.join_next_with_id() => self.settle(done),
                () = self.queue.grown.notified() => {}
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            }
        }
    }

    fn start_jobs(&mut self, now: Instant) {
        while self.under_way.len() < self.gate.limit(self.concurrency)
            && self.gate.closed_until(now).is_none()
        {
            let began = self.gate.generation();
            let transport = self.transport.clone();
            if self.gate.wants_probe() {
                if self.queue.queued().profiles == 0 {
                    return;
                }
                let job = self.jobs.spawn(async move { transport.probe().await });
                self.under_way.insert(job.id(), Job::Probe { began });
                return;
            }
            let Some((place, entry)) = self.queue.take(now) else { return };
            let handed_over = HandedOver::default();
            let (message, flag) = (entry.message.clone(), handed_over.clone());
            let job = self.jobs.spawn(async move { transport.push(message, flag).await });
            self.under_way.insert(job.id(), Job::Push { place, entry, handed_over, began });
        }
    }

    /// When to look again, if nothing else happens.
    fn wake(&self, now: Instant) -> Option<Instant> {
        let gate = self.gate.closed_until(now);
        let room = self.under_way.len() < self.gate.limit(self.concurrency);
        let may_send = room && gate.is_none() && !self.gate.wants_probe();
        let event = self.queue.next_event(may_send);
        // Without anything to send, the gate may stay closed.
        event.map(|event| if room { gate.map_or(event, |gate| gate.min(event)) } else { event })
    }

    fn settle(&mut self, done: Result<(Id, Result<(), PushError>), JoinError>) {
        let (id, result) = match done {
            Ok((id, result)) => (id, result),
            Err(error) => (error.id(), Err(PushError::TaskDied)),
        };
        match self.under_way.remove(&id) {
            Some(Job::Push { place, entry, began, .. }) => {
                self.settle_push(place, entry, began, result);
            }
            Some(Job::Probe { began }) => match result {
                Ok(()) => self.gate.probe_answered(),
                Err(error) => {
                    let wait = error.retry_after().unwrap_or_default();
                    self.gate.failed(began, Instant::now(), wait, true);
                    self.report("the server does not answer", &error);
                }
            },
            None => {}
        }
    }

    fn settle_push(
        &mut self,
        place: Place,
        mut entry: Entry,
        began: Generation,
        result: Result<(), PushError>,
    ) {
        let now = Instant::now();
        let Err(error) = result else {
            self.queue.settle(&entry, Count::SamplesExported);
            self.answered(began);
            return;
        };
        let fate = error.fate();
        let wait = error.retry_after().unwrap_or_default();
        match fate {
            Fate::Rejected => {
                self.queue.settle(&entry, Count::LostExportRejected);
                self.answered(began);
                self.report("profile refused for good", &error);
            }
            Fate::Uncertain => {
                self.queue.settle(&entry, Count::UncertainExport);
                self.gate.failed(began, now, wait, true);
                self.report("profile sent, but nobody can tell whether it is stored", &error);
            }
            Fate::Retry | Fate::RetrySome => {
                entry.server_errors += u32::from(fate == Fate::RetrySome);
                if entry.server_errors >= self.policy.max_server_errors.max(1) {
                    self.queue.settle(&entry, Count::LostExportGaveUp);
                    self.report("profile given up", &error);
                } else {
                    if matches!(error, PushError::Refused { .. }) {
                        // Longer than the gate waits: if it is this profile that the server does
                        // not like, another one goes first and opens the gate.
                        entry.not_before = now + 2 * self.gate.backoff(entry.failures);
                        entry.failures = entry.failures.saturating_add(1);
                    }
                    self.queue.put_back(place, entry);
                    self.report("profile not delivered yet", &error);
                }
                self.gate.failed(began, now, wait, false);
            }
        }
    }

    fn answered(&mut self, began: Generation) {
        if self.gate.answered(began) {
            self.last_trouble = None;
            info!("the server takes profiles again");
            self.recovered.notify_one();
        }
    }

    /// Once for each change of trouble; the counters have the rest.
    fn report(&mut self, what: &'static str, error: &PushError) {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        let text = super::answer::printable(&text);
        if self.last_trouble.as_ref() == Some(&text) {
            debug!(error = %text, "{what}");
        } else {
            warn!(error = %text, "{what}");
            self.last_trouble = Some(text);
        }
    }

    /// The end: whatever is under way is broken off, whatever waits is counted.
    async fn cut_off(mut self) {
        self.jobs.abort_all();
        while let Some(done) = self.jobs.join_next_with_id().await {
            match done {
                Ok(done) => self.settle(Ok(done)),
                Err(error) => {
                    if let Some(Job::Push { entry, handed_over, .. }) =
                        self.under_way.remove(&error.id())
                    {
                        let sent = handed_over.get() || error.is_panic();
                        self.queue.settle(
                            &entry,
                            if sent { Count::UncertainExport } else { Count::LostExportShutdown },
                        );
                    }
                }
            }
        }
        self.queue.abandon();
    }
}

/// Waits until a deadline is set, or nobody is left to set one.
async fn ended(end: &mut watch::Receiver<Option<Instant>>) {
    // An error says that the exporter was dropped: the end as well.
    drop(end.wait_for(Option::is_some).await);
}
