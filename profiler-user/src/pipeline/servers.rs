//! The servers that profiles go to: each has a queue and books of its own, and waits for no other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::books::Books;
use crate::aggregate::{Group, Window};
use crate::config::{Endpoint, RunConfig};
use crate::encode::{EncodeOptions, Encoded, encode};
use crate::export::pyroscope::{ConfigError, Pyroscope};
use crate::export::{Labels, Profile};
use crate::stats::{Count, Stats};
use crate::symbolize::Names;

/// All of them.
pub(super) struct Servers {
    first: Server,
    /// By their names.
    others: Vec<(String, Server)>,
}

struct Server {
    exporter: Arc<Pyroscope>,
    /// Of the first one, those of the whole program.
    stats: Arc<Stats>,
}

impl Servers {
    /// Starts to deliver. `stats` are the first one's.
    pub(super) fn start(config: &RunConfig, stats: &Arc<Stats>) -> Result<Self, ConfigError> {
        let start = |pyroscope, stats: Arc<Stats>| -> Result<Server, ConfigError> {
            let exporter = Arc::new(Pyroscope::start(pyroscope, Arc::clone(&stats))?);
            Ok(Server { exporter, stats })
        };
        let first = start(&config.pyroscope, Arc::clone(stats))?;
        let mut others = Vec::new();
        for Endpoint { name, pyroscope } in &config.endpoints {
            others.push((name.clone(), start(pyroscope, Arc::new(Stats::default()))?));
        }
        Ok(Self { first, others })
    }

    /// Encodes a group, and queues it for each server.
    pub(super) fn push(&self, window: &Window, group: &Group, labels: &Labels, names: &Names) {
        // Servers differ in whether they take trace ids.
        let mut encoded: HashMap<bool, (Vec<Profile>, u64)> = HashMap::new();
        for Server { exporter, stats } in self.all() {
            let with_trace_id = exporter.takes_trace_id();
            let (profiles, zero_value_samples) =
                encoded.entry(with_trace_id).or_insert_with(|| {
                    let options = EncodeOptions::pyroscope(with_trace_id);
                    let Encoded { parts, zero_value_samples } =
                        encode(window, group, names, &options);
                    let profiles = parts.into_iter().map(|part| Profile {
                        labels: labels.clone(),
                        samples: part.samples,
                        start_unix_ns: window.start_unix_ns,
                        duration_ns: window.duration_ns,
                        pprof: part.pprof.into(),
                    });
                    (profiles.collect(), zero_value_samples)
                });
            stats.add(Count::LostZeroValue, *zero_value_samples);
            for profile in profiles {
                stats.add(Count::SamplesEncoded, profile.samples);
                exporter.try_push(profile.clone());
            }
        }
    }

    /// What waits for the first one.
    pub(super) fn queued(&self) -> u64 {
        self.first.exporter.queued().samples
    }

    /// Books with those of the others in them.
    pub(super) fn in_books(&self, books: Books) -> Books {
        self.others.iter().fold(books, |books, (name, Server { exporter, stats })| {
            books.with_endpoint(name, stats, exporter.queued().samples)
        })
    }

    /// Delivers what is queued, to all at the same time, for as long as `grace`.
    pub(super) async fn shutdown(&self, grace: Duration) {
        let mut ending = JoinSet::new();
        for Server { exporter, .. } in self.all() {
            let exporter = Arc::clone(exporter);
            ending.spawn(async move { exporter.shutdown(grace).await });
        }
        ending.join_all().await;
    }

    fn all(&self) -> impl Iterator<Item = &Server> {
        [&self.first].into_iter().chain(self.others.iter().map(|(_, server)| server))
    }
}
