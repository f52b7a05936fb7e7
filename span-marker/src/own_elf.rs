//! What the symbol tables of the program or library say that holds this crate.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::path::PathBuf;

use crate::abi::SLOT_SYMBOL;
use crate::note;

/// Where the slot's symbol is found in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Symbol {
    /// In `.dynsym`, which every reader searches.
    Dynamic,
    /// In `.symtab` alone, which is gone when the file is stripped.
    Static,
    /// In neither.
    None,
}

/// The program or library that holds this crate, as the list of mappings names it.
pub(crate) fn path() -> io::Result<PathBuf> {
    let address = note::address_in_this_object();
    let maps = fs::read_to_string("/proc/self/maps")?;
    let holds = |line: &&str| {
        let ends = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        let number = |text| usize::from_str_radix(text, 16).ok();
        ends.and_then(|(start, end)| Some((number(start)?..number(end)?).contains(&address)))
            .unwrap_or(false)
    };
    let line = maps.lines().find(holds).ok_or(io::ErrorKind::NotFound)?;
    Ok(line.splitn(6, ' ').nth(5).unwrap_or_default().trim_start().into())
}

/// Searches the symbol tables.
pub(crate) fn symbol() -> io::Result<Symbol> {
    let (path, exe) = (path()?, "/proc/self/exe");
    // The program itself can be opened even if its file was replaced.
    let file = if fs::read_link(exe)? == path { File::open(exe)? } else { File::open(path)? };
    const SHT_SYMTAB: u64 = 2;
    const SHT_DYNSYM: u64 = 11;
    let elf = Elf::read(file)?;
    for (kind, found) in [(SHT_DYNSYM, Symbol::Dynamic), (SHT_SYMTAB, Symbol::Static)] {
        if elf.table_has_slot(kind)? {
            return Ok(found);
        }
    }
    Ok(Symbol::None)
}

const SECTION_LEN: usize = 64;
const SYMBOL_LEN: usize = 24;

/// How many bytes of symbols are read at once.
const CHUNK: usize = SYMBOL_LEN << 12;

/// A 64-bit ELF file of this machine.
struct Elf {
    file: File,
    sections: Vec<u8>,
}

impl Elf {
    fn read(file: File) -> io::Result<Self> {
        let mut header = [0; 64];
        let elf = Self { file, sections: Vec::new() };
        elf.read_at(&mut header, 0)?;
        let count = number(&header, 60, 2);
        let mut sections = vec![0; usize::try_from(count).unwrap_or(0) * SECTION_LEN];
        elf.read_at(&mut sections, number(&header, 40, 8))?;
        Ok(Self { sections, ..elf })
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let mut file = &self.file;
        file.seek(io::SeekFrom::Start(at))?;
        file.read_exact(bytes)
    }

    fn table_has_slot(&self, kind: u64) -> io::Result<bool> {
        let mut sections = self.sections.chunks_exact(SECTION_LEN);
        let Some(table) = sections.find(|section| number(section, 4, 4) == kind) else {
            return Ok(false);
        };
        let names = usize::try_from(number(table, 40, 4)).unwrap_or(usize::MAX);
        let Some(names) = self.sections.chunks_exact(SECTION_LEN).nth(names) else {
            return Ok(false);
        };
        let names = number(names, 24, 8);
        let (mut at, end) = (number(table, 24, 8), number(table, 24, 8) + number(table, 32, 8));
        let mut chunk = vec![0; CHUNK];
        while at < end {
            let len = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            self.read_at(&mut chunk[..len], at)?;
            for symbol in chunk[..len].chunks_exact(SYMBOL_LEN) {
                if self.is_slot(symbol, names)? {
                    return Ok(true);
                }
            }
            at += len as u64;
        }
        Ok(false)
    }

    fn is_slot(&self, symbol: &[u8], names: u64) -> io::Result<bool> {
        const STT_TLS: u64 = 6;
        let defined = number(symbol, 6, 2) != 0;
        if number(symbol, 4, 1) & 0xf != STT_TLS || !defined {
            return Ok(false);
        }
        let mut name = [0; SLOT_SYMBOL.len() + 1];
        match self.read_at(&mut name, names + number(symbol, 0, 4)) {
            Ok(()) => Ok(name.strip_suffix(b"\0") == Some(SLOT_SYMBOL.as_bytes())),
            // A shorter name at the end of the file.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A number of up to eight bytes. Both machines are little endian.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let bytes = bytes.get(at..at + len).unwrap_or_default();
    bytes.iter().rev().fold(0, |number, &byte| (number << 8) | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_itself() {
        assert_eq!(path().unwrap(), std::env::current_exe().unwrap());
        assert!(matches!(symbol(), Ok(Symbol::Dynamic | Symbol::Static)));
    }
}
