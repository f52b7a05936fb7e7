//! One request, and what can become of it.

use std::time::Duration;

use bytes::Bytes;

use crate::fake::{Act, Exporter, GRACE, Server, config, until};

/// One profile of 5 samples, then another of 1: the second is always taken.
#[track_caller]
fn check(
    act: Act,
    books: &'static str,
    stored: usize,
    requests: usize,
) -> impl Future<Output = ()> {
    let at = std::panic::Location::caller();
    async move {
        let server = Server::start([act.clone(), Act::Store]).await;
        let exporter = Exporter::start(&config(&server.url()));
        exporter.push(5);
        until(|| server.seen.lock().unwrap().connections > 0).await;
        exporter.push(1);
        exporter.finish(GRACE, books).await;
        assert_eq!(server.stored().len(), stored, "{act:?} at {at}");
        assert_eq!(server.requests() - server.probes(), requests, "{act:?} at {at}");
    }
}

#[tokio::test]
async fn what_may_succeed_later_is_sent_again() {
    for status in [408, 429, 500, 502, 503, 507] {
        check(Act::Refuse(status, "{}"), "samples_exported 6", 2, 3).await;
    }
    // The status is the answer, whatever follows.
    check(Act::Drip("HTTP/1.1 503 X\r\n\r\n"), "samples_exported 6", 2, 3).await;
}

#[tokio::test]
async fn what_is_refused_for_good_is_not_sent_again() {
    for status in [400, 401, 403, 404, 405, 413, 415, 501] {
        let body = r#"{"code":"invalid_argument","message":"no"}"#;
        let books = "samples_exported 1, lost_export_rejected 5";
        check(Act::Refuse(status, body), books, 1, 2).await;
    }
}

#[tokio::test]
async fn without_an_answer_it_is_uncertain_and_not_sent_again() {
    let books = "samples_exported 1, uncertain_export 5";
    check(Act::StoreThenClose, books, 2, 2).await;
    check(Act::StoreThenHang, books, 2, 2).await;
    // Too small a request to know that nobody read it.
    check(Act::CloseUnread, books, 1, 1).await;
    // Somebody in front of the server waited in vain.
    check(Act::Refuse(504, ""), books, 1, 2).await;
    check(Act::Refuse(408, r#"{"code":"deadline_exceeded"}"#), books, 1, 2).await;
    // No HTTP, or not to the end of the head.
    check(Act::Raw(b"SSH-2.0-OpenSSH_9.9\r\n", false), books, 1, 2).await;
    check(Act::Raw(b"SSH-2.0-OpenSSH_9.9\r\n", true), books, 1, 2).await;
    check(Act::Raw(b"HTTP/1.1 200 OK\r\nContent-Type: appl", false), books, 1, 2).await;
    check(Act::Raw(b"HTTP/1.1 200 OK\r\n", true), books, 1, 2).await;
    check(Act::Raw(b"\x00\xff\x00\xff", false), books, 1, 2).await;
    check(Act::Drip("HTTP/1.1 200 OK\r\nX: "), books, 1, 2).await;
    check(Act::Flood("HTTP/1.1 200 OK\r\nX: "), books, 1, 2).await;
}

#[tokio::test]
async fn a_taken_profile_is_taken_whatever_follows_the_head() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\n\r\n";
    check(Act::Drip(head), "samples_exported 6", 1, 2).await;
    check(Act::Flood(head), "samples_exported 6", 1, 2).await;
}

#[tokio::test]
async fn a_server_of_another_kind_is_told_apart() {
    let books = "samples_exported 1, lost_export_rejected 5";
    check(Act::Raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\nhi", false), books, 1, 2)
        .await;
    check(Act::Raw(b"HTTP/1.1 204 No Content\r\n\r\n", false), books, 1, 2).await;
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Server::start([Act::Store]).await;
    let redirect =
        format!("HTTP/1.1 307 X\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n", other.url());
    let act = Act::Raw(redirect.leak().as_bytes(), false);
    check(act, "samples_exported 1, lost_export_rejected 5", 1, 2).await;
    assert_eq!(other.seen.lock().unwrap().connections, 0);
}

#[tokio::test]
async fn an_endless_answer_is_not_read_to_its_end() {
    let server = Server::start([
        Act::Flood("HTTP/1.1 400 X\r\nContent-Type: text/plain\r\n\r\n"),
        Act::Store,
    ])
    .await;
    let exporter = Exporter::start(&config(&server.url()));
    exporter.push(5);
    exporter.finish(GRACE, "lost_export_rejected 5").await;
    let flooded = server.seen.lock().unwrap().flooded;
    // 64 KiB, and what the kernel keeps on both sides.
    assert!(flooded < 32 << 20, "{flooded} bytes were taken");
}

#[tokio::test]
async fn a_large_request_that_was_cut_off_half_way_is_sent_again() {
    // More than the kernel keeps for a connection: its end cannot have been sent.
    let mut random = fastrand::Rng::with_seed(1);
    let pprof: Vec<u8> = [0x1f, 0x8b]
        .into_iter()
        .chain(std::iter::repeat_with(|| random.u8(..)))
        .take(24 << 20)
        .collect();
    let server = Server::start([Act::CloseUnread, Act::CloseUnread, Act::Store]).await;
    let mut config = config(&server.url());
    config.timeout = GRACE;
    let exporter = Exporter::start(&config);
    exporter.push_bytes(5, Bytes::from(pprof));
    exporter.finish(GRACE, "samples_exported 5").await;
    assert_eq!(server.stored().len(), 1);
}

#[tokio::test]
async fn a_profile_that_always_fails_is_given_up_and_does_not_hold_up_the_others() {
    let server = Server::start([Act::Refuse(500, r#"{"code":"unknown"}"#)]).await;
    let mut config = config(&server.url());
    config.retry.max_server_errors = 3;
    let exporter = Exporter::start(&config);
    exporter.push(5);
    until(|| exporter.pyroscope.queued().profiles == 0).await;
    assert_eq!(server.requests(), 3);
    server.set_script([Act::Store]);
    exporter.push(1);
    exporter.finish(GRACE, "samples_exported 1, lost_export_gave_up 5").await;
}

#[tokio::test]
async fn what_is_too_old_is_not_sent() {
    let server = Server::start([Act::Store]).await;
    let exporter = Exporter::start(&config(&server.url()));
    let hour_ns = 3_600_000_000_000;
    for (samples, age_ns) in [(1, hour_ns), (2, hour_ns / 2), (4, -hour_ns), (8, i64::MAX / 2)] {
        exporter.push_profile(profiler_user::export::Profile {
            labels: vec![],
            pprof: Bytes::from_static(b"\x0a\x00"),
            samples,
            start_unix_ns: crate::fake::unix_ns() - age_ns,
            duration_ns: 1,
        });
    }
    exporter.finish(GRACE, "samples_exported 6, lost_export_gave_up 9").await;
}

#[tokio::test]
async fn a_time_out_before_the_end_of_the_body_is_no_doubt() {
    // The listener's backlog takes the connection and some of the bytes, nobody reads.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(&format!("http://{}", listener.local_addr().unwrap()));
    config.timeout = Duration::from_millis(200);
    let exporter = Exporter::start(&config);
    exporter.push_bytes(5, Bytes::from([&[0x1f, 0x8b][..], &vec![7; 24 << 20]].concat()));
    exporter.finish(Duration::from_millis(500), "lost_export_shutdown 5").await;
}
