//! The worker: a process of its own that names the places of files which nobody vouches for.
//!
//! It maps the files, so that a process which truncates its own library can end it with a SIGBUS,
//! and parses them, so that one made for it can make it loop, run out of memory or worse. So it has
//! no privileges, a ceiling of memory, a deadline for each answer, and a client that starts
//! another one. It has no state that would be missed.

mod confine;
mod elf_headers;
mod named_file;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use thiserror::Error;

use self::confine::{confine, limit_memory};
use self::named_file::{KernelNames, NamedFile, Namer};
use super::protocol::{
    Answer, LOCATIONS_MAX, MessageError, Named, Refusal, Request, VERSION, receive_with_descriptor,
    send, to_bytes,
};

pub use self::confine::ConfineError;

/// Why the worker ends, other than that the client has closed the connection.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// It keeps no privileges or does not work.
    #[error("cannot give up the privileges")]
    Confine(#[from] ConfineError),
    /// What came is no request, or the answer could not be sent.
    #[error("cannot talk to the profiler")]
    Connection(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<MessageError> for WorkerError {
    fn from(error: MessageError) -> Self {
        Self::Connection(error.into())
    }
}

/// Answers what the client on the other end of `socket` asks, until it closes it. To be called in a
/// process that has one thread and does nothing else: every other descriptor is closed.
pub fn run(socket: OwnedFd) -> Result<(), WorkerError> {
    let confined = confine(&socket);
    let socket = UnixStream::from(socket);
    if let Err(error) = confined {
        send(&socket, &to_bytes(&Answer::Refused(Refusal::NotConfined))?, None)?;
        return Err(error.into());
    }
    let mut worker = Worker::default();
    loop {
        let (request, descriptor) = match receive_with_descriptor(&socket) {
            Err(MessageError::Closed) => return Ok(()),
            received => received?,
        };
        let answer = worker.answer(request, descriptor).unwrap_or_else(Answer::Refused);
        send(&socket, &to_bytes(&answer)?, None)?;
    }
}

/// What the worker has open. Bounded by the client, which closes what it has not used for long and
/// ends a worker that takes too much memory; and by the ceiling, whatever the client does.
#[derive(Default)]
struct Worker {
    files: HashMap<u32, NamedFile>,
    kernel: Option<KernelNames>,
}

impl Worker {
    fn answer(&mut self, request: Request, descriptor: Option<OwnedFd>) -> Result<Answer, Refusal> {
        match (request, descriptor) {
            (Request::Start { version: VERSION, memory_bytes }, None) => {
                limit_memory(memory_bytes).map_err(|_error| Refusal::NotConfined)?;
                Ok(Answer::Ready)
            }
            (Request::Open { file }, Some(descriptor)) => {
                let (named, opened) = NamedFile::open(reopen(&descriptor)?)?;
                self.files.insert(file, named);
                Ok(Answer::Opened(opened))
            }
            (Request::Debug { file, crc }, Some(descriptor)) => {
                let named = self.files.get_mut(&file).ok_or(Refusal::Unexpected)?;
                named.use_debug_file(reopen(&descriptor)?, crc)?;
                Ok(Answer::Done)
            }
            (Request::Close { file }, None) => {
                self.files.remove(&file);
                Ok(Answer::Done)
            }
            (Request::Kallsyms, Some(descriptor)) => {
                self.kernel = Some(KernelNames::new(reopen(&descriptor)?));
                Ok(Answer::Done)
            }
            (Request::Elf { file, inlined, offsets }, None) if offsets.len() <= LOCATIONS_MAX => {
                let named = self.files.get_mut(&file).ok_or(Refusal::Unexpected)?;
                let mut namer = Namer::default();
                named.name(&offsets, inlined, &mut namer);
                Ok(Answer::Named(finish(namer)))
            }
            (Request::Kernel { addresses }, None) if addresses.len() <= LOCATIONS_MAX => {
                let kernel = self.kernel.as_ref().ok_or(Refusal::Unexpected)?;
                let mut namer = Namer::default();
                kernel.name(&addresses, &mut namer);
                Ok(Answer::Named(finish(namer)))
            }
            _ => Err(Refusal::Unexpected),
        }
    }
}

fn finish(namer: Namer) -> Named {
    Named { memory_bytes: address_space_bytes(), ..namer.finish() }
}

/// A descriptor of our own: the one that was sent shares its position with the client's. The file
/// can be one that our user may not open, although the client may: that is its business to solve.
fn reopen(descriptor: &OwnedFd) -> Result<File, Refusal> {
    File::open(path_of(descriptor)).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Refusal::NotPermitted,
        _ => Refusal::NotElf,
    })
}

/// blazesym takes paths, so an open file gets one.
fn path_of(descriptor: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

/// How much address space the process has, 0 if that cannot be read.
fn address_space_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or_default().saturating_mul(1024)
}
