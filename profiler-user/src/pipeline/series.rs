//! Which series a service's samples belong to: its labels, by what is known of its container.

use std::collections::BTreeMap;

use crate::pods::PodContainer;
use crate::process::{NamedBy, Origin, ServiceIdentity, said};

/// How much of a container's id is shown of one that has no name, as the runtimes do.
const SHORT_ID: usize = 12;

/// Labels by name.
pub type Labels = BTreeMap<String, String>;

/// The host or the node.
#[derive(Clone, Debug)]
pub struct Place {
    /// Label `host`.
    pub host: String,
    /// Label `node`, in a cluster.
    pub node: Option<String>,
}

/// The labels of a series. `pod` is unset where the container is not known to be a pod's.
///
/// The name of the service is the first of these that is set (a name that begins with
/// `unknown_service` is not): the pod's annotation `pyroscope.io/service_name`; its annotation
/// `resource.opentelemetry.io/service.name`; what the process says; what its environment says; the
/// pod's labels `app.kubernetes.io/instance`, then `/name`; what made the pod; namespace and
/// container; the systemd unit; the executable.
///
/// Where a pod is, only the API server says: no process can name another one.
#[must_use]
pub fn labels(service: &ServiceIdentity, pod: Option<&PodContainer>, place: &Place) -> Labels {
    let mut labels = Labels::new();
    let mut set = |name: &str, value: &str| labels.insert(name.to_owned(), value.to_owned());
    set("__name__", "process_cpu");
    for (name, value) in service.labels() {
        set(name, value);
    }
    let origin = service.origin.as_deref();
    set("service_name", &service_name(service, origin, pod));
    set("host", &place.host);
    if let Some(node) = &place.node {
        set("node", node);
    }
    match (pod, service.container()) {
        (Some(container), _) => {
            set("namespace", &container.pod.namespace);
            set("pod", &container.pod.name);
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

fn service_name(
    service: &ServiceIdentity,
    origin: Option<&Origin>,
    pod: Option<&PodContainer>,
) -> String {
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
    pod.map(name_of_pod)
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
    use std::sync::Arc;

    use super::*;
    use crate::container::Container;
    use crate::pods::PodFacts;

    fn service(name: &str, named_by: NamedBy, unit: Option<&str>) -> ServiceIdentity {
        let origin = Origin { named_by, container: None, unit: unit.map(str::to_owned) };
        ServiceIdentity { origin: Some(Arc::new(origin)), ..ServiceIdentity::named(name) }
    }

    fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn place() -> Place {
        Place { host: "h".into(), node: Some("n".into()) }
    }

    #[track_caller]
    fn check(service: &ServiceIdentity, pod: Option<&PodContainer>, name: &str) {
        assert_eq!(labels(service, pod, &place())["service_name"], name);
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
            });
            PodContainer { pod, name: "main".into() }
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
        let pod = PodContainer { pod: Arc::new(facts), name: "main".into() };
        let found = labels(&service("a", NamedBy::Context, None), Some(&pod), &place());
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
        let origin = Origin { named_by: NamedBy::Context, container: Some(container), unit: None };
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
    }
}
