//! The control groups of the cluster: by them everything of it ends.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::agent::poll_until;

/// The one that the kubelet makes.
const PODS: &str = "kubepods";
const ROOT: &str = "/sys/fs/cgroup";

/// The groups.
#[derive(Debug)]
pub(super) struct ControlGroups {
    /// Of the version 2 hierarchy: the cluster's own and the one of its pods.
    killable: [PathBuf; 2],
    name: String,
}

impl ControlGroups {
    /// Makes the cluster's own, named after its folder.
    pub(super) fn create(folder: &Path) -> Result<Self> {
        let name = folder.file_name().and_then(|name| name.to_str()).context("no name")?;
        let unified = Path::new(ROOT).join("unified");
        let root = if unified.is_dir() { unified } else { PathBuf::from(ROOT) };
        let pods = root.join(PODS);
        ensure!(
            !pods.exists() || is_empty(&pods),
            "{} is in use: this machine is a node, or a test of before was killed",
            pods.display()
        );
        let own = root.join(name);
        fs::create_dir(&own).with_context(|| format!("cannot make {}", own.display()))?;
        Ok(Self { killable: [own, pods], name: name.to_owned() })
    }

    /// Where a process writes its id to be in the cluster's.
    pub(super) fn processes(&self) -> PathBuf {
        self.killable[0].join("cgroup.procs")
    }

    /// Ends all that is in them, first what could start more, and removes them from every hierarchy.
    pub(super) fn kill(&self) {
        for group in self.killable.iter().filter(|group| group.is_dir()) {
            drop(fs::write(group.join("cgroup.kill"), "1"));
            drop(poll_until("a control group is empty", || Ok(is_empty(group).then_some(()))));
        }
        let hierarchies = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|it| it.path());
        for hierarchy in hierarchies.chain([PathBuf::from(ROOT)]) {
            for name in [self.name.as_str(), PODS] {
                remove(&hierarchy.join(name));
            }
        }
    }
}

fn is_empty(group: &Path) -> bool {
    let events = fs::read_to_string(group.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 0")
}

/// Removes a group and those in it.
fn remove(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    // One that is not there is what is wanted.
    drop(fs::remove_dir(group));
}
