//! The memory of a BPF array map or of a perf event's ring, shared with the kernel.

use std::{
    io,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A mapping of a map's values or a ring.
///
/// Words are stored whole (atomic stores), so that a BPF program that reads at the same time sees
/// one value or the other.
#[derive(Debug)]
pub(in crate::capture) struct MapMemory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is reached through `&self` by atomic accesses alone.
unsafe impl Send for MapMemory {}

impl MapMemory {
    /// Maps the `len` bytes of an array map that was made with `BPF_F_MMAPABLE`, or of a ring.
    pub(in crate::capture) fn new(map: impl AsFd, len: usize) -> io::Result<Self> {
        let (read_write, shared) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping, which replaces none.
        let start = unsafe { mmap(std::ptr::null_mut(), len, read_write, shared, map, 0) }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// Stores words of 4 bytes from word `index` on. What is beyond the map is left out.
    pub(in crate::capture) fn store_u32(&self, index: usize, words: &[u32]) {
        for (offset, word) in words.iter().enumerate() {
            if let Some(place) = self.place::<AtomicU32>(index.saturating_add(offset)) {
                place.store(*word, Ordering::Relaxed);
            }
        }
    }

    /// Stores words of 8 bytes from word `index` on, visible after everything stored before.
    pub(in crate::capture) fn store_u64(&self, index: usize, words: &[u64]) {
        for (offset, word) in words.iter().enumerate() {
            if let Some(place) = self.place::<AtomicU64>(index.saturating_add(offset)) {
                place.store(*word, Ordering::Release);
            }
        }
    }

    /// The 8-byte word `index`, 0 beyond the map.
    pub(in crate::capture) fn load_u64(&self, index: usize) -> u64 {
        self.place::<AtomicU64>(index).map_or(0, |place| place.load(Ordering::Relaxed))
    }

    fn place<T>(&self, index: usize) -> Option<&T> {
        let offset = index.checked_mul(size_of::<T>())?;
        let end = offset.checked_add(size_of::<T>())?;
        if end > self.len {
            return None;
        }
        // SAFETY: within the mapping, as was just compared.
        let at = unsafe { self.start.add(offset) }.cast::<T>();
        // SAFETY: mapped for as long as `self` lives, aligned as a multiple of its size from the
        // start of a page, and every bit pattern is an integer.
        Some(unsafe { at.as_ref() })
    }
}

impl Drop for MapMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is our own and nothing refers to it any more.
        if let Err(error) = unsafe { munmap(self.start.as_ptr().cast(), self.len) } {
            tracing::error!(%error, "cannot unmap what is shared with the kernel");
        }
    }
}
