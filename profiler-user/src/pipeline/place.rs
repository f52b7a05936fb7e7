//! Groups of samples to series: asks which pods the containers are, and waits for an answer.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

use serde::Serialize;

use super::series::{Known, Labels, Place, disagrees, relabelled};
use crate::aggregate::{Group, Window};
use crate::engine::Engines;
use crate::pods::{Found, PodStats, Pods};
use crate::process::ServiceIdentity;
use crate::relabel::Rule;

/// How much later a window begins of which only what waited is left, in nanoseconds. A container that
/// was started again may be a series that has a profile of that window already, and a server takes
/// two of a series and time for one. Windows last a second or more; their parts are a millisecond
/// apart.
const LATER_NS: i64 = 500_000_000;

/// A window whose groups are series.
#[derive(Debug)]
pub struct Placed {
    /// A group for each series.
    pub window: Window,
    /// The labels of each group, in the same order.
    pub labels: Vec<Labels>,
    /// Samples of series that are not wanted.
    pub unwanted: u64,
}

/// The rules of relabelling, which may become others at any time. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Rules(Arc<RwLock<Arc<[Rule]>>>);

impl Rules {
    /// These from the next window on.
    pub fn set(&self, rules: Arc<[Rule]>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    fn get(&self) -> Arc<[Rule]> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Samples by what was known of their containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PlacedStats {
    /// Their pod was known at the end of their window.
    pub pod_known: u64,
    /// Their pod became known while they waited for it, a window at most.
    pub pod_late: u64,
    /// Their container is no pod's, as far as the API server has said: they have its id, unless it is
    /// an engine's.
    pub pod_unknown: u64,
    /// Of these, their path named another pod than the container's: it was made up.
    pub pod_contradicted: u64,
    /// Their container is Docker's or Podman's, by the files of these.
    pub engine_known: u64,
    /// Their service calls itself something else than Kubernetes does.
    pub service_name_differs: u64,
}

/// Places windows.
#[derive(Debug)]
pub struct Placer {
    place: Place,
    rules: Rules,
    /// Unset outside of clusters.
    pods: Option<Pods>,
    engines: Engines,
    /// Groups whose container was not known when their window ended.
    waiting: Option<Window>,
    stats: PlacedStats,
}

impl Placer {
    /// Places what runs here.
    #[must_use]
    pub fn new(place: Place, rules: Rules, pods: Option<Pods>, engines: Engines) -> Self {
        Self { place, rules, pods, engines, waiting: None, stats: PlacedStats::default() }
    }

    /// What was placed so far.
    #[must_use]
    pub fn stats(&self) -> PlacedStats {
        self.stats
    }

    /// What the watch of pods did so far.
    #[must_use]
    pub fn pod_stats(&self) -> PodStats {
        self.pods.as_ref().map(Pods::stats).unwrap_or_default()
    }

    /// Samples that wait.
    #[cfg(test)]
    fn waiting(&self) -> u64 {
        self.waiting.as_ref().map_or(0, Window::samples)
    }

    /// Places what waited, then a window. Groups whose container is not known wait until the next
    /// one: a container that has just started.
    #[must_use]
    pub fn place(&mut self, mut window: Window) -> [Option<Placed>; 2] {
        let before = self.flush();
        let groups = self.ask(&mut window);
        let (wait, now): (Vec<_>, Vec<_>) = groups
            .into_iter()
            .partition(|(_, found)| matches!(found, Some(Found::Unknown | Found::OtherPod)));
        if !wait.is_empty() {
            let groups = wait.into_iter().map(|(group, _)| group).collect();
            self.waiting = Some(Window { groups, ..window.clone() });
        }
        let placed = self.placed(window, now, false);
        [before, Some(placed)]
    }

    /// Places what waits, whatever is known of it.
    #[must_use]
    pub fn flush(&mut self) -> Option<Placed> {
        let mut window = self.waiting.take()?;
        window.start_unix_ns = window.start_unix_ns.saturating_add(LATER_NS);
        window.duration_ns = window.duration_ns.saturating_sub(LATER_NS).max(1);
        let groups = self.ask(&mut window);
        Some(self.placed(window, groups, true))
    }

    /// Takes the groups out of a window, each with what is known of its container; `None`: it is in
    /// none, or there are no pods here.
    fn ask(&self, window: &mut Window) -> Vec<(Group, Option<Found>)> {
        let ask = |group: Group| {
            let container = group.service.container();
            let found = self.pods.as_ref().zip(container).map(|(pods, it)| pods.find(it));
            (group, found)
        };
        std::mem::take(&mut window.groups).into_iter().map(ask).collect()
    }

    fn placed(
        &mut self,
        mut window: Window,
        groups: Vec<(Group, Option<Found>)>,
        waited: bool,
    ) -> Placed {
        // Two programs of a container can be one series. The server takes a second profile of a
        // series at the same time for the first one, so there is to be one.
        let mut series: BTreeMap<Labels, Group> = BTreeMap::new();
        let rules = self.rules.get();
        let now = Instant::now();
        let mut unwanted = 0;
        for (mut group, found) in groups {
            let of_engine = match (&found, group.service.container()) {
                (None | Some(Found::Unknown), Some(it)) => self.engines.find(it, now),
                _ => None,
            };
            let known = match (&found, &of_engine) {
                (Some(Found::Known(pod)), _) => Some(Known::Pod(pod)),
                (_, Some(container)) => Some(Known::Engine(container)),
                _ => None,
            };
            self.count(&group, found.as_ref(), of_engine.is_some(), waited);
            let Some(labels) = relabelled(&rules, &group.service, known, &self.place) else {
                unwanted += group.samples();
                continue;
            };
            let name = labels.get("service_name").cloned().unwrap_or_default();
            group.service = Arc::new(ServiceIdentity {
                name,
                origin: None,
                ..ServiceIdentity::clone(&group.service)
            });
            match series.get_mut(&labels) {
                Some(there) => there.merge(group),
                None => drop(series.insert(labels, group)),
            }
        }
        let (labels, groups) = series.into_iter().unzip();
        window.groups = groups;
        Placed { window, labels, unwanted }
    }

    fn count(&mut self, group: &Group, found: Option<&Found>, of_engine: bool, waited: bool) {
        let samples = group.samples();
        let add = |counter: &mut u64| *counter = counter.saturating_add(samples);
        let stats = &mut self.stats;
        if of_engine {
            add(&mut stats.engine_known);
        }
        match found {
            None => {}
            Some(Found::Known(pod)) => {
                add(if waited { &mut stats.pod_late } else { &mut stats.pod_known });
                if disagrees(&group.service, pod) {
                    add(&mut stats.service_name_differs);
                }
            }
            Some(Found::Unknown) => add(&mut stats.pod_unknown),
            Some(Found::OtherPod) => {
                add(&mut stats.pod_unknown);
                add(&mut stats.pod_contradicted);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::Aggregator;
    use crate::attribute::{AttributedSample, Location};
    use crate::container::Container;
    use crate::decode::Addr;
    use crate::process::{NamedBy, Origin};
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn service(name: &str, id: Option<&str>) -> Arc<ServiceIdentity> {
        let container = id.map(|id| Container {
            ids: vec![id.to_owned()],
            pod_uid: Some("u".to_owned()),
            ..Container::default()
        });
        let origin = Origin {
            named_by: NamedBy::Executable,
            container,
            unit: None,
            exe: format!("/bin/{name}"),
        };
        Arc::new(ServiceIdentity { origin: Some(Arc::new(origin)), ..ServiceIdentity::named(name) })
    }

    /// A sample for each service, its number the address.
    fn window(start: i64, services: &[Arc<ServiceIdentity>]) -> Window {
        let mut aggregator = Aggregator::default();
        for (number, service) in services.iter().enumerate() {
            let sample = AttributedSample {
                service: Arc::clone(service),
                main_elf: None,
                stack: [Location::Kernel(Addr(number as u64))].into(),
                span: None,
                value: 1,
            };
            aggregator.add(sample).unwrap();
        }
        aggregator.take(start, 1, 1)
    }

    fn pod(uid: &str, id: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": "cart-1", "uid": uid},
            "status": {"containerStatuses": [{"name": "main", "containerID": format!("x://{id}"),
                "image": "", "imageID": "", "ready": true, "restartCount": 0}]},
        }))
        .unwrap()
    }

    fn no_engines() -> Engines {
        Engines::below(std::path::Path::new("/nowhere"))
    }

    fn placer(pods: &Pods) -> Placer {
        let place = Place { host: "h".into(), node: None };
        Placer::new(place, Rules::default(), Some(pods.clone()), no_engines())
    }

    fn found(placed: &Option<Placed>) -> Vec<(String, Option<String>, u64)> {
        let placed = placed.as_ref().unwrap();
        let pairs = placed.labels.iter().zip(&placed.window.groups);
        let pair = |(labels, group): (&Labels, &Group)| {
            assert_eq!(labels["service_name"], group.service.name);
            (labels["service_name"].clone(), labels.get("pod").cloned(), group.samples())
        };
        pairs.map(pair).collect()
    }

    #[test]
    fn two_programs_of_a_container_are_one_series() {
        let pods = Pods::default();
        pods.add(&pod("u", "a"));
        let mut placer = placer(&pods);
        let services = ["sh", "app"].map(|name| service(name, Some("a")));
        let placed = placer.place(window(1, &services)).into_iter().flatten().next();
        assert_eq!(found(&placed), [("ebpf/shop/main".into(), Some("cart-1".into()), 2)]);
        let placed = placed.unwrap();
        assert_eq!(placed.window.groups[0].stacks.len(), 2);
        assert_eq!(placer.stats().pod_known, 2);
    }

    #[test]
    fn a_container_that_is_not_known_yet_waits_for_one_window() {
        let pods = Pods::default();
        let mut placer = placer(&pods);
        let services = [service("app", Some("a")), service("other", None)];
        let [before, now] = placer.place(window(1, &services));
        assert!(before.is_none());
        assert_eq!(found(&now), [("other".into(), None, 1)]);
        assert_eq!(placer.waiting(), 1);
        pods.add(&pod("u", "a"));
        let [before, _now] = placer.place(window(2, &[]));
        let began = before.as_ref().map(|placed| placed.window.start_unix_ns);
        assert_eq!(began, Some(1 + LATER_NS));
        assert_eq!(found(&before), [("ebpf/shop/main".into(), Some("cart-1".into()), 1)]);
        assert_eq!((placer.stats().pod_late, placer.waiting()), (1, 0));
    }

    #[test]
    fn one_that_stays_unknown_leaves_with_its_id() {
        let pods = Pods::default();
        // Another pod than its path says has that id.
        pods.add(&pod("other", "a"));
        let mut placer = placer(&pods);
        let [_, now] = placer.place(window(1, &[service("app", Some("a"))]));
        assert_eq!(found(&now), []);
        let placed = placer.flush();
        assert_eq!(found(&placed), [("app".into(), None, 1)]);
        assert_eq!(placed.unwrap().labels[0]["container_id"], "a");
        let stats = placer.stats();
        assert_eq!((stats.pod_unknown, stats.pod_contradicted), (1, 1));
        assert!(placer.flush().is_none());
    }

    #[test]
    fn without_a_cluster_nothing_waits() {
        let mut placer = Placer::new(
            Place { host: "h".into(), node: None },
            Rules::default(),
            None,
            no_engines(),
        );
        let [_, now] = placer.place(window(1, &[service("app", Some("a"))]));
        assert_eq!(found(&now), [("app".into(), None, 1)]);
        assert_eq!(placer.stats(), PlacedStats::default());
    }

    #[test]
    fn a_container_of_docker_has_its_name_at_once_and_beside_pods_after_waiting() {
        let host = tempfile::tempdir().unwrap();
        let id = "c".repeat(64);
        let folder = host.path().join("var/lib/docker/containers").join(&id);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("config.v2.json"), r#"{"Name":"/web","Config":{}}"#).unwrap();
        let origin = Origin {
            named_by: NamedBy::Executable,
            container: Some(Container { ids: vec![id], ..Container::default() }),
            unit: None,
            exe: "/bin/app".into(),
        };
        let service =
            ServiceIdentity { origin: Some(Arc::new(origin)), ..ServiceIdentity::named("app") };
        let services = [Arc::new(service)];
        for pods in [None, Some(Pods::default())] {
            let place = Place { host: "h".into(), node: None };
            let engines = Engines::below(host.path());
            let mut placer = Placer::new(place, Rules::default(), pods.clone(), engines);
            let [_, now] = placer.place(window(1, &services));
            let placed = if pods.is_some() { placer.flush() } else { now };
            assert_eq!(found(&placed), [("web".into(), None, 1)]);
            assert_eq!(placed.unwrap().labels[0]["container"], "web");
            assert_eq!(placer.stats().engine_known, 1);
        }
    }

    #[test]
    fn what_is_not_wanted_is_counted_and_rules_can_change() {
        let rules = Rules::default();
        let place = Place { host: "h".into(), node: None };
        let mut placer = Placer::new(place, rules.clone(), None, no_engines());
        let services = [service("app", None), service("other", None)];
        let drop = crate::relabel::filters(&[], &["exe=/bin/a.*".to_owned()]).unwrap();
        rules.set(drop.into());
        let [_, placed] = placer.place(window(1, &services));
        assert_eq!(found(&placed), [("other".into(), None, 1)]);
        assert_eq!(placed.unwrap().unwanted, 1);
        rules.set(Arc::new([]));
        let [_, placed] = placer.place(window(2, &services));
        assert_eq!((found(&placed).len(), placed.unwrap().unwanted), (2, 0));
    }
}
