//! What must not be seen: passwords, tokens, header values.

use std::fmt;
use std::path::PathBuf;

use crate::file::read_bounded;

/// No token is longer.
const MAX_SECRET_BYTES: u64 = 64 << 10;

/// A text that no log line and no debug output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// Where a password or a token comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// It was given.
    Value(Secret),
    /// It is in a file, read anew for each request, because tokens are rotated.
    File(PathBuf),
}

/// Why a credential cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file cannot be read.
    #[error("cannot read the credential in {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file holds no credential.
    #[error("no credential in {}: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It has characters that an HTTP header cannot carry.
    #[error("the credential has characters that an HTTP header cannot carry")]
    NotForHttp,
}

impl Credential {
    /// The secret, without white space around it. May block on the file system.
    pub(super) fn load(&self) -> Result<Secret, CredentialError> {
        match self {
            Self::Value(secret) => Ok(secret.clone()),
            Self::File(path) => {
                let bytes = read_bounded(path, MAX_SECRET_BYTES)
                    .map_err(|source| CredentialError::Unreadable { path: path.clone(), source })?;
                let unusable = |reason| CredentialError::Unusable { path: path.clone(), reason };
                let text = String::from_utf8(bytes)
                    .ok()
                    .ok_or_else(|| unusable("it is not UTF-8 text"))?;
                match text.trim() {
                    "" => Err(unusable("it is empty")),
                    text if text.contains(char::is_control) => {
                        Err(unusable("it has more than one line"))
                    }
                    text => Ok(Secret::new(text)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_hidden_in_debug_output() {
        let credential = Credential::Value(Secret::new("tiger"));
        assert!(!format!("{credential:?} {:#?}", Secret::new("tiger")).contains("tiger"));
    }

    #[test]
    fn a_credential_file_is_read_anew_and_trimmed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let credential = Credential::File(path.clone());
        for token in ["one", "two"] {
            std::fs::write(&path, format!(" {token}\n")).unwrap();
            assert_eq!(credential.load().unwrap().reveal(), token);
        }
    }

    #[test]
    fn an_unusable_credential_file_is_refused_without_showing_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let credential = Credential::File(path.clone());
        assert!(matches!(credential.load(), Err(CredentialError::Unreadable { .. })));
        let long = "x".repeat(usize::try_from(MAX_SECRET_BYTES).unwrap() + 1);
        for content in ["", " \n", "tiger\nlily", "\u{0}", &long] {
            std::fs::write(&path, content).unwrap();
            let error = credential.load().unwrap_err();
            assert!(!format!("{error:?} {error}").contains("tiger"), "{error}");
        }
        std::fs::write(&path, b"\xff\xfe").unwrap();
        assert!(matches!(credential.load(), Err(CredentialError::Unusable { .. })));
        // A device never ends, a FIFO never begins.
        for special in ["/dev/zero", "/"] {
            let credential = Credential::File(special.into());
            assert!(matches!(credential.load(), Err(CredentialError::Unreadable { .. })));
        }
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(matches!(Credential::File(fifo).load(), Err(CredentialError::Unreadable { .. })));
    }
}
