//! A virtual machine with a Linux kernel of its own, emulated by QEMU: nothing of it but memory.

pub mod initramfs;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::child::Watched;

/// The places of the files of `src/bin/guest.rs`, and what it says last.
pub mod guest {
    /// The profiler.
    pub const SPANPROF: &str = "/spanprof";
    /// `fixtures/unwind.c`.
    pub const UNWIND: &str = "/unwind";
    /// The same without shared libraries.
    pub const UNWIND_STATIC: &str = "/unwind-static";
    /// `fixtures/spans.c`.
    pub const SPANS: &str = "/spans";
    /// The process context that it publishes.
    pub const SPANS_CONTEXT: &str = "/spans-context";
    /// `fixtures/hooked.c`.
    pub const HOOKED: &str = "/hooked";
    /// It runs.
    pub const STARTED: &str = "guest: Linux";
    /// Everything is as it should be.
    pub const PASSED: &str = "guest: passed";
    /// Before what is not.
    pub const FAILED: &str = "guest: FAILED";
}

/// Emulated, it is some ten times slower than this machine, which may do much else.
const DEADLINE: Duration = Duration::from_secs(400);
/// QEMU's emulation sometimes executes half of an instruction that another CPU has just changed, as
/// Linux does when it boots (`Oops: int3`): then nothing of ours has run.
const BOOTS: usize = 3;

/// Boots a kernel with an archive of [`initramfs::Initramfs`], whose `/init` it runs, and gives
/// what was on the console until the machine ended.
///
/// # Errors
///
/// QEMU does not start, or the machine does not end.
pub fn boot(qemu: &Path, kernel: &Path, archive: &[u8]) -> Result<String> {
    let folder = tempfile::Builder::new().prefix("spanprof-vm-").tempdir()?;
    let initramfs = folder.path().join("initramfs");
    fs::write(&initramfs, archive).context("no room for the machine's files")?;
    let mut command = Command::new(qemu);
    // Without KVM, so that it is the same where there is none.
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"]);
    command.args(["-display", "none", "-vga", "none", "-nic", "none", "-monitor", "none"]);
    // A kernel that panics starts anew at once, and QEMU ends then, as it does at the end.
    command.args(["-serial", "stdio", "-no-reboot"]);
    command.args(["-append", "console=ttyS0 quiet panic=-1"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(&initramfs);
    let mut console = String::new();
    for _ in 0..BOOTS {
        let said = Watched::start(&mut command)?.finish_within(DEADLINE)?;
        ensure!(said.status.success(), "{}: {}{}", said.status, said.stdout, said.stderr);
        console = said.stdout;
        if console.contains(guest::STARTED) {
            break;
        }
    }
    Ok(console)
}
