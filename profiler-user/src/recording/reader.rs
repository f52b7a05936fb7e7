//! Reads a recorded file. Its bytes come from anywhere: bounded, and no error is a panic.

use std::{
    io::{self, Read},
    sync::Arc,
};

use flate2::read::GzDecoder;
use profiler_common::sample::SAMPLE_LEN_MAX;

use super::{CHUNK_MAX, End, MAGIC, TAG_END, TAG_NAMES, TAG_PROCESS, TAG_SAMPLE};
use crate::process::{Process, RecordedProcess};
use crate::symbolize::RecordedNames;

/// More than the longest chunk of a sample: the number of its process, and the longest record.
const SAMPLE_CHUNK_MAX: u32 = 4096;
const _: () = assert!(4 + SAMPLE_LEN_MAX <= 4096);

/// Why a file cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is something else, or of another version.
    #[error("this is not a file of `spanprof record --raw`, or of another version of it")]
    NotARecording,
    /// It cannot be read, or is cut or damaged.
    #[error("the recorded file is cut or damaged")]
    Damaged(#[source] io::Error),
    /// A chunk is longer than any that is written.
    #[error("the recorded file has a chunk of {0} bytes")]
    TooLong(u32),
    /// A chunk that no version writes.
    #[error("the recorded file has a chunk `{}`", char::from(*_0).escape_default())]
    UnknownChunk(u8),
    /// A chunk's content is not what it should be.
    #[error("the recorded file's `{}` cannot be understood", char::from(*tag))]
    Content {
        /// The chunk.
        tag: u8,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A sample names a process that is not there.
    #[error("a recorded sample names a process that is not in the file")]
    NoSuchProcess,
}

/// What a file held, one thing at a time.
#[derive(Debug)]
pub enum Recorded<'a> {
    /// A sample record, and what was known of its process.
    Sample {
        /// The record.
        record: &'a [u8],
        /// The process.
        process: &'a Arc<Process>,
    },
    /// Sampling ended.
    End(End),
    /// The names; nothing follows.
    Names(RecordedNames),
}

/// A file being read. Memory: its processes, and its longest chunk.
pub struct Reader<R: Read> {
    input: GzDecoder<R>,
    processes: Vec<Arc<Process>>,
    chunk: Vec<u8>,
    done: bool,
}

impl<R: Read> Reader<R> {
    /// Begins to read.
    ///
    /// # Errors
    ///
    /// It is not a recorded file.
    pub fn new(mut input: R) -> Result<Self, ReadError> {
        let mut magic = [0; MAGIC.len()];
        match input.read_exact(&mut magic) {
            Ok(()) if magic == *MAGIC => {}
            _ => return Err(ReadError::NotARecording),
        }
        Ok(Self {
            input: GzDecoder::new(input),
            processes: Vec::new(),
            chunk: Vec::new(),
            done: false,
        })
    }

    /// The next thing, `None` after the names.
    ///
    /// # Errors
    ///
    /// The file is damaged. Nothing more can be read then.
    pub fn read_next(&mut self) -> Result<Option<Recorded<'_>>, ReadError> {
        while !self.done {
            match self.read_chunk()? {
                TAG_PROCESS => {
                    let facts: RecordedProcess = content(TAG_PROCESS, &self.chunk)?;
                    self.processes.push(Arc::new(facts.into()));
                }
                TAG_SAMPLE => return self.sample().map(Some),
                TAG_END => return content(TAG_END, &self.chunk).map(Recorded::End).map(Some),
                TAG_NAMES => {
                    self.done = true;
                    self.check_end()?;
                    return content(TAG_NAMES, &self.chunk).map(Recorded::Names).map(Some);
                }
                tag => return Err(ReadError::UnknownChunk(tag)),
            }
        }
        Ok(None)
    }

    fn sample(&self) -> Result<Recorded<'_>, ReadError> {
        let (number, record) = self.chunk.split_first_chunk().ok_or(ReadError::NoSuchProcess)?;
        let process = usize::try_from(u32::from_le_bytes(*number))
            .ok()
            .and_then(|number| self.processes.get(number))
            .ok_or(ReadError::NoSuchProcess)?;
        Ok(Recorded::Sample { record, process })
    }

    /// Nothing follows, and the stream's checksum is right: it comes last.
    fn check_end(&mut self) -> Result<(), ReadError> {
        match self.input.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(ReadError::Damaged(io::ErrorKind::InvalidData.into())),
            Err(error) => Err(ReadError::Damaged(error)),
        }
    }

    fn read_chunk(&mut self) -> Result<u8, ReadError> {
        let mut head = [0; 5];
        self.input.read_exact(&mut head).map_err(ReadError::Damaged)?;
        let [tag, len @ ..] = head;
        let len = u32::from_le_bytes(len);
        let max = if tag == TAG_SAMPLE { SAMPLE_CHUNK_MAX } else { CHUNK_MAX };
        if len > max {
            return Err(ReadError::TooLong(len));
        }
        self.chunk.clear();
        // Grows with what is there, not with what is announced.
        let read = (&mut self.input)
            .take(u64::from(len))
            .read_to_end(&mut self.chunk)
            .map_err(ReadError::Damaged)?;
        if read as u64 == u64::from(len) {
            Ok(tag)
        } else {
            Err(ReadError::Damaged(io::ErrorKind::UnexpectedEof.into()))
        }
    }
}

fn content<T: serde::de::DeserializeOwned>(tag: u8, chunk: &[u8]) -> Result<T, ReadError> {
    serde_json::from_slice(chunk).map_err(|source| ReadError::Content { tag, source })
}
