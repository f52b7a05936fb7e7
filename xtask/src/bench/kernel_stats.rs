//! The kernel's own account of what BPF programs cost, on while it is needed.

use std::fs;

use anyhow::{Context as _, Result};

const PATH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// On until it is dropped, however the command ends short of a signal.
pub(super) struct KernelStats {
    before: String,
}

impl KernelStats {
    /// Switches it on.
    pub(super) fn on() -> Result<Self> {
        let before = fs::read_to_string(PATH)
            .with_context(|| format!("cannot read {PATH}: Linux 5.1 or newer is needed"))?;
        fs::write(PATH, "1")
            .with_context(|| format!("cannot write {PATH}: run as root, see `spanprof doctor`"))?;
        Ok(Self { before: before.trim().to_owned() })
    }
}

impl Drop for KernelStats {
    fn drop(&mut self) {
        if let Err(error) = fs::write(PATH, &self.before) {
            eprintln!("cannot set {PATH} back to {}: {error}", self.before);
        }
    }
}
