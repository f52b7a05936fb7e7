//! Servers that go away, come back, or hang; queues that fill; programs that end.

use std::time::Duration;

use bytes::Bytes;

use crate::fake::{Act, Exporter, GRACE, Server, config, until};

/// An address that nobody listens at.
fn dead_address() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn everything_queued_is_delivered_once_after_an_outage() {
    let address = dead_address();
    let exporter = Exporter::start(&config(&format!("http://{address}")));
    for _ in 0..50 {
        exporter.push(3);
    }
    assert_eq!(exporter.pyroscope.queued().profiles, 50);
    let server = Server::start_at(address, [Act::Store]).await;
    until(|| exporter.pyroscope.queued().profiles == 0).await;
    assert_eq!(server.stored().len(), 50);
    exporter.finish(GRACE, "samples_exported 150").await;
}

#[tokio::test]
async fn during_an_outage_the_newest_are_kept() {
    let address = dead_address();
    let mut config = config(&format!("http://{address}"));
    config.queue_bytes = 4 * 1024;
    let exporter = Exporter::start(&config);
    // Incompressible, so about 1000 bytes each with what goes with them: four fit.
    for samples in 1..=10 {
        let content = (0..700).map(|_| fastrand::u8(..));
        let pprof: Vec<u8> = [0x1f, 0x8b].into_iter().chain(content).collect();
        exporter.push_bytes(samples, Bytes::from(pprof));
    }
    let queued = exporter.pyroscope.queued();
    assert!(queued.bytes <= 4 * 1024 && queued.profiles >= 3, "{queued:?}");
    let kept = queued.samples;
    let server = Server::start_at(address, [Act::Store]).await;
    let lost = 55 - kept;
    // One may have been under way when the queue filled up: it keeps its place.
    let newest: u64 = (0..queued.profiles as u64).map(|back| 10 - back).sum();
    assert!(kept <= newest && kept + 10 > newest, "{queued:?}");
    exporter
        .finish(GRACE, &format!("samples_exported {kept}, lost_export_queue_full {lost}"))
        .await;
    assert_eq!(server.stored().len(), queued.profiles);
}

#[tokio::test]
async fn a_server_that_hangs_makes_uncertain_what_was_under_way_and_no_more() {
    let server = Server::start([Act::StoreThenHang]).await;
    let mut config = config(&server.url());
    config.timeout = Duration::from_millis(100);
    config.concurrency = 4;
    let exporter = Exporter::start(&config);
    for _ in 0..40 {
        exporter.push(1);
    }
    // Four hang; after that only probes go out, and hang.
    until(|| server.probes() >= 3).await;
    assert_eq!(server.requests() - server.probes(), 4);
    server.set_script([Act::Store]);
    exporter.finish(GRACE, "samples_exported 36, uncertain_export 4").await;
    // The hanging ones had been stored: sending them again would have doubled them.
    assert_eq!(server.stored().len(), 40);
}

#[tokio::test]
async fn requests_go_side_by_side_up_to_the_limit() {
    let server = Server::start([Act::StoreThenHang]).await;
    let mut config = config(&server.url());
    config.timeout = GRACE;
    config.concurrency = 3;
    let exporter = Exporter::start(&config);
    for _ in 0..9 {
        exporter.push(1);
    }
    until(|| server.requests() == 3).await;
    exporter.finish(Duration::from_millis(50), "lost_export_shutdown 6, uncertain_export 3").await;
    assert_eq!(server.seen.lock().unwrap().connections, 3);
}

#[tokio::test]
async fn at_the_end_what_cannot_be_delivered_in_time_is_counted() {
    let exporter = Exporter::start(&config(&format!("http://{}", dead_address())));
    exporter.push(1);
    exporter.push(2);
    exporter.pyroscope.shutdown(Duration::from_millis(50)).await;
    // Late ones, too; and a second end changes nothing.
    exporter.push(4);
    exporter.finish(GRACE, "lost_export_shutdown 7").await;
}

#[tokio::test]
async fn the_end_does_not_wait_for_a_long_back_off() {
    let server = Server::start([Act::Refuse(503, "{}"), Act::Store]).await;
    let mut config = config(&server.url());
    config.retry.first = Duration::from_secs(3600);
    config.retry.max = Duration::from_secs(3600);
    let exporter = Exporter::start(&config);
    exporter.push(5);
    until(|| server.requests() == 1).await;
    exporter.finish(GRACE, "samples_exported 5").await;
}

#[tokio::test]
async fn a_wait_that_the_server_asks_for_is_kept() {
    let refusal = b"HTTP/1.1 429 X\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n";
    let server = Server::start([Act::Raw(refusal, false), Act::Store]).await;
    let mut config = config(&server.url());
    config.retry.max = Duration::from_millis(300);
    let exporter = Exporter::start(&config);
    let start = std::time::Instant::now();
    exporter.push(5);
    until(|| exporter.pyroscope.queued().profiles == 0).await;
    // As long as it asked for, but not longer than we ever wait.
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    exporter.finish(GRACE, "samples_exported 5").await;
}

#[tokio::test]
async fn a_dropped_exporter_counts_what_it_had() {
    let exporter = Exporter::start(&config(&format!("http://{}", dead_address())));
    exporter.push(5);
    let stats = std::sync::Arc::clone(&exporter.stats);
    drop(exporter);
    until(|| stats.get(profiler_user::stats::Count::LostExportShutdown) == 5).await;
}

/// Every way to fail, mixed: what the server stored and what the books say must agree.
#[tokio::test]
async fn under_all_troubles_at_once_nothing_is_stored_twice_and_the_books_add_up() {
    for seed in 0..8 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut acts: Vec<Act> = (0..60)
            .map(|_| match random.u8(..12) {
                0 => Act::CloseUnread,
                1 => Act::StoreThenClose,
                2 => Act::StoreThenHang,
                3 => Act::Refuse(503, "{}"),
                4 => Act::Refuse(500, "{}"),
                5 => Act::Refuse(400, "{}"),
                6 => Act::Raw(b"rubbish\r\n\r\n", false),
                7 => Act::Refuse(429, "{}"),
                _ => Act::Store,
            })
            .collect();
        acts.push(Act::Store);
        let server = Server::start(acts).await;
        let mut config = config(&server.url());
        config.timeout = Duration::from_millis(50);
        config.retry.max = Duration::from_millis(5);
        let exporter = Exporter::start(&config);
        for _ in 0..60 {
            exporter.push(1);
        }
        exporter.pyroscope.shutdown(GRACE).await;
        exporter.check_books();
        let count = |count| exporter.stats.get(count);
        let stored = server.stored().len() as u64;
        let exported = count(profiler_user::stats::Count::SamplesExported);
        let uncertain = count(profiler_user::stats::Count::UncertainExport);
        assert!(
            (exported..=exported + uncertain).contains(&stored),
            "seed {seed}: {stored} stored; {}",
            exporter.books()
        );
        assert_eq!(count(profiler_user::stats::Count::LostExportShutdown), 0, "seed {seed}");
    }
}
