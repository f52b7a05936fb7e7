//! Reads what is needed of an ELF file's headers, by `read`, without mapping it.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};

use flate2::Crc;
use object::elf::{ELF_NOTE_GNU, FileHeader32, FileHeader64, NT_GNU_BUILD_ID, PT_LOAD, SHT_SYMTAB};
use object::read::elf::{FileHeader, ProgramHeader as _, SectionHeader as _};
use object::{Endian as _, Endianness, FileKind, ReadCache, ReadRef};

use crate::symbolize::protocol::{Opened, SEGMENTS_MAX, Segment};

/// The longest name in a `.gnu_debuglink`: that of a file.
const DEBUG_LINK_LEN_MAX: usize = 255;

/// What the headers of an ELF file say.
#[derive(Debug, Default)]
pub(super) struct ElfHeaders {
    /// For the client.
    pub(super) opened: Opened,
    /// The GNU build ID.
    pub(super) build_id: Option<Vec<u8>>,
}

impl ElfHeaders {
    /// `None`: not an ELF file, or not one whose program headers can be read. A file with damaged
    /// section headers can still be executed; it has no names.
    pub(super) fn read(file: &File) -> Option<Self> {
        let cache = ReadCache::new(file);
        match FileKind::parse(&cache).ok()? {
            FileKind::Elf64 => Self::parse::<FileHeader64<Endianness>, _>(&cache),
            FileKind::Elf32 => Self::parse::<FileHeader32<Endianness>, _>(&cache),
            _ => None,
        }
    }

    fn parse<'data, Elf: FileHeader<Endian = Endianness>, R: ReadRef<'data>>(
        data: R,
    ) -> Option<Self> {
        let header = Elf::parse(data).ok()?;
        let endian = header.endian().ok()?;
        let mut headers = Self::default();
        let mut note_of_segment = None;
        for program in header.program_headers(endian, data).ok()? {
            if program.p_type(endian) == PT_LOAD {
                headers.opened.segments.push(Segment {
                    offset: program.p_offset(endian).into(),
                    len: program.p_filesz(endian).into(),
                    address: program.p_vaddr(endian).into(),
                });
            } else if let Ok(Some(mut notes)) = program.notes(endian, data) {
                while let Ok(Some(note)) = notes.next() {
                    if note.name() == ELF_NOTE_GNU && note.n_type(endian) == NT_GNU_BUILD_ID {
                        note_of_segment = Some(note.desc().to_vec());
                    }
                }
            }
        }
        headers.opened.segments.truncate(SEGMENTS_MAX);
        headers.build_id = note_of_segment;
        headers.read_sections::<Elf, R>(header, endian, data);
        Some(headers)
    }

    fn read_sections<'data, Elf: FileHeader<Endian = Endianness>, R: ReadRef<'data>>(
        &mut self,
        header: &Elf,
        endian: Endianness,
        data: R,
    ) {
        let Ok(sections) = header.sections(endian, data) else {
            return;
        };
        let opened = &mut self.opened;
        for section in sections.iter() {
            // `objcopy --only-keep-debug` leaves headers of what it took away, as `SHT_NOBITS`.
            if section.file_range(endian).is_none() {
                continue;
            }
            opened.has_symbols |= section.sh_type(endian) == SHT_SYMTAB;
            match sections.section_name(endian, section).unwrap_or_default() {
                b".debug_info" | b".zdebug_info" => opened.has_lines = true,
                b".gnu_debuglink" => {
                    let bytes = section.data(endian, data).unwrap_or_default();
                    opened.debug_link = debug_link(endian, bytes);
                }
                // The program headers of a separate debug file point at notes that it has not.
                b".note.gnu.build-id" => {
                    if let Ok(Some(mut notes)) = section.notes(endian, data)
                        && let Ok(Some(note)) = notes.next()
                        && note.n_type(endian) == NT_GNU_BUILD_ID
                    {
                        self.build_id = Some(note.desc().to_vec());
                    }
                }
                _ => {}
            }
        }
    }
}

/// A name that ends with a zero byte, padding to a multiple of four, and a checksum.
fn debug_link(endian: Endianness, bytes: &[u8]) -> Option<(String, u32)> {
    let name_len = bytes.iter().position(|byte| *byte == 0)?;
    let name = str::from_utf8(&bytes[..name_len]).ok()?;
    let crc = bytes.get((name_len + 1).next_multiple_of(4)..)?.first_chunk::<4>()?;
    let crc = endian.read_u32_bytes(*crc);
    (name_len <= DEBUG_LINK_LEN_MAX).then(|| (name.to_owned(), crc))
}

/// The CRC-32 of a whole file, as `.gnu_debuglink` has it.
pub(super) fn crc32(mut file: &File) -> io::Result<u32> {
    file.seek(SeekFrom::Start(0))?;
    let mut crc = Crc::new();
    let mut block = vec![0; 1 << 18];
    loop {
        let len = file.read(&mut block)?;
        if len == 0 {
            return Ok(crc.sum());
        }
        crc.update(&block[..len]);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file_with(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn reads_its_own_program() {
        let headers = ElfHeaders::read(&File::open("/proc/self/exe").unwrap()).unwrap();
        assert!(headers.opened.has_symbols);
        assert!(headers.opened.has_lines);
        assert!(headers.opened.segments.len() >= 2);
    }

    #[test]
    fn what_is_not_elf_is_refused() {
        assert!(ElfHeaders::read(&file_with(b"")).is_none());
        assert!(ElfHeaders::read(&file_with(b"#!/bin/sh\n")).is_none());
        assert!(ElfHeaders::read(&file_with(b"\x7fELF\x02\x01\x01")).is_none());
        assert!(ElfHeaders::read(&File::open("/").unwrap()).is_none());
    }

    #[test]
    fn every_cut_and_every_damaged_header_byte_of_a_program_is_survived() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        for len in 0..256 {
            drop(ElfHeaders::read(&file_with(&program[..len])));
        }
        for at in 16..64 {
            for value in [0, 0x7f, 0xff] {
                let mut damaged = program[..1 << 16].to_vec();
                damaged[at] = value;
                drop(ElfHeaders::read(&file_with(&damaged)));
            }
        }
    }

    #[test]
    fn a_debug_link_is_a_name_padding_and_a_checksum() {
        let parse = |bytes| debug_link(Endianness::Little, bytes);
        let expected = |name: &str| Some((name.to_owned(), 0x0403_0201));
        assert_eq!(parse(b"abc\0\x01\x02\x03\x04"), expected("abc"));
        assert_eq!(parse(b"abcd\0\0\0\0\x01\x02\x03\x04"), expected("abcd"));
        assert_eq!(parse(b"abcd\0\0\0\0\x01\x02\x03"), None);
        assert_eq!(parse(b"abcd"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn the_checksum_is_that_of_zip_and_png() {
        assert_eq!(crc32(&file_with(b"123456789")).unwrap(), 0xcbf4_3926);
    }
}
