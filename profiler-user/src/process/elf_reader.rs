//! The headers of an ELF file that a stranger wrote: its build ID, notes, and where its parts are.
//!
//! Read with `pread`, a bounded part at a time, never mapped: a file that is cut short while it is
//! mapped kills the reader with SIGBUS.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::{fs::File, io, os::unix::fs::FileExt as _};

use object::elf::{
    Dyn64, ELFCLASS64, ELFDATA2LSB, ELFDATA2MSB, ELFMAG, FileHeader64, NT_GNU_BUILD_ID, PF_X,
    PT_DYNAMIC, PT_INTERP, PT_LOAD, PT_NOTE, ProgramHeader64, SectionHeader64,
};
use object::{NativeEndian, Pod};
use profiler_common::span_note::{NOTE_NAME, NOTE_TYPE, SpanMarkerNote};
use zerocopy::FromBytes as _;

use super::BuildId;

/// Executables have about a dozen.
const PROGRAM_HEADERS_MAX: usize = 256;
/// Linked files have about 30.
const DYNAMIC_ENTRIES_MAX: usize = 1024;
/// `-ffunction-sections` objects have 100,000s, linked files some 50.
const SECTION_HEADERS_MAX: usize = 4096;
/// A segment of notes is some hundred bytes, also in a Go or a Rust program.
const NOTES_MAX: usize = 64 << 10;
/// A build ID is 20 bytes (SHA-1); linkers let the user give any.
const BUILD_ID_MAX: usize = 64;
/// Paths of interpreters have some 30 bytes.
const INTERPRETER_MAX: usize = 256;
/// The smallest page: a segment's mapping begins at most this far before it.
const PAGE_MIN: u64 = 4096;

pub(super) const NATIVE: NativeEndian = NativeEndian;
const NATIVE_DATA: u8 = if cfg!(target_endian = "little") { ELFDATA2LSB } else { ELFDATA2MSB };

pub(super) type Header = FileHeader64<NativeEndian>;
pub(super) type Section = SectionHeader64<NativeEndian>;
pub(super) type Segment = ProgramHeader64<NativeEndian>;

/// The headers of an ELF file of this machine's kind: 64 bits, native byte order.
pub(super) struct ElfReader<'a> {
    pub(super) file: &'a File,
    pub(super) header: Header,
    segments: Vec<Segment>,
}

/// Whether the file says that it is an ELF file, of any kind.
pub(super) fn is_elf(file: &File) -> io::Result<bool> {
    let mut magic = [0; 4];
    Ok(read_some(file, 0, &mut magic)? == magic.len() && magic == ELFMAG)
}

impl<'a> ElfReader<'a> {
    /// `None`: not an ELF file of this machine's kind, or cut short.
    pub(super) fn open(file: &'a File) -> Option<Self> {
        let header: Header = *read_structs(file, 0, 1)?.first()?;
        let native = header.e_ident.magic == ELFMAG
            && header.e_ident.class == ELFCLASS64
            && header.e_ident.data == NATIVE_DATA
            && usize::from(header.e_phentsize.get(NATIVE)) == size_of::<Segment>();
        let count = usize::from(header.e_phnum.get(NATIVE)).min(PROGRAM_HEADERS_MAX);
        if !native {
            return None;
        }
        let segments = read_structs(file, header.e_phoff.get(NATIVE), count)?;
        Some(Self { file, header, segments })
    }

    /// The GNU build ID.
    pub(super) fn build_id(&self) -> Option<BuildId> {
        self.segments_of(PT_NOTE).find_map(|segment| {
            let notes = self.notes(segment)?;
            let note = notes_in(&notes)
                .find(|note| note.kind == NT_GNU_BUILD_ID && note.name == b"GNU\0")?;
            let id = note.desc.get(..note.desc.len().min(BUILD_ID_MAX))?;
            (!id.is_empty()).then(|| BuildId(id.into()))
        })
    }

    /// What span-marker's note says.
    pub(super) fn span_note(&self) -> Option<SpanNote> {
        self.segments_of(PT_NOTE).find_map(|segment| {
            let notes = self.notes(segment)?;
            let note =
                notes_in(&notes).find(|note| note.kind == NOTE_TYPE && note.name == NOTE_NAME)?;
            let (desc, _) = SpanMarkerNote::read_from_prefix(note.desc).ok()?;
            let at = segment.p_vaddr.get(NATIVE).checked_add(u64::try_from(note.desc_at).ok()?)?;
            let hook_at = at.checked_add(8)?.checked_add_signed(desc.hook_distance)?;
            Some(SpanNote {
                info_address: at.checked_add_signed(desc.info_distance)?,
                hook_offset: self.file_offset(hook_at)?,
            })
        })
    }

    fn notes(&self, segment: &Segment) -> Option<Vec<u8>> {
        let size = usize::try_from(segment.p_filesz.get(NATIVE)).ok()?.min(NOTES_MAX);
        let mut notes = vec![0; size];
        let read = read_some(self.file, segment.p_offset.get(NATIVE), &mut notes).ok()?;
        notes.truncate(read);
        Some(notes)
    }

    /// The program interpreter that the file names: what loads it, by which C library.
    pub(super) fn interpreter(&self) -> Option<Vec<u8>> {
        let segment = self.segments_of(PT_INTERP).next()?;
        let size = usize::try_from(segment.p_filesz.get(NATIVE)).ok()?.min(INTERPRETER_MAX);
        let mut path = vec![0; size];
        let read = read_some(self.file, segment.p_offset.get(NATIVE), &mut path).ok()?;
        path.truncate(read);
        Some(path)
    }

    /// The parts that hold code.
    pub(super) fn text(&self) -> Vec<TextSegment> {
        let text = self.segments_of(PT_LOAD).filter(|it| it.p_flags.get(NATIVE) & PF_X != 0);
        text.map(|segment| TextSegment {
            offset: segment.p_offset.get(NATIVE),
            address: segment.p_vaddr.get(NATIVE),
            size: segment.p_filesz.get(NATIVE),
        })
        .collect()
    }

    /// The dynamic section.
    pub(super) fn dynamic(&self) -> Option<Dynamic> {
        let segment = self.segments_of(PT_DYNAMIC).next()?;
        let size = u64::try_from(size_of::<Dyn64<NativeEndian>>()).ok()?;
        let count = segment.p_filesz.get(NATIVE).checked_div(size)?;
        let count = usize::try_from(count).ok()?.min(DYNAMIC_ENTRIES_MAX);
        Some(Dynamic { entries: read_structs(self.file, segment.p_offset.get(NATIVE), count)? })
    }

    /// Where in the file the byte is that is at an address when the file is mapped.
    pub(super) fn file_offset(&self, vaddr: u64) -> Option<u64> {
        self.segments_of(PT_LOAD).find_map(|segment| {
            let offset = vaddr.checked_sub(segment.p_vaddr.get(NATIVE))?;
            let inside = offset < segment.p_filesz.get(NATIVE);
            inside.then(|| segment.p_offset.get(NATIVE).checked_add(offset))?
        })
    }

    /// The section headers, which nothing needs at run time: `sstrip` and some packers drop them.
    pub(super) fn sections(&self) -> Option<Vec<Section>> {
        if usize::from(self.header.e_shentsize.get(NATIVE)) != size_of::<Section>() {
            return None;
        }
        let count = usize::from(self.header.e_shnum.get(NATIVE)).min(SECTION_HEADERS_MAX);
        read_structs(self.file, self.header.e_shoff.get(NATIVE), count)
    }

    pub(super) fn segments_of(&self, kind: u32) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(move |segment| segment.p_type.get(NATIVE) == kind)
    }
}

/// A part of the file that holds code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TextSegment {
    offset: u64,
    address: u64,
    size: u64,
}

impl TextSegment {
    /// What was added to the file's addresses, if a mapping at `start` that shows the file from
    /// `file_offset` on shows this part.
    pub(super) fn load_bias(self, start: u64, file_offset: u64) -> Option<u64> {
        // A mapping begins at a whole page, a segment anywhere.
        let first_page = self.offset & !(PAGE_MIN.wrapping_sub(1));
        let inside =
            first_page <= file_offset && file_offset < self.offset.checked_add(self.size)?;
        let address = self.address.wrapping_add(file_offset).wrapping_sub(self.offset);
        inside.then(|| start.wrapping_sub(address))
    }
}

/// The entries of a dynamic section.
pub(super) struct Dynamic {
    entries: Vec<Dyn64<NativeEndian>>,
}

impl Dynamic {
    /// The first value of a tag (`DT_*`).
    pub(super) fn value(&self, tag: u32) -> Option<u64> {
        let mut entries = self.entries.iter();
        let entry = entries.find(|entry| entry.d_tag.get(NATIVE) == u64::from(tag))?;
        Some(entry.d_val.get(NATIVE))
    }
}

/// What span-marker's note says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanNote {
    /// The address of the `SpanMarkerInfo`, as the file is linked: without the load bias.
    pub info_address: u64,
    /// Where the hook is in the file.
    pub hook_offset: u64,
}

/// One note of a segment.
struct Note<'a> {
    kind: u32,
    name: &'a [u8],
    desc: &'a [u8],
    /// Where the description begins in the segment.
    desc_at: usize,
}

/// Notes are aligned to 4. `.note.gnu.property` is aligned to 8, but reads the same: its name and its
/// description end at multiples of 8. What the segment says does not help: mold puts that one and
/// others, which are aligned to 4, into one segment that is aligned to 8.
const NOTE_ALIGN: usize = 4;

/// The notes in a segment, up to the first that is cut short.
fn notes_in(notes: &[u8]) -> impl Iterator<Item = Note<'_>> {
    let mut at = 0_usize;
    std::iter::from_fn(move || {
        let word = |at: usize| {
            let bytes = notes.get(at..at.checked_add(4)?)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        let name_len = usize::try_from(word(at)?).ok()?;
        let desc_len = usize::try_from(word(at.checked_add(4)?)?).ok()?;
        let kind = word(at.checked_add(8)?)?;
        let name_at = at.checked_add(12)?;
        let name_end = name_at.checked_add(name_len)?;
        let desc_at = name_end.checked_next_multiple_of(NOTE_ALIGN)?;
        let desc_end = desc_at.checked_add(desc_len)?;
        let note = Note {
            kind,
            name: notes.get(name_at..name_end)?,
            desc: notes.get(desc_at..desc_end)?,
            desc_at,
        };
        at = desc_end.checked_next_multiple_of(NOTE_ALIGN)?;
        Some(note)
    })
}

/// Reads `count` structures, fewer at the end of the file; `None` if there is not one of them.
pub(super) fn read_structs<T: Pod + Copy>(
    file: &File,
    offset: u64,
    count: usize,
) -> Option<Vec<T>> {
    let mut bytes = vec![0; count.checked_mul(size_of::<T>())?];
    let read = read_some(file, offset, &mut bytes).ok()?;
    let structs = bytes.get(..read)?.chunks_exact(size_of::<T>());
    let structs: Vec<T> = structs
        .map(|chunk| object::pod::from_bytes::<T>(chunk).ok().map(|(value, _)| *value))
        .collect::<Option<_>>()?;
    (!structs.is_empty()).then_some(structs)
}

/// `pread` until the buffer is full or the file ends.
pub(super) fn read_some(file: &File, mut offset: u64, mut bytes: &mut [u8]) -> io::Result<usize> {
    let wanted = bytes.len();
    while !bytes.is_empty() {
        match file.read_at(bytes, offset) {
            Ok(0) => break,
            Ok(read) => {
                offset = offset.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
                bytes = bytes.get_mut(read..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(wanted.saturating_sub(bytes.len()))
}

#[cfg(test)]
#[path = "elf_reader_tests.rs"]
mod tests;
