//! Go programs: where a thread has the goroutine that it runs, and where that has its labels.
//!
//! Both differ by how a program was built and are written down nowhere that survives `strip`. The
//! offsets in the runtime's structures follow from the version that made it. The place of the
//! goroutine is the program's only thread-local variable, or else what its code says.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use object::elf::{EM_X86_64, PF_X, PT_LOAD, PT_TLS};
use profiler_common::span::{GoLayout, SLOT_GO, SpanSlot};

use super::elf_reader::{ElfReader, NATIVE, Section, Segment, read_some};

/// What a file says of goroutines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GoLabels {
    /// It is no Go program.
    NotGo,
    /// They are found like this.
    Known(SpanSlot),
    /// Its version has a layout that is not known.
    VersionUnknown,
    /// It is not known where a thread has its goroutine.
    PlaceUnknown,
}

/// Names of sections are some hundred bytes in all.
const SECTION_NAMES_MAX: usize = 64 << 10;
/// What the section with the version begins with.
const BUILD_INFO_MAGIC: &[u8] = b"\xff Go buildinf:";
/// The version's text begins here, if [`INLINE`] is set: since Go 1.18.
const VERSION_AT: usize = 32;
const INLINE: u8 = 2;
const FLAGS_AT: usize = 15;
/// "go1.26.8 X:…" is longer only with names of experiments.
const VERSION_MAX: usize = 256;
/// How much code is searched: the runtime is in a program's first MiB or two.
const CODE_MAX: u64 = 16 << 20;
/// How much of it is read at a time.
const CODE_CHUNK: usize = 256 << 10;
/// The size of a symbol, the unit of what reading a file costs.
const SYMBOL: u64 = 24;

/// What a program says of its goroutines' labels. Adds to `cost` what was read of its code.
pub(super) fn go_labels(elf: &ElfReader<'_>, cost: &mut u64) -> GoLabels {
    let Some(version) = build_info(elf) else { return GoLabels::NotGo };
    let Some(go) = minor_version(&version).and_then(layout) else {
        return GoLabels::VersionUnknown;
    };
    // On other processors a goroutine is in a register, and in memory only where there is C.
    let offset =
        if elf.header.e_machine.get(NATIVE) == EM_X86_64 { offset(elf, cost) } else { None };
    offset.map_or(GoLabels::PlaceUnknown, |offset| {
        GoLabels::Known(SpanSlot { offset, format: SLOT_GO, go, ..SpanSlot::EMPTY })
    })
}

/// The text with which the section `.go.buildinfo` says the version.
fn build_info(elf: &ElfReader<'_>) -> Option<Vec<u8>> {
    let section = section(elf, b".go.buildinfo")?;
    let mut bytes = vec![0; VERSION_AT.checked_add(VERSION_MAX)?];
    let read = read_some(elf.file, section.sh_offset.get(NATIVE), &mut bytes).ok()?;
    bytes.truncate(read);
    bytes.starts_with(BUILD_INFO_MAGIC).then_some(bytes)
}

/// `26` of "go1.26.8", also of "devel go1.27-…".
fn minor_version(build_info: &[u8]) -> Option<u16> {
    if build_info.get(FLAGS_AT)? & INLINE == 0 {
        return None;
    }
    // A length in the variable encoding of protocol buffers, of one byte or two.
    let (text, len) = match build_info.get(VERSION_AT..)? {
        [len @ 0..0x80, text @ ..] => (text, usize::from(*len)),
        [low, high @ 0..0x80, text @ ..] => {
            (text, usize::from(low & 0x7f) | usize::from(*high).checked_shl(7)?)
        }
        _ => return None,
    };
    let text = str::from_utf8(text.get(..len.min(text.len()))?).ok()?;
    let minor = text.split_whitespace().find_map(|word| word.strip_prefix("go1."))?;
    let end = minor.find(|char: char| !char.is_ascii_digit()).unwrap_or(minor.len());
    minor.get(..end)?.parse().ok()
}

/// Of `runtime.g` and `runtime.m` in `runtime2.go`, by release of Go 1. The same on all processors
/// of 64 bits. Those of 1.26 and 1.27 are what DWARF says; `gobuf`, which both contain before, lost
/// a word in 1.25, and `g` got one in 1.26. The slice came with 1.24.
fn layout(minor: u16) -> Option<GoLayout> {
    let (m_curg, g_labels, labels_are_map) = match minor {
        23 => (192, 352, 1),
        24 => (192, 352, 0),
        25 => (184, 344, 0),
        26 | 27 => (184, 352, 0),
        _ => return None,
    };
    Some(GoLayout { g_m: 48, m_curg, g_labels, labels_are_map })
}

/// The distance from the thread pointer to the pointer to the goroutine.
fn offset(elf: &ElfReader<'_>, cost: &mut u64) -> Option<i64> {
    /// Right below the thread pointer.
    const ALONE: i64 = -8;
    // Without C, Go's linker describes it in programs that may be anywhere, and not in others.
    let Some(tls) = elf.segments_of(PT_TLS).next() else { return Some(ALONE) };
    let (len, align) = (tls.p_memsz.get(NATIVE), tls.p_align.get(NATIVE));
    if len == 8 {
        return Some(ALONE);
    }
    let furthest = i64::try_from(len.checked_add(align)?).ok()?.checked_neg()?;
    let offset = offset_in_code(elf, cost)?;
    (furthest..=ALONE).contains(&offset).then_some(offset)
}

/// What `runtime.stackcheck` says, whose code is like no other: it loads the goroutine and compares
/// the stack pointer with both of its bounds.
fn offset_in_code(elf: &ElfReader<'_>, cost: &mut u64) -> Option<i64> {
    let is_code = |segment: &&Segment| segment.p_flags.get(NATIVE) & PF_X != 0;
    let mut left = CODE_MAX;
    elf.segments_of(PT_LOAD).filter(is_code).find_map(|segment| {
        let (mut at, len) = (segment.p_offset.get(NATIVE), segment.p_filesz.get(NATIVE));
        let len = len.min(left);
        left = left.saturating_sub(len);
        let end = at.checked_add(len)?;
        let mut bytes = vec![0; CODE_CHUNK];
        while at < end {
            let read = read_some(elf.file, at, &mut bytes).ok()?;
            *cost = cost.saturating_add(u64::try_from(read).ok()? / SYMBOL);
            if let Some(offset) = bytes.get(..read).and_then(offset_in) {
                return Some(offset);
            }
            // What is cut at the end is read again.
            let next = read.checked_sub(STACK_CHECK_MAX).filter(|next| *next > 0)?;
            at = at.checked_add(u64::try_from(next).ok()?)?;
        }
        None
    })
}

/// `cmp [rax + 8], rsp; ja +5; call`: `stackcheck`, behind its first instructions.
const COMPARE: [u8; 7] = [0x48, 0x39, 0x60, 0x08, 0x77, 0x05, 0xe8];
/// `mov rax, fs:[offset]`, before it.
const LOAD: [u8; 5] = [0x64, 0x48, 0x8b, 0x04, 0x25];
/// Or `mov rcx, offset`
const MOVE: [u8; 3] = [0x48, 0xc7, 0xc1];
/// and `mov rax, fs:[rcx]`.
const LOAD_BY_REGISTER: [u8; 4] = [0x64, 0x48, 0x8b, 0x01];
/// The longest of these in all.
const STACK_CHECK_MAX: usize = 18;

fn offset_in(code: &[u8]) -> Option<i64> {
    code.windows(COMPARE.len()).enumerate().filter(|(_, bytes)| *bytes == COMPARE).find_map(
        |(at, _)| {
            let before = code.get(..at)?;
            let (before, offset) = match before.strip_suffix(&LOAD_BY_REGISTER[..]) {
                Some(before) => (before, MOVE.as_slice()),
                None => (before, LOAD.as_slice()),
            };
            let (before, bytes) = before.split_last_chunk()?;
            before.ends_with(offset).then(|| i32::from_le_bytes(*bytes).into())
        },
    )
}

fn section(elf: &ElfReader<'_>, name: &[u8]) -> Option<Section> {
    let sections = elf.sections()?;
    let names = sections.get(usize::from(elf.header.e_shstrndx.get(NATIVE)))?;
    let len = usize::try_from(names.sh_size.get(NATIVE)).ok()?.min(SECTION_NAMES_MAX);
    let mut text = vec![0; len];
    let read = read_some(elf.file, names.sh_offset.get(NATIVE), &mut text).ok()?;
    text.truncate(read);
    sections.into_iter().find(|section| {
        let at = usize::try_from(section.sh_name.get(NATIVE)).ok();
        let rest = at.and_then(|at| text.get(at..)?.strip_prefix(name));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    })
}

#[cfg(test)]
#[path = "go_labels_tests.rs"]
mod tests;
