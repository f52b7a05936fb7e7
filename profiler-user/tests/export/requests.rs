//! What goes over the wire.

use std::io::Read as _;

use bytes::Bytes;
use profiler_user::export::pyroscope::{Auth, TraceIdLabel};
use profiler_user::export::{Credential, Profile, Secret};
use prost::Message as _;

use crate::fake::{Act, Exporter, GRACE, PushRequest, Server, config, header, unix_ns, until};

#[tokio::test]
async fn a_push_is_a_connect_request_with_one_series() {
    let server = Server::start([Act::Store]).await;
    let exporter = Exporter::start(&config(&format!("{}/prefix/", server.url())));
    let pprof = Bytes::from(vec![b'p'; 100_000]);
    exporter.push_profile(Profile {
        labels: vec![
            ("__name__".into(), "process_cpu".into()),
            ("service_name".into(), "checkout ✓".into()),
        ],
        pprof: pprof.clone(),
        samples: 7,
        start_unix_ns: unix_ns(),
        duration_ns: 1,
    });
    exporter.finish(GRACE, "samples_exported 7").await;

    let seen = server.seen.lock().unwrap();
    let head = &seen.heads[0];
    assert!(head.starts_with("POST /prefix/push.v1.PusherService/Push HTTP/1.1\r\n"), "{head}");
    assert_eq!(header(head, "content-type"), Some("application/proto"));
    assert_eq!(header(head, "connect-protocol-version"), Some("1"));
    assert_eq!(header(head, "content-encoding"), None, "compressed once, inside");
    assert_eq!(header(head, "authorization"), None);
    assert_eq!(header(head, "x-scope-orgid"), None);
    assert!(header(head, "user-agent").unwrap().starts_with("spanprof/"));
    let request = PushRequest::decode(&seen.bodies[0][..]).unwrap();
    let [series] = request.series.as_slice() else { panic!("{request:?}") };
    assert_eq!(
        (series.labels[1].name.as_str(), series.labels[1].value.as_str()),
        ("service_name", "checkout ✓")
    );
    let [sample] = series.samples.as_slice() else { panic!("{} profiles", series.samples.len()) };
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&sample.raw_profile[..]).read_to_end(&mut plain).unwrap();
    assert_eq!(plain, pprof);
    assert!(sample.raw_profile.len() < pprof.len() / 10);
}

#[tokio::test]
async fn basic_authentication_tenant_and_headers_are_sent() {
    let server = Server::start([Act::Store]).await;
    let mut config = config(&server.url());
    config.auth =
        Auth::Basic { user: "scott".into(), password: Credential::Value(Secret::new("tiger:é")) };
    config.tenant = Some("team-a".into());
    config.headers = vec![("X-Route".into(), Secret::new("west"))];
    let exporter = Exporter::start(&config);
    exporter.push(1);
    exporter.finish(GRACE, "samples_exported 1").await;
    let seen = server.seen.lock().unwrap();
    // printf 'scott:tiger:é' | base64
    assert_eq!(header(&seen.heads[0], "authorization"), Some("Basic c2NvdHQ6dGlnZXI6w6k="));
    assert_eq!(header(&seen.heads[0], "x-scope-orgid"), Some("team-a"));
    assert_eq!(header(&seen.heads[0], "x-route"), Some("west"));
}

#[tokio::test]
async fn a_token_file_is_read_for_each_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let server = Server::start([Act::Store]).await;
    let mut config = config(&server.url());
    config.auth = Auth::Bearer(Credential::File(path.clone()));
    let exporter = Exporter::start(&config);
    // It is not there yet: nothing is sent, nothing is lost.
    exporter.push(1);
    for (number, token) in ["one", "two"].into_iter().enumerate() {
        let next = dir.path().join("next");
        std::fs::write(&next, format!("{token}\n")).unwrap();
        std::fs::rename(&next, &path).unwrap();
        until(|| server.requests() == number + 1).await;
        let expected = format!("Bearer {token}");
        let sent = server.seen.lock().unwrap().heads[number].clone();
        assert_eq!(header(&sent, "authorization"), Some(expected.as_str()));
        if number == 0 {
            std::fs::remove_file(&path).unwrap();
            exporter.push(2);
        }
    }
    exporter.finish(GRACE, "samples_exported 3").await;
}

#[tokio::test]
async fn the_trace_id_label_follows_the_server() {
    let answer = b"HTTP/1.1 200 OK\r\n\r\n{\"data\":{\"version\":\"v2.1.0\"}}";
    let server = Server::start([Act::Raw(answer, false)]).await;
    let mut config = config(&server.url());
    config.trace_id = TraceIdLabel::Auto;
    config.auth = Auth::Bearer(Credential::Value(Secret::new("t")));
    let exporter = Exporter::start(&config);
    // Off until the server has said otherwise.
    assert!(!exporter.pyroscope.takes_trace_id());
    until(|| exporter.pyroscope.takes_trace_id()).await;
    let head = server.seen.lock().unwrap().heads[0].clone();
    assert!(head.starts_with("GET /api/v1/status/buildinfo HTTP/1.1\r\n"), "{head}");
    assert_eq!(header(&head, "authorization"), Some("Bearer t"));
}

#[tokio::test]
async fn the_trace_id_label_is_as_told_without_asking() {
    let server = Server::start([Act::Store]).await;
    for (mode, expected) in [(TraceIdLabel::On, true), (TraceIdLabel::Off, false)] {
        let mut config = config(&server.url());
        config.trace_id = mode;
        let exporter = Exporter::start(&config);
        assert_eq!(exporter.pyroscope.takes_trace_id(), expected);
        exporter.push(1);
        exporter.finish(GRACE, "samples_exported 1").await;
    }
    let seen = server.seen.lock().unwrap();
    assert!(seen.heads.iter().all(|head| head.starts_with("POST ")), "{:?}", seen.heads);
}
