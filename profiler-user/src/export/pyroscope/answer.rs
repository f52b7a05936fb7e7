//! What an answer, or its absence, means for the profile that was sent.
//!
//! | what happened | meaning |
//! | --- | --- |
//! | 200 with a Connect answer | stored |
//! | not handed over whole: no name, no connection, no TLS, time-out before the end of the body | not stored: send again |
//! | handed over, no answer: time-out, reset, end of the connection, not HTTP | uncertain: never sent again |
//! | 504, 524, 499, and 408 with code `deadline_exceeded` or `canceled` | uncertain: somebody behind it did not answer |
//! | 408, 429, 500, 502, 503 and other 5xx | not stored: send again |
//! | 400, 401, 403, 404, 405, 413, 415 and other 4xx, 501, 505 | refused for good |
//! | redirect, 200 without a Connect answer, other 2xx | refused for good: not a Pyroscope server |
//!
//! The server has no idempotency: a profile that is sent again after it was stored counts double.
//! So an uncertain one is not sent again but counted. 429 has one more cause: a profile above the
//! server's burst size never passes. The encoder stays below it; one that is above all the same
//! (a server with a lower limit) is retried until it is too old, and counted then.

use std::time::Duration;

use reqwest::StatusCode;

use crate::export::CredentialError;

/// Why a push did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PushError {
    #[error("cannot use the credential")]
    Credential(#[source] CredentialError),
    #[error("cannot send it to the server")]
    Unsent(#[source] reqwest::Error),
    #[error("the server has it and gave no answer that can be understood")]
    Unanswered(#[source] reqwest::Error),
    #[error("the server answered {status}: {message}")]
    Refused { status: StatusCode, code: String, message: String, retry_after: Option<Duration> },
    #[error("the server redirects ({status}) to {location}; give that URL if it is the right one")]
    Redirected { status: StatusCode, location: String },
    #[error("this is not a Pyroscope server: it answered {status} with content type {content}")]
    Foreign { status: StatusCode, content: String },
    #[error("the task that sent it ended early")]
    TaskDied,
}

/// What becomes of a profile that was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is certainly not stored and may be later.
    Retry,
    /// As `Retry`, but a damaged profile would get the same answer for ever.
    RetrySome,
    /// It will never be stored.
    Rejected,
    /// Nobody can tell whether it is stored.
    Uncertain,
}

impl PushError {
    pub(super) fn fate(&self) -> Fate {
        match self {
            Self::Credential(_) | Self::Unsent(_) => Fate::Retry,
            Self::Unanswered(_) | Self::TaskDied => Fate::Uncertain,
            Self::Redirected { .. } | Self::Foreign { .. } => Fate::Rejected,
            Self::Refused { status, code, .. } => refusal(status.as_u16(), code),
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

fn refusal(status: u16, code: &str) -> Fate {
    match status {
        // Connect's canceled and deadline_exceeded were 408 in its early versions.
        408 if matches!(code, "deadline_exceeded" | "canceled") => Fate::Uncertain,
        499 | 504 | 524 => Fate::Uncertain,
        500 => Fate::RetrySome,
        501 | 505 => Fate::Rejected,
        408 | 429 | 502.. => Fate::Retry,
        _ => Fate::Rejected,
    }
}

/// Code and message of a Connect error, or the beginning of whatever else was answered.
pub(super) fn parse_error(body: &[u8]) -> (String, String) {
    #[derive(serde::Deserialize)]
    struct ConnectError {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    match serde_json::from_slice::<ConnectError>(body) {
        Ok(error) => (printable(&error.code), printable(&error.message)),
        Err(_) => (String::new(), printable(&String::from_utf8_lossy(body))),
    }
}

/// The beginning of a text from outside, safe for a terminal and a log.
pub(super) fn printable(text: &str) -> String {
    const MAX_CHARS: usize = 300;
    let mut chars = text.trim().chars();
    let mut out: String = chars.by_ref().take(MAX_CHARS).flat_map(escaped).collect();
    if chars.next().is_some() {
        out.push('…');
    }
    out
}

fn escaped(c: char) -> impl Iterator<Item = char> {
    // Quotes are harmless, control and format characters are not.
    let plain = matches!(c, '"' | '\'' | '\\').then_some(c);
    let escape = plain.is_none().then(|| c.escape_debug());
    plain.into_iter().chain(escape.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_fate() {
        for (statuses, fate) in [
            (&[429, 408, 502, 503, 507, 520, 521, 522, 529, 599][..], Fate::Retry),
            (&[500], Fate::RetrySome),
            (&[400, 401, 403, 404, 405, 409, 413, 415, 422, 431, 501, 505], Fate::Rejected),
            (&[499, 504, 524], Fate::Uncertain),
        ] {
            for status in statuses {
                assert_eq!(refusal(*status, "unknown"), fate, "{status}");
            }
        }
        assert_eq!(refusal(408, "deadline_exceeded"), Fate::Uncertain);
        assert_eq!(refusal(408, "canceled"), Fate::Uncertain);
    }

    #[track_caller]
    fn check_error(body: &[u8], code: &str, message: &str) {
        assert_eq!(parse_error(body), (code.to_owned(), message.to_owned()));
    }

    #[test]
    fn error_bodies_are_shown_safely() {
        check_error(br#"{"code":"unavailable","message":"later"}"#, "unavailable", "later");
        check_error(br#"{"message":"say \"later\""}"#, "", r#"say "later""#);
        check_error(b"<html>Bad Gateway</html>\n", "", "<html>Bad Gateway</html>");
        check_error(b"\x1b[2J\xff\r\nx", "", "\\u{1b}[2J\u{fffd}\\r\\nx");
        check_error(b"", "", "");
        check_error(br#"{"code":7}"#, "", r#"{"code":7}"#);
        let long = parse_error("ü".repeat(1000).as_bytes()).1;
        assert_eq!(long.chars().count(), 301);
    }
}
