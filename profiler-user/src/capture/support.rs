//! What this kernel and this process can do, asked once, with what each missing thing costs.

use std::{fs, path::Path};

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
    util::KernelVersion,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use super::kernel_layout::{KERNEL_BTF, TaskLayout};
use super::uprobe;

/// One thing that profiling wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub what: String,
    /// What was found.
    pub verdict: Verdict,
}

/// Whether it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Ok,
    /// It is not, and something is worse for it.
    Degraded {
        /// What is worse.
        cost: &'static str,
        /// What helps.
        remedy: &'static str,
    },
    /// It is not, and nothing can be sampled.
    Fatal {
        /// What does not work.
        cost: &'static str,
        /// What helps.
        remedy: &'static str,
    },
}

/// What is asked of the machine; a value, so that the verdicts can be tested.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The kernel's version, (major, minor), if it could be read.
    pub kernel: Option<(u8, u8)>,
    /// Whether the kernel's BTF has what is read of a task, or why not.
    pub layout: Result<(), String>,
    /// The effective capabilities.
    pub capabilities: CapabilitySet,
    /// `kernel.perf_event_paranoid`.
    pub paranoid: Option<i64>,
    /// `kernel.kptr_restrict`.
    pub kptr_restrict: Option<i64>,
    /// Whether this process is in the initial PID namespace.
    pub initial_pid_namespace: bool,
    /// Whether the kernel has uprobes.
    pub uprobes: bool,
}

impl Facts {
    /// Looks at this machine and this process.
    #[must_use]
    pub fn gather() -> Self {
        let number = |path| fs::read_to_string(path).ok()?.trim().parse().ok();
        Self {
            kernel: kernel_version(),
            layout: TaskLayout::from_btf(Path::new(KERNEL_BTF))
                .map(drop)
                .map_err(|error| error.to_string()),
            capabilities: capabilities(None).map_or(CapabilitySet::empty(), |set| set.effective),
            paranoid: number("/proc/sys/kernel/perf_event_paranoid"),
            kptr_restrict: number("/proc/sys/kernel/kptr_restrict"),
            initial_pid_namespace: fs::read_link("/proc/self/ns/pid")
                .is_ok_and(|link| link.as_os_str() == INITIAL_PID_NAMESPACE),
            uprobes: Path::new(uprobe::PMU_TYPE).exists(),
        }
    }

    /// The verdicts, most important first.
    #[must_use]
    pub fn checks(&self) -> Vec<Check> {
        let has = |capability| self.capabilities.contains(capability);
        let admin = has(CapabilitySet::SYS_ADMIN);
        let mut checks = vec![self.kernel_check()];
        let mut capability = |name: &str, present: bool, missing: Verdict| {
            let verdict = if present { Verdict::Ok } else { missing };
            checks.push(Check { what: format!("capability {name}"), verdict });
        };
        capability(
            "CAP_BPF",
            admin || has(CapabilitySet::BPF),
            Verdict::Fatal {
                cost: "BPF programs cannot be loaded",
                remedy: "run as root, or grant CAP_BPF",
            },
        );
        capability(
            "CAP_PERFMON",
            admin || has(CapabilitySet::PERFMON),
            Verdict::Fatal {
                cost: "other processes cannot be sampled",
                remedy: "run as root, or grant CAP_PERFMON",
            },
        );
        capability(
            "CAP_SYS_PTRACE",
            has(CapabilitySet::SYS_PTRACE),
            Verdict::Degraded {
                cost: "other users' processes have no mappings: no function names, no spans",
                remedy: "grant CAP_SYS_PTRACE",
            },
        );
        capability(
            "CAP_DAC_READ_SEARCH",
            has(CapabilitySet::DAC_READ_SEARCH) || has(CapabilitySet::DAC_OVERRIDE),
            Verdict::Degraded {
                cost: "other users' environment and binaries may not be readable: service names \
                       fall back to the executable, frames to addresses",
                remedy: "grant CAP_DAC_READ_SEARCH",
            },
        );
        capability(
            "CAP_CHECKPOINT_RESTORE",
            admin || has(CapabilitySet::CHECKPOINT_RESTORE),
            Verdict::Degraded {
                cost: "deleted and replaced binaries cannot be opened: their frames have no names",
                remedy: "grant CAP_CHECKPOINT_RESTORE",
            },
        );
        capability(
            "CAP_SYSLOG",
            has(CapabilitySet::SYSLOG) && self.kptr_restrict != Some(2),
            Verdict::Degraded {
                cost: "kernel frames have no names",
                remedy: "grant CAP_SYSLOG and set kernel.kptr_restrict below 2",
            },
        );
        checks.push(self.paranoid_check(admin));
        checks.push(self.layout_check());
        checks.push(self.namespace_check());
        checks.push(self.uprobes_check());
        checks
    }

    fn kernel_check(&self) -> Check {
        let floor = (5, 10);
        let (what, verdict) = match self.kernel {
            Some((major, minor)) if (major, minor) >= floor => {
                (format!("kernel {major}.{minor}"), Verdict::Ok)
            }
            Some((major, minor)) => (
                format!("kernel {major}.{minor}"),
                Verdict::Fatal {
                    cost: "the BPF programs need ring buffers and helpers of Linux 5.10",
                    remedy: "use Linux 5.10 or newer",
                },
            ),
            None => (
                "kernel version".to_owned(),
                Verdict::Degraded { cost: "it could not be read", remedy: "none is needed" },
            ),
        };
        Check { what, verdict }
    }

    /// Debian and Ubuntu kernels have levels above 2 that `CAP_PERFMON` does not open.
    fn paranoid_check(&self, admin: bool) -> Check {
        let what = self.paranoid.map_or_else(
            || "kernel.perf_event_paranoid".to_owned(),
            |level| format!("kernel.perf_event_paranoid {level}"),
        );
        let verdict = match self.paranoid {
            Some(level) if level > 2 && !admin => Verdict::Fatal {
                cost: "this level refuses perf events to everybody without CAP_SYS_ADMIN",
                remedy: "sysctl kernel.perf_event_paranoid=2, or grant CAP_SYS_ADMIN",
            },
            Some(_) => Verdict::Ok,
            None => Verdict::Fatal {
                cost: "this kernel has no perf events",
                remedy: "use a kernel with CONFIG_PERF_EVENTS",
            },
        };
        Check { what, verdict }
    }

    /// The kernel reports processes by their ids in the initial namespace.
    fn namespace_check(&self) -> Check {
        let verdict = if self.initial_pid_namespace {
            Verdict::Ok
        } else {
            Verdict::Fatal {
                cost: "other processes would be taken for those that are sampled",
                remedy: "run in the host's PID namespace (hostPID: true, --pid=host), with its /proc",
            }
        };
        Check { what: "initial PID namespace".to_owned(), verdict }
    }

    fn uprobes_check(&self) -> Check {
        let missing = Verdict::Degraded {
            cost: "processes that end within some milliseconds have no spans",
            remedy: "use a kernel with CONFIG_UPROBE_EVENTS",
        };
        let verdict = if self.uprobes { Verdict::Ok } else { missing };
        Check { what: "kernel uprobes".to_owned(), verdict }
    }

    fn layout_check(&self) -> Check {
        match &self.layout {
            Ok(()) => Check { what: format!("kernel BTF {KERNEL_BTF}"), verdict: Verdict::Ok },
            Err(error) => Check {
                what: format!("kernel BTF ({error})"),
                verdict: Verdict::Degraded {
                    cost: "no spans, no user stacks of threads in system calls, and no children \
                           of chosen processes",
                    remedy: "use a kernel with CONFIG_DEBUG_INFO_BTF",
                },
            },
        }
    }
}

/// The inode of the initial PID namespace (`PROC_PID_INIT_INO` of `linux/proc_ns.h`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

fn kernel_version() -> Option<(u8, u8)> {
    let release = rustix::system::uname().release().to_str().ok()?.to_owned();
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether the kernel has `bpf_task_pt_regs` for perf-event programs (Linux 5.15).
pub(super) fn has_task_pt_regs() -> bool {
    const SINCE: KernelVersion = KernelVersion::new(5, 15, 0);
    is_helper_supported(ProgramType::PerfEvent, BpfHelper::BPF_FUNC_task_pt_regs)
        .unwrap_or_else(|_error| KernelVersion::current().is_ok_and(|version| version >= SINCE))
}

/// Before Linux 5.11 BPF maps count against `RLIMIT_MEMLOCK`: takes as much as may be had.
pub(super) fn raise_memlock() {
    if KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(5, 11, 0)) {
        return;
    }
    let own = getrlimit(Resource::Memlock);
    let unlimited = Rlimit { current: None, maximum: None };
    let hard = Rlimit { current: own.maximum, maximum: own.maximum };
    if setrlimit(Resource::Memlock, unlimited)
        .or_else(|_| setrlimit(Resource::Memlock, hard))
        .is_err()
    {
        tracing::debug!("RLIMIT_MEMLOCK stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Facts {
        Facts {
            kernel: Some((6, 1)),
            layout: Ok(()),
            capabilities: CapabilitySet::all(),
            paranoid: Some(2),
            kptr_restrict: Some(0),
            initial_pid_namespace: true,
            uprobes: true,
        }
    }

    /// The names of what is not in order, fatal ones marked.
    fn wrong(facts: &Facts) -> Vec<String> {
        let mark = |check: Check| match check.verdict {
            Verdict::Ok => None,
            Verdict::Degraded { .. } => Some(check.what),
            Verdict::Fatal { .. } => Some(format!("FATAL {}", check.what)),
        };
        facts.checks().into_iter().filter_map(mark).collect()
    }

    #[test]
    fn root_on_a_current_kernel_misses_nothing() {
        assert_eq!(wrong(&root()), [""; 0]);
    }

    #[test]
    fn a_plain_user_is_told_every_missing_capability() {
        let facts = Facts { capabilities: CapabilitySet::empty(), ..root() };
        assert_eq!(
            wrong(&facts),
            [
                "FATAL capability CAP_BPF",
                "FATAL capability CAP_PERFMON",
                "capability CAP_SYS_PTRACE",
                "capability CAP_DAC_READ_SEARCH",
                "capability CAP_CHECKPOINT_RESTORE",
                "capability CAP_SYSLOG",
            ]
        );
    }

    #[test]
    fn the_six_capabilities_are_enough_below_paranoid_3() {
        let six = CapabilitySet::BPF
            | CapabilitySet::PERFMON
            | CapabilitySet::SYS_PTRACE
            | CapabilitySet::CHECKPOINT_RESTORE
            | CapabilitySet::DAC_READ_SEARCH
            | CapabilitySet::SYSLOG;
        assert_eq!(wrong(&Facts { capabilities: six, ..root() }), [""; 0]);
        assert_eq!(
            wrong(&Facts { capabilities: six, paranoid: Some(3), ..root() }),
            ["FATAL kernel.perf_event_paranoid 3"]
        );
    }

    #[test]
    fn an_old_kernel_is_refused_and_one_without_btf_is_not() {
        assert_eq!(wrong(&Facts { kernel: Some((5, 4)), ..root() }), ["FATAL kernel 5.4"]);
        let facts = Facts { layout: Err("no file".to_owned()), ..root() };
        assert_eq!(wrong(&facts), ["kernel BTF (no file)"]);
        assert_eq!(wrong(&Facts { uprobes: false, ..root() }), ["kernel uprobes"]);
    }

    #[test]
    fn another_pid_namespace_is_refused() {
        let facts = Facts { initial_pid_namespace: false, ..root() };
        assert_eq!(wrong(&facts), ["FATAL initial PID namespace"]);
    }

    #[test]
    fn hidden_kernel_addresses_cost_kernel_names() {
        assert_eq!(wrong(&Facts { kptr_restrict: Some(2), ..root() }), ["capability CAP_SYSLOG"]);
    }
}
