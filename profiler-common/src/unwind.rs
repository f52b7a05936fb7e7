//! Unwind tables, as user space writes them and the BPF program reads them.
//!
//! ```text
//! PROCESSES[tgid] ─▶ slice of MAPPINGS: [SliceHead][Mapping][Mapping]…
//!                                              │ address → (page, offset in the page)
//!                                              ▼
//!                                PAGES: one word for 64 KiB of a file's text
//!                                              │
//!                                              ▼
//!                   ROWS: a block per page: [granule index: 64 words][row][row]…[end: 16 words]
//!                                              │ rule number
//!                                              ▼
//!                                RULES: [Rule; RULES_MAX]
//! ```
//!
//! What is published is never modified in place: a process gets another slice, and what nothing
//! points to any more is used again only after every running program has ended.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How many address bits a text page has: rows hold 16-bit offsets.
pub const PAGE_SHIFT: u32 = 16;
/// How many address bits a granule has: what one entry of a block's index stands for.
pub const GRANULE_SHIFT: u32 = 9;
/// Granules of a page.
pub const GRANULES: usize = 1 << (PAGE_SHIFT - GRANULE_SHIFT);
/// Words of a block's granule index: two 16-bit entries each, the lower half first.
pub const GRANULE_WORDS: usize = GRANULES / 2;

/// Words of ones behind a block's rows: rows are compared in groups, and these are never reached.
pub const END_WORDS: usize = 16;

/// Words of a segment. A block lies within one segment.
pub const SEGMENT_WORDS: usize = 1 << 14;
/// Segments of a chunk, which is 1 MiB: what is allocated at a time.
pub const CHUNK_SEGMENTS: usize = 16;
/// The most chunks.
pub const CHUNKS_MAX: usize = 512;
/// The most rows of a page.
pub const PAGE_ROWS_MAX: usize = SEGMENT_WORDS - GRANULE_WORDS - END_WORDS;
/// The most text pages, of all files.
pub const PAGES_MAX: usize = 1 << 17;
/// The most different rules, of all files.
pub const RULES_MAX: usize = 1 << 15;

/// Entries of a mapping segment. A slice lies within one.
pub const SLICE_ENTRIES_MAX: usize = 4096;
/// How many mapping segments there are.
pub const MAPPING_SEGMENTS: usize = 32;
/// The most processes.
pub const PROCESSES_MAX: u32 = 16_384;

/// A row: from this offset in its page on, this rule holds.
///
/// Rows of a page are sorted, the first is at offset 0.
#[must_use]
pub const fn row(offset: u16, rule: u16) -> u32 {
    (offset as u32) << 16 | rule as u32
}

/// A page: where its block begins, in words from the first chunk's start, and how many rows it has.
#[must_use]
pub const fn page(block: u32, rows: u16) -> u64 {
    (rows as u64) << 32 | block as u64
}

/// The first entry of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SliceHead {
    /// The mapping snapshot's epoch, never 0 and never used again.
    pub epoch: u64,
    /// How many mappings follow.
    pub len: u64,
    /// Stands for this slice and all that it leads to; never 0, never used again. A snapshot is
    /// published more than once when tables of its files become ready, or have to go.
    pub publication: u64,
    /// Always zero.
    pub reserved: u64,
}

/// An executable mapping of a process. Mappings of a slice are sorted and do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Mapping {
    /// The first address.
    pub begin: u64,
    /// The address behind the last.
    pub end: u64,
    /// `address - bias` is `page << PAGE_SHIFT | offset`, pages counted from `first_page`.
    pub bias: u64,
    /// The file's first text page in `PAGES`.
    pub first_page: u32,
    /// `MAPPING_*` in the upper 8 bits; the number of pages in the others.
    pub kind_and_pages: u32,
}

const _: () = assert!(size_of::<Mapping>() == size_of::<SliceHead>());

/// `Mapping::kind_and_pages`: where the kind begins.
pub const MAPPING_KIND_SHIFT: u32 = 24;

/// A mapping of a file whose unwind table is published.
pub const MAPPING_TABLE: u8 = 0;
/// A mapping of a file without unwind information.
pub const MAPPING_NO_TABLE: u8 = 1;
/// A mapping of a file whose table is not ready yet.
pub const MAPPING_PENDING: u8 = 2;
/// A mapping of a file whose table has no room.
pub const MAPPING_OVER_LIMIT: u8 = 3;
/// A mapping without a file: code made at run time.
pub const MAPPING_ANONYMOUS: u8 = 4;
/// A mapping of a file that cannot be read, or whose unwind information is damaged.
pub const MAPPING_UNREADABLE: u8 = 5;

/// How the caller's registers follow from a frame's, 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Rule {
    /// One of `CFA_*`.
    pub cfa: u8,
    /// One of `SAVED_*`: where the frame pointer and the return address are.
    pub saved: u8,
    /// For the `SAVED_*` that say so, an offset from the CFA, or a register.
    pub saved_offset: i16,
    /// For the `CFA_*` that say so, an offset; see each.
    pub cfa_offset: i32,
}

/// No unwind information here: go by the frame pointer, as far as it can be trusted.
pub const CFA_NONE: u8 = 0;
/// CFA = sp + `cfa_offset`.
pub const CFA_SP: u8 = 1;
/// CFA = fp + `cfa_offset`.
pub const CFA_FP: u8 = 2;
/// A procedure linkage table: CFA = sp + 8, and 8 more from byte `cfa_offset` of each 16 on.
pub const CFA_PLT: u8 = 3;
/// CFA = *(sp + low half of `cfa_offset`) + its high half, both signed.
pub const CFA_AT_SP: u8 = 4;
/// CFA = *(fp + low half of `cfa_offset`) + its high half, both signed.
pub const CFA_AT_FP: u8 = 5;
/// The frame of a signal handler's return: everything is in the `rt_sigframe` at sp.
pub const CFA_SIGNAL: u8 = 6;
/// CFA = register (DWARF number, low 8 bits of `cfa_offset`) + `cfa_offset >> 8`: known only in the
/// interrupted frame.
pub const CFA_REGISTER: u8 = 7;
/// Code that keeps frame pointers and says nothing else (Go).
pub const CFA_FRAME_POINTER: u8 = 8;
/// The outermost frame: there is no caller.
pub const CFA_STOP: u8 = 9;
/// There is a rule, but it cannot be said in these terms.
pub const CFA_UNSUPPORTED: u8 = 10;
/// By frame pointer, to wherever it leads: code that goes over to another stack, and keeps its frame
/// pointer on the one that it came from (Go's runtime).
pub const CFA_OTHER_STACK: u8 = 11;

/// The return address is at CFA - 8, the frame pointer is what it was (x86-64).
pub const SAVED_RA: u8 = 0;
/// The return address is at CFA - 8, the frame pointer at CFA + `saved_offset` (x86-64).
pub const SAVED_RA_FP: u8 = 1;
/// The return address is in register `saved_offset` (DWARF number), the frame pointer is what it
/// was: only in the interrupted frame.
pub const SAVED_RA_IN_REGISTER: u8 = 2;
/// The return address is in the link register, the frame pointer is what it was: only in the
/// interrupted frame (aarch64).
pub const SAVED_LINK: u8 = 3;
/// The frame pointer is at CFA + `saved_offset`, the return address 8 bytes above (aarch64).
pub const SAVED_PAIR: u8 = 4;
/// The return address is at CFA + `saved_offset`, the frame pointer is what it was.
pub const SAVED_RA_AT: u8 = 5;
/// The return address is at CFA - 8, the frame pointer is somewhere else (x86-64).
pub const SAVED_RA_FP_LOST: u8 = 6;

impl Rule {
    /// The rule of code without unwind information.
    pub const NONE: Self = Self::plain(CFA_NONE);
    /// The rule of the outermost frame.
    pub const STOP: Self = Self::plain(CFA_STOP);
    /// The rule of what cannot be said.
    pub const UNSUPPORTED: Self = Self::plain(CFA_UNSUPPORTED);

    /// A rule of a kind that says everything.
    #[must_use]
    pub const fn plain(cfa: u8) -> Self {
        Self { cfa, saved: SAVED_RA, saved_offset: 0, cfa_offset: 0 }
    }

    /// As it is in `RULES`.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        let [o0, o1] = self.saved_offset.to_le_bytes();
        let [c0, c1, c2, c3] = self.cfa_offset.to_le_bytes();
        u64::from_le_bytes([self.cfa, self.saved, o0, o1, c0, c1, c2, c3])
    }

    /// From what is in `RULES`.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        let [cfa, saved, o0, o1, c0, c1, c2, c3] = bits.to_le_bytes();
        Self {
            cfa,
            saved,
            saved_offset: i16::from_le_bytes([o0, o1]),
            cfa_offset: i32::from_le_bytes([c0, c1, c2, c3]),
        }
    }
}
