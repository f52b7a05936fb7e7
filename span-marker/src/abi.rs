//! The names and numbers that readers rely on. `ABI.md` beside this crate's manifest says how they
//! fit together.

/// The thread-local symbol, eight bytes: a pointer to the active record, or null (OTEP 4947).
pub const SLOT_SYMBOL: &str = "otel_thread_ctx_v1";

/// The fixed part of a record, in bytes: trace id (16), span id (8), valid (1), trace flags (1), and
/// the length of the attributes (2, native byte order).
pub const RECORD_HEADER_LEN: usize = 28;

/// The most bytes of attributes in a record: with the header 640, as OTEP 4947 recommends.
pub const RECORD_ATTRIBUTES_MAX: usize = 612;

/// Attribute 0 of a record: the local root span's id, 16 lower-case hex digits.
pub const LOCAL_ROOT_SPAN_ID_KEY: &str = "local_root_span_id";

/// Attribute 1 of a record: the active span's name.
pub const SPAN_NAME_KEY: &str = "span_name";

/// Attribute 2 of a record: the local root span's name; absent where the active span is the local
/// root.
pub const LOCAL_ROOT_SPAN_NAME_KEY: &str = "local_root_span_name";

/// Process context attribute: which schema the records have.
pub const SCHEMA_VERSION_KEY: &str = "threadlocal.schema_version";

/// The schema, as all writers call it until the OTEP is stable.
pub const SCHEMA_VERSION: &str = "tlsdesc_v1_dev";

/// Process context attribute: the names of the attributes' keys, by index.
pub const ATTRIBUTE_KEY_MAP_KEY: &str = "threadlocal.attribute_key_map";

/// Process context attribute, ours: the slot's distance from the thread pointer in bytes, where it
/// is the same in every thread.
pub const TP_OFFSET_KEY: &str = "span_marker.tp_offset";

/// The section of the ELF note that leads to the info block and to the hook, also where symbols are
/// stripped. Its owner is `span-marker`, its type 1, its description two distances (`i64`), each
/// from its own address.
pub const NOTE_SECTION: &str = ".note.span_marker";

/// The note's owner, with the zero byte that the ELF specification counts.
pub const NOTE_NAME: &[u8] = b"span-marker\0";

/// The note's type.
pub const NOTE_TYPE: u32 = 1;

/// The info block's first eight bytes; then `abi` (`u32`), `flags` (`u32`), `tp_offset` (`i64`), and
/// eight bytes of zero.
pub const INFO_MAGIC: [u8; 8] = *b"SPANMRK1";

/// The info block's `abi`.
pub const INFO_ABI: u32 = 1;

/// Bit 0 of the info block's `flags`: `tp_offset` is filled in, and that of every thread.
pub const INFO_STATIC: u32 = 1;

/// The function that is called once in a process, with the calling thread's slot and `tp_offset`,
/// after `INFO_STATIC` is set. It does nothing: a uprobe on it tells of the process.
pub const HOOK_SYMBOL: &str = "span_marker_thread_slot_v1";
