//! What relabelling may look at: the labels that Prometheus and Alloy discover for a pod's container
//! and for a process, by the same names.

use super::series::{Labels, Place};
use crate::pods::PodContainer;
use crate::process::ServiceIdentity;
use crate::relabel::sanitized;

/// Adds them. What is not known is not there, which means empty to a rule.
pub(super) fn add(
    labels: &mut Labels,
    service: &ServiceIdentity,
    pod: Option<&PodContainer>,
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
    let Some(container) = pod else { return };
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
