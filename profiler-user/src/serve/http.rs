//! The HTTP server.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::Semaphore};

use super::{Health, Telling, encode_metrics};

/// Where it listens if nothing is said: for this host only.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7072";

/// The most connections at a time.
const CONNECTIONS_MAX: usize = 16;
/// How long a request's head may take, and how long a connection may last.
const HEAD_MAX: Duration = Duration::from_secs(10);
const CONNECTION_MAX: Duration = Duration::from_secs(60);
/// The most bytes of a request's head: what the library takes at least.
const HEAD_BYTES_MAX: usize = 8192;
/// How long to wait when no connection can be taken: no descriptor is left.
const AFTER_ERROR: Duration = Duration::from_millis(500);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where the agent tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// At the usual address, if that is free.
    Default,
    /// There, or not at all.
    At(String),
}

impl From<String> for Listen {
    fn from(typed: String) -> Self {
        if typed == "off" { Self::Off } else { Self::At(typed) }
    }
}

/// It cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("--listen {address}: cannot listen there: {source}")]
pub struct ListenError {
    address: String,
    source: io::Error,
}

#[derive(Clone)]
struct Shared {
    health: Arc<Health>,
    telling: Arc<Telling>,
}

/// Listens, and serves until the runtime ends; gives the address.
///
/// # Errors
///
/// The address is none, or is taken.
pub async fn serve(
    address: &str,
    health: Arc<Health>,
    telling: Arc<Telling>,
) -> Result<SocketAddr, ListenError> {
    let failed = |source| ListenError { address: address.to_owned(), source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let router = router(Shared { health, telling });
    tokio::spawn(accept(listener, router));
    Ok(bound)
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/debug/targets", get(targets))
        .with_state(shared)
}

async fn accept(listener: TcpListener, router: Router) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Those that come meanwhile wait in the kernel's queue.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a connection cannot be taken");
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone().layer(Extension(peer)));
        tokio::spawn(async move {
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_MAX)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            // What a client does wrong, and that it takes too long, is its own affair.
            drop(tokio::time::timeout(CONNECTION_MAX, served).await);
            drop(permit);
        });
    }
}

async fn metrics(State(shared): State<Shared>) -> Response {
    match encode_metrics(shared.telling.books()) {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_never) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn healthz(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    said(shared.health.hangs())
}

async fn readyz(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    said(shared.health.is_not_ready())
}

fn said(why_not: Option<&'static str>) -> (StatusCode, &'static str) {
    why_not.map_or((StatusCode::OK, "ok"), |why| (StatusCode::SERVICE_UNAVAILABLE, why))
}

/// Who may see which workloads there are is on this host, and asks for it by that name: a page in a
/// browser that has its own name lead here does not.
async fn targets(
    State(shared): State<Shared>,
    Extension(peer): Extension<SocketAddr>,
    headers: HeaderMap,
) -> Response {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
    if !peer.ip().is_loopback() || !["localhost", "127.0.0.1", "[::1]"].contains(&name) {
        return StatusCode::FORBIDDEN.into_response();
    }
    Json(shared.telling.targets().as_ref()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    async fn start(health: &Arc<Health>) -> SocketAddr {
        let telling = Telling::default();
        telling.set_books(json!({"kernel": {"samples_taken": 7}}));
        serve("127.0.0.1:0", Arc::clone(health), Arc::new(telling)).await.unwrap()
    }

    /// What a server answers to this, until it closes.
    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn get(address: SocketAddr, path: &str, host: &str) -> String {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        ask(address, &head).await
    }

    #[tokio::test]
    async fn what_is_asked_for_is_answered() {
        let health = Arc::new(Health::default());
        let address = start(&health).await;
        let status = async |path, host| get(address, path, host).await[9..12].to_owned();
        assert_eq!(status("/healthz", "x").await, "200");
        assert_eq!(status("/readyz", "x").await, "503");
        health.set_sampling();
        assert_eq!(status("/readyz", "x").await, "200");
        health.set_stopping();
        assert!(get(address, "/readyz", "x").await.ends_with("stopping"));
        let metrics = get(address, "/metrics", "x").await;
        assert!(metrics.contains("openmetrics-text; version=1.0.0"), "{metrics}");
        assert!(metrics.contains("spanprof_samples_taken_total 7\n"), "{metrics}");
        assert_eq!(status("/debug/targets", "localhost:7072").await, "200");
        assert_eq!(status("/debug/targets", "evil.example").await, "403");
        assert_eq!(status("/", "x").await, "404");
        assert_eq!(ask(address, "POST /metrics HTTP/1.0\r\n\r\n").await[9..12].to_owned(), "405");
    }

    #[tokio::test]
    async fn a_head_has_a_bound() {
        let address = start(&Arc::default()).await;
        let long = format!("GET /healthz HTTP/1.1\r\nX: {}\r\n", "a".repeat(HEAD_BYTES_MAX));
        assert_eq!(ask(address, &long).await[9..12].to_owned(), "431");
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_not_waited_for() {
        let address = start(&Arc::default()).await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        // All places are taken until the silent ones have had their time.
        assert!(get(address, "/healthz", "x").await.starts_with("HTTP/1.1 200"));
        assert_eq!(silent.len(), CONNECTIONS_MAX);
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_said() {
        let address = start(&Arc::default()).await.to_string();
        let error = serve(&address, Arc::default(), Arc::default()).await.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("--listen {address}: cannot listen there: ")),
            "{error}"
        );
    }
}
