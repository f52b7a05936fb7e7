//! Watches the pods of this node at the API server, and goes on whatever that one does.

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::Serialize;

use super::{Found, PodIndex};
use crate::clock::unix_now;
use crate::container::Container;

/// How long to wait before another try to read the cluster's address and the account's token.
const CONFIG_RETRY: Duration = Duration::from_secs(5);
/// How long a connection may take.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a server may say nothing: it ends a watch itself after 290 s.
const SILENCE: Duration = Duration::from_secs(300);

/// The pods of this node, as far as the API server has said. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    index: Arc<RwLock<PodIndex>>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    events: AtomicU64,
    errors: AtomicU64,
    last_event_unix_ns: AtomicU64,
    lists: AtomicU64,
}

/// What the watch did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PodStats {
    /// Pods of this node.
    pub pods: u64,
    /// Containers that are known, those that ended lately included.
    pub containers: u64,
    /// Pods that had no room.
    pub pods_refused: u64,
    /// What the API server said of pods.
    pub watch_events: u64,
    /// Lists that were complete.
    pub watch_lists: u64,
    /// Requests that failed, and watches that broke off.
    pub watch_errors: u64,
    /// When it said something last, in seconds since the Unix epoch; 0: never.
    pub watch_last_event_timestamp_seconds: u64,
}

impl Pods {
    /// Watches the pods of a node from inside of the cluster until the runtime ends.
    #[must_use]
    pub fn watch_in_cluster(node: &str) -> Self {
        let pods = Self::default();
        let (watching, node) = (pods.clone(), node.to_owned());
        tokio::spawn(async move {
            let client = loop {
                let made = Config::incluster().map_err(|error| error.to_string());
                match made.and_then(|config| client(config).map_err(|error| error.to_string())) {
                    Ok(client) => break client,
                    Err(error) => {
                        watching.counts.errors.fetch_add(1, Ordering::Relaxed);
                        tracing::warn!(%error, "the API server cannot be asked for pods");
                        tokio::time::sleep(CONFIG_RETRY).await;
                    }
                }
            };
            watching.watch(client, &node).await;
        });
        pods
    }

    /// Watches until it is dropped.
    async fn watch(&self, client: Client, node: &str) {
        let of_node = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
        let events = watcher(Api::<Pod>::all(client), of_node).default_backoff();
        pin_mut!(events);
        let mut failing = false;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!("the API server answers again");
                    }
                    self.take(&event);
                }
                Err(error) => {
                    self.counts.errors.fetch_add(1, Ordering::Relaxed);
                    // Once for each time that it goes away: the tries are many.
                    if !std::mem::replace(&mut failing, true) {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, "the API server does not tell of pods; trying on");
                    }
                }
            }
        }
    }

    /// Adds a pod, as if the API server had said it.
    #[cfg(test)]
    pub(crate) fn add(&self, pod: &Pod) {
        self.take(&Event::Apply(pod.clone()));
    }

    fn take(&self, event: &Event<Pod>) {
        let now = u64::try_from(unix_now()).unwrap_or_default();
        self.counts.last_event_unix_ns.store(now, Ordering::Relaxed);
        self.counts.events.fetch_add(1, Ordering::Relaxed);
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init => index.list_begins(),
            Event::InitApply(pod) | Event::Apply(pod) => index.add(pod),
            Event::InitDone => {
                index.list_ends();
                self.counts.lists.fetch_add(1, Ordering::Relaxed);
            }
            Event::Delete(pod) => index.remove(pod),
        }
    }

    /// What is known of a container now.
    #[must_use]
    pub fn find(&self, container: &Container) -> Found {
        self.index.read().unwrap_or_else(PoisonError::into_inner).find(container)
    }

    /// What the watch did so far.
    #[must_use]
    pub fn stats(&self) -> PodStats {
        let (pods, containers, refused) = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            let (pods, containers) = index.len();
            (pods as u64, containers as u64, index.refused)
        };
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PodStats {
            pods,
            containers,
            pods_refused: refused,
            watch_events: get(&self.counts.events),
            watch_lists: get(&self.counts.lists),
            watch_errors: get(&self.counts.errors),
            watch_last_event_timestamp_seconds: get(&self.counts.last_event_unix_ns)
                / 1_000_000_000,
        }
    }
}

/// Whether this process is in a pod: each one is told where the API server is.
#[must_use]
pub fn is_in_cluster() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

fn client(mut config: Config) -> Result<Client, kube::Error> {
    config.connect_timeout = Some(ANSWER);
    config.read_timeout = Some(SILENCE);
    Client::try_from(config)
}
