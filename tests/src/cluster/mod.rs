//! A real cluster of one node: etcd, Kubernetes, containerd and runc, as a user's nodes have them.
//!
//! It lives in a network and a mount namespace that the calling thread enters, so that what the test
//! starts from then on is beside it; process ids stay the host's, as a profiler of the host must see
//! them. Nothing of it is left: no process, mount, address or control group.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::agent::{Process, poll_until};
use crate::child::log_end;

mod control_groups;
mod files;
mod image;
mod namespaces;
mod pki;

use control_groups::ControlGroups;

/// The node.
pub const NODE: &str = "node1";
/// The node's address, which its pods can reach.
pub const NODE_ADDRESS: &str = "10.66.0.1";
/// The `ClusterIP` of the service `kubernetes`. As an address of the node, with the API server on its
/// port, it needs no kube-proxy.
const API_ADDRESS: &str = "10.96.0.1";
/// The runtime class whose containers have control group namespaces of their own, as containerd
/// makes them where there is only version 2.
pub const PRIVATE_CGROUP: &str = "private-cgroup";

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Programs {
    /// etcd and Kubernetes, by the name that it is called by.
    pub kubernetes: PathBuf,
    /// `containerd`: installed, or as set-up unpacks it.
    pub containerd: PathBuf,
    /// `runc`.
    pub runc: PathBuf,
    /// The plugin `bridge` of CNI, as set-up unpacks it.
    pub cni: PathBuf,
    /// The program `runc-private-cgroup`.
    pub runc_private_cgroup: PathBuf,
    /// The program `pause`.
    pub pause: PathBuf,
}

impl Programs {
    /// The folder of a program that came with others: it, or what its wrapper calls.
    fn folder(program: &Path, other: &str, unpacked: &str) -> Result<PathBuf> {
        let beside = program.parent().context("a program in no folder")?;
        let below = beside.join("..").join(unpacked);
        let folder = [beside.to_owned(), below].into_iter().find(|it| it.join(other).is_file());
        folder.with_context(|| format!("{} has no {other}", program.display()))
    }
}

/// A cluster at work. It stays on the thread that started it.
#[derive(Debug)]
pub struct Cluster {
    // In the order in which they have to go: the processes end with the groups.
    groups: ControlGroups,
    folder: TempDir,
    _on_this_thread: std::marker::PhantomData<*const ()>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.groups.kill();
        namespaces::unmount_below(self.folder.path());
    }
}

impl Cluster {
    /// Starts it, and waits until pods can be scheduled.
    ///
    /// # Errors
    ///
    /// A part of it does not start; the end of its log is in the error.
    pub fn start(programs: &Programs) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("spanprof-k8s-").tempdir()?;
        let path = folder.path().to_owned();
        let groups = ControlGroups::create(&path)?;
        namespaces::enter(&path, &[API_ADDRESS, NODE_ADDRESS])?;
        let cluster = Self { groups, folder, _on_this_thread: std::marker::PhantomData };
        pki::write(&path)?;
        files::write(&path, programs)?;
        for name in [
            "etcd",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kubectl",
        ] {
            symlink(&programs.kubernetes, path.join("bin").join(name))?;
        }
        cluster.start_parts(programs)?;
        Ok(cluster)
    }

    fn start_parts(&self, programs: &Programs) -> Result<()> {
        self.run(
            "etcd",
            &["--data-dir=etcd", "--unsafe-no-fsync", "--listen-peer-urls=http://127.0.0.1:2380"],
        )?;
        self.run("containerd", &["-c", "containerd.toml"])?;
        self.run("kube-apiserver", &files::API_SERVER)?;
        self.ready("kube-apiserver", &["get", "--raw", "/readyz"])?;
        self.run("kube-controller-manager", &files::CONTROLLER_MANAGER)?;
        self.run("kube-scheduler", &files::SCHEDULER)?;
        poll_until("containerd", || Ok(self.ctr(&["version"]).is_ok().then_some(())))
            .with_context(|| self.log("containerd"))?;
        self.import_program("pause", &programs.pause)?;
        let root = format!("--root-dir={}", self.path().join("kubelet").display());
        self.run("kubelet", &[&files::KUBELET[..], &[&root]].concat())?;
        self.ready("kubelet", &["wait", "--for=condition=Ready", "node/node1", "--timeout=1s"])?;
        poll_until("the node takes pods", || {
            let taints =
                self.kubectl(&["get", "node", NODE, "-o", "jsonpath={.spec.taints}"], None)?;
            Ok((taints.is_empty()).then_some(()))
        })?;
        self.ready("kube-controller-manager", &["get", "serviceaccount", "default"])
    }

    /// Everything of it is below this.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Imports an image, as if it had been pulled.
    ///
    /// # Errors
    ///
    /// containerd does not take it.
    pub fn import(&self, image: &Path) -> Result<()> {
        self.ctr(&["images", "import", image.to_str().context("a path that is not UTF-8")?])
    }

    /// Makes an image of a program and its libraries, imports it, and gives its full name.
    ///
    /// # Errors
    ///
    /// It cannot be read, or containerd does not take the image.
    pub fn import_program(&self, name: &str, program: &Path) -> Result<String> {
        let image = self.path().join(format!("{name}.tar"));
        image::of_program(&image, name, program)?;
        self.import(&image)?;
        Ok(image::full_name(name))
    }

    fn ctr(&self, arguments: &[&str]) -> Result<()> {
        let mut ctr = self.command("ctr");
        ctr.arg("-a").arg(self.path().join("containerd.sock")).args(["-n", "k8s.io"]);
        let done = ctr.args(arguments).output()?;
        let error = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "ctr {arguments:?}: {error}");
        Ok(())
    }

    /// Runs `kubectl` with every right, with this text on its standard input; gives what it prints.
    ///
    /// # Errors
    ///
    /// It fails; what it says is in the error.
    pub fn kubectl(&self, arguments: &[&str], input: Option<&str>) -> Result<String> {
        let file = self.path().join("input");
        fs::write(&file, input.unwrap_or_default())?;
        let mut command = self.command("kubectl");
        let done = command.args(arguments).stdin(fs::File::open(&file)?).output()?;
        let error = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "kubectl {arguments:?}: {error}");
        Ok(String::from_utf8(done.stdout)?)
    }

    /// Runs `kubectl` until it is told to end, with its output in this file.
    ///
    /// # Errors
    ///
    /// It cannot be run.
    pub fn follow(&self, arguments: &[&str], output: &Path) -> Result<Process> {
        Process::start(self.command("kubectl").args(arguments).stdout(fs::File::create(output)?))
    }

    /// The requests that the API server has answered, as it wrote them down.
    ///
    /// # Errors
    ///
    /// They are not there, or not JSON.
    pub fn audit(&self) -> Result<Vec<serde_json::Value>> {
        let text = fs::read_to_string(self.path().join("audit.log"))?;
        // The last line may be under way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// A program that runs in the cluster's group and folder.
    fn command(&self, name: &str) -> Command {
        let path = self.path();
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.groups.processes())
            .arg(path.join("bin").join(name))
            .current_dir(path)
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", path.join("bin").display()))
            .env("KUBECONFIG", path.join("pki/admin.conf"))
            .env("KUBECACHEDIR", path.join("kubecache"))
            .env("HOME", path)
            .stdin(Stdio::null());
        command
    }

    /// Starts a part of the cluster, which ends with its group.
    fn run(&self, name: &str, arguments: &[&str]) -> Result<()> {
        let log = fs::File::create(self.path().join(format!("{name}.log")))?;
        let mut command = self.command(name);
        command.args(arguments).stdout(log.try_clone()?).stderr(log);
        command.spawn().map(drop).with_context(|| format!("cannot run {name}"))
    }

    fn ready(&self, part: &str, question: &[&str]) -> Result<()> {
        let ready = poll_until(part, || Ok(self.kubectl(question, None).is_ok().then_some(())));
        ready.with_context(|| self.log(part))
    }

    fn log(&self, part: &str) -> String {
        format!("{part}:\n{}", log_end(&self.path().join(format!("{part}.log"))))
    }
}
