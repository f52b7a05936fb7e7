//! The requests themselves. Connect unary over HTTP/1.1.
//!
//! A window's profiles share connections, which are not kept until the next window: on one that was
//! idle for long, "the server closed it" and "the server died with the request in hand" look alike,
//! and the doubt would cost a profile. Within [`MAX_IDLE`] no server closes one, unless it ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER,
};
use reqwest::{Method, Response, StatusCode, Url};

use super::answer::{PushError, parse_error, printable};
use super::body::{HandedOver, Tracked};
use super::config::{Auth, ConfigError, PyroscopeConfig};
use super::deliver::Transport;
use crate::export::CredentialError;
use crate::file::read_bounded;

const PUSH_PATH: &str = "push.v1.PusherService/Push";
const BUILD_INFO_PATH: &str = "api/v1/status/buildinfo";
const CONNECT_TYPE: &str = "application/proto";
/// Of an answer, no more is read.
const MAX_ANSWER_BYTES: usize = 64 << 10;
const MAX_CA_FILE_BYTES: u64 = 4 << 20;
/// How long a connection may have been idle to be used again. Servers and what is before them close
/// theirs after 5 s (Node.js) at the soonest; 60 to 120 s are usual.
const MAX_IDLE: Duration = Duration::from_secs(1);
/// A host that is gone does not refuse: it keeps silent.
const MAX_CONNECT_TIME: Duration = Duration::from_secs(5);

/// Speaks with one server.
#[derive(Clone, Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    push_url: Url,
    build_info_url: Url,
    headers: HeaderMap,
    auth: Arc<Auth>,
}

impl Client {
    pub(super) fn new(config: &PyroscopeConfig) -> Result<Self, ConfigError> {
        config.check_numbers()?;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("spanprof/", env!("CARGO_PKG_VERSION")))
            .http1_only()
            .pool_max_idle_per_host(config.concurrency)
            .pool_idle_timeout(MAX_IDLE)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(config.timeout.min(MAX_CONNECT_TIME))
            .timeout(config.timeout);
        if !config.proxy_from_environment {
            builder = builder.no_proxy();
        }
        if let Some(path) = &config.ca_file {
            let pem = read_bounded(path, MAX_CA_FILE_BYTES)
                .map_err(|source| ConfigError::CaFile { path: path.clone(), source })?;
            let unusable = || ConfigError::CaFileUnusable { path: path.clone() };
            let certificates =
                reqwest::Certificate::from_pem_bundle(&pem).ok().ok_or_else(unusable)?;
            if certificates.is_empty() {
                return Err(unusable());
            }
            builder = builder.tls_built_in_root_certs(false);
            for certificate in certificates {
                builder = builder.add_root_certificate(certificate);
            }
        }
        let http = builder.build().map_err(|error| match &config.ca_file {
            // PEM around something that is no certificate is noticed only here.
            Some(path) => ConfigError::CaFileUnusable { path: path.clone() },
            None => ConfigError::Client { reason: error.to_string() },
        })?;
        Ok(Self {
            http,
            push_url: config.endpoint(PUSH_PATH)?,
            build_info_url: config.endpoint(BUILD_INFO_PATH)?,
            headers: config.header_map()?,
            auth: Arc::new(config.auth.clone()),
        })
    }

    async fn send(&self, message: Bytes, handed_over: HandedOver) -> Result<(), PushError> {
        let credential = self.credential().await.map_err(PushError::Credential)?;
        let body = Tracked::new(message, handed_over.clone());
        let response = self
            .http
            .request(Method::POST, self.push_url.clone())
            .headers(self.headers.clone())
            .headers(credential)
            .header(CONTENT_TYPE, CONNECT_TYPE)
            .header("connect-protocol-version", "1")
            .body(reqwest::Body::wrap(body))
            .send()
            .await;
        match response {
            Ok(response) => judge(response).await,
            // The URL is in the configuration; in an error it would be said twice.
            Err(error) if handed_over.get() => Err(PushError::Unanswered(error.without_url())),
            Err(error) => Err(PushError::Unsent(error.without_url())),
        }
    }

    /// What the server says about its build, or nothing if that cannot be had.
    pub(super) async fn build_info(&self) -> Option<Vec<u8>> {
        let credential = self.credential().await.ok()?;
        let response = self
            .http
            .get(self.build_info_url.clone())
            .headers(self.headers.clone())
            .headers(credential)
            .header(ACCEPT, "application/json")
            .send()
            .await
            .ok()?;
        if response.status() == StatusCode::OK { read_bounded_body(response).await } else { None }
    }

    async fn credential(&self) -> Result<HeaderMap, CredentialError> {
        let auth = Arc::clone(&self.auth);
        // A credential may be on a slow file system.
        let value = match *auth {
            Auth::None => return Ok(HeaderMap::new()),
            _ => tokio::task::spawn_blocking(move || authorization(&auth)).await,
        };
        let value = match value {
            Ok(value) => value?,
            // Only a run time that is shutting down cancels it.
            Err(_) => return Ok(HeaderMap::new()),
        };
        Ok(HeaderMap::from_iter([(AUTHORIZATION, value)]))
    }
}

impl Transport for Client {
    async fn push(&self, message: Bytes, handed_over: HandedOver) -> Result<(), PushError> {
        self.send(message, handed_over).await
    }

    async fn probe(&self) -> Result<(), PushError> {
        // A request without a series stores nothing. It is refused for good, or taken: both tell
        // that somebody reads what arrives there.
        match self.send(Bytes::new(), HandedOver::default()).await {
            Err(error) if error.fate() != super::answer::Fate::Rejected => Err(error),
            _ => Ok(()),
        }
    }
}

fn authorization(auth: &Auth) -> Result<HeaderValue, CredentialError> {
    use base64::Engine as _;
    let text = match auth {
        Auth::None => String::new(),
        Auth::Basic { user, password } => {
            let pair = format!("{user}:{}", password.load()?.reveal());
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
        }
        Auth::Bearer(token) => format!("Bearer {}", token.load()?.reveal()),
    };
    let mut value = HeaderValue::from_str(&text).ok().ok_or(CredentialError::NotForHttp)?;
    value.set_sensitive(true);
    Ok(value)
}

/// What the server meant.
async fn judge(response: Response) -> Result<(), PushError> {
    let status = response.status();
    let header = |name| {
        response.headers().get(name).map(|value: &HeaderValue| printable(&value_text(value)))
    };
    if status.is_redirection() {
        let location = header(LOCATION).unwrap_or_else(|| "nowhere".to_owned());
        return Err(PushError::Redirected { status, location });
    }
    if status.is_success() {
        let content = header(CONTENT_TYPE).unwrap_or_else(|| "none".to_owned());
        // The Connect protocol: a unary answer has the content type of its request.
        let connect = content.split(';').next().is_some_and(|kind| kind.trim() == CONNECT_TYPE);
        return if status == StatusCode::OK && connect {
            Ok(())
        } else {
            Err(PushError::Foreign { status, content })
        };
    }
    let retry_after = header(RETRY_AFTER).and_then(|text| text.parse().ok());
    // Whatever happens to the body, the status has been said.
    let body = read_bounded_body(response).await.unwrap_or_default();
    let (code, message) = parse_error(&body);
    Err(PushError::Refused {
        status,
        code,
        message,
        retry_after: retry_after.map(Duration::from_secs),
    })
}

fn value_text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// The body as far as it comes, up to the bound.
async fn read_bounded_body(mut response: Response) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while body.len() < MAX_ANSWER_BYTES {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                let room = MAX_ANSWER_BYTES - body.len();
                body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
            }
            Ok(None) => break,
            Err(_) => return None,
        }
    }
    Some(body)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    async fn build_info(answer: &'static [u8]) -> Option<Vec<u8>> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream.write_all(answer).unwrap();
        });
        let info = Client::new(&PyroscopeConfig::new(url)).unwrap().build_info().await;
        server.join().unwrap();
        info
    }

    #[tokio::test]
    async fn only_an_answer_with_200_tells_the_build() {
        let ok = build_info(b"HTTP/1.1 200 OK\r\n\r\n{}").await;
        assert_eq!(ok.as_deref(), Some(&b"{}"[..]));
        assert_eq!(build_info(b"HTTP/1.1 404 X\r\n\r\n{}").await, None);
        assert_eq!(build_info(b"HTTP/1.1 302 X\r\nLocation: /\r\n\r\n{}").await, None);
        assert_eq!(build_info(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}").await, None);
        assert_eq!(build_info(b"no HTTP\r\n\r\n").await, None);
        assert_eq!(build_info(b"").await, None);
    }
}
