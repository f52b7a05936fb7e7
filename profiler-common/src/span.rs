//! The thread context record of OTEP 4947, and where a process keeps the pointer to it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The thread-local symbol that points to the active record (OTEP 4947, "Thread Local Variable").
pub const THREAD_CONTEXT_SYMBOL: &str = "otel_thread_ctx_v1";

/// The process-context attribute that names the thread record's schema.
pub const SCHEMA_VERSION_KEY: &str = "threadlocal.schema_version";

/// The schema that writers emit today; `tls_v1` replaces it once the OTEP is stable. Both are read.
pub const SCHEMA_VERSIONS: [&str; 2] = ["tlsdesc_v1_dev", "tls_v1"];

/// The process-context attribute that names the attribute keys, by index.
pub const ATTRIBUTE_KEY_MAP_KEY: &str = "threadlocal.attribute_key_map";

/// The process-context attribute, ours, with the slot's distance from the thread pointer in bytes.
pub const TP_OFFSET_KEY: &str = "span_marker.tp_offset";

/// Record attribute: the local root span's id, 16 lower-case hex digits.
pub const LOCAL_ROOT_SPAN_ID_KEY: &str = "local_root_span_id";

/// Record attribute: the active span's name.
pub const SPAN_NAME_KEY: &str = "span_name";

/// Record attribute: the local root span's name; absent where the active span is the local root.
pub const LOCAL_ROOT_SPAN_NAME_KEY: &str = "local_root_span_name";

/// The fixed part of a thread context record.
pub const SPAN_HEADER_LEN: usize = 28;

/// The attribute bytes that are read of one record: OTEP 4947 recommends at most 640 bytes in all.
pub const SPAN_ATTRIBUTES_MAX: usize = 612;

/// The fixed part of a thread context record (OTEP 4947, "Thread Local Context Record"), native
/// byte order, followed by `attributes_len` bytes of `key: u8, len: u8, value: [u8; len]`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SpanHeader {
    /// W3C byte order; all zero with a zero `span_id` means no span.
    pub trace_id: [u8; 16],
    /// W3C byte order.
    pub span_id: [u8; 8],
    /// 1: the record may be read. Anything else: ignore it.
    pub valid: u8,
    /// W3C trace flags; bit 0 is "sampled".
    pub trace_flags: u8,
    /// How many bytes of attributes follow, a `u16` in native byte order.
    pub attributes_len: [u8; 2],
}

const _: () = assert!(size_of::<SpanHeader>() == SPAN_HEADER_LEN);

/// Where the threads of a process keep the pointer to their record: the value of `SPAN_SLOTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SpanSlot {
    /// Distance in bytes from the thread pointer to the slot (static TLS).
    pub tp_offset: i64,
}

// SAFETY: `FromBytes` and `IntoBytes` are stricter than `Pod`: any bytes are a value, no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for SpanSlot {}
