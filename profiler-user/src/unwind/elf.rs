//! The parts of an ELF file that unwinding needs: its loaded segments, and some of its sections.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::io::Read as _;

use object::LittleEndian as LE;
use object::elf::{
    CompressionHeader64, ELFCLASS64, ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD, ELFDATA2LSB, ELFMAG,
    EM_AARCH64, EM_X86_64, FileHeader64, PF_X, PT_GNU_EH_FRAME, PT_LOAD, ProgramHeader64,
    SHF_COMPRESSED, SHT_NOBITS, SectionHeader64,
};

use super::work::{self, Work};
use super::{BuildError, Limits, LoadSegment, ReadAt};

/// Executables have about a dozen.
const PROGRAM_HEADERS_MAX: u16 = 256;
/// Linked files have about 40.
const SECTION_HEADERS_MAX: u16 = 4096;
/// What is compressed may be so many times as large: it is a third or a tenth in practice. Small
/// files come first because they are soon done.
const RATIO_MAX: u64 = 64;
/// Of all section names together; they are some hundred bytes.
const NAMES_MAX: u64 = 1 << 20;

/// A processor whose unwind information is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Machine {
    X86_64,
    Aarch64,
}

/// An ELF file's headers.
pub(super) struct Elf<'a> {
    file: &'a dyn ReadAt,
    pub(super) limits: Limits,
    pub(super) work: Work<'a>,
    pub(super) machine: Machine,
    pub(super) entry: u64,
    file_size: u64,
    segments: Vec<ProgramHeader64<LE>>,
    sections: Vec<(String, SectionHeader64<LE>)>,
}

/// A section's bytes, and where they are in memory.
pub(super) struct Section {
    pub(super) address: u64,
    pub(super) bytes: Vec<u8>,
}

impl<'a> Elf<'a> {
    pub(super) fn read(file: &'a dyn ReadAt, limits: Limits) -> Result<Self, BuildError> {
        let header: FileHeader64<LE> = read_struct(file, 0)?;
        let ident = header.e_ident;
        if ident.magic != ELFMAG {
            return Err(BuildError::Malformed("no ELF magic"));
        }
        if ident.class != ELFCLASS64 || ident.data != ELFDATA2LSB {
            return Err(BuildError::OtherMachine);
        }
        let machine = match header.e_machine.get(LE) {
            EM_X86_64 => Machine::X86_64,
            EM_AARCH64 => Machine::Aarch64,
            _ => return Err(BuildError::OtherMachine),
        };
        let count = header.e_phnum.get(LE);
        if count == 0 || count > PROGRAM_HEADERS_MAX {
            return Err(BuildError::Malformed("number of program headers"));
        }
        if usize::from(header.e_phentsize.get(LE)) != size_of::<ProgramHeader64<LE>>() {
            return Err(BuildError::Malformed("size of program headers"));
        }
        let segments = read_structs(file, header.e_phoff.get(LE), count)?;
        // A file without section headers, or with damaged ones, still runs.
        let sections = sections(file, &header).unwrap_or_default();
        let entry = header.e_entry.get(LE);
        let file_size = file.size().map_err(BuildError::Unreadable)?;
        let work = Work::on(file);
        Ok(Self { file, limits, work, machine, entry, file_size, segments, sections })
    }

    /// What is mapped when the file runs. What is not in the file cannot be run, whatever the file
    /// says.
    pub(super) fn load_segments(&self) -> Vec<LoadSegment> {
        let loaded = self.segments.iter().filter(|segment| segment.p_type.get(LE) == PT_LOAD);
        loaded
            .map(|segment| {
                let file_offset = segment.p_offset.get(LE);
                let there = self.file_size.saturating_sub(file_offset);
                LoadSegment {
                    file_offset,
                    address: segment.p_vaddr.get(LE),
                    file_size: segment.p_filesz.get(LE).min(there),
                    executable: segment.p_flags.get(LE) & PF_X != 0,
                }
            })
            .collect()
    }

    /// Whether there is a section of this name.
    pub(super) fn has_section(&self, name: &str) -> bool {
        self.sections.iter().any(|(known, _)| known == name)
    }

    /// Where a section is in memory, and its size.
    pub(super) fn section_range(&self, name: &str) -> Option<(u64, u64)> {
        let (_, section) = self.sections.iter().find(|(known, _)| known == name)?;
        Some((section.sh_addr.get(LE), section.sh_size.get(LE)))
    }

    /// A section's bytes, decompressed; `None` if there is no such section, or nothing in it.
    pub(super) fn section(&self, name: &'static str) -> Result<Option<Section>, BuildError> {
        let Some((_, header)) = self.sections.iter().find(|(known, _)| known == name) else {
            return Ok(None);
        };
        let size = header.sh_size.get(LE);
        if size == 0 || header.sh_type.get(LE) == SHT_NOBITS {
            return Ok(None);
        }
        let mut bytes = self.bytes(header.sh_offset.get(LE), size, name)?;
        if header.sh_flags.get(LE) & u64::from(SHF_COMPRESSED) != 0 {
            bytes = self.decompress(&bytes, name)?;
        }
        Ok(Some(Section { address: header.sh_addr.get(LE), bytes }))
    }

    /// What `PT_GNU_EH_FRAME` points to: `.eh_frame_hdr`.
    pub(super) fn eh_frame_header(&self) -> Result<Option<Section>, BuildError> {
        let is_header = |segment: &&ProgramHeader64<LE>| segment.p_type.get(LE) == PT_GNU_EH_FRAME;
        let Some(segment) = self.segments.iter().find(is_header) else { return Ok(None) };
        let (offset, size) = (segment.p_offset.get(LE), segment.p_filesz.get(LE));
        // Its table of functions is not needed, only what comes before.
        let bytes = self.bytes(offset, size.min(4096), ".eh_frame_hdr")?;
        Ok(Some(Section { address: segment.p_vaddr.get(LE), bytes }))
    }

    /// The bytes of memory from an address up to the end of its segment, or `len` of them.
    pub(super) fn memory(&self, address: u64, len: u64) -> Result<Option<Section>, BuildError> {
        let holds = |segment: &&LoadSegment| {
            address.checked_sub(segment.address).is_some_and(|at| at < segment.file_size)
        };
        let segments = self.load_segments();
        let Some(segment) = segments.iter().find(holds) else { return Ok(None) };
        let at = address.saturating_sub(segment.address);
        let len = len.min(segment.file_size.saturating_sub(at));
        let bytes = self.bytes(segment.file_offset.saturating_add(at), len, "a segment")?;
        Ok(Some(Section { address, bytes }))
    }

    fn bytes(&self, offset: u64, size: u64, what: &'static str) -> Result<Vec<u8>, BuildError> {
        if size > self.limits.section_bytes {
            return Err(BuildError::TooLarge(what));
        }
        self.work.charge(work::CALL)?;
        let bytes = read_bytes(self.file, offset, size)?;
        self.work.charge_reading(bytes.len(), work::READ_PER_UNIT)?;
        Ok(bytes)
    }

    fn decompress(&self, bytes: &[u8], what: &'static str) -> Result<Vec<u8>, BuildError> {
        let (header, compressed) = object::pod::from_bytes::<CompressionHeader64<LE>>(bytes)
            .map_err(|()| BuildError::Malformed("compression header"))?;
        let size = header.ch_size.get(LE);
        let most = u64::try_from(compressed.len()).unwrap_or(u64::MAX).saturating_mul(RATIO_MAX);
        if size > self.limits.section_bytes.min(most) {
            return Err(BuildError::TooLarge(what));
        }
        let mut plain = Vec::new();
        let read = match header.ch_type.get(LE) {
            ELFCOMPRESS_ZLIB => {
                flate2::read::ZlibDecoder::new(compressed).take(size).read_to_end(&mut plain)
            }
            ELFCOMPRESS_ZSTD => zstd::stream::read::Decoder::new(compressed)
                .and_then(|decoder| decoder.take(size).read_to_end(&mut plain)),
            _ => return Err(BuildError::Compressed(what)),
        };
        read.map_err(|_error| BuildError::Compressed(what))?;
        self.work.charge_reading(plain.len(), work::DECOMPRESSED_PER_UNIT)?;
        Ok(plain)
    }
}

fn sections(
    file: &dyn ReadAt,
    header: &FileHeader64<LE>,
) -> Option<Vec<(String, SectionHeader64<LE>)>> {
    let count = header.e_shnum.get(LE);
    let entry_size = usize::from(header.e_shentsize.get(LE));
    if count > SECTION_HEADERS_MAX || entry_size != size_of::<SectionHeader64<LE>>() {
        return None;
    }
    let headers: Vec<SectionHeader64<LE>> =
        read_structs(file, header.e_shoff.get(LE), count).ok()?;
    let names = headers.get(usize::from(header.e_shstrndx.get(LE)))?;
    let len = names.sh_size.get(LE);
    if len > NAMES_MAX {
        return None;
    }
    let names = read_bytes(file, names.sh_offset.get(LE), len).ok()?;
    let name = |at: u32| {
        let rest = names.get(usize::try_from(at).ok()?..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        Some(String::from_utf8_lossy(rest.get(..end)?).into_owned())
    };
    let named = |section: SectionHeader64<LE>| Some((name(section.sh_name.get(LE))?, section));
    Some(headers.into_iter().filter_map(named).collect())
}

fn read_struct<T: object::Pod>(file: &dyn ReadAt, offset: u64) -> Result<T, BuildError> {
    read_structs(file, offset, 1)?.pop().ok_or(BuildError::Malformed("nothing"))
}

fn read_structs<T: object::Pod>(
    file: &dyn ReadAt,
    offset: u64,
    count: u16,
) -> Result<Vec<T>, BuildError> {
    let len = u64::try_from(size_of::<T>()).unwrap_or(u64::MAX).saturating_mul(count.into());
    let bytes = read_bytes(file, offset, len)?;
    let structs = object::pod::slice_from_all_bytes::<T>(&bytes)
        .map_err(|()| BuildError::Malformed("unaligned headers"))?;
    Ok(structs.to_vec())
}

/// Reads in parts, so that a file that says it is large and is not costs no memory.
fn read_bytes(file: &dyn ReadAt, offset: u64, len: u64) -> Result<Vec<u8>, BuildError> {
    const PART: u64 = 1 << 20;
    let mut bytes = Vec::new();
    let mut done = 0_u64;
    while done < len {
        let part = PART.min(len.saturating_sub(done));
        let start = bytes.len();
        bytes.resize(start.saturating_add(usize::try_from(part).unwrap_or(0)), 0);
        let to = bytes.get_mut(start..).unwrap_or_default();
        let at = offset.checked_add(done).ok_or(BuildError::Malformed("offset"))?;
        file.read_exact_at(to, at).map_err(BuildError::Unreadable)?;
        done = done.saturating_add(part);
    }
    Ok(bytes)
}
