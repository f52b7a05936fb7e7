//! ELF files with a little code that runs, and whatever a test wants them to say of unwinding.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Where the code is, in the file and in memory: the second page.
pub const TEXT: u64 = 0x1000;

const HEADER_LEN: u64 = 64;
const PROGRAM_HEADER_LEN: u64 = 56;
/// Where what it says of unwinding begins, behind the text's page.
const FRAME_HEADER: u64 = 2 * TEXT;
/// And the call frame information itself.
const FRAMES: u64 = FRAME_HEADER + 16;

const LOADED: u32 = 1;
const FRAME_HEADER_KIND: u32 = 0x6474_e550;
const EXECUTABLE: u32 = 5;
const READABLE: u32 = 4;

/// Call frame information: a common entry, and the functions that follow it.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
}

impl Frames {
    /// With a common entry: CFA = sp + 8, return address at CFA - 8, as on x86-64.
    ///
    /// # Errors
    ///
    /// Never.
    pub fn new() -> Result<Self> {
        let mut frames = Self::default();
        let common = [1, 0, 1, 0x78, 16, 0x0c, 7, 8, 0x80 | 16, 1];
        frames.entry(&[&0_u32.to_le_bytes()[..], &common].concat())?;
        Ok(frames)
    }

    /// A function from [`TEXT`] on.
    ///
    /// # Errors
    ///
    /// There are too many instructions.
    pub fn function(self, len: u64, instructions: &[u8]) -> Result<Self> {
        let common = u32::try_from(self.bytes.len() + 4)?;
        self.function_of(common, len, instructions)
    }

    /// A function whose common entry is so many bytes before.
    ///
    /// # Errors
    ///
    /// There are too many instructions.
    pub fn function_of(mut self, common: u32, len: u64, instructions: &[u8]) -> Result<Self> {
        let range = [TEXT.to_le_bytes(), len.to_le_bytes()].concat();
        self.entry(&[&common.to_le_bytes()[..], &range, instructions].concat())?;
        Ok(self)
    }

    fn entry(&mut self, entry: &[u8]) -> Result<()> {
        self.bytes.extend(u32::try_from(entry.len())?.to_le_bytes());
        self.bytes.extend(entry);
        Ok(())
    }
}

/// Writes a file that says that it has so much text, and has it: most of it is a hole.
///
/// # Errors
///
/// It cannot be written.
pub fn write(to: &Path, text_len: u64, frames: &Frames) -> Result<()> {
    let frames_len = u64::try_from(frames.bytes.len())?;
    let end = FRAMES + frames_len;
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    // A shared library of x86-64.
    for half in [3_u16, 62] {
        header.extend(half.to_le_bytes());
    }
    header.extend(1_u32.to_le_bytes());
    for word in [0, HEADER_LEN, 0] {
        header.extend(word.to_le_bytes());
    }
    header.extend([0; 4]);
    for half in [HEADER_LEN, PROGRAM_HEADER_LEN, 3, 64, 0, 0] {
        header.extend(u16::try_from(half)?.to_le_bytes());
    }
    // What is said of unwinding is not where the text says that it is.
    let frames_at = 1 << 40;
    let mut program = |kind: u32, flags: u32, at: u64, address: u64, len: u64| {
        header.extend(kind.to_le_bytes());
        header.extend(flags.to_le_bytes());
        for word in [at, address, address, len, len, 0x1000] {
            header.extend(word.to_le_bytes());
        }
    };
    program(LOADED, EXECUTABLE, TEXT, TEXT, text_len);
    program(LOADED, READABLE, FRAME_HEADER, frames_at, end - FRAME_HEADER);
    program(FRAME_HEADER_KIND, READABLE, FRAME_HEADER, frames_at, 16);
    let file = File::create(to).with_context(|| format!("cannot create {}", to.display()))?;
    file.write_all_at(&header, 0)?;
    // 1: dec %rdi; jnz 1b; ret
    file.write_all_at(&[0x48, 0xff, 0xcf, 0x75, 0xfb, 0xc3], TEXT)?;
    // Version 1, an absolute pointer of 8 bytes, no table.
    file.write_all_at(&[1, 0, 0xff, 0xff], FRAME_HEADER)?;
    file.write_all_at(&(frames_at + 16).to_le_bytes(), FRAME_HEADER + 4)?;
    file.write_all_at(&frames.bytes, FRAMES)?;
    file.set_len(end.max(TEXT + text_len))?;
    Ok(())
}
