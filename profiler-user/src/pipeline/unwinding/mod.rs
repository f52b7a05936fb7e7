//! The thread that keeps the kernel's unwind tables true: it is told which mappings processes have,
//! makes the tables of their files, and publishes both.
//!
//! ```text
//! collect ──facts──▶ unwind ──files──▶ unwind-build, unwind-large
//!                      │  ◀──tables──────┘
//!                      ▼
//!               maps of the BPF program
//! ```

mod files;
mod maps;
mod publisher;
mod queue;
mod stats;

use std::{
    fs::File,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use self::publisher::Publisher;
use self::queue::{Lane, PerLane};
pub use self::stats::UnwindStats;
use crate::capture::UnwindMaps;
use crate::decode::Pid;
use crate::process::{ElfId, ElfRegistry, MappingSnapshot};
use crate::unwind::{BuildError, Limits, ReadAt, UnwindTable, build};

/// Facts that may wait: a process's mappings each, which are shared with the process table.
const FACTS: usize = 16_384;
/// How long what changed may wait to be published together with more of it.
const GATHER: Duration = Duration::from_millis(10);
/// Nothing is due.
const IDLE: Duration = Duration::from_secs(1);

/// What the thread is told.
#[derive(Debug)]
pub enum Fact {
    /// A process has these mappings.
    Mappings {
        /// The process.
        pid: Pid,
        /// Its executable mappings.
        snapshot: Arc<MappingSnapshot>,
        /// It runs now; otherwise it was found at the start.
        is_new: bool,
    },
    /// Nothing is known of a process any more: it runs another program, or is gone.
    Forget {
        /// The process.
        pid: Pid,
    },
    /// Samples were in these files.
    Used(Vec<ElfId>),
}

enum Message {
    Fact(Fact),
    Built { id: ElfId, table: Result<UnwindTable, BuildError>, took: Duration },
    End,
}

/// Files whose tables are to be made.
type Files = Vec<(ElfId, Arc<File>)>;

/// The way to the thread.
pub struct Unwinding {
    messages: SyncSender<Message>,
    stats: Arc<Mutex<UnwindStats>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Unwinding {
    /// Starts the thread, and two that make tables.
    ///
    /// # Errors
    ///
    /// There is no thread to be had.
    pub fn start(maps: UnwindMaps, elfs: ElfRegistry) -> io::Result<Self> {
        let (messages, received) = sync_channel(FACTS);
        let ended = Arc::new(AtomicBool::new(false));
        let builder = |name: &str| -> io::Result<SyncSender<Files>> {
            let (to_builder, files) = sync_channel(1);
            let (built, has_ended) = (messages.clone(), Arc::clone(&ended));
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || make_tables(&files, &built, &has_ended))?;
            Ok(to_builder)
        };
        let to_builders = PerLane::new(builder("unwind-build")?, builder("unwind-large")?);
        let stats = Arc::new(Mutex::new(UnwindStats::default()));
        let publisher = Publisher::new(maps, elfs);
        let shared = Arc::clone(&stats);
        let thread = std::thread::Builder::new()
            .name("unwind".to_owned())
            .spawn(move || run(publisher, &received, &to_builders, &shared))?;
        Ok(Self { messages, stats, ended, thread: Some(thread) })
    }

    /// Tells the thread. `false`: it is too far behind, and the fact is lost.
    #[must_use]
    pub fn tell(&self, fact: Fact) -> bool {
        match self.messages.try_send(Message::Fact(fact)) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                lock(&self.stats).facts_dropped += 1;
                false
            }
        }
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> UnwindStats {
        lock(&self.stats).clone()
    }
}

impl Drop for Unwinding {
    fn drop(&mut self) {
        // Who makes a table stops. It is not waited for: it may read a file that does not answer.
        self.ended.store(true, Ordering::Relaxed);
        let sent = self.messages.send(Message::End);
        if let Some(thread) = self.thread.take()
            && (thread.join().is_err() || sent.is_err())
        {
            tracing::error!("the thread that publishes unwind tables has panicked");
        }
    }
}

/// Reads with `pread`: a file that is cut short meanwhile is an error, and no signal.
impl ReadAt for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, to: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, to, offset)
    }
}

/// A file whose table is wanted until the end.
struct UntilEnd<'a> {
    file: &'a File,
    ended: &'a AtomicBool,
}

impl ReadAt for UntilEnd<'_> {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_exact_at(&self, to: &mut [u8], offset: u64) -> io::Result<()> {
        ReadAt::read_exact_at(self.file, to, offset)
    }

    fn is_wanted(&self) -> bool {
        !self.ended.load(Ordering::Relaxed)
    }
}

fn make_tables(files: &Receiver<Files>, built: &SyncSender<Message>, ended: &AtomicBool) {
    while let Ok(files) = files.recv() {
        for (id, file) in files {
            let began = Instant::now();
            let table = build(&UntilEnd { file: &file, ended }, &Limits::default());
            if built.send(Message::Built { id, table, took: began.elapsed() }).is_err() {
                return;
            }
        }
    }
}

fn run(
    mut publisher: Publisher<UnwindMaps>,
    messages: &Receiver<Message>,
    to_builders: &PerLane<SyncSender<Files>>,
    stats: &Mutex<UnwindStats>,
) {
    loop {
        let now = Instant::now();
        let wait = publisher.due().map_or(IDLE, |due| due.saturating_duration_since(now));
        let mut message = match messages.recv_timeout(wait) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let now = Instant::now();
        // All that wait, so that what they change is published at once.
        while let Some(next) = message {
            match next {
                Message::Fact(fact) => publisher.learn(fact, now),
                Message::Built { id, table, took } => publisher.built(id, table, took, now),
                Message::End => return,
            }
            message = messages.try_recv().ok();
        }
        publisher.publish(now);
        for lane in Lane::ALL {
            let files = publisher.next_to_build(lane, now);
            // The builder is idle whenever the publisher names files.
            if !files.is_empty() && to_builders.of(lane).send(files).is_err() {
                return;
            }
        }
        let mut shared = lock(stats);
        let facts_dropped = shared.facts_dropped;
        *shared = UnwindStats { facts_dropped, ..publisher.stats() };
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Whole values are stored, so what a panic left behind is still one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
