use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// The payload of a known-good writer, for service `checkout`.
const GOLDEN: &str = "\
0a3e0a1a0a0c736572766963652e6e616d65120a0a08636865636b6f75740a200a1674656c656d657472792e73646b\
2e6c616e677561676512060a0472757374122e0a1a7468726561646c6f63616c2e736368656d615f76657273696f6e\
12100a0e746c73646573635f76315f64657612310a1d7468726561646c6f63616c2e6174747269627574655f6b6579\
5f6d617012102a0e0a0c0a0a687474702e726f75746512240a157370616e5f6d61726b65722e74705f6f6666736574\
120b18b8ffffffffffffffff01";

const HEADER_AT: u64 = 0x7f00_0000_0000;
const PAYLOAD_AT: u64 = 0x5500_0000_0010;
const MAPPING: ContextMapping = ContextMapping { start: HEADER_AT, executable: false };

fn golden() -> Vec<u8> {
    let byte = |index| u8::from_str_radix(&GOLDEN[index..index + 2], 16).unwrap();
    (0..GOLDEN.len()).step_by(2).map(byte).collect()
}

fn header(payload_size: usize, published_at: u64) -> Header {
    Header {
        signature: SIGNATURE,
        version: VERSION,
        payload_size: u32::try_from(payload_size).unwrap(),
        published_at,
        payload_address: PAYLOAD_AT,
    }
}

/// A process that shows another header each time it is asked, the last one for ever.
fn read(
    headers: impl IntoIterator<Item = Header>,
    payload: &[u8],
    known: Option<&Arc<ProcessContext>>,
) -> Result<Arc<ProcessContext>, ContextError> {
    let mut headers: VecDeque<Header> = headers.into_iter().collect();
    ProcessContext::read(MAPPING, known, |address, buffer| {
        let bytes = match address {
            HEADER_AT if headers.len() > 1 => headers.pop_front().unwrap().as_bytes().to_vec(),
            HEADER_AT => headers[0].as_bytes().to_vec(),
            PAYLOAD_AT => payload.to_vec(),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let wanted = bytes.get(..buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(wanted);
        Ok(())
    })
}

#[test]
fn reads_what_a_known_good_writer_wrote() {
    let payload = golden();
    let context = read([header(payload.len(), 7)], &payload, None).unwrap();
    assert_eq!(
        *context,
        ProcessContext {
            service_name: Some("checkout".into()),
            service_namespace: None,
            service_version: None,
            deployment_environment: None,
            schema: Schema::ThreadContext,
            attribute_keys: ["http.route".into()].into(),
            tp_offset: Some(-72),
            published_at: 7,
            mapping: MAPPING,
        }
    );
}

#[test]
fn an_unchanged_context_is_not_read_again() {
    let payload = golden();
    let first = read([header(payload.len(), 7)], &payload, None).unwrap();
    let again = read([header(payload.len(), 7)], b"", Some(&first)).unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    let updated = read([header(payload.len(), 8)], &payload, Some(&first)).unwrap();
    assert_eq!(updated.published_at, 8);
}

#[test]
fn a_torn_read_is_tried_again_but_not_for_ever() {
    let payload = golden();
    let at = |published_at| header(payload.len(), published_at);
    // Being written at first, then changed behind the payload, then stable.
    let context = read([at(0), at(1), at(2), at(3)], &payload, None).unwrap();
    assert_eq!(context.published_at, 3);
    let torn = |result| matches!(result, Err(ContextError::Torn));
    assert!(torn(read([at(0)], &payload, None)));
    assert!(torn(read((1..100).map(at), &payload, None)));
    // The payload is replaced under a time stamp that stays.
    let moved = Header { payload_address: 1, ..at(1) };
    let context = read([moved, at(1)], &payload, None).unwrap();
    assert_eq!(context.published_at, 1);
}

#[test]
fn refuses_what_is_no_context() {
    let payload = golden();
    let good = header(payload.len(), 1);
    let refused = |bad: Header| read([bad], &payload, None).unwrap_err().to_string();
    assert_eq!(refused(Header { signature: *b"OTEL_CT\0", ..good }), "no signature");
    assert_eq!(refused(Header { version: 1, ..good }), "version 1 is not known");
    assert_eq!(refused(Header { payload_size: 0, ..good }), "a payload of 0 bytes");
    assert_eq!(refused(Header { payload_size: 65_537, ..good }), "a payload of 65537 bytes");
    assert_eq!(refused(Header { payload_size: u32::MAX, ..good }), "a payload of 4294967295 bytes");
    let unreadable = "cannot read the memory of the process";
    assert_eq!(refused(Header { payload_address: u64::MAX, ..good }), unreadable);
    assert_eq!(refused(Header { payload_size: 65_536, ..good }), unreadable);
    assert_eq!(refused(Header { payload_size: 100, ..good }), "malformed payload");
    let executable = ContextMapping { executable: true, ..MAPPING };
    let result = ProcessContext::read(executable, None, |_, _| Ok(()));
    assert!(matches!(result, Err(ContextError::Executable)));
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }) }
}

fn text(text: &str) -> Value {
    Value::StringValue(text.into())
}

fn decoded(message: context_proto::ProcessContext) -> Arc<ProcessContext> {
    let payload = message.encode_to_vec();
    read([header(payload.len(), 1)], &payload, None).unwrap()
}

#[test]
fn the_schema_decides() {
    let schema = |value| {
        let attributes = vec![attribute(SCHEMA_VERSION_KEY, value)];
        decoded(context_proto::ProcessContext { resource: None, attributes }).schema
    };
    assert_eq!(schema(text("tlsdesc_v1_dev")), Schema::ThreadContext);
    assert_eq!(schema(text("tls_v1")), Schema::ThreadContext);
    assert_eq!(schema(text("nodejs_v1_dev")), Schema::Other);
    assert_eq!(schema(Value::IntValue(1)), Schema::Absent);
    assert_eq!(
        decoded(context_proto::ProcessContext {
            resource: None,
            attributes: vec![attribute("x", text("y"))]
        })
        .schema,
        Schema::Absent
    );
}

#[test]
fn says_which_version_is_deployed_where() {
    let said = |attributes| {
        let resource = Some(context_proto::Resource { attributes });
        let context = decoded(context_proto::ProcessContext { resource, attributes: Vec::new() });
        (context.deployment_environment.clone(), context.service_version.clone())
    };
    let former = attribute("deployment.environment", text("old"));
    let version = attribute("service.version", text(&"v".repeat(2000)));
    assert_eq!(said(vec![former.clone()]), (Some("old".into()), None));
    let now = attribute("deployment.environment.name", text("prod"));
    let all = said(vec![former, now, version]);
    assert_eq!(all, (Some("prod".into()), Some("v".repeat(SERVICE_LEN_MAX))));
    assert_eq!(said(vec![attribute("service.version", Value::IntValue(1))]), (None, None));
}

#[test]
fn attribute_keys_are_bounded_and_keep_their_place() {
    let value = |value| AnyValue { value: Some(value) };
    let mut values = vec![
        value(text("first")),
        value(Value::IntValue(1)),
        AnyValue { value: None },
        value(text(&"é".repeat(100))),
    ];
    values.resize(300, value(text("last")));
    let map = Value::ArrayValue(context_proto::ArrayValue { values });
    let attributes = vec![attribute(ATTRIBUTE_KEY_MAP_KEY, map)];
    let keys = decoded(context_proto::ProcessContext { resource: None, attributes });
    let keys = &keys.attribute_keys;
    assert_eq!(keys.len(), 256);
    assert_eq!(&*keys[0], "first");
    assert_eq!((&*keys[1], &*keys[2]), ("", ""));
    assert_eq!(&*keys[3], "é".repeat(64));
    assert_eq!(&*keys[255], "last");

    let values = vec![value(text(&"k".repeat(100))); 256];
    let map = Value::ArrayValue(context_proto::ArrayValue { values });
    let attributes = vec![attribute(ATTRIBUTE_KEY_MAP_KEY, map)];
    let keys =
        &decoded(context_proto::ProcessContext { resource: None, attributes }).attribute_keys;
    assert_eq!(keys.iter().map(|key| key.len()).sum::<usize>(), 8 << 10);
    assert_eq!((keys.len(), &*keys[255]), (256, ""));
}

proptest! {
    #[test]
    fn any_payload(payload in prop::collection::vec(any::<u8>(), 1..600)) {
        let _result = read([header(payload.len(), 1)], &payload, None);
    }

    #[test]
    fn nearly_a_payload(at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut payload = golden();
        let at = at.index(payload.len());
        payload[at] = value;
        let _result = read([header(payload.len(), 1)], &payload, None);
    }
}
