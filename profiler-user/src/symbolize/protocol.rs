//! What the client and the worker say to each other over a Unix stream socket.
//!
//! A message is its length, four bytes, little endian, then that many bytes of JSON. A request may
//! carry one file descriptor (`SCM_RIGHTS`). The client asks, the worker answers, one message each.
//! JSON, because `serde_json` is proven against hostile bytes; the time goes into reading DWARF.
//!
//! Neither side trusts the other: the worker parses files that anyone can make and may be taken
//! over by one. So every length is checked before memory is taken for it, and what is in an answer
//! is checked by the client again (`client::answer`).

use std::borrow::Cow;
use std::io::{self, IoSlice, IoSliceMut, Read, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Both ends are the same binary, except while it is replaced on disk: then this tells them apart.
pub(super) const VERSION: u32 = 1;

/// The largest message. A full answer of [`LOCATIONS_MAX`] has about a tenth of it.
pub(super) const MESSAGE_LEN_MAX: usize = 4 << 20;

/// The most locations in one request: small, because the deadline is for one request.
pub(super) const LOCATIONS_MAX: usize = 512;

/// The most functions at one location; deeper inlining is cut at the outer end.
pub(super) const FRAMES_MAX: usize = 256;

/// The most bytes of one name or path; longer ones are cut.
pub(super) const STRING_LEN_MAX: usize = 4096;

/// The most loadable segments of a file that are kept; real files have four to ten.
pub(super) const SEGMENTS_MAX: usize = 128;

/// What the client asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// The first request of a worker's life.
    Start {
        /// [`VERSION`].
        version: u32,
        /// The most address space that the worker may take.
        memory_bytes: u64,
    },
    /// Use the ELF file that comes with this message as `file`.
    Open {
        /// The client's number for it.
        file: u32,
    },
    /// Use the ELF file that comes with this message for the names of `file`, if it belongs to it:
    /// it has the same build ID, or, where a build ID is missing, this checksum.
    Debug {
        /// The file that it is for.
        file: u32,
        /// The CRC-32 in the `.gnu_debuglink` that led to it.
        crc: Option<u32>,
    },
    /// Forget a file.
    Close {
        /// The file.
        file: u32,
    },
    /// Use the copy of `/proc/kallsyms` that comes with this message.
    Kallsyms,
    /// Name these places of a file.
    Elf {
        /// The file.
        file: u32,
        /// With source lines and inlined functions.
        inlined: bool,
        /// Offsets in the file.
        offsets: Vec<u64>,
    },
    /// Name these kernel addresses.
    Kernel {
        /// The addresses.
        addresses: Vec<u64>,
    },
}

/// What the worker answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// To `Start`: it has given up its privileges and waits.
    Ready,
    /// To `Debug`, `Close` and `Kallsyms`.
    Done,
    /// To `Open`.
    Opened(Opened),
    /// To `Elf` and `Kernel`.
    Named(Named),
    /// To any of them: it cannot be done.
    Refused(Refusal),
}

/// What the worker says of an ELF file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Opened {
    /// What is loaded where, so that an unnamed place can be given as a virtual address.
    pub(super) segments: Vec<Segment>,
    /// It has a `.symtab`, so that a separate file is not needed for its functions.
    pub(super) has_symbols: bool,
    /// It has DWARF, so that a separate file is not needed for its lines.
    pub(super) has_lines: bool,
    /// The file name and the checksum in its `.gnu_debuglink`.
    pub(super) debug_link: Option<(String, u32)>,
}

/// A loadable segment of an ELF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Segment {
    /// Where it begins in the file.
    pub(super) offset: u64,
    /// How long it is in the file.
    pub(super) len: u64,
    /// Where it begins in memory, before relocation.
    pub(super) address: u64,
}

impl Segment {
    /// The virtual address of an offset in the file. lld gives text another distance between the
    /// two than data, so that one difference for the whole file would be wrong.
    pub(super) fn address_of(segments: &[Self], file_offset: u64) -> Option<u64> {
        segments.iter().find_map(|segment| {
            let distance = file_offset.checked_sub(segment.offset)?;
            (distance < segment.len).then(|| segment.address.checked_add(distance))?
        })
    }
}

/// The names of a request's locations.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Named {
    /// The text that the frames point into.
    pub(super) strings: Vec<String>,
    /// One entry a location, in the order of the request.
    pub(super) locations: Vec<Result<Vec<Frame>, Nameless>>,
    /// How much address space the worker has.
    pub(super) memory_bytes: u64,
}

/// One function at a location.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Frame {
    /// Index in [`Named::strings`].
    pub(super) function: u32,
    /// Index in [`Named::strings`].
    pub(super) file: Option<u32>,
    /// The source line, 0 if unknown.
    pub(super) line: u32,
}

/// Why the worker has no name for a location.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Nameless {
    /// No symbol covers it.
    NoSymbol,
    /// There are no symbols at all.
    NoSymbols,
    /// The offset is in no loadable segment.
    NotLoaded,
    /// What the file says about it cannot be read.
    Malformed,
    /// The answer was full.
    AnswerFull,
}

/// Why the worker does not do what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Refusal {
    /// The file may be read through the descriptor, but not opened again by the worker's user.
    NotPermitted,
    /// It is not an ELF file for this machine, or its headers cannot be read.
    NotElf,
    /// It is not the debug file of the file that it was offered for.
    NotItsDebugFile,
    /// The message is one that this worker does not understand or expect.
    Unexpected,
    /// The worker could not give up its privileges, and so does not start.
    NotConfined,
}

/// Why a message could not be sent or received.
#[derive(Debug, Error)]
pub(super) enum MessageError {
    /// The other side is gone.
    #[error("the other side has closed the connection")]
    Closed,
    /// Nothing came within the time.
    #[error("no message within the deadline")]
    Deadline,
    /// The socket failed.
    #[error("cannot use the socket")]
    Socket(#[source] io::Error),
    /// Too long to be sent, or said to be so.
    #[error("a message of {len} bytes, where {MESSAGE_LEN_MAX} is the most")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// Not a message.
    #[error("not a message of this protocol")]
    Malformed(#[source] serde_json::Error),
}

impl From<io::Error> for MessageError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Deadline,
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Socket(error),
        }
    }
}

/// The bytes of a message, with its length in front.
pub(super) fn to_bytes(message: &impl Serialize) -> Result<Vec<u8>, MessageError> {
    let mut bytes = vec![0; size_of::<u32>()];
    serde_json::to_writer(&mut bytes, message).map_err(MessageError::Malformed)?;
    let len = bytes.len() - size_of::<u32>();
    let header = u32::try_from(len).ok().filter(|_| len <= MESSAGE_LEN_MAX);
    let header = header.ok_or(MessageError::TooLong { len })?;
    bytes[..size_of::<u32>()].copy_from_slice(&header.to_le_bytes());
    Ok(bytes)
}

/// Sends the bytes of a message, the descriptor with the first of them.
pub(super) fn send(
    mut socket: &UnixStream,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), MessageError> {
    let Some(descriptor) = descriptor else {
        return Ok(socket.write_all(bytes)?);
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(MessageError::Socket(io::ErrorKind::InvalidInput.into()));
    }
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
        .map_err(io::Error::from)?;
    let rest = bytes.get(sent..).unwrap_or_default();
    Ok(socket.write_all(rest)?)
}

/// Receives a message without a descriptor. One that comes uninvited is closed by the kernel.
pub(super) fn receive<M: DeserializeOwned>(mut socket: impl Read) -> Result<M, MessageError> {
    let mut header = [0; size_of::<u32>()];
    socket.read_exact(&mut header)?;
    receive_body(socket, header)
}

/// Receives a message, and the descriptor that came with it.
pub(super) fn receive_with_descriptor<M: DeserializeOwned>(
    socket: &UnixStream,
) -> Result<(M, Option<OwnedFd>), MessageError> {
    let mut header = [0; size_of::<u32>()];
    let mut filled = 0;
    let mut descriptor = None;
    while let Some(rest @ [_, ..]) = header.get_mut(filled..) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(socket, &mut [IoSliceMut::new(rest)], &mut control, RecvFlags::CMSG_CLOEXEC)
                .map_err(io::Error::from)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                descriptor = descriptors.last().or(descriptor);
            }
        }
        if received.bytes == 0 {
            return Err(MessageError::Closed);
        }
        filled += received.bytes;
    }
    Ok((receive_body(socket, header)?, descriptor))
}

fn receive_body<M: DeserializeOwned>(
    mut socket: impl Read,
    header: [u8; size_of::<u32>()],
) -> Result<M, MessageError> {
    let len = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    if len > MESSAGE_LEN_MAX {
        return Err(MessageError::TooLong { len });
    }
    let mut bytes = vec![0; len];
    socket.read_exact(&mut bytes)?;
    serde_json::from_slice(&bytes).map_err(MessageError::Malformed)
}

/// A name as it may be shown: at most [`STRING_LEN_MAX`] bytes, cut between two characters, and
/// without control characters, which a terminal would obey.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    let text = &text[..text.floor_char_boundary(STRING_LEN_MAX)];
    if text.contains(char::is_control) {
        Cow::Owned(text.replace(char::is_control, "?"))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_arrives_with_its_request() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"known").unwrap();
        let bytes = to_bytes(&Request::Open { file: 7 }).unwrap();
        send(&ours, &bytes, Some(std::os::fd::AsFd::as_fd(&file))).unwrap();
        let (request, descriptor) = receive_with_descriptor::<Request>(&theirs).unwrap();
        assert!(matches!(request, Request::Open { file: 7 }));
        let metadata = std::fs::File::from(descriptor.unwrap()).metadata().unwrap();
        assert_eq!(metadata.len(), 5);
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_memory_is_taken() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&ours).write_all(&u32::MAX.to_le_bytes()).unwrap();
        let error = receive::<Answer>(&theirs).unwrap_err();
        assert!(matches!(error, MessageError::TooLong { len: 0xffff_ffff }));
    }

    #[test]
    fn a_cut_message_and_garbage_are_errors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&ours).write_all(b"\x03\0\0\0{\xff}").unwrap();
        (&ours).write_all(b"\x09\0\0\0{").unwrap();
        drop(ours);
        let garbage = receive::<Answer>(&theirs).unwrap_err();
        assert!(matches!(garbage, MessageError::Malformed(_)), "{garbage}");
        let cut = receive::<Answer>(&theirs).unwrap_err();
        assert!(matches!(cut, MessageError::Closed), "{cut}");
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(std::time::Duration::from_millis(1))).unwrap();
        assert!(matches!(receive::<Answer>(&theirs), Err(MessageError::Deadline)));
    }

    #[test]
    fn a_message_that_is_too_long_is_not_sent() {
        let strings = vec!["x".repeat(MESSAGE_LEN_MAX)];
        let named = Answer::Named(Named { strings, ..Named::default() });
        assert!(matches!(to_bytes(&named), Err(MessageError::TooLong { .. })));
    }

    #[test]
    fn names_are_cut_between_characters_and_do_not_control_a_terminal() {
        let text = "é".repeat(STRING_LEN_MAX);
        assert_eq!(printable(&text).len(), STRING_LEN_MAX);
        let odd = format!("a{text}");
        assert_eq!(printable(&odd).len(), STRING_LEN_MAX - 1);
        assert_eq!(printable("core::ops::Fn<()>"), "core::ops::Fn<()>");
        assert_eq!(printable("a\x1b[2Jb\u{9b}"), "a?[2Jb?");
    }

    #[test]
    fn offsets_become_addresses_segment_by_segment() {
        let segments = [
            Segment { offset: 0, len: 0x100, address: 0 },
            Segment { offset: 0x100, len: 0x50, address: 0x1100 },
            Segment { offset: 0x200, len: u64::MAX, address: u64::MAX - 1 },
        ];
        assert_eq!(Segment::address_of(&segments, 0xff), Some(0xff));
        assert_eq!(Segment::address_of(&segments, 0x100), Some(0x1100));
        assert_eq!(Segment::address_of(&segments, 0x150), None);
        assert_eq!(Segment::address_of(&segments, 0x201), Some(u64::MAX));
        assert_eq!(Segment::address_of(&segments, 0x202), None);
    }
}
