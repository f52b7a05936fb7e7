//! What the cluster's parts are told.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::{NODE_ADDRESS, PRIVATE_CGROUP, Programs, image};

pub(super) const API_SERVER: [&str; 22] = [
    "--etcd-servers=http://127.0.0.1:2379",
    "--bind-address=0.0.0.0",
    "--secure-port=443",
    "--advertise-address=10.66.0.1",
    "--tls-cert-file=pki/apiserver.crt",
    "--tls-private-key-file=pki/apiserver.key",
    "--client-ca-file=pki/ca.crt",
    "--kubelet-client-certificate=pki/apiserver-kubelet.crt",
    "--kubelet-client-key=pki/apiserver-kubelet.key",
    "--kubelet-certificate-authority=pki/ca.crt",
    "--kubelet-preferred-address-types=InternalIP",
    "--service-account-issuer=https://kubernetes.default.svc",
    "--service-account-key-file=pki/sa.pub",
    "--service-account-signing-key-file=pki/sa.key",
    "--service-cluster-ip-range=10.96.0.0/24",
    "--authorization-mode=Node,RBAC",
    "--enable-admission-plugins=NodeRestriction",
    "--allow-privileged=true",
    "--audit-policy-file=audit.json",
    "--audit-log-path=audit.log",
    "--audit-log-mode=blocking",
    "--v=1",
];

pub(super) const CONTROLLER_MANAGER: [&str; 9] = [
    "--kubeconfig=pki/controller-manager.conf",
    "--leader-elect=false",
    "--bind-address=127.0.0.1",
    "--service-account-private-key-file=pki/sa.key",
    "--root-ca-file=pki/ca.crt",
    "--use-service-account-credentials",
    // With the usual 20 a second the first accounts take seconds.
    "--kube-api-qps=1000",
    "--kube-api-burst=1000",
    "--flex-volume-plugin-dir=kubelet/volumeplugins",
];

pub(super) const SCHEDULER: [&str; 3] =
    ["--kubeconfig=pki/scheduler.conf", "--leader-elect=false", "--bind-address=127.0.0.1"];

pub(super) const KUBELET: [&str; 5] = [
    "--config=kubelet.json",
    "--kubeconfig=pki/kubelet.conf",
    "--cert-dir=pki",
    "--hostname-override=node1",
    "--node-ip=10.66.0.1",
];

/// Writes the files to the folder.
pub(super) fn write(folder: &Path, programs: &Programs) -> Result<()> {
    let bin = folder.join("bin");
    let beside = Programs::folder(&programs.containerd, "containerd-shim-runc-v2", "usr/bin")?;
    for name in ["containerd", "containerd-shim-runc-v2", "ctr"] {
        symlink(beside.join(name), bin.join(name))?;
    }
    symlink(&programs.runc, bin.join("runc"))?;
    symlink(&programs.runc_private_cgroup, bin.join("runc-private-cgroup"))?;
    let plugins = Programs::folder(&programs.cni, "host-local", "usr/lib/cni")?;
    fs::write(folder.join("containerd.toml"), containerd(folder, &plugins))?;
    fs::write(folder.join("resolv.conf"), "")?;
    let audit = json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata"}],
    });
    fs::write(folder.join("audit.json"), audit.to_string())?;
    let network = json!({
        "cniVersion": "0.4.0", "name": "bridge", "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local", "dataDir": folder.join("cni-addresses"),
                "ranges": [[{"subnet": "10.88.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    });
    fs::write(folder.join("cni/10-bridge.conflist"), network.to_string())?;
    let kubelet = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "failSwapOn": false,
        // The default, -999, takes CAP_SYS_RESOURCE, and so does more than the hard limit.
        "oomScoreAdj": 0,
        "maxOpenFiles": 20_000,
        "makeIPTablesUtilChains": false,
        "containerRuntimeEndpoint": format!("unix://{}/containerd.sock", folder.display()),
        "podLogsDir": folder.join("pods"),
        "volumePluginDir": folder.join("kubelet/volumeplugins"),
        "resolvConf": folder.join("resolv.conf"),
        "tlsCertFile": folder.join("pki/kubelet-serving.crt"),
        "tlsPrivateKeyFile": folder.join("pki/kubelet-serving.key"),
        "authentication": {
            "anonymous": {"enabled": false}, "webhook": {"enabled": true},
            "x509": {"clientCAFile": folder.join("pki/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        // However full the machine is.
        "evictionHard": {
            "memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "imageGCHighThresholdPercent": 100,
    });
    fs::write(folder.join("kubelet.json"), kubelet.to_string())?;
    Ok(())
}

fn containerd(folder: &Path, plugins: &Path) -> String {
    let (folder, plugins) = (folder.display(), plugins.display());
    let pause = image::full_name("pause");
    let runtime = |name: &str, binary: &str| {
        let table = format!("[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{name}]");
        let options = table.replace(']', ".options]");
        format!(
            "{table}\nruntime_type = \"io.containerd.runc.v2\"\n\
             {options}\nBinaryName = \"{folder}/bin/{binary}\"\nSystemdCgroup = false\n"
        )
    };
    format!(
        "version = 2\n\
         root = \"{folder}/containerd/root\"\n\
         state = \"/run/containerd-state\"\n\
         oom_score = 0\n\
         disabled_plugins = [\"io.containerd.snapshotter.v1.btrfs\", \
         \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.aufs\", \
         \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.internal.v1.tracing\"]\n\
         [grpc]\naddress = \"{folder}/containerd.sock\"\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{folder}/containerd/opt\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n\
         sandbox_image = \"{pause}\"\n\
         # There may be no CAP_SYS_RESOURCE here.\n\
         restrict_oom_score_adj = true\n\
         disable_apparmor = true\n\
         disable_hugetlb_controller = true\n\
         tolerate_missing_hugetlb_controller = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
         bin_dir = \"{plugins}\"\nconf_dir = \"{folder}/cni\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n\
         snapshotter = \"overlayfs\"\ndefault_runtime_name = \"runc\"\n{}{}",
        runtime("runc", "runc"),
        runtime(PRIVATE_CGROUP, "runc-private-cgroup"),
    )
}
