//! What a process says of itself (OTEP 4719), written by hand: it shares no code with the reader
//! under test.

/// A process context's payload: the service, the attribute keys of thread records, and where the
/// slot is if it says so.
#[must_use]
pub fn payload(service: &str, attribute_keys: &[&str], tp_offset: Option<i64>) -> Vec<u8> {
    let resource = key_value("service.name", &text(service));
    let keys: Vec<u8> = attribute_keys.iter().flat_map(|key| field(1, &text(key))).collect();
    let schema = key_value("threadlocal.schema_version", &text("tlsdesc_v1_dev"));
    let keys = key_value("threadlocal.attribute_key_map", &field(5, &keys));
    let tp_offset = tp_offset.map(|offset| {
        // `AnyValue { int_value = 3 }`, wire type 0.
        let value = [vec![3 << 3], varint(offset.cast_unsigned())].concat();
        field(2, &key_value("span_marker.tp_offset", &value))
    });
    let mut payload = [field(1, &field(1, &resource)), field(2, &schema), field(2, &keys)].concat();
    payload.extend(tp_offset.unwrap_or_default());
    payload
}

/// `KeyValue { key = 1, value = 2 }`.
fn key_value(key: &str, any_value: &[u8]) -> Vec<u8> {
    [field(1, key.as_bytes()), field(2, any_value)].concat()
}

/// `AnyValue { string_value = 1 }`.
fn text(value: &str) -> Vec<u8> {
    field(1, value.as_bytes())
}

/// A field of wire type 2: its key, its length as a varint, its bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let len = varint(bytes.len() as u64);
    [vec![number << 3 | 2], len, bytes.to_vec()].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        // Seven bits are left: nothing is cut off.
        let low = u8::try_from(value & 0x7f).unwrap_or_default();
        value >>= 7;
        if value == 0 {
            out.push(low);
            return out;
        }
        out.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_those_of_protobuf() {
        assert_eq!(field(2, b"testing"), b"\x12\x07testing");
        assert_eq!(field(1, &[0; 300])[..3], [0x0a, 0xac, 0x02]);
        assert_eq!(varint(0), [0]);
        assert_eq!(varint(u64::MAX)[..], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
    }
}
