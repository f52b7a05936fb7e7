//! TLS with an authority of one's own.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use profiler_user::export::pyroscope::Pyroscope;
use profiler_user::stats::Stats;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::fake::{Act, Exporter, GRACE, Seen, config, serve};

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { pem, issuer: Issuer::new(params, key) }
}

/// A server for `name`; gives its port.
async fn start(authority: &Authority, name: &str, seen: &Arc<Mutex<Seen>>) -> u16 {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new([name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    let server = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::clone(seen);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
            tokio::spawn(async move {
                // A client that trusts another authority ends the handshake.
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream, seen, Arc::new(Mutex::new(VecDeque::from([Act::Store])))).await;
                }
            });
        }
    });
    port
}

fn exporter(port: u16, ca_file: Option<&Path>) -> Exporter {
    let mut config = config(&format!("https://localhost:{port}"));
    config.ca_file = ca_file.map(Path::to_owned);
    Exporter::start(&config)
}

#[tokio::test]
async fn the_ca_file_decides_whom_to_trust() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (authority(), authority());
    let (our_file, their_file) = (dir.path().join("ours.pem"), dir.path().join("theirs.pem"));
    std::fs::write(&our_file, &ours.pem).unwrap();
    std::fs::write(&their_file, &theirs.pem).unwrap();
    let seen = Arc::<Mutex<Seen>>::default();
    let port = start(&ours, "localhost", &seen).await;

    let trusting = exporter(port, Some(&our_file));
    trusting.push(5);
    trusting.finish(GRACE, "samples_exported 5").await;
    assert_eq!(seen.lock().unwrap().stored.len(), 1);

    // Not trusted: nothing is sent, so nothing is uncertain.
    let grace = Duration::from_millis(300);
    for file in [None, Some(their_file.as_path())] {
        let distrustful = exporter(port, file);
        distrustful.push(5);
        distrustful.finish(grace, "lost_export_shutdown 5").await;
    }
    // The right authority, the wrong name.
    let elsewhere = start(&ours, "elsewhere.test", &seen).await;
    let distrustful = exporter(elsewhere, Some(&our_file));
    distrustful.push(5);
    distrustful.finish(grace, "lost_export_shutdown 5").await;
    assert_eq!(seen.lock().unwrap().stored.len(), 1);
}

#[tokio::test]
async fn an_unusable_ca_file_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    let mut config = config("https://localhost:1");
    config.ca_file = Some(path.clone());
    let check = |expected: &str| {
        let error = Pyroscope::start(&config, Arc::<Stats>::default()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check("cannot read the CA file");
    let unusable = [
        "",
        "no certificate",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n!!!!\n",
    ];
    for content in unusable {
        std::fs::write(&path, content).unwrap();
        check("holds no usable PEM certificate");
    }
}
