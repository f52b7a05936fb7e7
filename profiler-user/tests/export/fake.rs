//! A Push server that does what it is told, and what every test needs.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use profiler_user::export::Profile;
use profiler_user::export::pyroscope::{Pyroscope, PyroscopeConfig, RetryPolicy};
use profiler_user::stats::{Count, Stats};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The messages once more, written apart from the exporter's.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PushRequest {
    #[prost(message, repeated, tag = "1")]
    pub(crate) series: Vec<Series>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Series {
    #[prost(message, repeated, tag = "1")]
    pub(crate) labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Label {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) value: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Sample {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) raw_profile: Vec<u8>,
    #[prost(string, tag = "2")]
    pub(crate) id: String,
}

/// What the server does with a connection.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Stores the profile and says so.
    Store,
    /// Reads the request and answers with this status, nothing stored.
    Refuse(u16, &'static str),
    /// Reads the request and sends these bytes; `true`: then keeps silent and the connection open.
    Raw(&'static [u8], bool),
    /// Closes without reading.
    CloseUnread,
    /// Reads, stores, closes without an answer.
    StoreThenClose,
    /// Reads, stores, and never answers.
    StoreThenHang,
    /// Sends this, then one more byte every few milliseconds, without end.
    Drip(&'static str),
    /// Sends this, then as many more bytes as are taken.
    Flood(&'static str),
}

#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Head of each request that was read.
    pub(crate) heads: Vec<String>,
    /// Body of each.
    pub(crate) bodies: Vec<Vec<u8>>,
    /// The ids of the profiles that were stored.
    pub(crate) stored: Vec<String>,
    /// Bytes that a `Flood` got rid of.
    pub(crate) flooded: usize,
    /// Connections, whatever became of them.
    pub(crate) connections: usize,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Seen>>,
    script: Arc<Mutex<VecDeque<Act>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Acts in turn, one a connection; when they are used up, the last one again and again.
    pub(crate) async fn start(acts: impl Into<VecDeque<Act>>) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), acts).await
    }

    pub(crate) async fn start_at(address: SocketAddr, acts: impl Into<VecDeque<Act>>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Seen>>::default();
        let script = Arc::new(Mutex::new(acts.into()));
        let (task_seen, task_script) = (Arc::clone(&seen), Arc::clone(&script));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (seen, script) = (Arc::clone(&task_seen), Arc::clone(&task_script));
                seen.lock().unwrap().connections += 1;
                tokio::spawn(serve(stream, seen, script));
            }
        });
        Self { address, seen, script, task }
    }

    pub(crate) fn set_script(&self, acts: impl Into<VecDeque<Act>>) {
        *self.script.lock().unwrap() = acts.into();
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The profiles stored, without repetition: a repetition fails the test.
    pub(crate) fn stored(&self) -> Vec<String> {
        let mut ids = self.seen.lock().unwrap().stored.clone();
        ids.sort();
        let count = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), count, "a profile was stored twice");
        ids
    }

    pub(crate) fn requests(&self) -> usize {
        self.seen.lock().unwrap().bodies.len()
    }

    /// Requests that carried no profile.
    pub(crate) fn probes(&self) -> usize {
        self.seen.lock().unwrap().bodies.iter().filter(|body| body.is_empty()).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection.
pub(crate) async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    seen: Arc<Mutex<Seen>>,
    script: Arc<Mutex<VecDeque<Act>>>,
) {
    let act = {
        let mut script = script.lock().unwrap();
        if script.len() > 1 { script.pop_front() } else { script.front().cloned() }
    };
    let act = act.expect("a script has at least one act");
    if matches!(act, Act::CloseUnread) {
        return;
    }
    let Some((head, body)) = read_request(&mut stream).await else { return };
    let request = PushRequest::decode(&body[..]).unwrap();
    let ids: Vec<_> =
        request.series.iter().flat_map(|series| &series.samples).map(|s| s.id.clone()).collect();
    {
        let mut seen = seen.lock().unwrap();
        seen.heads.push(head);
        if matches!(act, Act::Store | Act::StoreThenClose | Act::StoreThenHang) {
            seen.stored.extend(ids.iter().cloned());
        }
        seen.bodies.push(body);
    }
    match act {
        // As the real one: "no profiles received".
        Act::Store if ids.is_empty() => answer(&mut stream, 400, "{}").await,
        Act::Store => {
            send(
                &mut stream,
                "HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nContent-Length: 0\r\n\r\n",
            )
            .await;
        }
        Act::Refuse(status, body) => answer(&mut stream, status, body).await,
        Act::Raw(bytes, silent) => {
            drop(stream.write_all(bytes).await);
            if silent {
                std::future::pending::<()>().await;
            }
        }
        Act::StoreThenHang => std::future::pending().await,
        Act::CloseUnread | Act::StoreThenClose => {}
        Act::Drip(start) => {
            send(&mut stream, start).await;
            let mut interval = tokio::time::interval(Duration::from_millis(5));
            while stream.write_all(b"x").await.is_ok() {
                interval.tick().await;
            }
        }
        Act::Flood(start) => {
            send(&mut stream, start).await;
            let chunk = vec![b'x'; 64 << 10];
            while let Ok(written) = stream.write(&chunk).await {
                seen.lock().unwrap().flooded += written;
            }
        }
    }
    drop(stream.shutdown().await);
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), text: &str) {
    // A client may have gone.
    drop(stream.write_all(text.as_bytes()).await);
}

async fn answer(stream: &mut (impl AsyncWrite + Unpin), status: u16, body: &str) {
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    send(stream, &text).await;
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(read[..end].to_vec()).unwrap();
    let length = header(&head, "content-length").map_or(0, |text| text.parse().unwrap());
    while read.len() < end + length {
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
    Some((head, read.split_off(end)))
}

/// A header of a request head.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Fast retries, a time-out that a test can wait for.
pub(crate) fn config(url: &str) -> PyroscopeConfig {
    let mut config = PyroscopeConfig::new(url);
    config.timeout = Duration::from_millis(500);
    config.retry = RetryPolicy {
        first: Duration::from_millis(5),
        max: Duration::from_millis(40),
        ..RetryPolicy::default()
    };
    config.trace_id = profiler_user::export::pyroscope::TraceIdLabel::Off;
    config
}

/// Long enough for a busy machine; a test that works does not take it.
pub(crate) const GRACE: Duration = Duration::from_secs(30);

pub(crate) struct Exporter {
    pub(crate) pyroscope: Pyroscope,
    pub(crate) stats: Arc<Stats>,
    handed: std::sync::atomic::AtomicU64,
}

impl Exporter {
    pub(crate) fn start(config: &PyroscopeConfig) -> Self {
        let stats = Arc::new(Stats::default());
        let pyroscope = Pyroscope::start(config, Arc::clone(&stats)).unwrap();
        Self { pyroscope, stats, handed: 0.into() }
    }

    pub(crate) fn push(&self, samples: u64) {
        self.push_bytes(samples, Bytes::from_static(b"\x0a\x00pprof"));
    }

    pub(crate) fn push_bytes(&self, samples: u64, pprof: Bytes) {
        self.push_profile(Profile {
            labels: vec![("__name__".into(), "process_cpu".into())],
            pprof,
            samples,
            start_unix_ns: unix_ns(),
            duration_ns: 1,
        });
    }

    pub(crate) fn push_profile(&self, profile: Profile) {
        self.handed.fetch_add(profile.samples, std::sync::atomic::Ordering::Relaxed);
        self.pyroscope.try_push(profile);
        self.check_books();
    }

    /// What went in is queued or in one of the counters. Only exact while nothing is settled at
    /// that moment, so it is read until two readings agree.
    #[track_caller]
    pub(crate) fn check_books(&self) {
        let handed = self.handed.load(std::sync::atomic::Ordering::Relaxed);
        for _ in 0..100 {
            let queued = self.pyroscope.queued().samples;
            if queued + self.settled() == handed && queued == self.pyroscope.queued().samples {
                return;
            }
        }
        panic!(
            "{handed} handed over, {} queued: {}",
            self.pyroscope.queued().samples,
            self.books()
        );
    }

    fn settled(&self) -> u64 {
        OUTCOMES.iter().map(|count| self.stats.get(*count)).sum()
    }

    pub(crate) fn books(&self) -> String {
        let parts = OUTCOMES.iter().filter(|count| self.stats.get(**count) > 0);
        let parts = parts.map(|count| format!("{} {}", count.name(), self.stats.get(*count)));
        parts.collect::<Vec<_>>().join(", ")
    }

    /// Shuts down and compares the books.
    #[track_caller]
    pub(crate) fn finish(self, grace: Duration, expected: &str) -> impl Future<Output = ()> {
        let at = std::panic::Location::caller();
        let expected = expected.to_owned();
        async move {
            self.pyroscope.shutdown(grace).await;
            assert_eq!(self.books(), expected, "at {at}");
            assert_eq!(
                self.pyroscope.queued(),
                profiler_user::export::pyroscope::Queued::default()
            );
            self.check_books();
        }
    }
}

const OUTCOMES: [Count; 6] = [
    Count::SamplesExported,
    Count::LostExportQueueFull,
    Count::LostExportRejected,
    Count::LostExportGaveUp,
    Count::LostExportShutdown,
    Count::UncertainExport,
];

pub(crate) fn unix_ns() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_nanos()).unwrap()
}

/// Waits for a condition that another task brings about.
#[track_caller]
pub(crate) fn until(condition: impl Fn() -> bool) -> impl Future<Output = ()> {
    let at = std::panic::Location::caller();
    async move {
        let poll = async {
            let mut interval = tokio::time::interval(Duration::from_millis(2));
            while !condition() {
                interval.tick().await;
            }
        };
        if tokio::time::timeout(GRACE, poll).await.is_err() {
            panic!("never came true: {at}");
        }
    }
}
