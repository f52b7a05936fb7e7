//! Stands between an agent and a server: sees what is pushed, and makes trouble on request.
//!
//! A request has a connection of its own, which it says in its answers, unless it is told to keep
//! them. What the relay writes down is what went over the wire, so it is the agent's own account,
//! made outside of the agent.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::pushed::Pushed;

/// Longer than the agent waits for an answer.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_BODY_BYTES: usize = 16 << 20;

/// An answer as a server gives that has stored a profile.
pub const STORED: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nContent-Length: 0\r\n\r\n";

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The server gets it, and the agent the server's answer.
    Pass,
    /// The server gets it, and the agent no answer.
    LoseAnswer,
    /// The server does not get it, and the agent no answer.
    LoseRequest,
    /// The server does not get it, and the agent gets these bytes.
    Answer(&'static [u8]),
    /// The server does not get it, and the agent's connection stays open and silent.
    KeepSilent,
}

/// What became of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The server, or what played it, said that it is stored, and the agent heard it.
    Stored,
    /// The server said that it is stored, and the agent did not hear it.
    StoredUnheard,
    /// No server has it, and the agent had no answer.
    Unheard,
    /// The agent was told that it is not stored.
    Refused,
}

/// The relay.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<Acceptor>,
}

#[derive(Debug)]
struct Acceptor {
    ending: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    server: Option<String>,
    http: reqwest::blocking::Client,
    state: Mutex<State>,
    connections: AtomicUsize,
    keeps_connections: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// For requests with a profile, each for one.
    next: VecDeque<Act>,
    /// For all others.
    always: Act,
    pushes: Vec<(Pushed, Outcome)>,
    silenced: usize,
    /// What should not have happened.
    failures: Vec<String>,
}

impl Relay {
    /// In front of the server at this URL.
    ///
    /// # Errors
    ///
    /// There is no port, or no thread.
    pub fn start(server: String) -> Result<Self> {
        Self::with(Some(server), Act::Pass, Ipv4Addr::LOCALHOST)
    }

    /// The same, at another address of this machine.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_at(server: String, address: Ipv4Addr) -> Result<Self> {
        Self::with(Some(server), Act::Pass, address)
    }

    /// Without a server.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn alone(always: Act) -> Result<Self> {
        Self::with(None, always, Ipv4Addr::LOCALHOST)
    }

    fn with(server: Option<String>, always: Act, address: Ipv4Addr) -> Result<Self> {
        let http = reqwest::blocking::Client::builder()
            .no_proxy()
            .timeout(CONNECTION_DEADLINE)
            .pool_max_idle_per_host(0)
            .build()?;
        let state = State {
            next: VecDeque::new(),
            always,
            pushes: Vec::new(),
            silenced: 0,
            failures: Vec::new(),
        };
        let shared = Arc::new(Shared {
            server,
            http,
            state: Mutex::new(state),
            connections: AtomicUsize::new(0),
            keeps_connections: AtomicBool::new(false),
        });
        let any = SocketAddr::from((address, 0));
        let mut relay = Self { address: any, shared, acceptor: None };
        relay.listen()?;
        Ok(relay)
    }

    /// Where the agent finds it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From here on a connection is for any number of requests, until the agent ends it.
    pub fn keep_connections(&self) {
        self.shared.keeps_connections.store(true, Ordering::Release);
    }

    /// How many connections were made that brought a request.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Acquire)
    }

    /// What becomes of every request from here on.
    pub fn set(&self, always: Act) {
        self.shared.lock().always = always;
    }

    /// What becomes of the next request with a profile, before what is [`set`](Self::set).
    pub fn next(&self, act: Act) {
        self.shared.lock().next.push_back(act);
    }

    /// Every profile that came, with what became of it, in the order of the outcomes.
    ///
    /// # Errors
    ///
    /// A request was not what the agent sends, or a server was not there that should be.
    pub fn pushes(&self) -> Result<Vec<(Pushed, Outcome)>> {
        let state = self.shared.lock();
        if let Some(failure) = state.failures.first() {
            bail!("the relay: {failure}");
        }
        Ok(state.pushes.clone())
    }

    /// How many samples came to this end.
    ///
    /// # Errors
    ///
    /// As [`pushes`](Self::pushes), or a profile is not made of whole samples.
    pub fn samples(&self, outcome: Outcome) -> Result<u64> {
        let pushes = self.pushes()?;
        let those = pushes.iter().filter(|(_, became)| *became == outcome);
        those.map(|(pushed, _)| pushed.samples()).sum()
    }

    /// Waits for all of so many samples to come to an end, and tells whether they did.
    ///
    /// # Errors
    ///
    /// As [`samples`](Self::samples).
    pub fn reaches(&self, samples: u64, within: Duration) -> Result<bool> {
        let deadline = Instant::now() + within;
        loop {
            let pushes = self.pushes()?;
            let seen = pushes.iter().map(|(pushed, _)| pushed.samples()).sum::<Result<u64>>()?;
            if seen == samples {
                return Ok(true);
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// How many requests were left without a word.
    #[must_use]
    pub fn silenced(&self) -> usize {
        self.shared.lock().silenced
    }

    /// From here on connections are refused, as where no server runs. What is under way comes to
    /// its end first.
    ///
    /// # Errors
    ///
    /// The relay's own thread does not end.
    pub fn refuse(&mut self) -> Result<()> {
        let Some(Acceptor { ending, thread }) = self.acceptor.take() else { return Ok(()) };
        ending.store(true, Ordering::Release);
        // Wakes it up.
        drop(TcpStream::connect(self.address));
        thread.join().ok().context("the relay has panicked")
    }

    /// Takes connections again, on the same port.
    ///
    /// # Errors
    ///
    /// Somebody else has the port.
    pub fn listen(&mut self) -> Result<()> {
        if self.acceptor.is_some() {
            return Ok(());
        }
        let listener = TcpListener::bind(self.address)?;
        self.address = listener.local_addr()?;
        let ending = Arc::new(AtomicBool::new(false));
        let (flag, shared) = (Arc::clone(&ending), Arc::clone(&self.shared));
        let thread = std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || accept(&listener, &flag, &shared))?;
        self.acceptor = Some(Acceptor { ending, thread });
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // A connection that is kept silent ends with the agent, or at its deadline.
        if let Some(Acceptor { ending, .. }) = self.acceptor.take() {
            ending.store(true, Ordering::Release);
            drop(TcpStream::connect(self.address));
        }
    }
}

fn accept(listener: &TcpListener, ending: &AtomicBool, shared: &Arc<Shared>) {
    let mut workers = Vec::new();
    while let Ok((stream, _)) = listener.accept() {
        if ending.load(Ordering::Acquire) {
            // The kernel has taken connections that we have not: they are served, not reset. The
            // last of them may be the one that woke us, which sends nothing.
            if listener.set_nonblocking(true).is_err() || closed_at_once(&stream) {
                continue;
            }
        }
        let shared = Arc::clone(shared);
        workers.push(std::thread::spawn(move || {
            if let Err(error) = serve_all(stream, &shared) {
                shared.lock().failures.push(format!("{error:#}"));
            }
        }));
    }
    for worker in workers {
        // What it had to say is in the failures.
        drop(worker.join());
    }
}

/// Whether it is a connection that brings nothing.
fn closed_at_once(stream: &TcpStream) -> bool {
    stream.peek(&mut [0]).is_ok_and(|bytes| bytes == 0)
}

fn serve_all(mut stream: TcpStream, shared: &Shared) -> Result<()> {
    // Accepted sockets do not inherit it on Linux, but nothing here says so.
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(CONNECTION_DEADLINE))?;
    stream.set_write_timeout(Some(CONNECTION_DEADLINE))?;
    let mut is_first = true;
    while let Some(request) = read_request(&mut stream)? {
        shared.connections.fetch_add(usize::from(is_first), Ordering::AcqRel);
        is_first = false;
        if !serve(&mut stream, request, shared)? {
            break;
        }
    }
    Ok(())
}

/// Serves a request, and tells whether the connection is for another.
fn serve(stream: &mut TcpStream, request: Request, shared: &Shared) -> Result<bool> {
    let Request { line, body } = request;
    let mut profiles = if line.starts_with("POST ") {
        anyhow::ensure!(line.contains("/push.v1.PusherService/Push "), "asked for {line}");
        Pushed::read_request(&body)?
    } else {
        Vec::new()
    };
    let pushed = profiles.pop();
    anyhow::ensure!(profiles.is_empty(), "more than one profile in a request");
    let act = shared.lock().act(pushed.is_some());
    let mut outcome = Outcome::Unheard;
    let mut answer = None;
    match act {
        Act::Pass | Act::LoseAnswer => {
            let (stored, bytes) = shared.forward(&line, body)?;
            outcome = match (stored, act) {
                (true, Act::Pass) => Outcome::Stored,
                (true, _) => Outcome::StoredUnheard,
                (false, Act::Pass) => Outcome::Refused,
                (false, _) => bail!("the server has refused what it was to store"),
            };
            answer = (act == Act::Pass).then_some(bytes);
        }
        Act::Answer(bytes) => {
            outcome = if bytes == STORED {
                Outcome::Stored
            } else if bytes.starts_with(b"HTTP/") {
                Outcome::Refused
            } else {
                Outcome::Unheard
            };
            answer = Some(bytes.to_vec());
        }
        Act::LoseRequest | Act::KeepSilent => {}
    }
    {
        let mut state = shared.lock();
        state.pushes.extend(pushed.map(|pushed| (pushed, outcome)));
        state.silenced += usize::from(act == Act::KeepSilent);
    }
    match answer {
        Some(answer) => {
            let keeps = shared.keeps_connections.load(Ordering::Acquire);
            let answer = if keeps { answer } else { closing(answer) };
            // The agent may have gone.
            return Ok(stream.write_all(&answer).is_ok() && keeps);
        }
        None if act == Act::KeepSilent => drop(stream.read(&mut [0])),
        None => {}
    }
    Ok(false)
}

/// The answer, if it is one of HTTP, with the word that no other comes on its connection.
fn closing(mut answer: Vec<u8>) -> Vec<u8> {
    let line_end = answer.windows(2).position(|two| two == b"\r\n");
    if let Some(at) = line_end.filter(|_| answer.starts_with(b"HTTP/")) {
        answer.splice(at..at, *b"\r\nConnection: close");
    }
    answer
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the server stored it, and the answer as the agent gets it.
    fn forward(&self, line: &str, body: Vec<u8>) -> Result<(bool, Vec<u8>)> {
        let server = self.server.as_ref().context("there is no server to pass it to")?;
        let path = line.split(' ').nth(1).context("a request without a path")?;
        let url = format!("{server}{path}");
        let request = if line.starts_with("POST ") {
            self.http
                .post(url)
                .header("content-type", "application/proto")
                .header("connect-protocol-version", "1")
                .body(body)
        } else {
            self.http.get(url)
        };
        let response = request.send().context("the server behind the relay")?;
        let status = response.status();
        let content = response.headers().get("content-type").cloned();
        let content = content.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default();
        let mut answer = format!("HTTP/1.1 {status}\r\nContent-Type: {content}\r\n").into_bytes();
        let body = response.bytes().context("the server behind the relay")?;
        write!(answer, "Content-Length: {}\r\n\r\n", body.len())?;
        answer.extend_from_slice(&body);
        Ok((status == reqwest::StatusCode::OK, answer))
    }
}

impl State {
    fn act(&mut self, has_profile: bool) -> Act {
        let next = if has_profile { self.next.pop_front() } else { None };
        next.unwrap_or(self.always)
    }
}

/// What a client asks.
pub(crate) struct Request {
    pub(crate) line: String,
    pub(crate) body: Vec<u8>,
}

/// A whole request; nothing if the connection ends before.
pub(crate) fn read_request(stream: &mut TcpStream) -> Result<Option<Request>> {
    let mut read = Vec::new();
    let mut more = |read: &mut Vec<u8>| -> Result<bool> {
        let mut chunk = [0; 16 << 10];
        // A reset is an end, too.
        let bytes = stream.read(&mut chunk).unwrap_or(0);
        read.extend_from_slice(chunk.get(..bytes).unwrap_or_default());
        Ok(bytes > 0)
    };
    let end = loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if read.len() > MAX_HEAD_BYTES {
            bail!("the head of a request has no end");
        }
        if !more(&mut read)? {
            return Ok(None);
        }
    };
    let body_so_far = read.split_off(end);
    let head = String::from_utf8(read).context("the head of a request")?;
    let mut lines = head.lines();
    let line = lines.next().unwrap_or_default().to_owned();
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(Ok(0), |(_, value)| value.trim().parse::<usize>())?;
    anyhow::ensure!(length <= MAX_BODY_BYTES, "a body of {length} bytes");
    let mut body = body_so_far;
    while body.len() < length {
        if !more(&mut body)? {
            return Ok(None);
        }
    }
    Ok(Some(Request { line, body }))
}
