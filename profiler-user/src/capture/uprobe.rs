//! Probes of a function of a file, in all processes that run it: by `uprobe_multi` (Linux 6.6), or by
//! a perf event. A probe is a descriptor: it ends when that is closed.
//!
//! The kernel finds the file's inode by a path. Ours leads to the open descriptor, so that deleted
//! and replaced files, those of containers and those in memory are probed too.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
};

use aya::{Ebpf, programs::UProbe};
use aya_obj::generated::{PERF_EVENT_IOC_SET_BPF, PERF_FLAG_FD_CLOEXEC, perf_event_attr};

use super::live::CaptureError;
use super::uprobe_multi;

/// The program that the probes run.
const PROGRAM: &str = "on_span_slot";
/// What a perf event's type must be to be a uprobe. Without `CONFIG_UPROBE_EVENTS` there is none.
pub(super) const PMU_TYPE: &str = "/sys/bus/event_source/devices/uprobe/type";

/// How a program's calls of span-marker's hook are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookProbe {
    /// By a link to `uprobe_multi`.
    Multi,
    /// By a perf event.
    Perf,
    /// Not at all: all processes are found by looking at them.
    Off,
}

/// The loaded program, and how it is attached.
#[derive(Debug)]
pub(super) struct Uprobes {
    program: OwnedFd,
    how: How,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Multi,
    Perf { pmu_type: u32 },
}

/// A probe.
#[derive(Debug)]
pub(super) struct Probe {
    _link: OwnedFd,
}

/// Why a file has no probe.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    /// What is there is not what span-marker puts there. In the middle of an instruction, a probe
    /// would end every process that comes to it.
    #[error("there is no hook where the file says")]
    NoHook,
    /// The kernel refuses.
    #[error("the kernel refuses the probe")]
    Refused(#[from] io::Error),
}

impl Uprobes {
    /// Loads the program; `wanted`: not as this kernel can, but so.
    ///
    /// # Errors
    ///
    /// The kernel has no uprobes, or they are not permitted.
    pub(super) fn load(ebpf: &mut Ebpf, wanted: Option<HookProbe>) -> io::Result<Option<Self>> {
        if wanted != Some(HookProbe::Perf) && wanted != Some(HookProbe::Off) {
            match uprobe_multi::load(ebpf, PROGRAM) {
                Ok(program) => return Ok(Some(Self { program, how: How::Multi })),
                Err(error) if wanted.is_some() => return Err(error),
                Err(error) => tracing::debug!(%error, "no uprobe_multi: perf events"),
            }
        }
        if wanted == Some(HookProbe::Off) {
            return Ok(None);
        }
        let pmu_type = fs::read_to_string(PMU_TYPE)?;
        let pmu_type = pmu_type.trim().parse().map_err(io::Error::other)?;
        let program = load_for_perf(ebpf).map_err(io::Error::other)?;
        Ok(Some(Self { program, how: How::Perf { pmu_type } }))
    }

    /// What a probe is.
    pub(super) fn kind(&self) -> HookProbe {
        match self.how {
            How::Multi => HookProbe::Multi,
            How::Perf { .. } => HookProbe::Perf,
        }
    }

    /// Probes the instruction at `offset` of a file, if it is the first of a hook.
    pub(super) fn attach(&self, file: &fs::File, offset: u64) -> Result<Probe, ProbeError> {
        let mut code = [0; HOOK_LEN];
        let read = file.read_exact_at(&mut code, offset);
        if read.is_err() || !is_hook(&code) {
            return Err(ProbeError::NoHook);
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let path = CString::new(path).map_err(io::Error::other)?;
        let link = match self.how {
            How::Multi => uprobe_multi::link(self.program.as_fd(), &path, offset)?,
            How::Perf { pmu_type } => self.attach_perf(pmu_type, &path, offset)?,
        };
        Ok(Probe { _link: link })
    }

    fn attach_perf(&self, pmu_type: u32, path: &CString, offset: u64) -> io::Result<OwnedFd> {
        let event = open_event(pmu_type, path, offset)?;
        // SAFETY: the request takes the descriptor of a program, which is open.
        let set = unsafe {
            libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_SET_BPF.into(), self.program.as_raw_fd())
        };
        if set == 0 { Ok(event) } else { Err(io::Error::last_os_error()) }
    }
}

/// An event of all processes on all CPUs: the kernel asks for one of them, and ignores which.
fn open_event(pmu_type: u32, path: &CString, offset: u64) -> io::Result<OwnedFd> {
    const ALL_PROCESSES: libc::pid_t = -1;
    const CPU: libc::c_int = 0;
    const NO_GROUP: libc::c_int = -1;
    // SAFETY: integers and unions of integers, of which zero is a value.
    let mut attr: perf_event_attr = unsafe { std::mem::zeroed() };
    attr.size = u32::try_from(size_of::<perf_event_attr>()).map_err(io::Error::other)?;
    attr.type_ = pmu_type;
    attr.__bindgen_anon_3.uprobe_path = path.as_ptr().addr() as u64;
    attr.__bindgen_anon_4.probe_offset = offset;
    // SAFETY: `attr` has the size that it says, and its path ends with a zero byte.
    let event = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            ALL_PROCESSES,
            CPU,
            NO_GROUP,
            libc::c_ulong::from(PERF_FLAG_FD_CLOEXEC),
        )
    };
    owned(event)
}

/// The descriptor that a system call returned, or its error.
pub(super) fn owned(returned: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(returned) {
        // SAFETY: the kernel has just made it for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn load_for_perf(ebpf: &mut Ebpf) -> Result<OwnedFd, CaptureError> {
    let program: &mut UProbe = ebpf
        .program_mut(PROGRAM)
        .and_then(|program| program.try_into().ok())
        .ok_or(CaptureError::NoSuchProgram(PROGRAM))?;
    let failed = |source| CaptureError::Program { name: PROGRAM, source };
    program.load().map_err(failed)?;
    let fd = program.fd().map_err(failed)?;
    fd.as_fd().try_clone_to_owned().map_err(CaptureError::Thread)
}

/// So much of a hook is looked at.
const HOOK_LEN: usize = 9;

/// Whether code begins with an instruction that does nothing, behind one that calls may lead to
/// (`endbr64`, `bti c`): span-marker's hook does.
fn is_hook(code: &[u8; HOOK_LEN]) -> bool {
    const LANDINGS: &[&[u8]] = if cfg!(target_arch = "x86_64") {
        &[&[0xf3, 0x0f, 0x1e, 0xfa]]
    } else {
        &[&[0x5f, 0x24, 0x03, 0xd5]]
    };
    const NOPS: &[&[u8]] = if cfg!(target_arch = "x86_64") {
        // Of five bytes, which newer kernels probe without an exception, or of one.
        &[&[0x0f, 0x1f, 0x44, 0x00, 0x00], &[0x90]]
    } else {
        &[&[0x1f, 0x20, 0x03, 0xd5]]
    };
    let landing = LANDINGS.iter().find_map(|landing| code.strip_prefix(*landing));
    let code = landing.unwrap_or(code);
    NOPS.iter().any(|nop| code.starts_with(nop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_hook_begins_with_nothing() {
        let is = |code: &[u8]| {
            let mut padded = [0xc3; HOOK_LEN];
            padded[..code.len()].copy_from_slice(code);
            is_hook(&padded)
        };
        assert!(is(b"\x0f\x1f\x44\x00\x00") && is(b"\x90"));
        assert!(is(b"\xf3\x0f\x1e\xfa\x0f\x1f\x44\x00\x00") && is(b"\xf3\x0f\x1e\xfa\x90"));
        // `push %rbp`, `ret`, the rest of a nop, a nop of another length.
        for other in [&b"\x55"[..], b"\xc3", b"\x1f\x44\x00\x00", b"\x0f\x1f\x00", b"\xf3\x0f\x1e"]
        {
            assert!(!is(other), "{other:x?}");
        }
    }
}
