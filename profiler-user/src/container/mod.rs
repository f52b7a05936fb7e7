//! Which container a process is in, by its control groups: `/proc/PID/cgroup`. Pure.
//!
//! A runtime makes a control group for each container, and its path holds the container's id. A
//! container can make groups below its own, and call them what it likes: so ids are kept from the
//! outside to the inside, and the outermost that is known to be a pod's container counts.

mod cgroup;

use serde::{Deserialize, Serialize};

pub use cgroup::Cgroup;

/// The most ids that a path is looked at for: nested clusters have two.
pub const IDS_MAX: usize = 4;

/// What the path of a process's control group says of its container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Container {
    /// Ids that may be the container's, from the outside to the inside; never empty.
    pub ids: Vec<String>,
    /// How many of them are outside of the first part of the path that names a pod; all, if none
    /// does.
    pub outside_of_pod: usize,
    /// The unique id of the pod in the path: lower case, with dashes. Unset in a pod of which the
    /// path does not show that part.
    pub pod_uid: Option<String>,
    /// It is below `user.slice`, where a user without any right over the host makes groups and calls
    /// them as they like.
    #[serde(default)]
    pub of_user: bool,
}

impl Container {
    /// The id if nobody knows better: the outermost in the pod, or the outermost at all.
    #[must_use]
    pub fn id(&self) -> &str {
        let in_pod = self.ids.get(self.outside_of_pod);
        in_pod.or(self.ids.first()).map_or("", String::as_str)
    }
}
