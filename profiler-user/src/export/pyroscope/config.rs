//! What the exporter needs to know, and which of it cannot be.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap,
    HeaderName, HeaderValue, TRANSFER_ENCODING,
};

use super::client::Client;
use crate::export::{Credential, CredentialError, Secret};

/// Where profiles go, and how hard to try.
#[derive(Clone, Debug)]
pub struct PyroscopeConfig {
    /// The base URL of the server, e.g. `http://localhost:4040`; it may have a path prefix.
    pub url: String,
    /// How to say who we are.
    pub auth: Auth,
    /// The tenant (`X-Scope-OrgID`) of a multi-tenant server.
    pub tenant: Option<String>,
    /// More headers, for what stands in front of the server.
    pub headers: Vec<(String, Secret)>,
    /// A PEM file with the certificate authorities to trust *instead of* the built-in ones.
    pub ca_file: Option<PathBuf>,
    /// Heed `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`.
    pub proxy_from_environment: bool,
    /// How long one request may take, connecting and answer included.
    pub timeout: Duration,
    /// How many requests may be under way at once.
    pub concurrency: usize,
    /// How much may wait, in bytes as sent, requests under way included.
    pub queue_bytes: usize,
    /// When to try again.
    pub retry: RetryPolicy,
    /// Whether samples get a `trace_id` label.
    pub trace_id: TraceIdLabel,
}

/// How to say who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Not at all: the server itself has no authentication.
    None,
    /// HTTP Basic. For Grafana Cloud: the stack's id and a token.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: Credential,
    },
    /// A bearer token.
    Bearer(Credential),
}

/// When to try again, and when no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The wait after a first failure. It doubles with each further one, and each wait is made
    /// shorter by up to half, at random, so that a fleet does not come back in step.
    pub first: Duration,
    /// The longest wait.
    pub max: Duration,
    /// The age at which a profile is given up, counted from the start of its window.
    pub max_age: Duration,
    /// How often a profile is sent that the server answers with 500: a damaged one gets that
    /// answer too, each time.
    pub max_server_errors: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(500),
            max: Duration::from_secs(60),
            // The server takes no profile that is older than an hour.
            max_age: Duration::from_mins(55),
            max_server_errors: 10,
        }
    }
}

/// Whether samples get a `trace_id` label. A server before 2.1.0 makes a series of each trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TraceIdLabel {
    /// If the server says that its version is 2.1.0 or later.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not the URL of a server.
    #[error("the Pyroscope URL is not usable: {reason}")]
    Url {
        /// What is wrong with it. Not the URL: it may hold a password.
        reason: String,
    },
    /// A tenant that no server takes.
    #[error("{tenant:?} is not a tenant: up to 150 of letters, digits and !-_.*'(), not . or ..")]
    Tenant {
        /// The tenant.
        tenant: String,
    },
    /// A header that cannot be sent.
    #[error("header {name:?} cannot be sent: {reason}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A user name that Basic authentication cannot carry.
    #[error("the user of basic authentication must not contain a colon or a control character")]
    User,
    /// The CA file cannot be read.
    #[error("cannot read the CA file {}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The CA file holds no certificate.
    #[error("the CA file {} holds no usable PEM certificate", path.display())]
    CaFileUnusable {
        /// The file.
        path: PathBuf,
    },
    /// A number that makes no sense.
    #[error("{what} must not be zero")]
    Zero {
        /// Which.
        what: &'static str,
    },
    /// A password or a token.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// The HTTP client cannot be set up.
    #[error("cannot set up the HTTP client: {reason}")]
    Client {
        /// What it says.
        reason: String,
    },
}

impl PyroscopeConfig {
    /// The defaults for a server.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            auth: Auth::None,
            tenant: None,
            headers: Vec::new(),
            ca_file: None,
            proxy_from_environment: false,
            timeout: Duration::from_secs(10),
            concurrency: 4,
            queue_bytes: 64 << 20,
            retry: RetryPolicy::default(),
            trace_id: TraceIdLabel::default(),
        }
    }

    /// Whether it can work, as far as that can be told without the server.
    ///
    /// # Errors
    ///
    /// What cannot be, a credential that is not there included.
    pub fn check(&self) -> Result<(), ConfigError> {
        Client::new(self)?;
        match &self.auth {
            Auth::None => {}
            Auth::Basic { password: credential, .. } | Auth::Bearer(credential) => {
                credential.load()?;
            }
        }
        Ok(())
    }

    pub(super) fn check_numbers(&self) -> Result<(), ConfigError> {
        let numbers = [
            ("the timeout", self.timeout.is_zero()),
            ("the number of requests at once", self.concurrency == 0),
            ("the size of the export queue", self.queue_bytes == 0),
            ("the first retry wait", self.retry.first.is_zero()),
            ("the longest retry wait", self.retry.max.is_zero()),
        ];
        match numbers.into_iter().find(|(_, zero)| *zero) {
            Some((what, _)) => Err(ConfigError::Zero { what }),
            None => Ok(()),
        }
    }

    /// The URL of `path` below the base URL.
    pub(super) fn endpoint(&self, path: &str) -> Result<Url, ConfigError> {
        let unusable = |reason: &str| ConfigError::Url { reason: reason.to_owned() };
        let mut url = Url::parse(self.url.trim())
            .map_err(|error| ConfigError::Url { reason: error.to_string() })?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(unusable("it must begin with http:// or https://"));
        }
        // URLs are logged and shown; what is in them is no secret any more.
        if !url.username().is_empty() || url.password().is_some() {
            return Err(unusable("it must not contain a user or a password; give them apart"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(unusable("it must end before ? and #"));
        }
        let joined = format!("{}/{path}", url.path().trim_end_matches('/'));
        url.set_path(&joined);
        Ok(url)
    }

    /// The headers of every request, but for the credential.
    pub(super) fn header_map(&self) -> Result<HeaderMap, ConfigError> {
        if let Auth::Basic { user, .. } = &self.auth
            && user.contains(|c: char| c == ':' || c.is_control())
        {
            return Err(ConfigError::User);
        }
        let mut map = HeaderMap::new();
        if let Some(tenant) = &self.tenant {
            map.insert(HeaderName::from_static("x-scope-orgid"), tenant_value(tenant)?);
        }
        for (name, value) in &self.headers {
            let error = |reason| ConfigError::Header { name: name.clone(), reason };
            let parsed = HeaderName::from_bytes(name.as_bytes())
                .ok()
                .ok_or_else(|| error("the name is not one of HTTP"))?;
            if OURS.contains(&parsed) {
                return Err(error("spanprof sets it itself"));
            }
            if parsed == AUTHORIZATION && self.auth != Auth::None {
                return Err(error("a credential is configured already"));
            }
            if map.contains_key(&parsed) {
                return Err(error("it is there twice"));
            }
            let mut value = HeaderValue::from_str(value.reveal())
                .ok()
                .ok_or_else(|| error("the value has characters that HTTP cannot carry"))?;
            value.set_sensitive(true);
            map.insert(parsed, value);
        }
        Ok(map)
    }
}

const OURS: [HeaderName; 5] =
    [CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING];

fn tenant_value(tenant: &str) -> Result<HeaderValue, ConfigError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "!-_.*'()".contains(c);
    let error = || ConfigError::Tenant { tenant: tenant.to_owned() };
    if tenant.is_empty()
        || tenant.len() > 150
        || matches!(tenant, "." | "..")
        || !tenant.chars().all(allowed)
    {
        return Err(error());
    }
    HeaderValue::from_str(tenant).ok().ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_url(url: &str, expected: Result<&str, &str>) {
        let found = PyroscopeConfig::new(url).endpoint("push").map_err(|e| e.to_string());
        match expected {
            Ok(expected) => assert_eq!(found.unwrap().as_str(), expected),
            Err(part) => {
                let error = found.unwrap_err();
                assert!(error.contains(part) && !error.contains("tiger"), "{error}");
            }
        }
    }

    #[test]
    fn the_endpoint_is_below_the_base_url() {
        check_url("http://localhost:4040", Ok("http://localhost:4040/push"));
        check_url("https://host/a/b/", Ok("https://host/a/b/push"));
        check_url(" http://[::1]:1 ", Ok("http://[::1]:1/push"));
        check_url("localhost:4040", Err("must begin with"));
        check_url("file:///etc/passwd", Err("must begin with"));
        check_url("http://", Err("empty host"));
        check_url("", Err("relative URL"));
        check_url("http://scott:tiger@host", Err("must not contain a user"));
        check_url("http://host/?token=tiger", Err("must end before"));
    }

    #[track_caller]
    fn check_header(name: &str, value: &str, expected: &str) {
        let mut config = PyroscopeConfig::new("http://host");
        config.auth = Auth::Bearer(Credential::Value(Secret::new("t")));
        config.tenant = Some("team-a".to_owned());
        config.headers = vec![(name.to_owned(), Secret::new(value))];
        let error = config.header_map().unwrap_err().to_string();
        assert!(error.ends_with(expected) && !error.contains("tiger"), "{error}");
    }

    #[test]
    fn headers_that_cannot_be_sent_are_refused() {
        check_header("Content-Type", "tiger", "spanprof sets it itself");
        check_header("Authorization", "tiger", "a credential is configured already");
        check_header("X-Scope-OrgID", "tiger", "it is there twice");
        check_header("a b", "tiger", "the name is not one of HTTP");
        check_header("a", "tiger\r\nb: c", "the value has characters that HTTP cannot carry");
    }

    #[test]
    fn tenants_are_what_the_server_takes() {
        for good in ["a", "Team-1_(x).*'!", &"x".repeat(150)] {
            assert!(tenant_value(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a b", "a|b", "ä", "a/b", &"x".repeat(151)] {
            assert!(tenant_value(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nothing_secret_is_in_debug_output() {
        let mut config = PyroscopeConfig::new("http://host");
        config.auth = Auth::Basic {
            user: "scott".to_owned(),
            password: Credential::Value(Secret::new("tiger")),
        };
        config.headers = vec![("x-key".to_owned(), Secret::new("tiger"))];
        assert!(!format!("{config:?}").contains("tiger"));
        assert!(!format!("{:?}", config.header_map().unwrap()).contains("tiger"));
    }

    #[test]
    fn zeroes_are_refused() {
        let mut config = PyroscopeConfig::new("http://host");
        assert!(config.check_numbers().is_ok());
        config.concurrency = 0;
        assert!(matches!(config.check_numbers(), Err(ConfigError::Zero { .. })));
    }
}
