//! Where profiles go: the server that the options name, and those of `endpoints` beside it.

use std::path::PathBuf;

use clap::ValueEnum as _;
use serde::Deserialize;

use super::ConfigError;
use crate::cli;
use crate::export::pyroscope::{Auth, PyroscopeConfig, TraceIdLabel};
use crate::export::{Credential, Secret};
use crate::yaml;

/// The most servers beside the first: each costs a copy of what waits for it.
const ENDPOINTS_MAX: usize = 8;
/// The longest name of one, in bytes.
const NAME_MAX: usize = 32;

/// A server beside the first.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// What it is called in counters and metrics.
    pub name: String,
    /// How to reach it.
    pub pyroscope: PyroscopeConfig,
}

/// What is wrong with the servers beside the first.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// They are not a list of servers.
    #[error("{0}")]
    Yaml(String),
    /// Nobody needs so many.
    #[error("there are more than {ENDPOINTS_MAX}")]
    TooMany,
    /// A name that metrics cannot have, or that another one has.
    #[error("{0:?}: a name is 1 to {NAME_MAX} of a-z, 0-9 and _, and another one for each")]
    Name(String),
    /// One that cannot be.
    #[error("{name}: {what}")]
    Endpoint {
        /// Its name.
        name: String,
        /// What is wrong.
        what: String,
    },
}

/// A server as it is written, by the keys of the options.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) pyroscope_url: String,
    pub(super) tenant: Option<String>,
    pub(super) basic_auth_user: Option<String>,
    pub(super) basic_auth_password_file: Option<PathBuf>,
    pub(super) bearer_token_file: Option<PathBuf>,
    pub(super) header: Vec<String>,
    pub(super) tls_ca_file: Option<PathBuf>,
    pub(super) queue_mib: Option<usize>,
    pub(super) trace_id: Option<String>,
}

impl Server {
    /// Checks what was written.
    pub(super) fn config(self) -> Result<PyroscopeConfig, ConfigError> {
        let mut pyroscope = PyroscopeConfig::new(self.pyroscope_url);
        pyroscope.auth =
            match (self.basic_auth_user, self.basic_auth_password_file, self.bearer_token_file) {
                (None, None, None) => Auth::None,
                (None, None, Some(file)) => Auth::Bearer(Credential::File(file)),
                (Some(user), Some(file), None) => {
                    Auth::Basic { user, password: Credential::File(file) }
                }
                _ => return Err(ConfigError::Auth),
            };
        pyroscope.tenant = self.tenant;
        pyroscope.headers =
            self.header.iter().map(|written| header(written)).collect::<Result<_, _>>()?;
        pyroscope.ca_file = self.tls_ca_file;
        pyroscope.proxy_from_environment = true;
        if let Some(mib) = self.queue_mib {
            pyroscope.queue_bytes = mib.saturating_mul(1 << 20);
        }
        let trace_id = self.trace_id.as_deref().unwrap_or("auto");
        pyroscope.trace_id = match cli::TraceIdLabel::from_str(trace_id, false) {
            Ok(cli::TraceIdLabel::Auto) => TraceIdLabel::Auto,
            Ok(cli::TraceIdLabel::On) => TraceIdLabel::On,
            Ok(cli::TraceIdLabel::Off) => TraceIdLabel::Off,
            Err(_) => return Err(ConfigError::TraceId),
        };
        Ok(pyroscope)
    }
}

fn header(written: &str) -> Result<(String, Secret), ConfigError> {
    match written.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), Secret::new(value.trim())))
        }
        // Without a colon it may be the value alone, and a secret.
        _ => Err(ConfigError::Header),
    }
}

/// Reads a list of servers as YAML, or as JSON.
pub(super) fn endpoints(text: &str) -> Result<Vec<Endpoint>, EndpointError> {
    let written: Vec<Server> = yaml::read(text).map_err(EndpointError::Yaml)?;
    if written.len() > ENDPOINTS_MAX {
        return Err(EndpointError::TooMany);
    }
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for server in written {
        let name = server.name.clone();
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let is_name = (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(fits);
        if !is_name || endpoints.iter().any(|other| other.name == name) {
            return Err(EndpointError::Name(name));
        }
        let pyroscope = server.config();
        let pyroscope = pyroscope.map_err(|error| EndpointError::Endpoint {
            name: name.clone(),
            what: error.to_string(),
        })?;
        endpoints.push(Endpoint { name, pyroscope });
    }
    Ok(endpoints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_servers_is_read_with_all_that_the_first_can_have() {
        let list = endpoints(
            "- {name: archive, pyroscope_url: 'https://a', tenant: t, bearer_token_file: /t, queue_mib: 2}\n\
             - {name: eu_1, pyroscope_url: 'http://b/x', basic_auth_user: u, basic_auth_password_file: /p,\n   \
               header: ['X-Key: k'], trace_id: off, tls_ca_file: /ca}\n",
        )
        .unwrap();
        let [archive, eu] = &*list else { panic!("{list:?}") };
        assert_eq!((&*archive.name, archive.pyroscope.queue_bytes), ("archive", 2 << 20));
        assert_eq!(archive.pyroscope.auth, Auth::Bearer(Credential::File("/t".into())));
        assert_eq!(archive.pyroscope.tenant.as_deref(), Some("t"));
        assert_eq!(eu.pyroscope.headers, [("X-Key".to_owned(), Secret::new("k"))]);
        assert_eq!(eu.pyroscope.trace_id, TraceIdLabel::Off);
        assert_eq!(eu.pyroscope.queue_bytes, 64 << 20);
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_name() {
        for (yaml, because) in [
            ("{}", "sequence"),
            ("[{name: a, pyroscope_url: 'http://a', tennant: x}]", "tennant"),
            ("[{pyroscope_url: 'http://a'}]", "\"\": a name is 1 to 32"),
            ("[{name: A-b, pyroscope_url: 'http://a'}]", "\"A-b\""),
            ("[{name: a}, {name: a}]", "\"a\""),
            ("[{name: a, pyroscope_url: 'http://a', header: [secret]}]", "a: --header must be"),
            ("[{name: a, pyroscope_url: 'http://a', trace_id: maybe}]", "a: --trace-id"),
            ("[{name: a, basic_auth_user: u}]", "a: --basic-auth-user goes with"),
            (
                "[{name: a, bearer_token_file: /x, basic_auth_user: u, basic_auth_password_file: /y}]",
                "a: ",
            ),
        ] {
            let error = endpoints(yaml).unwrap_err().to_string();
            assert!(error.contains(because) && !error.contains("secret"), "{yaml}: {error}");
        }
        let many: String =
            (0..9).map(|n| format!("- {{name: e{n}, pyroscope_url: x}}\n")).collect();
        assert!(matches!(endpoints(&many), Err(EndpointError::TooMany)));
        assert!(endpoints("[]").unwrap().is_empty());
    }
}
