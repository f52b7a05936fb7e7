//! The names of attribute keys, by index: what a record's one-byte keys mean.
//!
//! Written by whoever uses a key first, read by the process context. Append-only, because records
//! that are already published keep their indices; 256 at most, because a key is one byte.

use std::error::Error;
use std::fmt;
use std::sync::{PoisonError, RwLock};

use crate::abi::{LOCAL_ROOT_SPAN_ID_KEY, LOCAL_ROOT_SPAN_NAME_KEY, SPAN_NAME_KEY};
use crate::{process_context, stats};

/// The longest key. With 256 keys the process context stays below the 64 KiB that readers take.
pub const ATTRIBUTE_KEY_MAX: usize = 128;

/// How many keys there are before any is registered.
const RESERVED: [&str; 3] = [LOCAL_ROOT_SPAN_ID_KEY, SPAN_NAME_KEY, LOCAL_ROOT_SPAN_NAME_KEY];

static REGISTERED: RwLock<Vec<Box<str>>> = RwLock::new(Vec::new());

/// A key's place in the key map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Index(u8);

impl Index {
    pub(crate) const LOCAL_ROOT_SPAN_ID: Self = Self(0);
    pub(crate) const SPAN_NAME: Self = Self(1);
    pub(crate) const LOCAL_ROOT_SPAN_NAME: Self = Self(2);

    pub(crate) fn get(self) -> u8 {
        self.0
    }
}

/// Why an attribute key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// A record's keys are one byte.
    Full,
    /// Longer than [`ATTRIBUTE_KEY_MAX`] bytes.
    TooLong,
    /// Nothing to register.
    Empty,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("all 256 attribute keys are taken"),
            Self::TooLong => write!(f, "an attribute key has at most {ATTRIBUTE_KEY_MAX} bytes"),
            Self::Empty => f.write_str("an attribute key has at least one byte"),
        }
    }
}

impl Error for KeyError {}

/// The index of a key, which is announced to readers if it is new.
pub(crate) fn register(key: &str) -> Result<Index, KeyError> {
    let index = match find_or_append(key) {
        Ok((index, Added(false))) => return Ok(index),
        Ok((index, Added(true))) => index,
        Err(error) => {
            stats::KEYS_REFUSED.add();
            return Err(error);
        }
    };
    process_context::republish();
    Ok(index)
}

/// Announces an attribute key before its first use, which would do it too.
///
/// # Errors
///
/// See [`KeyError`].
pub fn register_key(key: &str) -> Result<(), KeyError> {
    register(key).map(|_index| ())
}

/// The names of all keys, in the order of their indices.
pub(crate) fn all() -> Vec<Box<str>> {
    let registered = REGISTERED.read().unwrap_or_else(PoisonError::into_inner);
    RESERVED.into_iter().map(Box::from).chain(registered.iter().cloned()).collect()
}

struct Added(bool);

fn find_or_append(key: &str) -> Result<(Index, Added), KeyError> {
    if key.is_empty() {
        return Err(KeyError::Empty);
    }
    if key.len() > ATTRIBUTE_KEY_MAX {
        return Err(KeyError::TooLong);
    }
    let find = |registered: &[Box<str>]| {
        let mut names = RESERVED.into_iter().chain(registered.iter().map(|name| &**name));
        names.position(|name| name == key).and_then(|at| u8::try_from(at).ok()).map(Index)
    };
    let known = find(&REGISTERED.read().unwrap_or_else(PoisonError::into_inner));
    if let Some(index) = known {
        return Ok((index, Added(false)));
    }
    let mut registered = REGISTERED.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(index) = find(&registered) {
        return Ok((index, Added(false)));
    }
    let at = RESERVED.len().saturating_add(registered.len());
    let index = u8::try_from(at).map_err(|_full| KeyError::Full)?;
    registered.push(key.into());
    Ok((Index(index), Added(true)))
}
