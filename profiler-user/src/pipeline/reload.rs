//! Options that become others while it runs: all of a file or nothing of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::place::Rules;
use crate::relabel::Rule;

/// The keys of the options that are taken while it runs. Files of secrets are read anew whenever they
/// change anyway.
pub const TAKEN_AT_ONCE: [&str; 3] = ["keep", "drop", "relabel_configs"];

/// What a reload gives.
#[derive(Debug)]
pub struct Reloaded {
    /// The rules from now on.
    pub rules: Arc<[Rule]>,
    /// The keys of what has changed and is only read at the start.
    pub for_the_next_start: Vec<String>,
}

/// Reads the options again.
pub type Reload = dyn Fn() -> anyhow::Result<Reloaded>;

/// What became of reloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ReloadStats {
    /// Those that were taken.
    reloads: u64,
    /// Those that were refused: all stayed as it was.
    reloads_failed: u64,
    /// 1 if the last one was taken, or there was none.
    last_reload_successful: u64,
}

impl Default for ReloadStats {
    fn default() -> Self {
        Self { reloads: 0, reloads_failed: 0, last_reload_successful: 1 }
    }
}

/// Takes what was read, or says why not.
pub(super) fn take(read: anyhow::Result<Reloaded>, rules: &Rules, stats: &Mutex<ReloadStats>) {
    let mut stats = lock(stats);
    stats.last_reload_successful = u64::from(read.is_ok());
    match read {
        Ok(reloaded) => {
            stats.reloads += 1;
            rules.set(reloaded.rules);
            tracing::info!("the options were read again");
            if !reloaded.for_the_next_start.is_empty() {
                let keys = reloaded.for_the_next_start.join(", ");
                tracing::warn!("these options have changed and are only read at the start: {keys}");
            }
        }
        Err(error) => {
            stats.reloads_failed += 1;
            tracing::error!("the options stay as they were: {error:#}");
        }
    }
}

pub(super) fn lock(stats: &Mutex<ReloadStats>) -> MutexGuard<'_, ReloadStats> {
    stats.lock().unwrap_or_else(PoisonError::into_inner)
}
