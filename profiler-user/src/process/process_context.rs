//! What a process says of itself in its own memory (OTEP 4719): its service, and how its threads
//! publish their spans (OTEP 4947).

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::{io, sync::Arc};

use profiler_common::span::{
    ATTRIBUTE_KEY_MAP_KEY, SCHEMA_VERSION_KEY, SCHEMA_VERSIONS, TP_OFFSET_KEY,
};
use prost::Message as _;
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout};

use super::context_proto::{self, AnyValue, KeyValue, any_value::Value};
use super::maps::ContextMapping;
use super::service::ENVIRONMENT_KEYS;

const SIGNATURE: [u8; 8] = *b"OTEL_CTX";
const VERSION: u32 = 2;

/// As much as the reader of the OpenTelemetry eBPF profiler takes.
const PAYLOAD_MAX: u32 = 64 << 10;

/// How often a context that changes while it is read is tried; the next look tries again.
const ATTEMPTS: usize = 3;

/// OTEP 4947: a key's index is one byte.
const ATTRIBUTE_KEYS_MAX: usize = 256;

/// How much of an attribute key is kept.
const ATTRIBUTE_KEY_LEN_MAX: usize = 128;

/// How much of all keys is kept; 256 keys of OpenTelemetry's semantic conventions are some 5 KB.
const ATTRIBUTE_KEYS_LEN_MAX: usize = 8 << 10;

/// How much of a service's name is kept.
const SERVICE_LEN_MAX: usize = 1024;

/// A process context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProcessContext {
    /// `service.name`, its beginning, as published.
    pub(super) service_name: Option<String>,
    /// `service.namespace`, its beginning, as published.
    pub(super) service_namespace: Option<String>,
    /// `service.version`, its beginning, as published.
    pub(super) service_version: Option<String>,
    /// `deployment.environment.name`, or what it was called before, its beginning, as published.
    pub(super) deployment_environment: Option<String>,
    /// How the threads publish their spans.
    pub(super) schema: Schema,
    /// The attribute keys of thread records, by index.
    pub(super) attribute_keys: Arc<[Arc<str>]>,
    /// Where threads keep the pointer to their record, as a distance from the thread pointer.
    pub(super) tp_offset: Option<i64>,
    /// Changes with each publication.
    published_at: u64,
    /// The mapping that it was found in.
    mapping: ContextMapping,
}

/// `threadlocal.schema_version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Schema {
    /// There is none: the process does not say that its threads publish spans.
    Absent,
    /// The records of OTEP 4947.
    ThreadContext,
    /// Records of another kind.
    Other,
}

/// Why there is no process context in a mapping that is named like one.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContextError {
    /// OTEP 4719: "the mapping must not be executable".
    #[error("the mapping is executable")]
    Executable,
    /// Not one, or not yet one.
    #[error("no signature")]
    NoSignature,
    /// Only version 2 is known.
    #[error("version {0} is not known")]
    Version(u32),
    /// Empty, or more than is read.
    #[error("a payload of {0} bytes")]
    PayloadSize(u32),
    /// The process was writing it, each time.
    #[error("it changed while it was read")]
    Torn,
    /// The process has exited, or pointed to memory that it does not have.
    #[error("cannot read the memory of the process")]
    Unreadable(#[source] io::Error),
    /// Not the message that it should be.
    #[error("malformed payload")]
    Malformed(#[source] prost::DecodeError),
}

/// The start of the mapping, in native byte order.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    signature: [u8; 8],
    version: u32,
    payload_size: u32,
    /// `CLOCK_BOOTTIME`; zero while the process writes.
    published_at: u64,
    payload_address: u64,
}

const _: () = assert!(size_of::<Header>() == 32);

impl ProcessContext {
    /// Reads the context in `mapping`; `memory` fills a buffer from an address of the process.
    ///
    /// A context that was published at the time that `known` was is `known`, unread.
    pub(super) fn read(
        mapping: ContextMapping,
        known: Option<&Arc<Self>>,
        mut memory: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<Arc<Self>, ContextError> {
        if mapping.executable {
            return Err(ContextError::Executable);
        }
        for _ in 0..ATTEMPTS {
            let before = read_header(mapping, &mut memory)?;
            if before.signature != SIGNATURE {
                return Err(ContextError::NoSignature);
            }
            if before.version != VERSION {
                return Err(ContextError::Version(before.version));
            }
            if before.published_at == 0 {
                continue;
            }
            if let Some(known) = known
                && known.mapping == mapping
                && known.published_at == before.published_at
            {
                return Ok(Arc::clone(known));
            }
            let payload = read_payload(&before, &mut memory);
            // Each read is a system call: none is reordered with another.
            let after = read_header(mapping, &mut memory)?;
            if before == after {
                let decoded = context_proto::ProcessContext::decode(payload?.as_slice());
                let message = decoded.map_err(ContextError::Malformed)?;
                return Ok(Arc::new(Self::new(message, before.published_at, mapping)));
            }
        }
        Err(ContextError::Torn)
    }

    fn new(
        message: context_proto::ProcessContext,
        published_at: u64,
        mapping: ContextMapping,
    ) -> Self {
        let resource = message.resource.unwrap_or_default().attributes;
        let kept = |key| {
            text_of(&resource, key).map(|text| beginning_of(text, SERVICE_LEN_MAX).to_owned())
        };
        let [environment, former_environment] = ENVIRONMENT_KEYS;
        let schema = match text_of(&message.attributes, SCHEMA_VERSION_KEY) {
            None => Schema::Absent,
            Some(version) if SCHEMA_VERSIONS.contains(&version) => Schema::ThreadContext,
            Some(_) => Schema::Other,
        };
        let keys = match value_of(&message.attributes, ATTRIBUTE_KEY_MAP_KEY) {
            Some(Value::ArrayValue(array)) => array.values.as_slice(),
            _ => &[],
        };
        let tp_offset = match value_of(&message.attributes, TP_OFFSET_KEY) {
            Some(Value::IntValue(offset)) => Some(*offset),
            _ => None,
        };
        Self {
            service_name: kept("service.name"),
            service_namespace: kept("service.namespace"),
            service_version: kept("service.version"),
            deployment_environment: kept(environment).or_else(|| kept(former_environment)),
            schema,
            attribute_keys: attribute_keys(keys),
            tp_offset,
            published_at,
            mapping,
        }
    }
}

fn read_header(
    mapping: ContextMapping,
    memory: &mut impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> Result<Header, ContextError> {
    let mut header = Header::new_zeroed();
    memory(mapping.start, header.as_mut_bytes()).map_err(ContextError::Unreadable)?;
    Ok(header)
}

fn read_payload(
    header: &Header,
    memory: &mut impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> Result<Vec<u8>, ContextError> {
    if header.payload_size == 0 || header.payload_size > PAYLOAD_MAX {
        return Err(ContextError::PayloadSize(header.payload_size));
    }
    let size = usize::try_from(header.payload_size).unwrap_or_default();
    let mut payload = vec![0; size];
    memory(header.payload_address, &mut payload).map_err(ContextError::Unreadable)?;
    Ok(payload)
}

fn value_of<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()
}

fn text_of<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    match value_of(attributes, key)? {
        Value::StringValue(text) => Some(text),
        Value::IntValue(_) | Value::ArrayValue(_) => None,
    }
}

/// A key that is no text, or too much, keeps its place, for those behind it: empty.
fn attribute_keys(values: &[AnyValue]) -> Arc<[Arc<str>]> {
    let mut left = ATTRIBUTE_KEYS_LEN_MAX;
    let key_of = |value: &AnyValue| {
        let Some(Value::StringValue(key)) = &value.value else { return "".into() };
        let key = beginning_of(key, ATTRIBUTE_KEY_LEN_MAX.min(left));
        left = left.saturating_sub(key.len());
        key.into()
    };
    values.iter().take(ATTRIBUTE_KEYS_MAX).map(key_of).collect()
}

fn beginning_of(text: &str, max: usize) -> &str {
    text.get(..text.floor_char_boundary(max)).unwrap_or_default()
}

#[cfg(test)]
#[path = "process_context_tests.rs"]
mod tests;
