//! [`Sample`](crate::decode)s to attributed samples: every address becomes a [`Location`], every
//! sample gets its service and its span. Pure.

mod span;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decode::{Addr, Frame, Sample, UserStack};
use crate::process::{Backing, ElfId, JitId, Process, ServiceIdentity, Unreadable};

pub use span::{ChosenAttribute, SpanAttribute, SpanLabel, SpanPolicy, SpanScope, Unsampled};

/// One frame of a stack, independent of the process that it was seen in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Location {
    /// Kernel text, at the address to look up (already adjusted for return addresses).
    Kernel(Addr),
    /// Text of an ELF file.
    Elf {
        /// The file.
        elf: ElfId,
        /// The offset in the file of the instruction to look up (already adjusted for return
        /// addresses).
        file_offset: u64,
    },
    /// Code that a process made at run time and names in its perf map.
    Jit {
        /// The perf map.
        map: JitId,
        /// The address to look up (already adjusted for return addresses).
        address: Addr,
    },
    /// An address that belongs to no file, and why.
    Unresolved(Unresolved),
}

/// Why an address has no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Unresolved {
    /// In executable memory without a file: code made at run time.
    Anonymous,
    /// In no mapping of the process that is known.
    Unmapped,
    /// The process had exited before its mappings were read.
    ProcessGone,
    /// Its mappings could not be read: not permitted, or more than are kept.
    MappingsUnreadable,
    /// There are more frames than a sample holds.
    Truncated,
    /// A 32-bit process is not walked.
    Compat,
    /// The thread was in the kernel, and its user registers were not found.
    NoRegisters,
    /// The kernel side did not know the process's mappings: the stack was walked by frame pointer.
    UnknownProcess,
    /// The caller is not known: no unwind information, and no frame pointer.
    NoFramePointer,
    /// The caller is on a part of the stack that cannot be read.
    StackUnreadable,
    /// The caller is found by an unwind rule that cannot be followed.
    UnsupportedRule,
    /// The unwind information is wrong: the caller would be further down the stack.
    BadStep,
    /// The process had begun to run another program or library in its place, and the stack was walked
    /// as the old one's.
    Stale,
}

impl Unresolved {
    /// The frame that stands for it in a profile.
    #[must_use]
    pub fn frame_name(self) -> &'static str {
        match self {
            Self::Anonymous => "[anonymous code]",
            Self::Unmapped => "[unmapped]",
            Self::ProcessGone => "[process gone]",
            Self::MappingsUnreadable => "[mappings unreadable]",
            Self::Truncated => "[more frames]",
            Self::Compat => "[32-bit process]",
            Self::NoRegisters => "[no user registers]",
            Self::UnknownProcess => "[process not known yet]",
            Self::NoFramePointer => "[no unwind information]",
            Self::StackUnreadable => "[stack unreadable]",
            Self::UnsupportedRule => "[unsupported unwind rule]",
            Self::BadStep => "[wrong unwind information]",
            Self::Stale => "[program had changed]",
        }
    }
}

/// A sample that knows where it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributedSample {
    /// The service.
    pub service: Arc<ServiceIdentity>,
    /// The process's main binary.
    pub main_elf: Option<ElfId>,
    /// Leaf first; never empty.
    pub stack: Box<[Location]>,
    /// The span that it is charged to.
    pub span: Option<SpanLabel>,
    /// How much it stands for, in nanoseconds of CPU time.
    pub value: u64,
}

/// Says where a sample belongs, by what was known of its process when it was taken.
#[must_use]
pub fn attribute(sample: &Sample, process: &Process, policy: &SpanPolicy) -> AttributedSample {
    let mut stack: Vec<Location> =
        right_frames(sample).iter().map(|&frame| location(frame, process)).collect();
    // Why a stack ends early is a frame itself: it shows where a reader looks.
    stack.extend(why_it_ends(sample.user_stack).map(Location::Unresolved));
    // A process that was gone before it was read still has the name that the kernel gave it.
    let service = if process.name.is_empty() && !sample.comm.is_empty() {
        Arc::new(ServiceIdentity::unknown(&sample.comm))
    } else {
        Arc::clone(&process.service)
    };
    AttributedSample {
        service,
        main_elf: process.main_elf,
        stack: stack.into(),
        span: sample.span.as_ref().ok().and_then(|span| policy.label(span, process)),
        value: sample.value,
    }
}

/// The frames of a sample, without those that were found in a wrong way.
fn right_frames(sample: &Sample) -> &[Frame] {
    let is_user = |frame: &Frame| matches!(frame, Frame::User(_));
    match sample.frames.iter().position(is_user) {
        Some(first) if sample.user_stack == UserStack::Stale => {
            sample.frames.get(..=first).unwrap_or_default()
        }
        _ => &sample.frames,
    }
}

/// `None`: it ends where it should, or the last frame says why it is the last.
fn why_it_ends(stack: UserStack) -> Option<Unresolved> {
    Some(match stack {
        UserStack::Complete
        | UserStack::ZeroFramePointer
        | UserStack::KernelThread
        | UserStack::Unmapped => return None,
        UserStack::Truncated => Unresolved::Truncated,
        UserStack::Compat => Unresolved::Compat,
        UserStack::NoRegisters => Unresolved::NoRegisters,
        UserStack::UnknownProcess => Unresolved::UnknownProcess,
        UserStack::NoFramePointer => Unresolved::NoFramePointer,
        UserStack::Unreadable => Unresolved::StackUnreadable,
        UserStack::UnsupportedRule => Unresolved::UnsupportedRule,
        UserStack::BadStep => Unresolved::BadStep,
        UserStack::Stale => Unresolved::Stale,
    })
}

/// Where an address belongs, in this process.
#[must_use]
pub fn location(frame: Frame, process: &Process) -> Location {
    let at = match frame {
        Frame::Kernel(address) => return Location::Kernel(address.lookup()),
        Frame::User(address) => address.lookup(),
    };
    let Some(mapping) = process.snapshot.find(at) else {
        let reason = match process.unreadable {
            Some(Unreadable::Gone) => Unresolved::ProcessGone,
            Some(_) => Unresolved::MappingsUnreadable,
            None if process.snapshot.truncated() => Unresolved::MappingsUnreadable,
            None => Unresolved::Unmapped,
        };
        return Location::Unresolved(reason);
    };
    match mapping.backing {
        Backing::Elf(elf) => Location::Elf { elf, file_offset: mapping.file_offset_of(at) },
        Backing::Anonymous => {
            process.jit.map_or(Location::Unresolved(Unresolved::Anonymous), |map| Location::Jit {
                map,
                address: at,
            })
        }
        Backing::Special(_) => Location::Unresolved(Unresolved::Anonymous),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{BootTime, CodeAddress, NoSpan, Pid, SampleKind, Tid};
    use crate::process::{Mapping, MappingSnapshot};

    fn process() -> Process {
        let mapping = |start, end, backing| Mapping { start, end, file_offset: 0x100, backing };
        Process {
            snapshot: Arc::new(MappingSnapshot::new(
                vec![
                    mapping(0x1000, 0x2000, Backing::Elf(ElfId(7))),
                    mapping(0x3000, 0x4000, Backing::Anonymous),
                ],
                false,
            )),
            ..Process::not_read(Pid(1), None)
        }
    }

    fn sample(frames: Vec<Frame>) -> Sample {
        Sample {
            kind: SampleKind::Cpu,
            value: 5,
            at: BootTime(1),
            pid: Pid(1),
            tid: Tid(1),
            comm: "t".into(),
            cpu: 0,
            cgroup_id: 0,
            frames,
            user_stack: UserStack::Complete,
            by_frame_pointer: 0,
            epoch: 0,
            span: Err(NoSpan::NoSlot),
        }
    }

    fn at(at: u64) -> Frame {
        Frame::User(CodeAddress::Instruction(Addr(at)))
    }

    fn back_to(at: u64) -> Frame {
        Frame::User(CodeAddress::Return(Addr(at)))
    }

    #[track_caller]
    fn check_stack(sample: &Sample, process: &Process, expected: &[Location]) {
        assert_eq!(&*attribute(sample, process, &SpanScope::LocalRoot.into()).stack, expected);
    }

    #[test]
    fn addresses_become_offsets_in_files() {
        let elf = |file_offset| Location::Elf { elf: ElfId(7), file_offset };
        let kernel = Frame::Kernel(CodeAddress::Instruction(Addr(0xffff_0000)));
        let sample = sample(vec![kernel, at(0x1000), back_to(0x2000), at(0x2000), at(0x3000)]);
        check_stack(
            &sample,
            &process(),
            &[
                Location::Kernel(Addr(0xffff_0000)),
                elf(0x100),
                elf(0x10ff),
                Location::Unresolved(Unresolved::Unmapped),
                Location::Unresolved(Unresolved::Anonymous),
            ],
        );
    }

    #[test]
    fn code_made_at_run_time_is_named_by_its_process() {
        let process = Process { jit: Some(JitId(9)), ..process() };
        let jit = |address| Location::Jit { map: JitId(9), address: Addr(address) };
        check_stack(
            &sample(vec![at(0x3000), back_to(0x4000), at(0x1000)]),
            &process,
            &[jit(0x3000), jit(0x3fff), Location::Elf { elf: ElfId(7), file_offset: 0x100 }],
        );
    }

    #[test]
    fn what_is_not_known_says_why() {
        let unresolved = |reason| [Location::Unresolved(reason)];
        let gone = Process::not_read(Pid(1), Some(Unreadable::Gone));
        check_stack(&sample(vec![at(1)]), &gone, &unresolved(Unresolved::ProcessGone));
        let mut cut = sample(vec![]);
        for (stack, reason) in [
            (UserStack::Truncated, Unresolved::Truncated),
            (UserStack::Compat, Unresolved::Compat),
            (UserStack::NoRegisters, Unresolved::NoRegisters),
            (UserStack::UnknownProcess, Unresolved::UnknownProcess),
            (UserStack::NoFramePointer, Unresolved::NoFramePointer),
            (UserStack::Unreadable, Unresolved::StackUnreadable),
            (UserStack::UnsupportedRule, Unresolved::UnsupportedRule),
            (UserStack::BadStep, Unresolved::BadStep),
        ] {
            cut.user_stack = stack;
            check_stack(&cut, &process(), &unresolved(reason));
        }
    }

    #[test]
    fn of_a_stale_stack_the_first_frame_stays() {
        let mut stale = sample(vec![
            Frame::Kernel(CodeAddress::Instruction(Addr(0xffff_0000))),
            at(0x1000),
            back_to(0x1010),
        ]);
        stale.user_stack = UserStack::Stale;
        let expected = [
            Location::Kernel(Addr(0xffff_0000)),
            Location::Elf { elf: ElfId(7), file_offset: 0x100 },
            Location::Unresolved(Unresolved::Stale),
        ];
        check_stack(&stale, &process(), &expected);
    }

    #[test]
    fn a_process_that_was_not_read_has_its_threads_name() {
        let service = |process: &Process| {
            attribute(&sample(vec![]), process, &SpanScope::Active.into()).service.name.clone()
        };
        let unread = Process::not_read(Pid(1), Some(Unreadable::Gone));
        assert_eq!(service(&unread), "unknown_service:t");
        let read = Process { name: "exe".into(), ..unread };
        assert_eq!(service(&read), "unknown_service");
    }
}
