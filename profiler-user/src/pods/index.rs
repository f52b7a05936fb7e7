//! The pods by the ids of their containers.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Pod;

use super::pod::{PodContainer, containers, facts};
use crate::container::Container;

/// The most pods; a node runs some hundred.
const PODS_MAX: usize = 4096;
/// How many containers are remembered that are gone: their last samples are still under way.
const GONE_MAX: usize = 1024;

/// The pods of a node.
#[derive(Debug, Default)]
pub struct PodIndex {
    /// By the pods' unique ids, the ids of their containers.
    pods: HashMap<String, Vec<String>>,
    containers: HashMap<String, Arc<PodContainer>>,
    /// Containers that are gone, the longest first.
    gone: VecDeque<String>,
    /// Pods that a list has named so far.
    listed: Option<HashSet<String>>,
    /// Pods that had no room.
    pub refused: u64,
}

/// What is known of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// This is it.
    Known(Arc<PodContainer>),
    /// Nothing, so far.
    Unknown,
    /// A container of another pod than its path says: the path was made up.
    OtherPod,
}

impl PodIndex {
    /// A list begins: pods that it does not name are gone.
    pub fn list_begins(&mut self) {
        self.listed = Some(HashSet::new());
    }

    /// A list is complete.
    pub fn list_ends(&mut self) {
        let Some(listed) = self.listed.take() else { return };
        let gone: Vec<String> =
            self.pods.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
        for uid in gone {
            self.remove_uid(&uid);
        }
    }

    /// A pod is there, or has changed.
    pub fn add(&mut self, pod: &Pod) {
        let Some(facts) = facts(pod) else { return };
        let found = containers(pod, &facts);
        if let Some(listed) = &mut self.listed
            && listed.len() < PODS_MAX
        {
            listed.insert(facts.uid.clone());
        }
        if self.pods.len() >= PODS_MAX && !self.pods.contains_key(&facts.uid) {
            self.refused += 1;
            return;
        }
        let ids: Vec<String> = found.iter().map(|(id, _)| id.clone()).collect();
        let before = self.pods.insert(facts.uid.clone(), ids.clone()).unwrap_or_default();
        for id in before.into_iter().filter(|id| !ids.contains(id)) {
            self.is_gone(id);
        }
        for (id, container) in found {
            // One that is back, after a list that did not name it, is not gone any more.
            if self.containers.insert(id.clone(), Arc::new(container)).is_some() {
                self.gone.retain(|gone| *gone != id);
            }
        }
    }

    /// A pod is gone.
    pub fn remove(&mut self, pod: &Pod) {
        if let Some(uid) = &pod.metadata.uid {
            self.remove_uid(&uid.to_ascii_lowercase());
        }
    }

    fn remove_uid(&mut self, uid: &str) {
        for id in self.pods.remove(uid).unwrap_or_default() {
            self.is_gone(id);
        }
    }

    fn is_gone(&mut self, id: String) {
        self.gone.push_back(id);
        while self.gone.len() > GONE_MAX {
            if let Some(id) = self.gone.pop_front() {
                self.containers.remove(&id);
            }
        }
    }

    /// The container: the outermost id that is known. If the path names a pod, it is that one's.
    #[must_use]
    pub fn find(&self, container: &Container) -> Found {
        let mut known = container.ids.iter().filter_map(|id| self.containers.get(id));
        match known.next() {
            Some(found) if container.pod_uid.as_ref().is_none_or(|uid| *uid == found.pod.uid) => {
                Found::Known(Arc::clone(found))
            }
            Some(_) => Found::OtherPod,
            None => Found::Unknown,
        }
    }

    /// How many pods there are, and how many containers are known.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        (self.pods.len(), self.containers.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, uid: &str, ids: &[&str]) -> Pod {
        let statuses: Vec<_> = ids
            .iter()
            .map(|id| {
                json!({"name": "main", "containerID": format!("containerd://{id}"), "image": "",
                    "imageID": "", "ready": true, "restartCount": 0})
            })
            .collect();
        serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": name, "uid": uid},
            "status": {"containerStatuses": statuses},
        }))
        .unwrap()
    }

    fn container(ids: &[&str], pod_uid: Option<&str>) -> Container {
        Container {
            ids: ids.iter().map(|&id| id.to_owned()).collect(),
            outside_of_pod: 0,
            of_user: false,
            pod_uid: pod_uid.map(str::to_owned),
        }
    }

    #[track_caller]
    fn check(index: &PodIndex, id: &str, expected: Option<&str>) {
        let found = match index.find(&container(&[id], None)) {
            Found::Known(found) => Some(found.pod.uid.clone()),
            Found::Unknown | Found::OtherPod => None,
        };
        assert_eq!(found.as_deref(), expected, "{id}");
    }

    #[test]
    fn a_pod_that_is_made_again_under_its_name_is_another() {
        let mut index = PodIndex::default();
        index.add(&pod("db-0", "u1", &["a"]));
        index.remove(&pod("db-0", "u1", &["a"]));
        index.add(&pod("db-0", "u2", &["b"]));
        check(&index, "a", Some("u1"));
        check(&index, "b", Some("u2"));
        check(&index, "c", None);
    }

    #[test]
    fn a_container_that_was_restarted_is_remembered() {
        let mut index = PodIndex::default();
        index.add(&pod("p", "u", &["a"]));
        index.add(&pod("p", "u", &["b"]));
        check(&index, "a", Some("u"));
        check(&index, "b", Some("u"));
        for n in 0..GONE_MAX {
            let id = format!("c{n}");
            index.add(&pod("q", "v", &[&id]));
        }
        check(&index, "b", Some("u"));
        index.add(&pod("q", "v", &[]));
        check(&index, "a", None);
        assert!(index.containers.len() <= GONE_MAX + 2 && index.gone.len() <= GONE_MAX);
    }

    #[test]
    fn a_container_that_is_back_is_not_forgotten_with_those_that_are_gone() {
        let mut index = PodIndex::default();
        index.add(&pod("p", "u", &["a"]));
        index.list_begins();
        index.list_ends();
        index.add(&pod("p", "u", &["a"]));
        for n in 0..=GONE_MAX {
            index.add(&pod("q", "v", &[&format!("c{n}")]));
        }
        index.add(&pod("q", "v", &[]));
        check(&index, "a", Some("u"));
        assert!(index.gone.len() <= GONE_MAX);
    }

    #[test]
    fn what_a_new_list_does_not_name_is_gone_and_nothing_is_before_its_end() {
        let mut index = PodIndex::default();
        index.add(&pod("p", "u", &["a"]));
        index.add(&pod("q", "v", &["b"]));
        index.list_begins();
        index.add(&pod("q", "v", &["b"]));
        assert_eq!(index.len().0, 2);
        index.list_ends();
        assert_eq!(index.len(), (1, 2));
        // A list that breaks off and begins again.
        index.list_begins();
        index.list_begins();
        index.add(&pod("q", "v", &["b"]));
        index.list_ends();
        assert_eq!(index.len().0, 1);
    }

    #[test]
    fn a_name_made_up_inside_of_a_container_is_not_believed() {
        let mut index = PodIndex::default();
        index.add(&pod("mine", "u1", &["a"]));
        index.add(&pod("other", "u2", &["d"]));
        let Found::Known(found) = index.find(&container(&["a", "d"], Some("u1"))) else {
            panic!("not found");
        };
        assert_eq!(found.pod.name, "mine");
        // The outer one is not known yet: the inner one is another pod's.
        index.containers.remove("a");
        assert_eq!(index.find(&container(&["a", "d"], Some("u1"))), Found::OtherPod);
    }

    #[test]
    fn pods_are_bounded() {
        let mut index = PodIndex::default();
        for n in 0..=PODS_MAX {
            index.add(&pod("p", &format!("u{n}"), &[]));
        }
        assert_eq!((index.len().0, index.refused), (PODS_MAX, 1));
    }
}
