//! A real API server of Kubernetes with its etcd, and nothing else of a cluster: pods are there
//! because the test says so. Loopback only; everything ends with the test.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agent::{Process, poll_until};
use crate::child::log_end;
use crate::own_mounts;
use crate::ports::free_ports;

/// Who may do everything.
const ADMIN: &str = "admin-token";
/// Who may list and watch pods.
const AGENT: &str = "agent-token";
/// The node that all pods are on.
pub const NODE: &str = "node-1";

/// The server.
#[derive(Debug)]
pub struct ApiServer {
    folder: TempDir,
    port: u16,
    etcd_port: u16,
    server: Option<Process>,
    _etcd: Process,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // If it cannot be ended it is gone.
        drop(self.kill());
    }
}

impl ApiServer {
    /// Starts it, and gives the agent's account the right to list and watch pods. `binary` is every
    /// program of Kubernetes, by the name that it is called by.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub fn start(binary: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("spanprof-api-").tempdir()?;
        for name in ["etcd", "kube-apiserver", "kubectl"] {
            symlink(binary, folder.path().join(name))?;
        }
        let key = rcgen::KeyPair::generate()?;
        fs::write(folder.path().join("accounts.key"), key.serialize_pem())?;
        fs::write(folder.path().join("accounts.pub"), key.public_key_pem())?;
        let tokens = format!("{ADMIN},admin,1,system:masters\n{AGENT},agent,2\n");
        fs::write(folder.path().join("tokens.csv"), tokens)?;
        let [port, etcd_port, peer_port] = free_ports()?;
        let (client, peer) =
            (format!("http://127.0.0.1:{etcd_port}"), format!("http://127.0.0.1:{peer_port}"));
        let etcd = Process::start(program(folder.path(), "etcd").args([
            "--data-dir=etcd-data",
            "--unsafe-no-fsync",
            &format!("--listen-client-urls={client}"),
            &format!("--advertise-client-urls={client}"),
            &format!("--listen-peer-urls={peer}"),
            &format!("--initial-advertise-peer-urls={peer}"),
            &format!("--initial-cluster=default={peer}"),
        ]))?;
        let mut server = Self { folder, port, etcd_port, server: None, _etcd: etcd };
        server.start_server()?;
        server.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": "agent"},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}],
        }))?;
        server.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "agent"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "agent"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "agent"}],
        }))?;
        Ok(server)
    }

    /// Ends the API server at once, as a machine goes away; what it knew stays. (Asked to end, it
    /// waits a minute for those who watch.)
    ///
    /// # Errors
    ///
    /// It does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.server.take().map_or(Ok(()), |mut server| server.kill())
    }

    /// Nobody can go on from what was seen until now: who tries is told to list anew (410).
    ///
    /// # Errors
    ///
    /// The store refuses.
    pub fn forget_history(&self) -> Result<()> {
        let http = reqwest::blocking::Client::builder().no_proxy().build()?;
        let ask = |what: &str, body: &Value| -> Result<Value> {
            let url = format!("http://127.0.0.1:{}/v3/kv/{what}", self.etcd_port);
            let answer = http.post(url).body(body.to_string()).send()?.error_for_status()?;
            Ok(serde_json::from_str(&answer.text()?)?)
        };
        // Base64. A change after the last one that anybody watches, and one more.
        let (key, value) = ("c3BhbnByb2Y=", "MQ==");
        ask("put", &json!({"key": key, "value": value}))?;
        let put = ask("put", &json!({"key": key, "value": value}))?;
        let revision = put["header"]["revision"].as_str().context("a put without a revision")?;
        ask("compaction", &json!({"revision": revision, "physical": true})).map(drop)
    }

    /// It takes connections, and says nothing, until [`resume`](Self::resume).
    ///
    /// # Errors
    ///
    /// It cannot be stopped.
    pub fn pause(&self) -> Result<()> {
        self.server.as_ref().map_or(Ok(()), |server| server.signal(Signal::STOP))
    }

    /// It answers again.
    ///
    /// # Errors
    ///
    /// It cannot be told.
    pub fn resume(&self) -> Result<()> {
        self.server.as_ref().map_or(Ok(()), |server| server.signal(Signal::CONT))
    }

    /// Starts it at the address that it had.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub fn start_server(&mut self) -> Result<()> {
        let mut command = program(self.folder.path(), "kube-apiserver");
        command.args([
            &*format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            &format!("--secure-port={}", self.port),
            "--bind-address=127.0.0.1",
            "--cert-dir=certificates",
            "--token-auth-file=tokens.csv",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file=accounts.pub",
            "--service-account-signing-key-file=accounts.key",
            "--service-cluster-ip-range=10.96.0.0/24",
        ]);
        self.server = Some(Process::start(&mut command)?);
        let ready = poll_until("the API server is ready", || {
            if let Some(status) = self.server.as_mut().map(Process::ended).transpose()?.flatten() {
                anyhow::bail!("the API server ended with {status}");
            }
            Ok(self.kubectl(&["get", "--raw=/readyz"], None).ok())
        });
        ready.map(drop).with_context(|| self.log_end())
    }

    /// Makes a pod on the node, and says that its container `main` runs; gives the pod's unique id.
    ///
    /// # Errors
    ///
    /// The server refuses.
    pub fn run_pod(&self, pod: &Value, container_id: &str) -> Result<String> {
        let made = self.kubectl(&["create", "-o", "json", "-f", "-"], Some(pod))?;
        let made: Value = serde_json::from_str(&made).context("kubectl prints no JSON")?;
        let metadata = &made["metadata"];
        let text = |name: &str| metadata[name].as_str().context("a pod without a name");
        let status = json!({"status": {"phase": "Running", "containerStatuses": [{
            "name": "main", "containerID": format!("containerd://{container_id}"), "image": "i",
            "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }]}});
        let (name, namespace) = (text("name")?, format!("--namespace={}", text("namespace")?));
        let patch = format!("--patch={status}");
        let patched =
            ["patch", "pod", name, &namespace, "--subresource=status", "--type=merge", &patch];
        self.kubectl(&patched, None)?;
        Ok(text("uid")?.to_owned())
    }

    /// Deletes a pod at once.
    ///
    /// # Errors
    ///
    /// The server refuses.
    pub fn delete_pod(&self, namespace: &str, name: &str) -> Result<()> {
        let namespace = format!("--namespace={namespace}");
        let arguments = ["delete", "pod", name, &namespace, "--force", "--grace-period=0"];
        self.kubectl(&arguments, None).map(drop)
    }

    /// Makes an object.
    ///
    /// # Errors
    ///
    /// The server refuses.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.kubectl(&["create", "-f", "-"], Some(object)).map(drop)
    }

    /// A program that runs spanprof as a pod of this cluster would: the cluster's address in its
    /// environment, and the account's files in a mount namespace of its own.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn in_cluster(&self, spanprof: &Path) -> Result<PathBuf> {
        let path = self.folder.path().join("spanprof-in-cluster");
        let (folder, port) = (self.folder.path().display(), self.port);
        let inside = "mount -t tmpfs tmpfs \"$(readlink -f /var/run)\" && cd /var/run && \
             mkdir -p secrets/kubernetes.io/serviceaccount && cd secrets/kubernetes.io/serviceaccount && \
             printf %s \"$TOKEN\" > token && printf default > namespace && cp \"$CA\" ca.crt && \
             cd / && unset TOKEN CA";
        let outside = format!(
            "export KUBERNETES_SERVICE_HOST=127.0.0.1 KUBERNETES_SERVICE_PORT={port}\n\
             export TOKEN={AGENT} CA={folder}/certificates/apiserver.crt"
        );
        own_mounts::write(&path, spanprof, &outside, inside)?;
        Ok(path)
    }

    /// Runs kubectl with every right, an object on its standard input; gives what it prints.
    ///
    /// # Errors
    ///
    /// It fails; what it says is in the error.
    pub fn kubectl(&self, arguments: &[&str], object: Option<&Value>) -> Result<String> {
        let input = self.folder.path().join("input.json");
        fs::write(&input, object.map(Value::to_string).unwrap_or_default())?;
        let done = Command::new(self.folder.path().join("kubectl"))
            .arg(format!("--server=https://127.0.0.1:{}", self.port))
            .arg("--certificate-authority=certificates/apiserver.crt")
            .arg(format!("--token={ADMIN}"))
            .arg(format!("--cache-dir={}", self.folder.path().join("cache").display()))
            .args(arguments)
            .current_dir(self.folder.path())
            .env("HOME", self.folder.path())
            .env_remove("KUBECONFIG")
            .stdin(fs::File::open(&input)?)
            .output()?;
        let error = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "kubectl {arguments:?}: {error}");
        Ok(String::from_utf8(done.stdout)?)
    }

    fn log_end(&self) -> String {
        log_end(&self.folder.path().join("kube-apiserver.log"))
    }
}

/// One of the programs, with its log in the folder.
fn program(folder: &Path, name: &str) -> Command {
    let mut command = Command::new(folder.join(name));
    command.current_dir(folder).stdout(Stdio::null());
    let log = fs::File::create(folder.join(format!("{name}.log")));
    command.stderr(log.map_or_else(|_error| Stdio::null(), Stdio::from));
    command
}
