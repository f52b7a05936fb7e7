//! The thread context record of OTEP 4947, and where a process keeps the pointer to it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The thread-local symbol that points to the active record (OTEP 4947, "Thread Local Variable").
pub const THREAD_CONTEXT_SYMBOL: &str = "otel_thread_ctx_v1";

/// The thread-local symbol that points to the label set of custom-labels v1.
pub const CUSTOM_LABELS_SYMBOL: &str = "custom_labels_current_set";

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

/// Record attribute: the same, as writers of libdatadog call it.
pub const DATADOG_LOCAL_ROOT_SPAN_ID_KEY: &str = "datadog.local_root_span_id";

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

/// `SpanHeader::valid` of what the BPF program makes of a thread's labels, for user space only:
/// [`LabelRecord`]. From a process it is as invalid as any other value.
pub const VALID_FROM_LABELS: u8 = 2;

/// How many labels of a thread are looked at.
pub const LABELS_MAX: usize = 32;

/// The most bytes of a span's name that are taken from a label.
pub const LABEL_NAME_MAX: usize = 255;

/// What the BPF program makes of a thread's labels: a thread context record whose ids are zero,
/// and whose attributes have fixed places. A label that is not there is all zeros. The name, of up
/// to [`LABEL_NAME_MAX`] bytes, follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LabelRecord {
    /// `valid` is [`VALID_FROM_LABELS`], the ids are zero.
    pub header: SpanHeader,
    /// The label `span_id`: 16 hex digits. What has a byte more is no id.
    pub span_id: LabelValue<17>,
    /// The label `trace_id`: 32 hex digits.
    pub trace_id: LabelValue<33>,
    /// The label `profile_id`, which Grafana's SDKs had before `span_id`.
    pub profile_id: LabelValue<17>,
    /// The key of the last attribute, the label `span_name`.
    pub name_key: u8,
    /// Its length in bytes.
    pub name_len: u8,
}

/// A label of a fixed place, filled up with zeros.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LabelValue<const LEN: usize> {
    /// The attribute's key.
    pub key: u8,
    /// `LEN`.
    pub len: u8,
    /// The label's first bytes.
    pub value: [u8; LEN],
}

const _: () =
    assert!(size_of::<LabelRecord>() + LABEL_NAME_MAX <= SPAN_HEADER_LEN + SPAN_ATTRIBUTES_MAX);

impl LabelRecord {
    /// Without any label.
    pub const EMPTY: Self = Self {
        header: SpanHeader {
            trace_id: [0; 16],
            span_id: [0; 8],
            valid: VALID_FROM_LABELS,
            // Labels are set for sampled spans only.
            trace_flags: 1,
            attributes_len: [0; 2],
        },
        span_id: LabelValue::empty(0),
        trace_id: LabelValue::empty(1),
        profile_id: LabelValue::empty(2),
        name_key: 3,
        name_len: 0,
    };

    /// [`Self::EMPTY`] as words, with zeros behind it.
    pub const EMPTY_WORDS: [u64; LABEL_RECORD_WORDS] = {
        let bytes: [u8; size_of::<Self>()] = zerocopy::transmute!(Self::EMPTY);
        let mut words = [[0; 8]; LABEL_RECORD_WORDS];
        let mut at = 0;
        while at < bytes.len() {
            words[at / 8][at % 8] = bytes[at];
            at += 1;
        }
        zerocopy::transmute!(words)
    };
}

/// The words that a [`LabelRecord`] without a name fills.
pub const LABEL_RECORD_WORDS: usize = size_of::<LabelRecord>().div_ceil(8);

impl<const LEN: usize> LabelValue<LEN> {
    #[expect(clippy::cast_possible_truncation, reason = "it is asserted")]
    const fn empty(key: u8) -> Self {
        const { assert!(LEN <= u8::MAX as usize) };
        Self { key, len: LEN as u8, value: [0; LEN] }
    }
}

/// How many places a process is looked at for a thread's span: a program and its libraries may each
/// have one.
pub const SPAN_SLOTS_MAX: usize = 4;

/// `SpanSlot::dtv_entry_shift` of glibc, whose entries are a pointer to a thread's block, and one to
/// what is to be freed.
pub const GLIBC_DTV_ENTRY_SHIFT: u8 = 4;
/// `SpanSlot::dtv_entry_shift` of musl.
pub const MUSL_DTV_ENTRY_SHIFT: u8 = 3;

/// `SpanSlot::format`: there is no slot here, nor behind.
pub const SLOT_EMPTY: u8 = 0;
/// `SpanSlot::format`: a pointer to a thread context record ([`SpanHeader`]).
pub const SLOT_RECORD: u8 = 1;
/// `SpanSlot::format`: a pointer to a label set of custom-labels v1.
pub const SLOT_CUSTOM_LABELS: u8 = 2;
/// `SpanSlot::format`: a pointer to the goroutine (`runtime.g`), whose pprof labels are read.
pub const SLOT_GO: u8 = 3;

/// Where the threads of a process keep what they work on: the value of `SPAN_SLOTS`. The first
/// place that has a span counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SpanSlots {
    /// In the order in which they are looked at; the first empty one ends them.
    pub slots: [SpanSlot; SPAN_SLOTS_MAX],
}

/// One thread-local variable of eight bytes, and what it points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SpanSlot {
    /// Distance in bytes to the variable: from the thread pointer if `module` is 0 (static TLS),
    /// otherwise from the start of the thread's block of that module.
    pub offset: i64,
    /// The TLS module's number in the thread's dynamic thread vector (DTV), 0 for static TLS.
    pub module: u32,
    /// Distance in bytes from the thread pointer to the pointer to the DTV.
    pub dtv_offset: i16,
    /// A DTV entry is `1 << dtv_entry_shift` bytes: one of `*_DTV_ENTRY_SHIFT`.
    pub dtv_entry_shift: u8,
    /// One of `SLOT_*`.
    pub format: u8,
    /// For [`SLOT_GO`].
    pub go: GoLayout,
}

/// Where Go's runtime keeps a goroutine's labels; all zero for other formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GoLayout {
    /// The offset of `m` in `runtime.g`.
    pub g_m: u16,
    /// The offset of `curg` in `runtime.m`.
    pub m_curg: u16,
    /// The offset of `labels` in `runtime.g`.
    pub g_labels: u16,
    /// 0: a sorted slice (Go 1.24 and newer), 1: a map (before).
    pub labels_are_map: u16,
}

/// What came of [`SpanSlots::add`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It was there before.
    Known,
    /// It is there now.
    New,
    /// There are as many as are kept.
    NoRoom,
}

impl SpanSlots {
    /// One place.
    #[must_use]
    pub const fn one(slot: SpanSlot) -> Self {
        let mut slots = [SpanSlot::EMPTY; SPAN_SLOTS_MAX];
        slots[0] = slot;
        Self { slots }
    }

    /// Adds a place behind those that are there.
    #[inline(always)]
    pub fn add(&mut self, slot: SpanSlot) -> Added {
        for place in &mut self.slots {
            if *place == slot {
                return Added::Known;
            }
            if place.format == SLOT_EMPTY {
                *place = slot;
                return Added::New;
            }
        }
        Added::NoRoom
    }
}

impl SpanSlot {
    /// No place.
    pub const EMPTY: Self = Self {
        offset: 0,
        module: 0,
        dtv_offset: 0,
        dtv_entry_shift: 0,
        format: SLOT_EMPTY,
        go: GoLayout { g_m: 0, m_curg: 0, g_labels: 0, labels_are_map: 0 },
    };

    /// A pointer to a record in static TLS, that many bytes from the thread pointer.
    #[must_use]
    pub const fn at_thread_pointer(offset: i64) -> Self {
        Self { offset, format: SLOT_RECORD, ..Self::EMPTY }
    }
}

const _: () = assert!(size_of::<SpanSlot>() == 24);

// SAFETY: `FromBytes` and `IntoBytes` are stricter than `Pod`: any bytes are a value, no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for SpanSlots {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_kept_once_and_up_to_four() {
        let at = SpanSlot::at_thread_pointer;
        let mut slots = SpanSlots::one(at(-8));
        assert_eq!(slots.add(at(-8)), Added::Known);
        assert_eq!(
            [-16, -24, -32, -40].map(|to| slots.add(at(to))),
            [Added::New, Added::New, Added::New, Added::NoRoom]
        );
        assert_eq!(slots.add(at(-24)), Added::Known);
        assert_eq!(slots.slots.map(|slot| slot.offset), [-8, -16, -24, -32]);
    }
}
