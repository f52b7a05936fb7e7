//! The network and mount namespaces that the cluster is in.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// What the kubelet insists on; the machine keeps its own.
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// The calling thread enters namespaces of its own, in which the network has nothing but these
/// addresses, and what is written below `/run` and `/var` goes away or into the folder.
pub(super) fn enter(folder: &Path, addresses: &[&str]) -> Result<()> {
    // SAFETY: descriptors stay shared; of what is not, only this thread knows.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }
        .context("no namespaces")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    ip(&["link", "set", "lo", "up"])?;
    for address in addresses {
        ip(&["addr", "add", &format!("{address}/32"), "dev", "lo"])?;
    }
    for name in ["upper", "work", "sysctl", "bin", "pki", "cni", "kubelet", "pods", "containerd"] {
        fs::create_dir(folder.join(name))?;
    }
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None)?;
    let options = format!(
        "lowerdir=/var,upperdir={},workdir={}\0",
        folder.join("upper").display(),
        folder.join("work").display()
    );
    let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes())?;
    mount("overlay", "/var", "overlay", MountFlags::empty(), Some(options)).context("/var")?;
    for (name, value) in SYSCTLS {
        let file = folder.join("sysctl").join(name.replace('/', "."));
        fs::write(&file, format!("{value}\n"))?;
        mount_bind(&file, Path::new("/proc/sys").join(name)).with_context(|| name.to_owned())?;
    }
    // The kubelet's volumes are to be seen in the containers.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)?;
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    let done = Command::new("ip").args(arguments).output().context("cannot run ip")?;
    ensure!(done.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// Unmounts what containers and pods have left below this folder, so that it can be removed.
pub(super) fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    // The last one is on top.
    for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        if Path::new(mount).starts_with(folder) {
            // What cannot be unmounted goes with the namespace.
            drop(unmount(mount, UnmountFlags::DETACH).map_err(std::io::Error::from));
        }
    }
    drop(unmount("/var", UnmountFlags::DETACH).map_err(std::io::Error::from));
}
