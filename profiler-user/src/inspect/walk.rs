//! A walk up the stack of a stopped thread, by the step that the BPF program takes.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use profiler_common::sample::{
    FRAME_INTERRUPTED, USER_FRAMES_MAX, USER_STACK_BAD_STEP, USER_STACK_COMPLETE,
    USER_STACK_NO_FRAME_POINTER, USER_STACK_TRUNCATED, USER_STACK_UNKNOWN_PROCESS,
    USER_STACK_UNMAPPED, USER_STACK_UNREADABLE, USER_STACK_UNSUPPORTED_RULE,
    USER_STACK_ZERO_FRAME_POINTER,
};
use profiler_common::unwind::{
    MAPPING_ANONYMOUS, MAPPING_NO_TABLE, MAPPING_OVER_LIMIT, MAPPING_TABLE, MAPPING_UNREADABLE,
};
use profiler_ebpf::machine::Machine;
use profiler_ebpf::unwind::{Cursor, GO_ON, KIND_UNMAPPED, Lookup, step};
use serde::Serialize;

use super::files::{Files, NoTable};
use super::rule_text;
use super::stopped::Registers;
use crate::decode::{Addr, CodeAddress};
use crate::process::{Backing, Process};

/// How much of the stack is read at a time.
const WINDOW: u64 = 4096;

/// A stack, and why it ends.
#[derive(Debug, Serialize)]
pub(super) struct WalkReport {
    pub(super) ends: &'static str,
    pub(super) frames: Vec<FrameReport>,
}

/// One frame.
#[derive(Debug, Serialize)]
pub(super) struct FrameReport {
    pub(super) ip: u64,
    pub(super) sp: u64,
    /// Innermost first.
    pub(super) functions: Vec<String>,
    pub(super) binary: String,
    /// How its caller is looked for.
    pub(super) caller: String,
    #[serde(skip)]
    pub(super) address: CodeAddress,
}

/// Walks.
pub(super) fn walk(
    registers: &Registers,
    memory: &File,
    process: &Process,
    files: &Files,
) -> WalkReport {
    let mut walker =
        Walker { registers, memory, process, files, window: None, found: None, frame: None };
    let mut at = Cursor {
        ip: registers.ip,
        sp: registers.sp,
        fp: registers.fp,
        link: registers.link,
        returns: u64::from(registers.in_system_call),
        first: 1,
        ..Cursor::default()
    };
    let mut frames = Vec::new();
    loop {
        let (sp, returns) = (at.sp, at.returns != 0);
        let outcome = step(&mut walker, &mut at);
        if let Some(word) = walker.frame.take() {
            if word & FRAME_INTERRUPTED != 0 {
                walker.correct_handlers_return(&mut frames);
            }
            frames.push(walker.report(word & !FRAME_INTERRUPTED, sp, returns));
        }
        if outcome != GO_ON {
            return WalkReport { ends: end(outcome), frames };
        }
        if frames.len() >= USER_FRAMES_MAX {
            return WalkReport { ends: end(USER_STACK_TRUNCATED), frames };
        }
    }
}

fn end(outcome: u8) -> &'static str {
    match outcome {
        USER_STACK_COMPLETE => "complete",
        USER_STACK_TRUNCATED => "truncated",
        USER_STACK_UNKNOWN_PROCESS => "unknown_process",
        USER_STACK_UNMAPPED => "unmapped",
        USER_STACK_NO_FRAME_POINTER => "no_frame_pointer",
        USER_STACK_UNREADABLE => "unreadable",
        USER_STACK_UNSUPPORTED_RULE => "unsupported_rule",
        USER_STACK_BAD_STEP => "bad_step",
        USER_STACK_ZERO_FRAME_POINTER => "zero_frame_pointer",
        _ => "other",
    }
}

struct Walker<'a> {
    registers: &'a Registers,
    memory: &'a File,
    process: &'a Process,
    files: &'a Files,
    /// What was read of the stack last: where it begins, and the words.
    window: Option<(u64, Vec<u8>)>,
    found: Option<Lookup>,
    frame: Option<u64>,
}

impl Walker<'_> {
    fn report(&self, ip: u64, sp: u64, returns: bool) -> FrameReport {
        let ip_address = Addr(ip);
        let address = if returns {
            CodeAddress::Return(ip_address)
        } else {
            CodeAddress::Instruction(ip_address)
        };
        let binary = self.binary(address);
        let caller = self.found.map(rule_text::how).unwrap_or_default();
        FrameReport { ip, sp, functions: Vec::new(), binary, caller, address }
    }

    fn binary(&self, address: CodeAddress) -> String {
        match self.process.snapshot.find(address.lookup()).map(|it| &it.backing) {
            Some(Backing::Elf(elf)) => self.files.path(*elf).to_owned(),
            Some(Backing::Special(name)) => name.to_string(),
            Some(Backing::Anonymous) | None => String::new(),
        }
    }

    /// The last frame turned out to be where a signal's handler returns to, which no call is before.
    /// The first one can be behind the system call there.
    fn correct_handlers_return(&self, frames: &mut [FrameReport]) {
        if let [_, .., last] = frames {
            last.address = CodeAddress::Instruction(Addr(last.ip));
            last.binary = self.binary(last.address);
        }
    }

    fn find(&self, pc: u64) -> Lookup {
        let without_rule = |kind| Lookup { kind, rule: 0 };
        let Some(mapping) = self.process.snapshot.find(Addr(pc)) else {
            return without_rule(KIND_UNMAPPED);
        };
        let Backing::Elf(elf) = mapping.backing else { return without_rule(MAPPING_ANONYMOUS) };
        let table = match self.files.table(elf) {
            Ok(table) => table,
            Err(NoTable::NoInformation) => return without_rule(MAPPING_NO_TABLE),
            Err(NoTable::TooLarge) => return without_rule(MAPPING_OVER_LIMIT),
            Err(NoTable::Unreadable) => return without_rule(MAPPING_UNREADABLE),
        };
        let len = mapping.end.saturating_sub(mapping.start);
        match table.layout().address_of(len, mapping.file_offset) {
            Some(begin) => {
                let address = begin.wrapping_add(pc.wrapping_sub(mapping.start));
                Lookup { kind: MAPPING_TABLE, rule: table.lookup(address).to_bits() }
            }
            None => without_rule(MAPPING_NO_TABLE),
        }
    }
}

impl profiler_ebpf::unwind::Process for Walker<'_> {
    const MACHINE: Machine = if cfg!(target_arch = "aarch64") {
        profiler_ebpf::machine::AARCH64
    } else {
        profiler_ebpf::machine::X86_64
    };

    fn look_up(&mut self, pc: u64) -> Lookup {
        let found = self.find(pc);
        self.found = Some(found);
        found
    }

    fn word(&mut self, address: u64) -> Option<u64> {
        let in_window = |(begin, bytes): &(u64, Vec<u8>)| -> Option<u64> {
            let at = usize::try_from(address.checked_sub(*begin)?).ok()?;
            bytes.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word))
        };
        if let Some(word) = self.window.as_ref().and_then(in_window) {
            return Some(word);
        }
        let mut bytes = vec![0; usize::try_from(WINDOW).ok()?];
        // Not beyond the end of the stack: what is there of it is enough.
        let read = self.memory.read_at(&mut bytes, address).ok()?;
        bytes.truncate(read);
        let window = self.window.insert((address, bytes));
        in_window(window)
    }

    fn approach(&mut self, _sp: u64, _cfa: u64) {}

    fn register(&mut self, number: u64) -> u64 {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        self.registers.by_number.get(number).copied().unwrap_or(0)
    }

    fn frame(&mut self, word: u64) {
        self.frame = Some(word);
    }

    fn note_frame_pointer(&mut self, _kind: u8) {}
}
