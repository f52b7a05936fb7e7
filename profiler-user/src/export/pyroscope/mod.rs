//! Profiles to a Pyroscope server.
//!
//! ```text
//! try_push ─▶ queue ─▶ delivery ─▶ client ─▶ server
//!            (bytes)   (gate,      (HTTP)
//!                       retries)
//! ```
//!
//! Every sample that is handed over ends in exactly one counter: `SamplesExported`,
//! `LostExportQueueFull`, `LostExportRejected`, `LostExportGaveUp`, `LostExportShutdown` or
//! `UncertainExport`; until then it is in [`Pyroscope::queued`]. `answer` says which answer leads
//! to which. No profile is sent again that may be stored: "uncertain" is preferred to "twice".
//! (One thing cannot be excluded from here: a server that stores a profile and then says 500 or
//! 503 all the same.)

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message as _;
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::client::Client;
use self::config::RetryPolicy as Policy;
use self::deliver::Delivery;
use self::queue::{Entry, Queue};
use super::Profile;
use super::proto::{LabelPair, PushRequest, RawProfileSeries, RawSample};
use crate::stats::Stats;

mod config;
mod queue;
mod gate;
mod deliver;
mod client;
mod body;
mod answer;
mod version;

pub use self::config::{Auth, ConfigError, PyroscopeConfig, RetryPolicy, TraceIdLabel};
pub use self::queue::Queued;

/// An exporter at work. Shared by reference; ended with [`shutdown`](Self::shutdown).
///
/// If it is dropped without that, what waits is counted as lost, as soon as its run time gets to
/// it.
#[derive(Debug)]
pub struct Pyroscope {
    queue: Arc<Queue>,
    policy: Policy,
    takes_trace_id: Arc<AtomicBool>,
    version_task: Option<JoinHandle<()>>,
    end: watch::Sender<Option<Instant>>,
    delivery: Mutex<Option<JoinHandle<()>>>,
}

impl Pyroscope {
    /// Starts the tasks that deliver. Must be called in a tokio run time.
    ///
    /// # Errors
    ///
    /// When the configuration cannot work. A server that is not there is no error: profiles wait
    /// for it.
    pub fn start(config: &PyroscopeConfig, stats: Arc<Stats>) -> Result<Self, ConfigError> {
        let client = Client::new(config)?;
        let queue = Arc::new(Queue::new(config.queue_bytes, stats));
        let recovered = Arc::new(Notify::new());
        let takes_trace_id = Arc::new(AtomicBool::new(config.trace_id == TraceIdLabel::On));
        let version_task = (config.trace_id == TraceIdLabel::Auto).then(|| {
            let client = client.clone();
            let ask = move || {
                let client = client.clone();
                async move { client.build_info().await }
            };
            let flag = Arc::clone(&takes_trace_id);
            tokio::spawn(version::keep_asking(ask, flag, Arc::clone(&recovered)))
        });
        let (end, ended) = watch::channel(None);
        let delivery =
            Delivery::new(client, Arc::clone(&queue), config.retry, config.concurrency, recovered);
        Ok(Self {
            queue,
            policy: config.retry,
            takes_trace_id,
            version_task,
            end,
            delivery: Mutex::new(Some(tokio::spawn(delivery.run(ended)))),
        })
    }

    /// Queues a profile. Never waits: without room, the oldest that waits is dropped and counted.
    ///
    /// Compresses it on the calling thread: some 10 ms for 1 MiB.
    pub fn try_push(&self, profile: Profile) {
        let age = age(profile.start_unix_ns);
        let now = Instant::now();
        self.queue.push(Entry {
            samples: profile.samples,
            message: message(profile),
            expires: now + self.policy.max_age.saturating_sub(age),
            not_before: now,
            failures: 0,
            server_errors: 0,
        });
    }

    /// Whether samples should have a `trace_id` label. With [`TraceIdLabel::Auto`]: not before the
    /// server has said its version, and it can change while it runs.
    #[must_use]
    pub fn takes_trace_id(&self) -> bool {
        self.takes_trace_id.load(Ordering::Relaxed)
    }

    /// What waits or is under way.
    #[must_use]
    pub fn queued(&self) -> Queued {
        self.queue.queued()
    }

    /// Delivers what is queued, for as long as `grace`, and counts what is left then. Profiles that
    /// are handed over later are counted as lost.
    pub async fn shutdown(&self, grace: Duration) {
        // A second caller does not move the deadline of the first.
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            end.get_or_insert_with(|| Instant::now() + grace);
            first
        });
        let mut delivery = self.delivery.lock().await;
        if let Some(task) = delivery.as_mut() {
            if let Err(error) = task.await {
                tracing::error!(%error, "the export task died");
                self.queue.abandon();
            }
            *delivery = None;
        }
        if let Some(task) = &self.version_task {
            task.abort();
        }
    }
}

impl Drop for Pyroscope {
    fn drop(&mut self) {
        if let Some(task) = &self.version_task {
            task.abort();
        }
    }
}

/// How long ago a window began; nothing for one in the future.
fn age(start_unix_ns: i64) -> Duration {
    let start = Duration::from_nanos(u64::try_from(start_unix_ns).unwrap_or(0));
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(start)
}

/// The request for one profile. Made once: every try sends the same bytes.
fn message(profile: Profile) -> Bytes {
    let pairs = profile.labels.into_iter().map(|(name, value)| LabelPair { name, value });
    let sample = RawSample { raw_profile: gzip(profile.pprof).into(), id: random_uuid() };
    let series = RawProfileSeries { labels: pairs.collect(), samples: vec![sample] };
    PushRequest { series: vec![series] }.encode_to_vec().into()
}

fn gzip(pprof: Bytes) -> Bytes {
    const MAGIC: [u8; 2] = [0x1f, 0x8b];
    // No pprof message begins like that: it would be field 3 with a wire type that does not exist.
    if pprof.starts_with(&MAGIC) {
        return pprof;
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    match encoder.write_all(&pprof).and_then(|()| encoder.finish()) {
        Ok(compressed) => compressed.into(),
        // Writing to memory does not fail; the server takes plain pprof as well.
        Err(_) => pprof,
    }
}

/// A version 4 UUID. The server only logs it: it must be unique, not unguessable.
fn random_uuid() -> String {
    let bits = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| hex.get(range).unwrap_or(""));
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn profile(pprof: &'static [u8]) -> Profile {
        Profile {
            labels: vec![("__name__".into(), "process_cpu".into()), ("b".into(), "c".into())],
            pprof: Bytes::from_static(pprof),
            samples: 3,
            start_unix_ns: 0,
            duration_ns: 1,
        }
    }

    fn sent(profile: Profile) -> RawProfileSeries {
        let mut request = PushRequest::decode(message(profile)).unwrap();
        assert_eq!(request.series.len(), 1);
        request.series.remove(0)
    }

    #[test]
    fn a_request_holds_one_series_with_one_compressed_profile() {
        let series = sent(profile(b"\x0a\x00pprof"));
        let labels: Vec<_> =
            series.labels.iter().map(|pair| (pair.name.as_str(), pair.value.as_str())).collect();
        assert_eq!(labels, [("__name__", "process_cpu"), ("b", "c")]);
        let [sample] = series.samples.as_slice() else { panic!("{series:?}") };
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&sample.raw_profile[..]).read_to_end(&mut plain).unwrap();
        assert_eq!(plain, b"\x0a\x00pprof");
    }

    #[test]
    fn what_is_compressed_already_is_left_alone() {
        let series = sent(profile(b"\x1f\x8bwhatever"));
        assert_eq!(&series.samples[0].raw_profile[..], b"\x1f\x8bwhatever");
    }

    #[test]
    fn ids_are_uuids_and_differ() {
        let (one, two) = (random_uuid(), random_uuid());
        assert_ne!(one, two);
        for id in [one, two] {
            let lengths: Vec<_> = id.split('-').map(str::len).collect();
            assert_eq!(lengths, [8, 4, 4, 4, 12]);
            assert_eq!(&id[14..15], "4");
            assert!("89ab".contains(&id[19..20]), "{id}");
        }
    }

    #[test]
    fn ages_are_never_negative() {
        assert_eq!(age(i64::MAX), Duration::ZERO);
        assert!(age(i64::MIN) > Duration::from_hours(24 * 365));
    }
}
