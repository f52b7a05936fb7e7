//! ELF files and call frame information that tests make, byte by byte.

use std::io;

use object::elf::{
    EM_X86_64, PF_R, PF_X, PT_GNU_EH_FRAME, PT_LOAD, SHF_COMPRESSED, SHT_PROGBITS, SHT_STRTAB,
};

use super::ReadAt;

impl ReadAt for Vec<u8> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len().try_into().unwrap())
    }

    fn read_exact_at(&self, to: &mut [u8], offset: u64) -> io::Result<()> {
        let begin = usize::try_from(offset).map_err(|_too_large| io::ErrorKind::UnexpectedEof)?;
        let bytes = begin.checked_add(to.len()).and_then(|end| self.get(begin..end));
        to.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Where the text of made files is.
pub(super) const TEXT: u64 = 0x40_1000;

/// Where their first section is.
pub(super) const FIRST_SECTION: u64 = 0x10_0000;

struct MadeSection {
    name: &'static str,
    address: u64,
    compressed: bool,
    bytes: Vec<u8>,
}

/// An ELF file in the making.
pub(super) struct MadeElf {
    machine: u16,
    entry: u64,
    text: Vec<u8>,
    text_claimed: Option<usize>,
    sections: Vec<MadeSection>,
    section_headers: bool,
    frame_header: Option<u64>,
}

impl MadeElf {
    /// With so much text, which is zero, at [`TEXT`].
    pub(super) fn new(text_len: usize) -> Self {
        Self {
            machine: EM_X86_64,
            entry: 0,
            text: vec![0; text_len],
            text_claimed: None,
            sections: Vec::new(),
            section_headers: true,
            frame_header: None,
        }
    }

    pub(super) fn machine(mut self, machine: u16) -> Self {
        self.machine = machine;
        self
    }

    pub(super) fn entry(mut self, entry: u64) -> Self {
        self.entry = entry;
        self
    }

    /// Says that it has so much text.
    pub(super) fn text_claimed(mut self, len: usize) -> Self {
        self.text_claimed = Some(len);
        self
    }

    /// Puts code at an offset of the text.
    pub(super) fn code(mut self, at: usize, code: &[u8]) -> Self {
        self.text[at..at + code.len()].copy_from_slice(code);
        self
    }

    pub(super) fn section(mut self, name: &'static str, bytes: Vec<u8>) -> Self {
        let address = FIRST_SECTION + 0x10_0000 * u64::try_from(self.sections.len()).unwrap();
        self.sections.push(MadeSection { name, address, compressed: false, bytes });
        self
    }

    /// A section of `bytes` in a compressed form, which begins with a header of this kind.
    pub(super) fn compressed(self, name: &'static str, kind: u32, size: u64, to: &[u8]) -> Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(size.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend(to);
        let mut made = self.section(name, bytes);
        made.sections.last_mut().unwrap().compressed = true;
        made
    }

    /// Leaves the section headers out, and says where a header of the first section's call frame
    /// information is, as linkers do.
    pub(super) fn stripped(mut self) -> Self {
        self.section_headers = false;
        // Version 1, an absolute pointer of 8 bytes, no table.
        let mut header = vec![1, 0, 0xff, 0xff];
        header.extend(self.sections[0].address.to_le_bytes());
        self = self.section(".eh_frame_hdr", header);
        self.frame_header = self.sections.last().map(|section| section.address);
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let segments = self.sections.len() + 2;
        let mut at = 64 + 56 * segments;
        let mut programs: Vec<u8> = Vec::new();
        let mut contents: Vec<u8> = Vec::new();
        let mut headers: Vec<u8> = vec![0; 64];
        let mut names: Vec<u8> = vec![0];
        let text_len = self.text_claimed.unwrap_or(self.text.len());
        program(&mut programs, PT_LOAD, PF_R | PF_X, at, TEXT, text_len);
        contents.extend(&self.text);
        at += self.text.len();
        let mut header = (0, 0, 0);
        for made in &self.sections {
            program(&mut programs, PT_LOAD, PF_R, at, made.address, made.bytes.len());
            if self.frame_header == Some(made.address) {
                header = (at, made.address, made.bytes.len());
            }
            let flags = if made.compressed { SHF_COMPRESSED } else { 0 };
            let name = names.len();
            names.extend(made.name.bytes().chain([0]));
            section(&mut headers, name, SHT_PROGBITS, flags, made.address, at, made.bytes.len());
            contents.extend(&made.bytes);
            at += made.bytes.len();
        }
        // Of a kind that nobody knows, if there is no header.
        let kind = if self.frame_header.is_some() { PT_GNU_EH_FRAME } else { 0 };
        program(&mut programs, kind, PF_R, header.0, header.1, header.2);
        section(&mut headers, 0, SHT_STRTAB, 0, 0, at, names.len());
        contents.extend(&names);
        at += names.len();
        let count = if self.section_headers { self.sections.len() + 2 } else { 0 };
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend(3_u16.to_le_bytes());
        file.extend(self.machine.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        file.extend(self.entry.to_le_bytes());
        file.extend(64_u64.to_le_bytes());
        file.extend(long(if count == 0 { 0 } else { at }));
        file.extend([0; 4]);
        for field in [64, 56, segments, 64, count, count.saturating_sub(1)] {
            file.extend(u16::try_from(field).unwrap().to_le_bytes());
        }
        file.extend(programs);
        file.extend(contents);
        if count != 0 {
            file.extend(headers);
        }
        file
    }
}

fn long(number: usize) -> [u8; 8] {
    u64::try_from(number).unwrap().to_le_bytes()
}

fn program(to: &mut Vec<u8>, kind: u32, flags: u32, at: usize, address: u64, len: usize) {
    to.extend(kind.to_le_bytes());
    to.extend(flags.to_le_bytes());
    to.extend(long(at));
    to.extend(address.to_le_bytes());
    to.extend(address.to_le_bytes());
    to.extend(long(len));
    to.extend(long(len));
    to.extend(1_u64.to_le_bytes());
}

fn section(
    to: &mut Vec<u8>,
    name: usize,
    kind: u32,
    flags: u32,
    address: u64,
    at: usize,
    len: usize,
) {
    to.extend(u32::try_from(name).unwrap().to_le_bytes());
    to.extend(kind.to_le_bytes());
    to.extend(u64::from(flags).to_le_bytes());
    to.extend(address.to_le_bytes());
    to.extend(long(at));
    to.extend(long(len));
    to.extend([0; 8]);
    to.extend(1_u64.to_le_bytes());
    to.extend([0; 8]);
}

/// Whether call frame information is as in `.eh_frame` or as in `.debug_frame`.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Form {
    Eh,
    Debug,
}

/// Call frame information in the making: entries with addresses of 8 bytes.
pub(super) struct MadeFrames {
    form: Form,
    pub(super) bytes: Vec<u8>,
    common: usize,
}

impl MadeFrames {
    pub(super) fn new(form: Form) -> Self {
        Self { form, bytes: Vec::new(), common: 0 }
    }

    /// A common entry; the functions that follow are of it. Code is counted in bytes, offsets in -8.
    pub(super) fn common(mut self, augmentation: &str, ra: u8, instructions: &[u8]) -> Self {
        self.common = self.bytes.len();
        let id: u32 = if self.form == Form::Eh { 0 } else { u32::MAX };
        let mut entry = id.to_le_bytes().to_vec();
        entry.push(if self.form == Form::Eh { 1 } else { 3 });
        entry.extend(augmentation.bytes().chain([0]));
        entry.extend([1, 0x78, ra]);
        if augmentation.starts_with('z') {
            entry.push(0);
        }
        entry.extend(instructions);
        self.entry(&entry);
        self
    }

    /// A function of the common entry, which has no augmentation data.
    pub(super) fn function(mut self, begin: u64, len: u64, instructions: &[u8]) -> Self {
        let at = self.bytes.len() + 4;
        let common = if self.form == Form::Eh { at - self.common } else { self.common };
        let mut entry = u32::try_from(common).unwrap().to_le_bytes().to_vec();
        entry.extend(begin.to_le_bytes());
        entry.extend(len.to_le_bytes());
        if self.bytes.get(self.common + 9) == Some(&b'z') {
            entry.push(0);
        }
        entry.extend(instructions);
        self.entry(&entry);
        self
    }

    fn entry(&mut self, entry: &[u8]) {
        self.bytes.extend(u32::try_from(entry.len()).unwrap().to_le_bytes());
        self.bytes.extend(entry);
    }
}

/// x86-64 at a function's first instruction: CFA = sp + 8, return address at CFA - 8.
pub(super) const X86_64_START: [u8; 5] = [0x0c, 7, 8, 0x80 | 16, 1];
