//! A process that marks its threads, read from another process: by its ELF file, its mappings, its
//! memory, and its threads' registers.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part")]
mod reader;

use std::io::{BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use reader::{Process, ThreadContext, Value};
use span_marker::{Record, SpanIds};

fn record(span: u8, name: &str, key: &str) -> Arc<Record> {
    let ids = SpanIds { trace_id: [0xaa; 16], span_id: [span; 8], trace_flags: 1 };
    let root = Some("GET /").filter(|root| *root != name);
    let builder = Record::builder(ids).local_root([1; 8], root).name(name);
    Arc::new(builder.attr(key, "value").build())
}

/// Set in the process that is read, which is this program again.
const CHILD: &str = "SPAN_MARKER_TEST_CHILD";

/// The process that is read: it does what it is told on stdin, one thread per line. As a test of
/// its own it has nothing to do.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let config = span_marker::Config::default().service_name("outside").service_namespace("shop");
    let report = span_marker::init_with(config).unwrap();
    println!("offset {}", report.tp_offset.unwrap());
    let mut threads: Vec<(Sender<String>, Receiver<i32>)> = (0..3).map(|_| worker()).collect();
    for (_, done) in &threads {
        println!("thread {}", done.recv().unwrap());
    }
    println!("ready");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (number, order) = line.split_once(' ').unwrap();
        let (orders, done) = &mut threads[number.parse::<usize>().unwrap()];
        orders.send(order.to_owned()).unwrap();
        done.recv().unwrap();
        println!("done");
    }
}

fn worker() -> (Sender<String>, Receiver<i32>) {
    let (orders, received) = channel::<String>();
    let (report, done) = channel();
    thread::spawn(move || {
        // SAFETY: asks for the thread's id.
        report.send(unsafe { libc::gettid() }).unwrap();
        let mut guards = Vec::new();
        for order in received {
            match order.split_once(' ') {
                Some(("enter", name)) => {
                    let span = u8::try_from(guards.len() + 1).unwrap();
                    guards.push(span_marker::enter_owned(record(
                        span,
                        name,
                        &format!("key.{name}"),
                    )));
                }
                _ => drop(guards.pop()),
            }
            report.send(0).unwrap();
        }
    });
    (orders, done)
}

struct Outside {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    process: Process,
    threads: Vec<i32>,
    offset: i64,
}

impl Outside {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, "1")
            .env("OTEL_SERVICE_NAME", "not this one")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (mut threads, mut offset) = (Vec::new(), None);
        loop {
            let line = line(&mut stdout);
            match line.split_once(' ') {
                Some(("thread", tid)) => threads.push(tid.parse().unwrap()),
                Some(("offset", value)) => offset = Some(value.parse().unwrap()),
                _ if line == "ready" => break,
                _ => {}
            }
        }
        let (stdin, process) = (child.stdin.take(), Process::new(child.id()));
        Self { child, stdin, stdout, process, threads, offset: offset.unwrap() }
    }

    fn tell(&mut self, thread: usize, order: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{thread} {order}").unwrap();
        assert_eq!(line(&mut self.stdout), "done");
    }

    fn read(&self, thread: usize) -> Option<ThreadContext> {
        self.process.thread(thread_pointer_of(self.threads[thread]))
    }

    fn name(&self, thread: usize) -> Option<String> {
        self.read(thread).map(|context| context.attributes["span_name"].clone())
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let status = self.child.wait().unwrap();
        assert!(thread::panicking() || status.success());
    }
}

fn line(stdout: &mut impl std::io::BufRead) -> String {
    let mut line = String::new();
    assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "the child ended");
    line.trim_end().to_owned()
}

/// A thread's pointer to its thread-locals, from its registers.
fn thread_pointer_of(tid: i32) -> u64 {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    let request = |request, data: *mut libc::c_void| {
        // SAFETY: each request below gets the data that it wants, or none.
        let result = unsafe { libc::ptrace(request, tid, nothing, data) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    };
    request(libc::PTRACE_SEIZE, nothing);
    request(libc::PTRACE_INTERRUPT, nothing);
    // SAFETY: waits for a thread that this one traces.
    let stopped = unsafe { libc::waitpid(tid, std::ptr::null_mut(), libc::__WALL) };
    assert_eq!(stopped, tid);
    let mut registers = [0_u64; 64];
    let mut into =
        libc::iovec { iov_base: registers.as_mut_ptr().cast(), iov_len: size_of_val(&registers) };
    // NT_PRSTATUS with `fs_base` as its 22nd register, NT_ARM_TLS with one register.
    let (set, index) = if cfg!(target_arch = "x86_64") { (1, 21) } else { (0x401, 0) };
    let set = std::ptr::without_provenance_mut::<libc::c_void>(set);
    // SAFETY: the kernel writes at most `iov_len` bytes.
    let read = unsafe { libc::ptrace(libc::PTRACE_GETREGSET, tid, set, &raw mut into) };
    assert_eq!(read, 0);
    request(libc::PTRACE_DETACH, nothing);
    registers[index]
}

#[test]
fn the_symbol_the_note_and_the_process_context_say_where_the_slot_is() {
    let outside = Outside::start();
    assert_eq!(outside.process.slot_by_symbol(), Some(outside.offset), "exported in .dynsym");
    assert_eq!(outside.process.slot_by_note(), Some(outside.offset));
    let context = outside.process.context().unwrap();
    let expected = [
        ("service.name", "outside"),
        ("service.namespace", "shop"),
        ("telemetry.sdk.language", "rust"),
    ];
    assert_eq!(context.resource, expected.map(|(k, v)| (k.to_owned(), Value::text(v))).into());
    let keys = ["local_root_span_id", "span_name", "local_root_span_name"].map(Value::text);
    let expected = [
        ("threadlocal.schema_version", Value::text("tlsdesc_v1_dev")),
        ("threadlocal.attribute_key_map", Value::List(keys.into())),
        ("span_marker.tp_offset", Value::Number(outside.offset)),
    ];
    assert_eq!(context.attributes, expected.map(|(key, value)| (key.to_owned(), value)).into());
}

#[test]
fn each_thread_shows_what_it_has_entered() {
    let mut outside = Outside::start();
    for thread in 0..3 {
        assert_eq!(outside.read(thread), None);
    }
    outside.tell(0, "enter GET /");
    outside.tell(1, "enter GET /");
    outside.tell(1, "enter price");
    let attributes = [("local_root_span_id", "0101010101010101"), ("span_name", "price")];
    let expected = ThreadContext {
        trace_id: [0xaa; 16],
        span_id: [2; 8],
        flags: 1,
        attributes: attributes
            .into_iter()
            .chain([("local_root_span_name", "GET /"), ("key.price", "value")])
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
    };
    assert_eq!(outside.read(1), Some(expected));
    assert_eq!(outside.name(0).as_deref(), Some("GET /"));
    assert_eq!(outside.read(2), None);
    outside.tell(1, "leave");
    assert_eq!(outside.name(1).as_deref(), Some("GET /"));
    outside.tell(0, "leave");
    outside.tell(1, "leave");
    for thread in 0..3 {
        assert_eq!(outside.read(thread), None);
    }
}

#[test]
fn a_new_key_updates_the_process_context() {
    let mut outside = Outside::start();
    let mut before = outside.process.context().unwrap();
    for number in 0..20 {
        outside.tell(0, &format!("enter {number}"));
        let after = outside.process.context().unwrap();
        assert!(after.published_at_ns > before.published_at_ns);
        let Value::List(keys) = &after.attributes["threadlocal.attribute_key_map"] else {
            panic!("{after:?}");
        };
        assert_eq!(keys.len(), 3 + number + 1);
        assert_eq!(keys.last(), Some(&Value::text(&format!("key.{number}"))));
        let context = outside.read(0).unwrap();
        assert_eq!(context.attribute(&format!("key.{number}")), Some("value"));
        before = after;
    }
    // A key that is known changes nothing.
    outside.tell(1, "enter 3");
    assert_eq!(outside.process.context().unwrap(), before);
}
