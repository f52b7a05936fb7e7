//! What relabelling may look at: the labels that Prometheus and Alloy discover for a pod's container
//! and for a process, by the same names.

use super::series::{Known, Labels, Place};
use crate::process::ServiceIdentity;
use crate::relabel::sanitized;

/// Adds them. What is not known is not there, which means empty to a rule.
pub(super) fn add(
    labels: &mut Labels,
    service: &ServiceIdentity,
    known: Option<Known<'_>>,
    place: &Place,
) {
    let mut set = |name: String, value: &str| {
        if !value.is_empty() {
            labels.insert(name, value.to_owned());
        }
    };
    if let Some(origin) = service.origin.as_deref() {
        set("__meta_process_exe".to_owned(), &origin.exe);
        let container = origin.container.as_ref();
        set("__container_id__".to_owned(), container.map_or("", |container| container.id()));
        set("__meta_process_container_id".to_owned(), container.map_or("", |it| it.id()));
    }
    let container = match known {
        Some(Known::Pod(container)) => container,
        Some(Known::Engine(container)) => {
            let mut of_container = |name: &str, value: &str| {
                set(format!("__meta_docker_container_{name}"), value);
            };
            of_container("id", &container.id);
            // With the slash that Docker puts before it.
            of_container("name", &format!("/{}", container.name));
            for (key, value) in &container.labels {
                of_container(&format!("label_{}", sanitized(key)), value);
            }
            return;
        }
        None => return,
    };
    let facts = &container.pod;
    set("__meta_kubernetes_namespace".to_owned(), &facts.namespace);
    let mut of_pod = |name: &str, value: Option<&str>| {
        set(format!("__meta_kubernetes_pod_{name}"), value.unwrap_or_default());
    };
    of_pod("name", Some(&facts.name));
    of_pod("uid", Some(&facts.uid));
    of_pod("node_name", place.node.as_deref());
    of_pod("ip", facts.ip.as_deref());
    of_pod("phase", facts.phase.as_deref());
    of_pod("container_name", Some(&container.name));
    of_pod("container_id", Some(&container.id));
    of_pod("container_image", Some(&container.image));
    of_pod("controller_kind", facts.controller.as_ref().map(|(kind, _)| kind.as_str()));
    of_pod("controller_name", facts.controller.as_ref().map(|(_, name)| name.as_str()));
    for (what, pairs) in [("label", &facts.labels), ("annotation", &facts.annotations)] {
        for (key, value) in pairs {
            let key = sanitized(key);
            of_pod(&format!("{what}_{key}"), Some(value));
            of_pod(&format!("{what}present_{key}"), Some("true"));
        }
    }
}
