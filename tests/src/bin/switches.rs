//! Threads, and tasks of a tokio runtime, that switch spans all the time and write down when.
//!
//! `switches THREADS WORKERS FILE` switches until its stdin ends. The file is a side channel with
//! the true span of each thread over time: for each switch the thread, the boot clock just before
//! and just after it, and the span that it was to (0: none), as `spanprof_tests::switches` reads it.

#![expect(clippy::print_stdout, reason = "the line that says that it is at work")]

use std::cell::RefCell;
use std::fs::File;
use std::future::poll_fn;
use std::io::{BufWriter, Read as _, Write as _, stdin};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::thread;

use anyhow::{Context as _, Result};
use rustix::time::{ClockId, clock_gettime};
use span_marker::{MarkFuture as _, Record, SpanIds};
use spanprof_tests::switches::Switch;

/// How long a thread works for a span.
const VISIT_NS: u64 = 50_000;

static STOP: AtomicBool = AtomicBool::new(false);
static NEXT: AtomicU64 = AtomicU64::new(1);
static SWITCHES: Mutex<Vec<Switch>> = Mutex::new(Vec::new());

thread_local! {
    static LOG: Log = Log { tid: rustix::thread::gettid().as_raw_pid().unsigned_abs(), switches: RefCell::default() };
}

/// What a thread has done so far; it goes to the others' when the thread ends.
struct Log {
    tid: u32,
    switches: RefCell<Vec<Switch>>,
}

impl Drop for Log {
    fn drop(&mut self) {
        let mut all = SWITCHES.lock().unwrap_or_else(PoisonError::into_inner);
        all.append(&mut self.switches.borrow_mut());
    }
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// The thread has switched to a span, at some time since `before`.
fn log(before: u64, span: u64) {
    let after = now();
    LOG.with(|log| {
        log.switches.borrow_mut().push(Switch { tid: log.tid, before, after, span });
    });
}

fn work(until: u64) {
    while now() < until {
        std::hint::spin_loop();
    }
}

/// A record of its own for each visit: those of visits before are freed and made again.
fn record() -> (u64, Arc<Record>) {
    let span = NEXT.fetch_add(1, Ordering::Relaxed);
    let ids = SpanIds { trace_id: [7; 16], span_id: span.to_be_bytes(), trace_flags: 1 };
    let record = Record::builder(ids).name("visit").local_root(span.to_be_bytes(), None).build();
    (span, Arc::new(record))
}

/// Spans, a span within every fourth, and time outside of any.
fn switch_by_hand() {
    while !STOP.load(Ordering::Relaxed) {
        let (span, of_visit) = record();
        let before = now();
        let guard = span_marker::enter(&of_visit);
        log(before, span);
        work(before + VISIT_NS);
        if span.is_multiple_of(4) {
            let (inner, of_inner) = record();
            let before = now();
            let guard = span_marker::enter(&of_inner);
            log(before, inner);
            work(before + VISIT_NS);
            let before = now();
            drop(guard);
            log(before, span);
        }
        let before = now();
        drop(guard);
        log(before, 0);
        // The last reference: the memory is free for the next one.
        drop(of_visit);
        work(before + VISIT_NS / 10);
    }
}

/// A task that works for one span each time it is polled, on whatever thread.
async fn task() {
    while !STOP.load(Ordering::Relaxed) {
        let (span, of_visit) = record();
        let (entered, left) = (AtomicU64::new(0), AtomicU64::new(0));
        let mut polls = 0;
        let inner = poll_fn(|context| {
            log(entered.load(Ordering::Relaxed), span);
            work(entered.load(Ordering::Relaxed) + VISIT_NS);
            polls += 1;
            left.store(now(), Ordering::Relaxed);
            if polls == 3 {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        });
        let mut marked = pin!(inner.marked(of_visit));
        poll_fn(|context| {
            entered.store(now(), Ordering::Relaxed);
            let poll = marked.as_mut().poll(context);
            log(left.load(Ordering::Relaxed), 0);
            poll
        })
        .await;
        tokio::task::yield_now().await;
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [threads, workers, file] = arguments.as_slice() else {
        anyhow::bail!("switches THREADS WORKERS FILE")
    };
    let (threads, workers): (usize, usize) = (threads.parse()?, workers.parse()?);
    span_marker::init().context("spans cannot be published")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).build()?;
    let by_hand: Vec<_> = (0..threads).map(|_| thread::spawn(switch_by_hand)).collect();
    // More tasks than workers: they change places.
    let tasks: Vec<_> = (0..2 * workers).map(|_| runtime.spawn(task())).collect();
    println!("at work");
    stdin().read_to_end(&mut Vec::new())?;
    STOP.store(true, Ordering::Relaxed);
    for thread in by_hand {
        thread.join().ok().context("a thread has panicked")?;
    }
    for task in tasks {
        runtime.block_on(task)?;
    }
    // The workers end, and with them what they wrote down.
    drop(runtime);
    let mut out = BufWriter::new(File::create(file)?);
    for switch in SWITCHES.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        out.write_all(&switch.to_bytes())?;
    }
    out.flush()?;
    Ok(())
}
