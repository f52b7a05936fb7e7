//! A thread that is stopped for as long as its registers and its stack are read.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How long a thread may take to stop; one in an uninterruptible wait does not.
const STOP_DEADLINE: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_micros(200);

/// Why there is no stack of a thread.
#[derive(Debug, thiserror::Error)]
pub(super) enum StopError {
    /// Not permitted, traced by another program, or gone.
    #[error("cannot stop the thread")]
    Refused(#[source] Errno),
    /// It waits in the kernel, or exited meanwhile.
    #[error("the thread has not stopped")]
    NotStopped,
    /// Of another register layout.
    #[error("a 32-bit thread")]
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "found out on x86-64"))]
    Compat,
    /// Its registers cannot be read.
    #[error("cannot read the registers")]
    Registers(#[source] Errno),
    /// Its memory cannot be read.
    #[error("cannot read the memory")]
    Memory(#[source] io::Error),
}

/// What a walk begins with.
#[derive(Clone, Debug)]
pub(super) struct Registers {
    pub(super) ip: u64,
    pub(super) sp: u64,
    pub(super) fp: u64,
    pub(super) link: u64,
    /// It is in a system call: `ip` is where that returns to.
    pub(super) in_system_call: bool,
    /// By DWARF number.
    pub(super) by_number: [u64; 32],
}

/// Goes on when dropped.
#[derive(Debug)]
pub(super) struct StoppedThread {
    tid: Pid,
    /// What it was stopped by: to be delivered when it goes on.
    pending: Option<Signal>,
}

impl StoppedThread {
    /// Stops a thread without a signal that it could see (`PTRACE_SEIZE`, `PTRACE_INTERRUPT`).
    /// If this program ends meanwhile, in whatever way, the kernel lets the thread go on.
    pub(super) fn stop(tid: u32) -> Result<Self, StopError> {
        let tid = i32::try_from(tid).map_err(|_too_large| StopError::Refused(Errno::ESRCH))?;
        let tid = Pid::from_raw(tid);
        ptrace::seize(tid, ptrace::Options::empty()).map_err(StopError::Refused)?;
        // From here on it is to be let go, also if it does not stop.
        let mut thread = Self { tid, pending: None };
        ptrace::interrupt(tid).map_err(StopError::Refused)?;
        let until = Instant::now() + STOP_DEADLINE;
        loop {
            match waitpid(tid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Stopped(_, signal)) => {
                    // A signal was on its way: it waits until the thread goes on.
                    thread.pending = Some(signal);
                    return Ok(thread);
                }
                Ok(WaitStatus::PtraceEvent(..)) => return Ok(thread),
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => {
                    return Err(StopError::NotStopped);
                }
                Ok(_) if Instant::now() < until => std::thread::sleep(POLL_INTERVAL),
                Ok(_) => return Err(StopError::NotStopped),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(StopError::Refused(error)),
            }
        }
    }

    /// Its registers.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn registers(&self, memory: &File) -> Result<Registers, StopError> {
        use std::os::unix::fs::FileExt as _;
        /// `syscall`
        const SYSTEM_CALL: [u8; 2] = [0x0f, 0x05];
        /// `__USER_CS` of a 64-bit program (arch/x86/include/asm/segment.h).
        const CS_64: u64 = 0x33;
        let all = ptrace::getregs(self.tid).map_err(StopError::Registers)?;
        if all.cs != CS_64 {
            return Err(StopError::Compat);
        }
        let mut by_number = [0; 32];
        // System V ABI for x86-64, figure 3.36.
        let in_order = [
            all.rax, all.rdx, all.rcx, all.rbx, all.rsi, all.rdi, all.rbp, all.rsp, all.r8, all.r9,
            all.r10, all.r11, all.r12, all.r13, all.r14, all.r15, all.rip,
        ];
        for (to, value) in by_number.iter_mut().zip(in_order) {
            *to = value;
        }
        let mut before = [0; 2];
        let read = memory.read_exact_at(&mut before, all.rip.wrapping_sub(2));
        // The number of the call, or negative where there is none. It stays while a handler of a
        // signal that interrupted the call begins.
        let has_number = all.orig_rax.cast_signed() >= 0;
        Ok(Registers {
            ip: all.rip,
            sp: all.rsp,
            fp: all.rbp,
            link: 0,
            in_system_call: has_number && read.is_ok() && before == SYSTEM_CALL,
            by_number,
        })
    }

    /// Its registers.
    #[cfg(target_arch = "aarch64")]
    pub(super) fn registers(&self, memory: &File) -> Result<Registers, StopError> {
        use std::os::unix::fs::FileExt as _;
        /// `svc #0`
        const SYSTEM_CALL: [u8; 4] = 0xd400_0001_u32.to_le_bytes();
        let all = ptrace::getregs(self.tid).map_err(StopError::Registers)?;
        let mut by_number = [0; 32];
        for (to, value) in by_number.iter_mut().zip(all.regs.into_iter().chain([all.sp])) {
            *to = value;
        }
        let mut before = [0; 4];
        let read = memory.read_exact_at(&mut before, all.pc.wrapping_sub(4));
        Ok(Registers {
            ip: all.pc,
            sp: all.sp,
            fp: all.regs[29],
            link: all.regs[30],
            in_system_call: read.is_ok() && before == SYSTEM_CALL,
            by_number,
        })
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        // A thread that is gone needs it no more, and one that did not stop cannot be told: the
        // kernel lets it go at the end of this program.
        let _gone_or_not_stopped = ptrace::detach(self.tid, self.pending);
    }
}
