//! What capabilities promise, tried: seccomp, `AppArmor`, `SELinux` and a kernel's settings refuse what a
//! capability would allow, and say so only when it is done.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::id;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch::Next;
use super::live::{Capture, CaptureConfig, CaptureError};
use super::object::StackReuse;
use super::support::{Check, Verdict};
use crate::stats::Stats;

/// The smallest maps of unwinding that can be.
const UNWIND_BYTES: u64 = 8 << 20;
/// How long the trial's end is waited for.
const END: Duration = Duration::from_secs(2);
/// How many other processes are looked at.
const OTHERS_MAX: usize = 64;

/// Loads the programs, samples for a moment, and looks at another process. Only worth it where
/// nothing fatal is known to be missing.
#[must_use]
pub fn trial() -> Vec<Check> {
    let mut checks = vec![Check { what: "sampling, tried".to_owned(), verdict: Verdict::Ok }];
    if let (Some(check), Err(error)) = (checks.first_mut(), sample()) {
        check.what = format!("sampling, tried: {}", chain(&error));
        check.verdict = Verdict::Fatal {
            cost: "nothing is sampled, although the capabilities are there",
            remedy: "a seccomp profile, AppArmor or SELinux may forbid bpf and perf_event_open",
        };
    }
    checks.push(others());
    let shown = kernel_addresses_shown();
    checks.push(Check {
        what: "kernel addresses, tried".to_owned(),
        verdict: match shown {
            Ok(true) => Verdict::Ok,
            Ok(false) | Err(_) => Verdict::Degraded {
                cost: "kernel frames have no names",
                remedy: "grant CAP_SYSLOG and set kernel.kptr_restrict below 2",
            },
        },
    });
    checks
}

fn sample() -> Result<(), CaptureError> {
    let config = CaptureConfig {
        hz: 1,
        targets: None,
        bpf_log: false,
        sampler: None,
        reuse: StackReuse::default(),
        unwind_memory_max: UNWIND_BYTES,
        hook_probe: None,
        least_privilege: false,
    };
    let mut started = Capture::start(&config, Arc::new(Stats::default()))?;
    // Nothing is kept loaded behind the answer.
    if let Ok(stop) = started.capture.stop_handle() {
        stop.stop();
        let deadline = Instant::now() + END;
        while matches!(started.capture.next(deadline), Next::Batch(_)) {}
    }
    Ok(())
}

/// How many of the other processes can be looked at, of the first ones.
fn others() -> Check {
    let own = id().to_string();
    let names = fs::read_dir("/proc").into_iter().flatten();
    let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let is_process = |name: &String| *name != own && name.bytes().all(|byte| byte.is_ascii_digit());
    let (mut tried, mut failed, mut first) = (0, 0, None);
    for name in names.filter(is_process) {
        let process = Path::new("/proc").join(name);
        // Those of the kernel have no memory.
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        if !status.lines().any(|line| line.starts_with("VmRSS:")) {
            continue;
        }
        tried += 1;
        if let Err((file, error)) = look_at(&process)
            && process.exists()
        {
            failed += 1;
            first.get_or_insert_with(|| format!(" ({}/{file}: {error})", process.display()));
        }
        if tried == OTHERS_MAX {
            break;
        }
    }
    let readable = tried - failed;
    let why = first.unwrap_or_default();
    // One that protects itself is nobody's fault.
    let verdict = if failed <= tried / 2 {
        Verdict::Ok
    } else {
        Verdict::Degraded {
            cost: "the others have no function names, no spans or no service name",
            remedy: "AppArmor (appArmorProfile: Unconfined), SELinux (spc_t) or Yama may forbid it",
        }
    };
    Check {
        what: format!("other processes, tried: {readable} of {tried} can be read{why}"),
        verdict,
    }
}

/// What is read of every process, in the order of what hurts most; or what could not be, and why.
fn look_at(process: &Path) -> Result<(), (&'static str, io::Error)> {
    let read = |name: &'static str| {
        let file = File::open(process.join(name));
        let read = file.and_then(|file| file.take(1).read_to_end(&mut Vec::new()));
        read.map(drop).map_err(|error| (name, error))
    };
    read("maps")?;
    fs::metadata(process.join("exe")).map_err(|error| ("exe", error))?;
    fs::read_dir(process.join("root")).map_err(|error| ("root", error))?;
    read("environ")
}

/// Whether `/proc/kallsyms` has addresses: without permission they are all 0.
fn kernel_addresses_shown() -> io::Result<bool> {
    // The first ones are 0 anyway on many kernels: places in the memory of each CPU.
    let beginning = BufReader::new(File::open("/proc/kallsyms")?.take(1 << 16));
    for line in beginning.lines() {
        let line = line?;
        let address = line.split(' ').next().unwrap_or_default();
        if address.bytes().any(|digit| digit != b'0') {
            return Ok(true);
        }
    }
    Ok(false)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    // The verifier's log is of many lines.
    text.lines().next().unwrap_or_default().to_owned()
}
