//! Which series a service's samples belong to: its labels, by what is known of its container.

use super::meta;
use crate::engine::EngineContainer;
use crate::pods::PodContainer;
use crate::process::{NamedBy, Origin, ServiceIdentity, said};
use crate::relabel::{Rule, apply};

/// How much of a container's id is shown of one that has no name, as the runtimes do.
const SHORT_ID: usize = 12;

pub use crate::relabel::Labels;

/// As many as a server takes of a series (Pyroscope's `max_label_names_per_series`), one of which may
/// be the span's name.
const LABELS_MAX: usize = 29;
/// And of a value (`max_label_value_length`), in bytes.
const VALUE_MAX: usize = 2048;

/// The host or the node.
#[derive(Clone, Debug)]
pub struct Place {
    /// Label `host`.
    pub host: String,
    /// Label `node`, in a cluster.
    pub node: Option<String>,
}

/// What is known of a container.
#[derive(Clone, Copy, Debug)]
pub enum Known<'a> {
    /// It is a pod's.
    Pod(&'a PodContainer),
    /// It is Docker's or Podman's alone.
    Engine(&'a EngineContainer),
}

impl<'a> Known<'a> {
    fn pod(self) -> Option<&'a PodContainer> {
        match self {
            Self::Pod(pod) => Some(pod),
            Self::Engine(_) => None,
        }
    }
}

/// The labels of a series. `known` is unset where nothing is known of the container, if any.
///
/// The name of the service is the first of these that is set (a name that begins with
/// `unknown_service` is not): the pod's annotation `pyroscope.io/service_name`; its annotation
/// `resource.opentelemetry.io/service.name`; what the process says; what its environment says; the
/// pod's labels `app.kubernetes.io/instance`, then `/name`; what made the pod; namespace and
/// container; the Swarm or Compose service; Docker's or Podman's container; the systemd unit; the
/// executable.
///
/// Where a pod is, only the API server says: no process can name another one.
#[must_use]
pub fn labels(service: &ServiceIdentity, known: Option<Known<'_>>, place: &Place) -> Labels {
    let mut labels = Labels::new();
    let mut set = |name: &str, value: &str| labels.insert(name.to_owned(), value.to_owned());
    set("__name__", "process_cpu");
    for (name, value) in service.labels() {
        set(name, value);
    }
    let origin = service.origin.as_deref();
    set("service_name", &service_name(service, origin, known));
    set("host", &place.host);
    if let Some(node) = &place.node {
        set("node", node);
    }
    match (known, service.container()) {
        (Some(Known::Pod(container)), _) => {
            set("namespace", &container.pod.namespace);
            set("pod", &container.pod.name);
            set("container", &container.name);
        }
        (Some(Known::Engine(container)), _) => {
            set("container", &container.name);
        }
        (None, Some(container)) => {
            let id = container.id();
            set("container_id", id.get(..SHORT_ID).unwrap_or(id));
        }
        (None, None) => {}
    }
    labels
}

/// The labels of a series after these rules; `None`: it is not wanted.
///
/// The rules see what Prometheus and Alloy discover too, under their names. Whatever they do, there
/// is a service name, and no more labels than a server takes.
#[must_use]
pub fn relabelled(
    rules: &[Rule],
    service: &ServiceIdentity,
    known: Option<Known<'_>>,
    place: &Place,
) -> Option<Labels> {
    let mut labels = labels(service, known, place);
    if rules.is_empty() {
        return Some(labels);
    }
    meta::add(&mut labels, service, known, place);
    if !apply(rules, &mut labels) {
        return None;
    }
    labels.retain(|name, _| !name.starts_with("__"));
    for value in labels.values_mut().filter(|value| value.len() > VALUE_MAX) {
        value.truncate(value.floor_char_boundary(VALUE_MAX));
    }
    labels.insert("__name__".to_owned(), "process_cpu".to_owned());
    labels.entry("service_name".to_owned()).or_insert_with(|| "unknown_service".to_owned());
    while labels.len() > LABELS_MAX {
        // The names that a reader asks for first stay.
        let last = labels.keys().rev().find(|name| *name != "service_name").cloned();
        labels.remove(&last?);
    }
    Some(labels)
}

fn service_name(
    service: &ServiceIdentity,
    origin: Option<&Origin>,
    known: Option<Known<'_>>,
) -> String {
    let pod = known.and_then(Known::pod);
    let annotated = pod.and_then(|container| {
        let annotation = |key: &str| said(container.pod.annotations.get(key)?);
        annotation("pyroscope.io/service_name")
            .or_else(|| annotation("resource.opentelemetry.io/service.name"))
    });
    if let Some(name) = annotated {
        return name;
    }
    // Without an origin nobody asked who named it.
    if origin.is_none_or(|origin| origin.named_by != NamedBy::Executable) {
        return service.name.clone();
    }
    known
        .and_then(|known| match known {
            Known::Pod(pod) => Some(name_of_pod(pod)),
            Known::Engine(container) => said(container.service()),
        })
        .or_else(|| {
            let unit = origin?.unit.as_deref()?;
            said(unit.strip_suffix(".service").unwrap_or(unit))
        })
        .unwrap_or_else(|| service.name.clone())
}

/// What Kubernetes calls it.
fn name_of_pod(container: &PodContainer) -> String {
    let pod = &container.pod;
    let label = |key: &str| said(pod.labels.get(key)?);
    label("app.kubernetes.io/instance")
        .or_else(|| label("app.kubernetes.io/name"))
        .or_else(|| said(&pod.owner.as_ref()?.1))
        .unwrap_or_else(|| format!("ebpf/{}/{}", pod.namespace, container.name))
}

/// Whether a process calls itself something else than Kubernetes does.
#[must_use]
pub fn disagrees(service: &ServiceIdentity, pod: &PodContainer) -> bool {
    let says = service.origin.as_deref().is_some_and(|it| it.named_by != NamedBy::Executable);
    says && service.name != name_of_pod(pod)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::container::Container;
    use crate::pods::PodFacts;

    fn service(name: &str, named_by: NamedBy, unit: Option<&str>) -> ServiceIdentity {
        let origin = Origin {
            named_by,
            container: None,
            unit: unit.map(str::to_owned),
            exe: "/bin/x".into(),
        };
        ServiceIdentity { origin: Some(Arc::new(origin)), ..ServiceIdentity::named(name) }
    }

    fn container(pod: Arc<PodFacts>) -> PodContainer {
        PodContainer { pod, name: "main".into(), id: "x://0".into(), image: "i".into() }
    }

    fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn place() -> Place {
        Place { host: "h".into(), node: Some("n".into()) }
    }

    #[track_caller]
    fn check(service: &ServiceIdentity, pod: Option<&PodContainer>, name: &str) {
        assert_eq!(labels(service, pod.map(Known::Pod), &place())["service_name"], name);
    }

    #[test]
    fn the_name_of_a_service_step_by_step() {
        const INSTANCE: (&str, &str) = ("app.kubernetes.io/instance", "instance");
        const NAME: (&str, &str) = ("app.kubernetes.io/name", "name");
        const OTEL: (&str, &str) = ("resource.opentelemetry.io/service.name", "otel");
        const PYROSCOPE: (&str, &str) = ("pyroscope.io/service_name", "pyroscope");
        let unnamed = service("unknown_service:sh", NamedBy::Executable, Some("x.service"));
        let told = service("told", NamedBy::Environment, None);
        let says = service("says", NamedBy::Context, None);
        let pod = |labels: &[_], annotations: &[_], owner: Option<(&str, &str)>| {
            let pod = Arc::new(PodFacts {
                namespace: "ns".into(),
                name: "p-1".into(),
                uid: "u".into(),
                labels: pairs(labels),
                annotations: pairs(annotations),
                owner: owner.map(|(kind, name)| (kind.to_owned(), name.to_owned())),
                ..PodFacts::default()
            });
            container(pod)
        };
        let owner = Some(("Deployment", "owner"));
        let all = [INSTANCE, NAME];
        check(&says, Some(&pod(&all, &[PYROSCOPE, OTEL], owner)), "pyroscope");
        check(&says, Some(&pod(&all, &[OTEL], owner)), "otel");
        let unset = ("pyroscope.io/service_name", "unknown_service:x");
        check(&says, Some(&pod(&all, &[unset], owner)), "says");
        check(&told, Some(&pod(&all, &[], owner)), "told");
        check(&unnamed, Some(&pod(&all, &[], owner)), "instance");
        check(&unnamed, Some(&pod(&[NAME], &[], owner)), "name");
        check(&unnamed, Some(&pod(&[], &[], owner)), "owner");
        check(&unnamed, Some(&pod(&[], &[], None)), "ebpf/ns/main");
        check(&unnamed, None, "x");
        check(
            &service("unknown_service:sh", NamedBy::Executable, None),
            None,
            "unknown_service:sh",
        );
        check(&ServiceIdentity::named("[kernel]"), None, "[kernel]");

        assert!(disagrees(&told, &pod(&all, &[], owner)));
        assert!(!disagrees(&unnamed, &pod(&all, &[], owner)));
        assert!(!disagrees(&service("owner", NamedBy::Context, None), &pod(&[], &[], owner)));
    }

    #[test]
    fn where_it_runs() {
        let facts = PodFacts { namespace: "ns".into(), name: "p".into(), ..PodFacts::default() };
        let pod = container(Arc::new(facts));
        let found = labels(&service("a", NamedBy::Context, None), Some(Known::Pod(&pod)), &place());
        let expected = [
            ("__name__", "process_cpu"),
            ("container", "main"),
            ("host", "h"),
            ("namespace", "ns"),
            ("node", "n"),
            ("pod", "p"),
            ("service_name", "a"),
        ];
        assert_eq!(found, pairs(&expected));

        let container = Container { ids: vec!["0123456789abcdef".into()], ..Container::default() };
        let origin = Origin {
            named_by: NamedBy::Context,
            container: Some(container),
            unit: None,
            exe: String::new(),
        };
        let docker =
            ServiceIdentity { origin: Some(Arc::new(origin)), ..ServiceIdentity::named("a") };
        let found = labels(&docker, None, &Place { host: "h".into(), node: None });
        let expected = [
            ("__name__", "process_cpu"),
            ("container_id", "0123456789ab"),
            ("host", "h"),
            ("service_name", "a"),
        ];
        assert_eq!(found, pairs(&expected));
        let named = EngineContainer { name: "web".into(), ..EngineContainer::default() };
        let place = Place { host: "h".into(), node: None };
        let found = labels(&docker, Some(Known::Engine(&named)), &place);
        let expected = [
            ("__name__", "process_cpu"),
            ("container", "web"),
            ("host", "h"),
            ("service_name", "a"),
        ];
        assert_eq!(found, pairs(&expected));
    }

    #[test]
    fn a_container_of_an_engine_names_its_service_before_the_unit_does() {
        let compose = ("com.docker.compose.service", "web");
        let container = |labels: &[_]| EngineContainer {
            name: "shop-web-1".into(),
            id: "aa".into(),
            labels: pairs(labels),
        };
        let name = |service: &ServiceIdentity, container: &EngineContainer| {
            labels(service, Some(Known::Engine(container)), &place())["service_name"].clone()
        };
        let unnamed = service("unknown_service:sh", NamedBy::Executable, Some("x.service"));
        assert_eq!(name(&unnamed, &container(&[compose])), "web");
        assert_eq!(name(&unnamed, &container(&[])), "shop-web-1");
        assert_eq!(name(&service("told", NamedBy::Environment, None), &container(&[])), "told");

        let container = container(&[compose]);
        let after = |label: &str| {
            let rule = format!("[{{source_labels: [{label}], target_label: seen}}]");
            let rules = crate::relabel::read(&rule).unwrap();
            relabelled(&rules, &unnamed, Some(Known::Engine(&container)), &place()).unwrap()
        };
        for (label, value) in [
            ("__meta_docker_container_name", "/shop-web-1"),
            ("__meta_docker_container_id", "aa"),
            ("__meta_docker_container_label_com_docker_compose_service", "web"),
        ] {
            assert_eq!(after(label)["seen"], value, "{label}");
        }
    }

    #[test]
    fn rules_see_what_prometheus_discovers_and_leave_what_a_server_takes() {
        let pod = container(Arc::new(PodFacts {
            namespace: "ns".into(),
            name: "p".into(),
            labels: pairs(&[("app.kubernetes.io/name", "shop"), ("team", "a")]),
            controller: Some(("ReplicaSet".into(), "shop-5d4f8".into())),
            ..PodFacts::default()
        }));
        let after = |yaml: &str| {
            let rules = crate::relabel::read(yaml).unwrap();
            let service = service("a", NamedBy::Context, None);
            relabelled(&rules, &service, Some(Known::Pod(&pod)), &place())
        };
        for (label, value) in [
            ("kubernetes_pod_label_app_kubernetes_io_name", "shop"),
            ("kubernetes_pod_labelpresent_team", "true"),
            ("kubernetes_pod_controller_kind", "ReplicaSet"),
            ("kubernetes_pod_container_id", "x://0"),
            ("kubernetes_pod_node_name", "n"),
            ("process_exe", "/bin/x"),
        ] {
            let rule = format!("[{{source_labels: [__meta_{label}], target_label: seen}}]");
            assert_eq!(after(&rule).unwrap()["seen"], value, "{label}");
        }
        assert_eq!(after("[{action: drop, source_labels: [namespace], regex: ns}]"), None);
        let bare = after("[{action: labelkeep, regex: pod}]").unwrap();
        let expected =
            [("__name__", "process_cpu"), ("pod", "p"), ("service_name", "unknown_service")];
        assert_eq!(bare, pairs(&expected));
        let many: String = (0..40)
            .map(|n| format!("{{target_label: z{n}, replacement: {}}},", "x".repeat(3000)))
            .collect();
        let many = after(&format!("[{many}]")).unwrap();
        assert_eq!((many.len(), many["service_name"].as_str()), (LABELS_MAX, "a"));
        assert!(many.values().all(|value| value.len() <= VALUE_MAX));
    }
}
