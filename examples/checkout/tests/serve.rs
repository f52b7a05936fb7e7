//! The service as a harness sees it: its first line, its routes, its truth, its end.

#![cfg(test)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

struct Service {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    address: String,
}

impl Service {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_checkout"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .env_remove("OTEL_SERVICE_NAME")
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let ready = line(&mut stdout);
        assert_eq!(ready["pid"], child.id());
        let address = ready["listening"].as_str().unwrap().to_owned();
        assert!(!address.ends_with(":0"));
        Self { child, stdin, stdout, address }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: checkout\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        body.to_owned()
    }

    fn truth(&self) -> Value {
        serde_json::from_str(&self.get("/truth")).unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn line(stdout: &mut BufReader<ChildStdout>) -> Value {
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

/// Per span name below a root: CPU time and how many.
fn cost(truth: &Value, root: &str, span: &str) -> (u64, u64) {
    let spans = truth["spans"].as_array().unwrap();
    let found = spans.iter().find(|row| row["root_span_name"] == root && row["span_name"] == span);
    let number = |key: &str| found.and_then(|row| row[key].as_u64()).unwrap_or(0);
    (number("cpu_ns"), number("spans"))
}

#[test]
fn each_route_has_its_spans_and_the_truth_only_grows() {
    let mut service = Service::start(&["--serve"]);
    assert!(service.truth()["spans"].as_array().unwrap().is_empty());
    let mut before = service.truth();
    for round in 1..=3 {
        for route in ["/cart", "/recommend", "/checkout"] {
            service.get(route);
        }
        let truth = service.truth();
        for (root, spans) in [
            ("GET /cart", [("GET /cart", 1), ("load_cart", 1), ("price", 2)]),
            ("GET /recommend", [("GET /recommend", 1), ("load_customer", 1), ("rank", 2)]),
            ("GET /checkout", [("GET /checkout", 1), ("load_order", 1), ("sign", 2)]),
        ] {
            for (span, per_request) in spans {
                let (cpu_ns, count) = cost(&truth, root, span);
                assert_eq!(count, round * per_request, "{span} of {root}");
                assert!(cpu_ns > cost(&before, root, span).0, "{span} of {root}");
            }
            let of_root = |row: &&Value| row["root_span_name"] == root;
            let sum: u64 = (truth["spans"].as_array().unwrap().iter().filter(of_root))
                .map(|row| row["cpu_ns"].as_u64().unwrap())
                .sum();
            let rows = truth["roots"].as_array().unwrap();
            let row = rows.iter().find(of_root).unwrap();
            assert_eq!((row["cpu_ns"].as_u64(), row["spans"].as_u64()), (Some(sum), Some(round)));
        }
        let total = &truth["total"];
        assert!(total["cpu_ns"].as_u64() < total["process_cpu_ns"].as_u64());
        before = truth;
    }
    drop(service.stdin.take());
    assert!(service.child.wait().unwrap().success(), "ends with stdin");
}

#[test]
fn ends_with_sigterm() {
    let mut service = Service::start(&["--serve", "--workers", "1", "--ignore-stdin"]);
    drop(service.stdin.take());
    service.get("/cart");
    let pid = i32::try_from(service.child.id()).unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert!(service.child.wait().unwrap().success());
}

#[test]
fn the_demo_reports_its_load_and_the_truth() {
    let mut service = Service::start(&["--demo", "--seconds", "1", "--concurrency", "2"]);
    let report = line(&mut service.stdout);
    assert!(service.child.wait().unwrap().success());
    assert_eq!(report["load"]["failed"], 0);
    for (route, root) in
        [("/cart", "GET /cart"), ("/recommend", "GET /recommend"), ("/checkout", "GET /checkout")]
    {
        let requests = report["load"]["requests"][route].as_u64().unwrap_or(0);
        assert_eq!(cost(&report["truth"], root, root).1, requests, "{report}");
    }
}

#[test]
fn a_service_that_is_not_there_is_an_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_checkout"))
        .args(["--load", "http://127.0.0.1:1", "--seconds", "1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("http://127.0.0.1:1"));
}
