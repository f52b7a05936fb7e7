//! What the service sends to a trace back end.

#![cfg(test)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;

fn contains(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The head and the body of a request, answered with 200.
fn receive(stream: TcpStream) -> (String, Vec<u8>) {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut head).unwrap(), 0);
    }
    let lower = head.to_ascii_lowercase();
    let len = lower.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; len.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    (head, body)
}

#[test]
fn the_local_root_tells_where_its_profile_is() {
    let back_end = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_checkout"))
        .arg("--serve")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", back_end.local_addr().unwrap()))
        .env("OTEL_SERVICE_NAME", "shop-front")
        .env_remove("OTEL_RESOURCE_ATTRIBUTES")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let received = thread::spawn(move || receive(back_end.accept().unwrap().0));
    let mut ready = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    let mut request = TcpStream::connect(ready["listening"].as_str().unwrap()).unwrap();
    request.write_all(b"GET /cart HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    request.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // The end of the service sends what was not sent yet.
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());

    let (head, body) = received.join().unwrap();
    assert!(head.starts_with("POST /v1/traces "), "{head}");
    for text in ["service.name", "shop-front", "GET /cart", "load_cart", "price"] {
        assert!(contains(&body, text), "{text}");
    }
    let marks = body.windows(20).filter(|window| *window == b"pyroscope.profile.id").count();
    assert_eq!(marks, 1, "the local root alone");
}
