//! A pool of threads, such as rayon's: a thread works for whoever sent it the work.
//!
//! A pool knows nothing of spans. So the work takes its record along, and enters it where it runs.
//! With rayon that is `items.par_iter().for_each(|item| { let _guard = enter(&record); … })`, or the
//! same inside `rayon::spawn(move || …)` with an `Arc<Record>`.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use span_marker::{Record, SpanIds};

type Work = Box<dyn FnOnce() + Send>;

/// Four threads that do what they are sent.
fn pool() -> (Sender<Work>, Vec<thread::JoinHandle<()>>) {
    let (send, receive) = channel::<Work>();
    let receive = Arc::new(Mutex::new(receive));
    let threads = (0..4).map(|_| {
        let receive = Arc::clone(&receive);
        thread::spawn(move || {
            while let Some(work) = next(&receive) {
                work()
            }
        })
    });
    (send, threads.collect())
}

fn next(receive: &Mutex<Receiver<Work>>) -> Option<Work> {
    receive.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

fn main() {
    let (send, threads) = pool();
    for request in 1..=8_u8 {
        let ids = SpanIds { trace_id: [request; 16], span_id: [request; 8], trace_flags: 1 };
        let record = Record::builder(ids).local_root(ids.span_id, None).name("resize").build();
        // One record for all parts of a request, whichever threads do them.
        let record = Arc::new(record);
        for part in 0..4_u64 {
            let record = Arc::clone(&record);
            let work = move || {
                let _guard = span_marker::enter(&record);
                std::hint::black_box(
                    (0..20_000_000).fold(part, |sum, n| std::hint::black_box(sum ^ n)),
                );
            };
            if send.send(Box::new(work)).is_err() {
                return;
            }
        }
    }
    drop(send);
    for thread in threads {
        drop(thread.join());
    }
}
