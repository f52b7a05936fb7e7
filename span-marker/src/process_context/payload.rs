//! The bytes of a process context: the few protobuf messages of OTEP 4719 that are needed.

use super::Identity;
use crate::abi::{ATTRIBUTE_KEY_MAP_KEY, SCHEMA_VERSION, SCHEMA_VERSION_KEY, TP_OFFSET_KEY};

/// Readers take 64 KiB in all, most of it for keys: a longer service name is cut.
const VALUE_MAX: usize = 1024;

/// `ProcessContext { resource = 1, attributes = 2 }`.
pub(super) fn encode(identity: &Identity, keys: &[Box<str>], tp_offset: Option<i64>) -> Vec<u8> {
    let named = |key, value: &Option<String>| {
        value.as_deref().map(|value| key_value(key, &string(cut(value))))
    };
    let resource: Vec<u8> = [
        named("service.name", &identity.service_name),
        named("service.namespace", &identity.service_namespace),
        Some(key_value("telemetry.sdk.language", &string("rust"))),
    ]
    .iter()
    .flatten()
    .flat_map(|attribute| field(1, attribute))
    .collect();

    let mut context = field(1, &resource);
    context.extend(field(2, &key_value(SCHEMA_VERSION_KEY, &string(SCHEMA_VERSION))));
    context.extend(field(2, &key_value(ATTRIBUTE_KEY_MAP_KEY, &array(keys))));
    if let Some(offset) = tp_offset {
        context.extend(field(2, &key_value(TP_OFFSET_KEY, &integer(offset))));
    }
    context
}

fn cut(value: &str) -> &str {
    value.get(..value.floor_char_boundary(VALUE_MAX)).unwrap_or(value)
}

/// `KeyValue { key = 1, value = 2 }`.
fn key_value(key: &str, value: &[u8]) -> Vec<u8> {
    [field(1, key.as_bytes()), field(2, value)].concat()
}

/// `AnyValue { string_value = 1 }`.
fn string(value: &str) -> Vec<u8> {
    field(1, value.as_bytes())
}

/// `AnyValue { int_value = 3 }`.
fn integer(value: i64) -> Vec<u8> {
    let mut bytes = vec![3 << 3];
    varint(&mut bytes, value.cast_unsigned());
    bytes
}

/// `AnyValue { array_value = 5: ArrayValue { values = 1 } }`.
fn array(values: &[Box<str>]) -> Vec<u8> {
    let values: Vec<u8> = values.iter().flat_map(|value| field(1, &string(value))).collect();
    field(5, &values)
}

/// A field with a length: wire type 2.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![(number << 3) | 2];
    varint(&mut field, bytes.len() as u64);
    field.extend_from_slice(bytes);
    field
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Read back by an independent implementation (libdd-library-config 5.0.1).
    const GOLDEN: &str = "\
        0a3e0a1a0a0c736572766963652e6e616d65120a0a08636865636b6f75740a200a1674656c656d657472792e7364\
        6b2e6c616e677561676512060a0472757374122e0a1a7468726561646c6f63616c2e736368656d615f7665727369\
        6f6e12100a0e746c73646573635f76315f64657612310a1d7468726561646c6f63616c2e6174747269627574655f\
        6b65795f6d617012102a0e0a0c0a0a687474702e726f75746512240a157370616e5f6d61726b65722e74705f6f66\
        66736574120b18b8ffffffffffffffff01";

    #[test]
    fn has_the_golden_bytes() {
        let identity = Identity { service_name: Some("checkout".into()), service_namespace: None };
        let payload = encode(&identity, &["http.route".into()], Some(-72));
        let payload: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(payload, GOLDEN);
    }

    #[test]
    fn stays_below_what_readers_take() {
        let identity = Identity {
            service_name: Some("é".repeat(5_000)),
            service_namespace: Some("n".repeat(5_000)),
        };
        let keys = vec!["k".repeat(crate::ATTRIBUTE_KEY_MAX).into_boxed_str(); 256];
        assert!(encode(&identity, &keys, Some(i64::MIN)).len() < 64 << 10);
    }

    #[test]
    fn writes_a_varint_in_groups_of_seven_bits() {
        for (value, expected) in [(0, vec![0]), (127, vec![127]), (300, vec![0xac, 2])] {
            let mut bytes = Vec::new();
            varint(&mut bytes, value);
            assert_eq!(bytes, expected);
        }
        let mut bytes = Vec::new();
        varint(&mut bytes, u64::MAX);
        assert_eq!(bytes, [vec![0xff; 9], vec![1]].concat());
    }
}
