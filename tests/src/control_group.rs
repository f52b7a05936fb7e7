//! Control groups as a container runtime makes them, and one that accounts for what is in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::agent::poll_until;

const ROOT: &str = "/sys/fs/cgroup";

/// A container's, gone with the processes in it.
#[derive(Debug)]
pub struct ControlGroup {
    /// From the inside out.
    paths: [PathBuf; 3],
}

impl ControlGroup {
    /// As the container runtime makes it for a container of a pod.
    ///
    /// # Errors
    ///
    /// There is no hierarchy of version 2, or it cannot be written.
    pub fn of(pod_uid: &str, container_id: &str) -> Result<Self> {
        Self::below(&format!("pod{pod_uid}"), container_id)
    }

    /// As Docker makes it.
    ///
    /// # Errors
    ///
    /// As [`of`](Self::of).
    pub fn of_docker(container_id: &str) -> Result<Self> {
        Self::below("docker", container_id)
    }

    fn below(parent: &str, container_id: &str) -> Result<Self> {
        let top = unified()?.join(format!("spanprof-test-{}", std::process::id()));
        let parent = top.join(parent);
        let paths = [parent.join(container_id), parent, top];
        fs::create_dir_all(&paths[0])?;
        Ok(Self { paths })
    }

    /// A command that is in it from its first instruction on: a program's name and arguments follow.
    #[must_use]
    pub fn command(&self) -> Command {
        inside(&[self.paths[0].clone()])
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let [group, parents @ ..] = &self.paths;
        drop(fs::write(group.join("cgroup.kill"), "1"));
        remove(group);
        for parent in parents {
            // That is refused while another container of it is there.
            drop(fs::remove_dir(parent));
        }
    }
}

/// A group whose processor time and memory the kernel counts.
#[derive(Debug)]
pub struct Accounted {
    version_1: bool,
    /// Of version 1: that of processor time, then that of memory.
    groups: Vec<PathBuf>,
}

impl Accounted {
    /// Makes it.
    ///
    /// # Errors
    ///
    /// No hierarchy has the controllers.
    pub fn create() -> Result<Self> {
        let name = format!("spanprof-accounted-{}", std::process::id());
        let version_1 = ["cpuacct", "memory"].map(|controller| Path::new(ROOT).join(controller));
        let is_version_1 = version_1.iter().all(|controller| controller.is_dir());
        let parents = if is_version_1 { version_1.to_vec() } else { vec![unified()?] };
        if let [root] = &*parents {
            let control = root.join("cgroup.subtree_control");
            fs::write(control, "+cpu +memory").context("no controllers")?;
        }
        let groups: Vec<PathBuf> = parents.iter().map(|parent| parent.join(&name)).collect();
        for group in &groups {
            fs::create_dir(group).with_context(|| format!("cannot make {}", group.display()))?;
        }
        Ok(Self { version_1: is_version_1, groups })
    }

    /// A command that is in it from its first instruction on: a program's name and arguments follow.
    #[must_use]
    pub fn command(&self) -> Command {
        inside(&self.groups)
    }

    /// Processor time until now, in nanoseconds.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn cpu_ns(&self) -> Result<u64> {
        let [group, ..] = &*self.groups else { return Ok(0) };
        if self.version_1 {
            return number(&group.join("cpuacct.usage"));
        }
        let stat = fs::read_to_string(group.join("cpu.stat"))?;
        let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(usage.context("no usage_usec")?.trim().parse::<u64>()? * 1000)
    }

    /// Memory now, in bytes, that of the kernel for it (BPF maps) included, file pages that can go at
    /// once not.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn memory(&self) -> Result<u64> {
        let group = self.groups.last().context("no group")?;
        let name = if self.version_1 { "memory.usage_in_bytes" } else { "memory.current" };
        let stat = fs::read_to_string(group.join("memory.stat"))?;
        let inactive = stat.lines().find_map(|line| line.strip_prefix("inactive_file "));
        let inactive: u64 = inactive.context("no inactive_file")?.trim().parse()?;
        Ok(number(&group.join(name))?.saturating_sub(inactive))
    }
}

impl Drop for Accounted {
    fn drop(&mut self) {
        for group in &self.groups {
            drop(fs::write(group.join("cgroup.kill"), "1"));
            remove(group);
        }
    }
}

fn number(path: &Path) -> Result<u64> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim().parse()?)
}

fn remove(group: &Path) {
    let gone =
        poll_until("a control group is empty", || Ok(fs::remove_dir(group).is_ok().then_some(())));
    drop(gone);
}

/// The hierarchy of version 2.
fn unified() -> Result<PathBuf> {
    let candidates = [Path::new(ROOT).join("unified"), PathBuf::from(ROOT)];
    let found = candidates.into_iter().find(|it| it.join("cgroup.procs").exists());
    let found = found.context("there are no control groups of version 2")?;
    ensure!(found.is_dir(), "{} is no folder", found.display());
    Ok(found)
}

fn inside(groups: &[PathBuf]) -> Command {
    let script = "while [ \"$1\" != -- ]; do echo $$ > \"$1/cgroup.procs\" || exit; shift; done; \
        shift; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).args(groups).arg("--");
    command
}
