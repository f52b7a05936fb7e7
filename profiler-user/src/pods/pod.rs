//! What is kept of a pod.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// The most labels, and the most annotations, that are kept of a pod.
const PAIRS_MAX: usize = 64;
/// The most bytes of a value that is kept. Annotations can be configuration files.
const VALUE_MAX: usize = 256;
/// The most containers of a pod, those that ended included.
const CONTAINERS_MAX: usize = 256;

/// A pod: what its containers have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its unique id: another pod of the same name has another.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// What made it, by the name that people gave: kind and name.
    pub owner: Option<(String, String)>,
    /// What made it, as the pod says: kind and name.
    pub controller: Option<(String, String)>,
    /// Its address.
    pub ip: Option<String>,
    /// `Pending`, `Running`, `Succeeded`, `Failed`.
    pub phase: Option<String>,
}

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodContainer {
    /// The pod.
    pub pod: Arc<PodFacts>,
    /// The container's name in it.
    pub name: String,
    /// Its id, with the runtime's name before it, as in `containerd://<id>`.
    pub id: String,
    /// Its image.
    pub image: String,
}

/// What a pod's containers have in common. `None` if it lacks what every pod has.
pub(super) fn facts(pod: &Pod) -> Option<Arc<PodFacts>> {
    let metadata = &pod.metadata;
    let labels = kept(metadata.labels.as_ref());
    let controller = metadata.owner_references.as_ref().and_then(|owners| {
        let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
        Some((owner.kind.clone(), owner.name.clone()))
    });
    let status = pod.status.as_ref();
    Some(Arc::new(PodFacts {
        namespace: metadata.namespace.clone()?,
        name: metadata.name.clone()?,
        uid: metadata.uid.as_deref()?.to_ascii_lowercase(),
        annotations: kept(metadata.annotations.as_ref()),
        owner: controller.clone().map(|(kind, name)| owner(kind, name, &labels)),
        labels,
        controller,
        ip: status.and_then(|status| status.pod_ip.clone()),
        phase: status.and_then(|status| status.phase.clone()),
    }))
}

/// Its containers by their ids, without the runtime's name.
pub(super) fn containers(pod: &Pod, facts: &Arc<PodFacts>) -> Vec<(String, PodContainer)> {
    let status = pod.status.as_ref();
    let lists = status.map_or([None, None, None], |status| {
        [
            status.container_statuses.as_ref(),
            status.init_container_statuses.as_ref(),
            status.ephemeral_container_statuses.as_ref(),
        ]
    });
    lists
        .into_iter()
        .flatten()
        .flatten()
        .flat_map(|container| ids(container).map(move |id| (id, container)))
        .take(CONTAINERS_MAX)
        .map(|(id, container)| {
            let (name, image) = (container.name.clone(), container.image.clone());
            let key = id.rsplit_once("//").map_or(id.as_str(), |(_, id)| id).to_owned();
            (key, PodContainer { pod: Arc::clone(facts), name, id, image })
        })
        .collect()
}

/// Of the container that runs, and of the one before: its samples may still be under way.
fn ids(container: &ContainerStatus) -> impl Iterator<Item = String> {
    let ended = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
        state.as_ref()?.terminated.as_ref()?.container_id.clone()
    };
    [container.container_id.clone(), ended(&container.state), ended(&container.last_state)]
        .into_iter()
        .flatten()
        .filter(|id| !id.is_empty() && !id.ends_with('/') && id.len() <= VALUE_MAX)
}

/// Of labels and annotations, what is kept.
pub(crate) fn kept(pairs: Option<&BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let fits = |(_, value): &(&String, &String)| value.len() <= VALUE_MAX;
    let pairs = pairs.into_iter().flatten().filter(fits).take(PAIRS_MAX);
    pairs.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// A Deployment makes a `ReplicaSet` of its own name and a hash, which is a label of its pods too; a
/// `CronJob` a Job of its name and a number.
fn owner(kind: String, name: String, labels: &BTreeMap<String, String>) -> (String, String) {
    let is_number = |text: &str| text.len() >= 8 && text.bytes().all(|byte| byte.is_ascii_digit());
    let by_people = match kind.as_str() {
        "ReplicaSet" => labels
            .get("pod-template-hash")
            .and_then(|hash| name.strip_suffix(hash.as_str())?.strip_suffix('-'))
            .map(|name| ("Deployment", name)),
        "Job" => name
            .rsplit_once('-')
            .filter(|(name, number)| !name.is_empty() && is_number(number))
            .map(|(name, _)| ("CronJob", name)),
        _ => None,
    };
    let owned = by_people.map(|(kind, name)| (kind.to_owned(), name.to_owned()));
    owned.unwrap_or((kind, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    fn owned(kind: &str, name: &str) -> Option<(String, String)> {
        let pod = pod(json!({"metadata": {
            "namespace": "shop", "name": "p", "uid": "u",
            "labels": {"pod-template-hash": "5d4f8"},
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "1"},
                {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "2", "controller": true},
            ],
        }}));
        facts(&pod).unwrap().owner.clone()
    }

    #[test]
    fn who_owns_it() {
        let of = |kind: &str, name: &str| Some((kind.to_owned(), name.to_owned()));
        assert_eq!(owned("ReplicaSet", "cart-5d4f8"), of("Deployment", "cart"));
        assert_eq!(owned("ReplicaSet", "my-cart"), of("ReplicaSet", "my-cart"));
        assert_eq!(owned("StatefulSet", "db-0"), of("StatefulSet", "db-0"));
        assert_eq!(owned("Job", "report-28000001"), of("CronJob", "report"));
        assert_eq!(owned("Job", "report-v2"), of("Job", "report-v2"));
    }

    #[test]
    fn every_kind_of_container_and_the_one_before_has_its_id() {
        let status = |name: &str, id: &str| {
            json!({"name": name, "containerID": format!("containerd://{id}"),
                "image": "", "imageID": "", "ready": true, "restartCount": 0})
        };
        let mut restarted = status("main", "b");
        restarted["lastState"] = json!({"terminated": {"containerID": "cri-o://a", "exitCode": 1}});
        let pod = pod(json!({
            "metadata": {"namespace": "shop", "name": "p", "uid": "ABC"},
            "status": {
                "containerStatuses": [restarted],
                "initContainerStatuses": [status("init", "c")],
                "ephemeralContainerStatuses": [status("debug", "d")],
            },
        }));
        let facts = facts(&pod).unwrap();
        let found = containers(&pod, &facts);
        assert_eq!(found[1].1.id, "cri-o://a");
        assert_eq!(facts.uid, "abc");
        let names: Vec<_> = found.iter().map(|(id, it)| (id.as_str(), it.name.as_str())).collect();
        assert_eq!(names, [("b", "main"), ("a", "main"), ("c", "init"), ("d", "debug")]);
    }

    #[test]
    fn a_pod_without_a_status_has_no_containers_and_large_values_are_left_out() {
        let value = pod(json!({"metadata": {"namespace": "shop", "name": "p", "uid": "u",
            "annotations": {"a": "1", "b": "x".repeat(1000)}}}));
        let kept = facts(&value).unwrap();
        assert!(containers(&value, &kept).is_empty());
        assert_eq!(kept.annotations.len(), 1);
        assert!(facts(&pod(json!({"metadata": {}}))).is_none());
    }
}
