//! Entering and leaving by hand, read through the process's own memory.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part")]
mod reader;

use std::sync::{Arc, Weak, mpsc};
use std::thread;

use reader::this_thread;
use span_marker::{
    DEPTH_MAX, Guard, MarkFuture as _, Record, SpanIds, enter, enter_owned, init, stats,
};

fn record(name: &str) -> Arc<Record> {
    init().unwrap();
    let ids = SpanIds { trace_id: [1; 16], span_id: [2; 8], trace_flags: 1 };
    Arc::new(Record::builder(ids).name(name).build())
}

#[track_caller]
fn check(expected: Option<&str>) {
    let name = this_thread().map(|context| context.attributes["span_name"].clone());
    assert_eq!(name.as_deref(), expected);
}

#[test]
fn restores_what_was_entered_before() {
    let (outer, inner) = (record("outer"), record("inner"));
    check(None);
    let outer_guard = enter(&outer);
    check(Some("outer"));
    let inner_guard = enter(&inner);
    check(Some("inner"));
    let again = enter(&outer);
    check(Some("outer"));
    drop(again);
    check(Some("inner"));
    drop(inner_guard);
    check(Some("outer"));
    drop(outer_guard);
    check(None);
    assert_eq!(Arc::strong_count(&outer), 1);
}

#[test]
fn guards_may_be_dropped_in_any_order() {
    let names = ["a", "b", "c"];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut guards: Vec<_> = names.iter().map(|name| Some(enter_owned(record(name)))).collect();
        for index in order {
            drop(guards[index].take());
            check(guards.iter().rposition(Option::is_some).map(|latest| names[latest]));
        }
    }
}

#[test]
fn a_guard_that_owns_keeps_a_record_that_nobody_else_has() {
    let only = record("only");
    let weak = Arc::downgrade(&only);
    let guard = enter_owned(only);
    check(Some("only"));
    assert_eq!(weak.strong_count(), 1);
    drop(guard);
    assert_eq!(weak.strong_count(), 0);
    check(None);
}

#[test]
#[expect(clippy::mem_forget, reason = "what is tested is a guard that is never dropped")]
fn a_leaked_guard_that_owns_keeps_its_record() {
    let (send, receive) = mpsc::channel::<Weak<Record>>();
    thread::spawn(move || {
        let leaked = record("leaked");
        send.send(Arc::downgrade(&leaked)).unwrap();
        let below = enter_owned(record("below"));
        std::mem::forget(enter_owned(leaked));
        check(Some("leaked"));
        drop(below);
        check(Some("leaked"));
        let above = enter_owned(record("above"));
        check(Some("above"));
        drop(above);
        check(Some("leaked"));
    })
    .join()
    .unwrap();
    assert_eq!(receive.recv().unwrap().strong_count(), 1);
}

#[test]
#[expect(clippy::mem_forget, reason = "what is tested is a guard that is never dropped")]
fn a_record_that_is_freed_is_published_no_longer() {
    let (below, leaked) = (record("below"), record("leaked"));
    let guard = enter(&below);
    std::mem::forget(enter(&leaked));
    std::mem::forget(enter(&leaked));
    check(Some("leaked"));
    drop(leaked);
    check(Some("below"));
    drop(guard);
    check(None);
}

#[test]
fn too_deep_is_counted_and_the_record_above_stays() {
    let before = stats().entered_too_deep;
    let deep: Vec<_> = (0..DEPTH_MAX).map(|n| enter_owned(record(&n.to_string()))).collect();
    let latest = (DEPTH_MAX - 1).to_string();
    check(Some(&latest));
    let too_deep = enter_owned(record("too deep"));
    check(Some(&latest));
    assert_eq!(stats().entered_too_deep, before + 1);
    drop(too_deep);
    check(Some(&latest));
    drop(deep);
    check(None);
}

/// Holds a guard until the thread's end.
struct AtEnd(std::cell::RefCell<Option<Guard<'static>>>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        check(Some("kept"));
        let after = enter_owned(record("after the end"));
        check(Some("after the end"));
        drop(after);
        drop(self.0.take());
        check(None);
    }
}

#[test]
fn a_guard_in_a_thread_local_publishes_until_it_is_dropped() {
    thread_local! {
        static AT_END: AtEnd = const { AtEnd(std::cell::RefCell::new(None)) };
    }
    thread::spawn(|| {
        AT_END.with(|at_end| *at_end.0.borrow_mut() = Some(enter_owned(record("kept"))));
        check(Some("kept"));
    })
    .join()
    .unwrap();
}

#[test]
fn a_marked_future_marks_whichever_thread_polls_it() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).build().unwrap();
    let tasks: Vec<_> = (0..30)
        .map(|task| {
            let (outer, inner) = (format!("outer {task}"), format!("inner {task}"));
            let inner_record = record(&inner);
            let future = async move {
                let mut threads = std::collections::HashSet::new();
                for _ in 0..20 {
                    check(Some(&outer));
                    async {
                        check(Some(&inner));
                        tokio::task::yield_now().await;
                        check(Some(&inner));
                    }
                    .marked(Arc::clone(&inner_record))
                    .await;
                    check(Some(&outer));
                    threads.insert(thread::current().id());
                }
                threads.len()
            };
            runtime.spawn(future.marked(record(&format!("outer {task}"))))
        })
        .collect();
    let threads: Vec<usize> =
        tasks.into_iter().map(|task| runtime.block_on(task).unwrap()).collect();
    assert!(threads.iter().any(|&threads| threads > 1), "no task changed its thread");
    check(None);
    let left = runtime.block_on(async { tokio::spawn(async { this_thread().is_none() }).await });
    assert!(left.unwrap());
}
