//! What the pipeline leaves for those who ask.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;
use serde_json::Value;

/// The most targets that are shown.
const TARGETS_MAX: usize = 10_000;

/// A series of the newest window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Samples in that window.
    pub samples: u64,
}

/// What was told last.
#[derive(Debug, Default)]
pub struct Telling {
    books: Mutex<Arc<Value>>,
    targets: Mutex<Arc<Vec<Target>>>,
}

impl Telling {
    /// Every counter, as `--stats` writes them.
    pub fn set_books(&self, books: Value) {
        *self.books.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(books);
    }

    /// What the newest window held.
    pub fn set_targets(&self, mut targets: Vec<Target>) {
        targets.truncate(TARGETS_MAX);
        *self.targets.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(targets);
    }

    /// The counters of the end of the newest window.
    #[must_use]
    pub fn books(&self) -> Arc<Value> {
        Arc::clone(&self.books.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// And its series.
    #[must_use]
    pub fn targets(&self) -> Arc<Vec<Target>> {
        Arc::clone(&self.targets.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
