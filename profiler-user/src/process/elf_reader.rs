//! The headers of an ELF file that a stranger wrote: its build ID, and where its threads keep a
//! thread-local variable.
//!
//! Read with `pread`, a bounded part at a time, never mapped: a file that is cut short while it is
//! mapped kills the reader with SIGBUS.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::{fs::File, io, os::unix::fs::FileExt as _};

use object::elf::{
    DT_HASH, DT_STRTAB, DT_SYMTAB, Dyn64, ELFCLASS64, ELFDATA2LSB, ELFDATA2MSB, ELFMAG,
    FileHeader64, NT_GNU_BUILD_ID, PT_DYNAMIC, PT_LOAD, PT_NOTE, PT_TLS, ProgramHeader64,
    SHN_UNDEF, SHT_DYNSYM, STT_TLS, SectionHeader64, Sym64,
};
use object::{NativeEndian, Pod};
use profiler_common::span_note::{NOTE_NAME, NOTE_TYPE, SpanMarkerNote};
use zerocopy::FromBytes as _;

use super::BuildId;

/// Executables have about a dozen.
const PROGRAM_HEADERS_MAX: usize = 256;
/// `-ffunction-sections` objects have 100,000s, linked files some 50.
const SECTION_HEADERS_MAX: usize = 4096;
/// Linked files have about 30.
const DYNAMIC_ENTRIES_MAX: usize = 1024;
/// A segment of notes is some hundred bytes, also in a Go or a Rust program.
const NOTES_MAX: usize = 64 << 10;
/// A build ID is 20 bytes (SHA-1); linkers let the user give any.
const BUILD_ID_MAX: usize = 64;
/// Chromium exports some 100,000: these are 24 MB of symbols.
const SYMBOLS_MAX: u64 = 1 << 20;
/// How many symbols are read at a time.
const SYMBOLS_CHUNK: usize = 2048;
/// How many thread-local symbols are compared by name; libraries with many have some hundred.
const TLS_SYMBOLS_MAX: usize = 4096;

const NATIVE: NativeEndian = NativeEndian;
const NATIVE_DATA: u8 = if cfg!(target_endian = "little") { ELFDATA2LSB } else { ELFDATA2MSB };

type Header = FileHeader64<NativeEndian>;
type Segment = ProgramHeader64<NativeEndian>;
type Section = SectionHeader64<NativeEndian>;
type Symbol = Sym64<NativeEndian>;

/// The headers of an ELF file of this machine's kind: 64 bits, native byte order.
pub(super) struct ElfReader<'a> {
    file: &'a File,
    header: Header,
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

    /// Where a thread keeps the 8-byte variable `name`, as a distance in bytes from its thread
    /// pointer, if this is the main executable of the process and its `.dynsym` defines it.
    pub(super) fn tls_offset(&self, name: &str) -> Option<i64> {
        let tls = self.segments_of(PT_TLS).next()?;
        let value = self.tls_symbol(name.as_bytes())?;
        if value.checked_add(8)? > tls.p_memsz.get(NATIVE) {
            return None;
        }
        let block = TlsBlock {
            vaddr: tls.p_vaddr.get(NATIVE),
            memsz: tls.p_memsz.get(NATIVE),
            align: tls.p_align.get(NATIVE),
        };
        if cfg!(target_arch = "x86_64") {
            block.offset_below_thread_pointer(value)
        } else {
            block.offset_above_thread_pointer(value)
        }
    }

    /// The offset in the TLS block of a thread-local symbol that the file defines and exports.
    fn tls_symbol(&self, name: &[u8]) -> Option<u64> {
        let table = self.table_by_sections().or_else(|| self.table_by_dynamic())?;
        let mut compared = 0_usize;
        let mut index = 0_u64;
        while index < table.count {
            let left = usize::try_from(table.count.saturating_sub(index)).ok()?;
            let size = u64::try_from(size_of::<Symbol>()).ok()?;
            let offset = index.checked_mul(size)?.checked_add(table.symbols)?;
            let chunk: Vec<Symbol> = read_structs(self.file, offset, left.min(SYMBOLS_CHUNK))?;
            for symbol in &chunk {
                let defined = symbol.st_shndx.get(NATIVE) != SHN_UNDEF;
                if symbol.st_info & 0xf != STT_TLS || !defined {
                    continue;
                }
                compared = compared.checked_add(1).filter(|count| *count <= TLS_SYMBOLS_MAX)?;
                let at = table.names.checked_add(symbol.st_name.get(NATIVE).into())?;
                if self.name_is(at, name) {
                    return Some(symbol.st_value.get(NATIVE));
                }
            }
            index = index.checked_add(u64::try_from(chunk.len()).ok()?)?;
        }
        None
    }

    fn name_is(&self, at: u64, name: &[u8]) -> bool {
        let mut bytes = vec![0; name.len().saturating_add(1)];
        let read = read_some(self.file, at, &mut bytes).ok();
        read == Some(bytes.len()) && bytes.strip_suffix(b"\0") == Some(name)
    }

    /// The section headers, which nothing needs at run time: `sstrip` and some packers drop them.
    fn table_by_sections(&self) -> Option<SymbolTable> {
        if usize::from(self.header.e_shentsize.get(NATIVE)) != size_of::<Section>() {
            return None;
        }
        let count = usize::from(self.header.e_shnum.get(NATIVE)).min(SECTION_HEADERS_MAX);
        let sections: Vec<Section> =
            read_structs(self.file, self.header.e_shoff.get(NATIVE), count)?;
        let symbols = sections.iter().find(|section| section.sh_type.get(NATIVE) == SHT_DYNSYM)?;
        let names = sections.get(usize::try_from(symbols.sh_link.get(NATIVE)).ok()?)?;
        let size = u64::try_from(size_of::<Symbol>()).ok()?;
        Some(SymbolTable {
            symbols: symbols.sh_offset.get(NATIVE),
            count: symbols.sh_size.get(NATIVE).checked_div(size)?.min(SYMBOLS_MAX),
            names: names.sh_offset.get(NATIVE),
        })
    }

    /// The dynamic section, which does not say how many symbols there are: `DT_HASH` does where
    /// there is one; otherwise the names, which every linker puts behind the symbols, end them.
    fn table_by_dynamic(&self) -> Option<SymbolTable> {
        let dynamic = self.segments_of(PT_DYNAMIC).next()?;
        let size = u64::try_from(size_of::<Dyn64<NativeEndian>>()).ok()?;
        let count = dynamic.p_filesz.get(NATIVE).checked_div(size)?;
        let count = usize::try_from(count).ok()?.min(DYNAMIC_ENTRIES_MAX);
        let entries: Vec<Dyn64<NativeEndian>> =
            read_structs(self.file, dynamic.p_offset.get(NATIVE), count)?;
        let offset_of = |tag: u32| {
            let entry = entries.iter().find(|entry| entry.d_tag.get(NATIVE) == u64::from(tag))?;
            self.file_offset(entry.d_val.get(NATIVE))
        };
        let (symbols, names) = (offset_of(DT_SYMTAB)?, offset_of(DT_STRTAB)?);
        let by_hash = offset_of(DT_HASH).and_then(|hash| {
            let counts: Vec<object::U32<NativeEndian>> = read_structs(self.file, hash, 2)?;
            Some(u64::from(counts.get(1)?.get(NATIVE)))
        });
        let size = u64::try_from(size_of::<Symbol>()).ok()?;
        let by_names = || names.checked_sub(symbols)?.checked_div(size);
        let count = by_hash.or_else(by_names)?.min(SYMBOLS_MAX);
        Some(SymbolTable { symbols, count, names })
    }

    fn file_offset(&self, vaddr: u64) -> Option<u64> {
        self.segments_of(PT_LOAD).find_map(|segment| {
            let offset = vaddr.checked_sub(segment.p_vaddr.get(NATIVE))?;
            let inside = offset < segment.p_filesz.get(NATIVE);
            inside.then(|| segment.p_offset.get(NATIVE).checked_add(offset))?
        })
    }

    fn segments_of(&self, kind: u32) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(move |segment| segment.p_type.get(NATIVE) == kind)
    }
}

/// Where the exported symbols are in the file.
struct SymbolTable {
    symbols: u64,
    count: u64,
    names: u64,
}

/// `PT_TLS`: the main executable's block of every thread.
struct TlsBlock {
    vaddr: u64,
    memsz: u64,
    align: u64,
}

impl TlsBlock {
    /// "Variant II" (`x86_64`): the block ends at the thread pointer, and starts where its address
    /// is the segment's, modulo the alignment. glibc's `_dl_determine_tlsoffset`, lld's
    /// `getTlsTpOffset`.
    fn offset_below_thread_pointer(&self, value: u64) -> Option<i64> {
        let mask = self.mask()?;
        let gap = 0_u64.wrapping_sub(self.vaddr).wrapping_sub(self.memsz) & mask;
        value.wrapping_sub(self.memsz).wrapping_sub(gap).cast_signed().into()
    }

    /// "Variant I" (`aarch64`): the block starts behind the 16 bytes at the thread pointer.
    fn offset_above_thread_pointer(&self, value: u64) -> Option<i64> {
        let gap = self.vaddr.wrapping_sub(16) & self.mask()?;
        value.wrapping_add(16).wrapping_add(gap).cast_signed().into()
    }

    fn mask(&self) -> Option<u64> {
        let align = self.align.max(1);
        align.is_power_of_two().then(|| align.wrapping_sub(1))
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
fn read_structs<T: Pod + Copy>(file: &File, offset: u64, count: usize) -> Option<Vec<T>> {
    let mut bytes = vec![0; count.checked_mul(size_of::<T>())?];
    let read = read_some(file, offset, &mut bytes).ok()?;
    let structs = bytes.get(..read)?.chunks_exact(size_of::<T>());
    let structs: Vec<T> = structs
        .map(|chunk| object::pod::from_bytes::<T>(chunk).ok().map(|(value, _)| *value))
        .collect::<Option<_>>()?;
    (!structs.is_empty()).then_some(structs)
}

/// `pread` until the buffer is full or the file ends.
fn read_some(file: &File, mut offset: u64, mut bytes: &mut [u8]) -> io::Result<usize> {
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
