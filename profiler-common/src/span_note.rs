//! How a program with span-marker says where its threads keep their span, also stripped and
//! statically linked: an ELF note that points to a block of data and to a function.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The section of the note.
pub const NOTE_SECTION: &str = ".note.span_marker";

/// The note's owner, with the zero byte that the ELF specification counts.
pub const NOTE_NAME: &[u8] = b"span-marker\0";

/// The note's type.
pub const NOTE_TYPE: u32 = 1;

/// `SpanMarkerInfo::magic`.
pub const INFO_MAGIC: [u8; 8] = *b"SPANMRK1";

/// `SpanMarkerInfo::abi`.
pub const INFO_ABI: u32 = 1;

/// `SpanMarkerInfo::flags`: the block is filled in, and `tp_offset` is that of every thread.
pub const INFO_STATIC: u32 = 1;

/// The function that a program calls once, when its slot is known, with
/// (`slot: *const *const u8`, `tp_offset: i64`). It does nothing: a uprobe is attached to it. Only
/// called where `tp_offset` is that of every thread.
pub const HOOK_SYMBOL: &str = "span_marker_thread_slot_v1";

/// The description of the note.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SpanMarkerNote {
    /// From the address of this field to the [`SpanMarkerInfo`], in bytes.
    pub info_distance: i64,
    /// From the address of this field to the hook, in bytes.
    pub hook_distance: i64,
}

/// The block in the program's data, zero but for `magic` and `abi` until its first use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SpanMarkerInfo {
    /// [`INFO_MAGIC`].
    pub magic: [u8; 8],
    /// [`INFO_ABI`].
    pub abi: u32,
    /// Some of `INFO_*`.
    pub flags: u32,
    /// Distance in bytes from the thread pointer to the slot. Written before `flags`.
    pub tp_offset: i64,
    /// Zero.
    pub reserved: u64,
}

const _: () = assert!(size_of::<SpanMarkerNote>() == 16);
const _: () = assert!(size_of::<SpanMarkerInfo>() == 32);
