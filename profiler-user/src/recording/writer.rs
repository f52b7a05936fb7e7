//! Writes a recorded file as it is recorded.

use std::{
    collections::HashMap,
    io::{self, Write},
    sync::{Arc, Weak},
};

use flate2::{Compression, write::GzEncoder};

use super::{CHUNK_MAX, End, MAGIC, TAG_END, TAG_NAMES, TAG_PROCESS, TAG_SAMPLE};
use crate::process::{Process, RecordedProcess};
use crate::symbolize::RecordedNames;

/// A file being recorded. Memory: some 100 bytes a process and snapshot.
pub struct Writer<W: Write> {
    out: GzEncoder<W>,
    /// By address: `kept` holds on to the allocation of each, so that none is reused; what is in it
    /// is freed with its last user.
    numbers: HashMap<usize, u32>,
    kept: Vec<Weak<Process>>,
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        let out = GzEncoder::new(out, Compression::fast());
        Ok(Self { out, numbers: HashMap::new(), kept: Vec::new() })
    }

    /// Stores a sample record, and what was known of its process if that is not stored yet.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn sample(&mut self, record: &[u8], process: &Arc<Process>) -> io::Result<()> {
        let number = self.number(process)?;
        self.chunk(TAG_SAMPLE, &[&number.to_le_bytes(), record])
    }

    /// Ends the file.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn finish(mut self, end: &End, names: &RecordedNames) -> io::Result<W> {
        self.chunk(TAG_END, &[&serde_json::to_vec(end)?])?;
        self.chunk(TAG_NAMES, &[&serde_json::to_vec(names)?])?;
        self.out.finish()
    }

    fn number(&mut self, process: &Arc<Process>) -> io::Result<u32> {
        let address = Arc::as_ptr(process).addr();
        if let Some(&number) = self.numbers.get(&address) {
            return Ok(number);
        }
        let number = u32::try_from(self.kept.len()).map_err(|_too_many| {
            io::Error::other("more processes than a recorded file can have")
        })?;
        let facts = serde_json::to_vec(&RecordedProcess::from(&**process))?;
        self.chunk(TAG_PROCESS, &[&facts])?;
        self.numbers.insert(address, number);
        self.kept.push(Arc::downgrade(process));
        Ok(number)
    }

    fn chunk(&mut self, tag: u8, parts: &[&[u8]]) -> io::Result<()> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let len = u32::try_from(len).ok().filter(|&len| len <= CHUNK_MAX).ok_or_else(|| {
            io::Error::other("a recorded chunk would be longer than a reader takes")
        })?;
        self.out.write_all(&[tag])?;
        self.out.write_all(&len.to_le_bytes())?;
        parts.iter().try_for_each(|part| self.out.write_all(part))
    }
}
