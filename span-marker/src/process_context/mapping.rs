//! The mapping that holds the process context's header, and the protocol by which it changes.
//!
//! A reader outside reads the header, copies the payload from this process's memory, and reads the
//! header's timestamp again: unchanged and not zero means that the copy is whole.

use std::collections::VecDeque;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::InitError;

/// Its own bytes, so that they are told from the copies of this constant in code.
const SIGNATURE: u64 = u64::from_ne_bytes(*b"OTEL_CTX");
const NAME: &std::ffi::CStr = c"OTEL_CTX";
const VERSION: u32 = 2;

/// One page is what a reader expects; the kernel rounds up where pages are larger.
const MAPPING_LEN: usize = 4096;

/// How many former payloads stay readable, for readers between the header and the copy.
const FORMER_PAYLOADS: usize = 8;

/// The header of OTEP 4719. Atomic, because readers outside look at any time.
#[repr(C)]
struct Header {
    signature: AtomicU64,
    version: AtomicU32,
    payload_len: AtomicU32,
    /// `CLOCK_BOOTTIME`; zero while the header changes.
    published_at_ns: AtomicU64,
    payload: AtomicU64,
}

const _: () = assert!(size_of::<Header>() == 32);

/// How readers find the process context among the mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backing {
    /// By the name of the file in memory that it maps.
    Memfd,
    /// By the mapping's own name: no file in memory could be made.
    Anonymous,
}

/// A published process context.
pub(super) struct Mapping {
    header: NonNull<Header>,
    backing: Backing,
    /// The process that published: a forked child does not have the mapping.
    pid: u32,
    /// The published payload last.
    payloads: VecDeque<Box<[u8]>>,
}

// SAFETY: the header is shared memory that only atomics touch; nothing of it belongs to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    pub(super) fn publish(payload: Vec<u8>) -> Result<Self, InitError> {
        let (address, backing) = match map_memfd() {
            Ok(address) => (address, Backing::Memfd),
            Err(_seccomp_or_old_kernel) => {
                (map(-1, libc::MAP_ANONYMOUS).map_err(InitError::Map)?, Backing::Anonymous)
            }
        };
        let unmap = || {
            // SAFETY: the mapping was made above, and nothing refers to it.
            unsafe { libc::munmap(address.as_ptr(), MAPPING_LEN) };
        };
        // SAFETY: the range is the mapping made above.
        let kept = unsafe { libc::madvise(address.as_ptr(), MAPPING_LEN, libc::MADV_DONTFORK) };
        if kept != 0 {
            let error = io::Error::last_os_error();
            unmap();
            return Err(InitError::KeepFromChildren(error));
        }
        let mut mapping = Self {
            header: address.cast(),
            backing,
            pid: std::process::id(),
            payloads: VecDeque::new(),
        };
        mapping.header().signature.store(SIGNATURE, Ordering::Relaxed);
        mapping.header().version.store(VERSION, Ordering::Relaxed);
        // The name is also the signal on which readers look.
        if let (Err(error), Backing::Anonymous) = (mapping.write(payload), backing) {
            unmap();
            return Err(InitError::Name(error));
        }
        Ok(mapping)
    }

    pub(super) fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }

    pub(super) fn backing(&self) -> Backing {
        self.backing
    }

    /// Publishes another payload, if it is another.
    pub(super) fn update(&mut self, payload: Vec<u8>) {
        if self.payloads.back().is_some_and(|current| **current == *payload) {
            return;
        }
        // A kernel that cannot name mappings still lets readers see the call: the update is
        // published either way.
        drop(self.write(payload));
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping is as long as the header, aligned to a page, zeroed by the kernel, and
        // is unmapped only where publishing fails, after the last use.
        unsafe { self.header.as_ref() }
    }

    /// Writes the header in the order that readers rely on, and names the mapping.
    fn write(&mut self, payload: Vec<u8>) -> io::Result<()> {
        let before = self.header().published_at_ns.swap(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let payload = payload.into_boxed_slice();
        let address = payload.as_ptr().expose_provenance() as u64;
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        self.header().payload.store(address, Ordering::Relaxed);
        self.header().payload_len.store(len, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let now = boot_time_ns().max(before.saturating_add(1));
        self.header().published_at_ns.store(now, Ordering::Relaxed);
        self.payloads.push_back(payload);
        if self.payloads.len() > FORMER_PAYLOADS + 1 {
            self.payloads.pop_front();
        }
        self.name()
    }

    fn name(&self) -> io::Result<()> {
        let address = self.header.as_ptr();
        // SAFETY: names a mapping of this process; the name is a C string that outlives the call.
        let result = unsafe {
            libc::prctl(
                libc::PR_SET_VMA,
                libc::PR_SET_VMA_ANON_NAME,
                address,
                MAPPING_LEN,
                NAME.as_ptr(),
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Maps a file in memory, whose name shows in the list of mappings on every kernel.
fn map_memfd() -> io::Result<NonNull<libc::c_void>> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // Kernels before 6.3 do not know the flag that says "not to be executed".
    let file = memfd(flags | libc::MFD_NOEXEC_SEAL).or_else(|_unknown_flag| memfd(flags))?;
    file.set_len(MAPPING_LEN as u64)?;
    map(std::os::fd::AsRawFd::as_raw_fd(&file), 0)
}

fn memfd(flags: libc::c_uint) -> io::Result<std::fs::File> {
    use std::os::fd::{FromRawFd as _, OwnedFd};

    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(NAME.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was opened above and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

fn map(fd: libc::c_int, flags: libc::c_int) -> io::Result<NonNull<libc::c_void>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the kernel chooses the address, so no memory in use is touched.
    let address = unsafe {
        libc::mmap(std::ptr::null_mut(), MAPPING_LEN, protection, libc::MAP_PRIVATE | flags, fd, 0)
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
}

fn boot_time_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to the structure that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec).saturating_mul(1_000_000_000).saturating_add(part(now.tv_nsec))
}
