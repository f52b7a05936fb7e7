use profiler_common::sample::SAMPLE_LEN_MAX;
use proptest::prelude::*;
use zerocopy::IntoBytes as _;

use super::*;

fn header() -> SampleHeader {
    SampleHeader {
        boot_ns: 7,
        value: 10_309_278,
        epoch: 0,
        cgroup_id: 42,
        tgid: 100,
        tid: 101,
        cpu: 3,
        kind: KIND_CPU,
        flags: 0,
        kernel_frame_count: 0,
        user_frame_count: 0,
        span_len: 0,
        user_stack: USER_STACK_COMPLETE,
        span: SPAN_NO_SLOT,
        comm: *b"worker-1\0garbage",
    }
}

fn bytes(header: SampleHeader, words: &[u64], span: &[u8]) -> Vec<u8> {
    let mut bytes = header.as_bytes().to_vec();
    words.iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
    bytes.extend(span);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// A record with the ids 0x01.. and 0x02.., and these attribute bytes.
fn span(attributes: &[u8]) -> Vec<u8> {
    let header = SpanHeader {
        trace_id: [1; 16],
        span_id: [2; 8],
        valid: 1,
        trace_flags: 1,
        attributes_len: u16::try_from(attributes.len()).unwrap().to_ne_bytes(),
    };
    [header.as_bytes(), attributes].concat()
}

#[track_caller]
fn check_frames(in_kernel: bool, returns: bool, kernel: &[u64], user: &[u64], lookups: &[u64]) {
    let flags = if in_kernel { FLAG_IN_KERNEL } else { 0 }
        | if returns { FLAG_USER_LEAF_RETURNS } else { 0 };
    let header = SampleHeader {
        flags,
        kernel_frame_count: u16::try_from(kernel.len()).unwrap(),
        user_frame_count: u16::try_from(user.len()).unwrap(),
        ..header()
    };
    let sample = sample(&bytes(header, &[kernel, user].concat(), &[])).unwrap();
    let found: Vec<u64> = sample
        .frames
        .iter()
        .map(|frame| match frame {
            Frame::Kernel(address) | Frame::User(address) => address.lookup().0,
        })
        .collect();
    assert_eq!(found, lookups);
}

#[test]
fn callers_are_looked_up_one_byte_before_their_return_address() {
    check_frames(false, false, &[], &[10, 20, 30], &[10, 19, 29]);
    check_frames(true, true, &[100, 200], &[10, 20], &[100, 199, 9, 19]);
    check_frames(true, false, &[100, 200], &[10, 20], &[100, 199, 10, 19]);
}

#[test]
fn what_a_signal_interrupted_is_looked_up_where_it_is() {
    let interrupted = 20 | FRAME_INTERRUPTED;
    check_frames(false, false, &[], &[10, interrupted, 30], &[10, 20, 29]);
}

#[test]
fn where_a_handler_returns_to_is_looked_up_where_it_is() {
    let interrupted = 30 | FRAME_INTERRUPTED;
    check_frames(false, false, &[], &[5, 10, 20, interrupted, 40], &[5, 9, 20, 30, 39]);
    // A thread that is on its way back to what was interrupted is in a system call.
    check_frames(true, true, &[100], &[20, interrupted], &[100, 19, 30]);
}

#[test]
fn who_and_when_are_as_written() {
    let sample = sample(&bytes(header(), &[], &[])).unwrap();
    assert_eq!((sample.pid, sample.tid, sample.cpu), (Pid(100), Tid(101), 3));
    assert_eq!((sample.at, sample.value, sample.cgroup_id), (BootTime(7), 10_309_278, 42));
    assert_eq!(&*sample.comm, "worker-1");
    assert_eq!(sample.span, Err(NoSpan::NoSlot));
}

#[track_caller]
fn check_span(record: &[u8], expected: Result<&[(u8, &str)], NoSpan>) {
    let header = SampleHeader {
        span: SPAN_READ,
        span_len: u16::try_from(record.len()).unwrap(),
        ..header()
    };
    let found = sample(&bytes(header, &[], record)).unwrap().span;
    let found = found.map(|span| {
        assert_eq!((span.trace_id, span.span_id), (TraceId([1; 16]), SpanId([2; 8])));
        span.attributes
    });
    let expected = expected
        .map(|pairs| pairs.iter().map(|&(key, text)| (key, Arc::from(text))).collect::<Vec<_>>());
    assert_eq!(found, expected);
}

#[test]
fn attributes_are_read_up_to_the_first_that_is_cut() {
    check_span(&span(&[]), Ok(&[]));
    check_span(&span(b"\x00\x02ab\x01\x00"), Ok(&[(0, "ab"), (1, "")]));
    check_span(&span(b"\x00\x02ab\x01\x05cut"), Ok(&[(0, "ab")]));
    check_span(&span(b"\x00\x02ab\x01"), Ok(&[(0, "ab")]));
}

#[test]
fn of_a_repeated_key_the_last_counts() {
    check_span(&span(b"\x00\x01a\x07\x01x\x00\x01b"), Ok(&[(0, "b"), (7, "x")]));
}

#[test]
fn attributes_that_are_not_utf_8_are_made_so() {
    check_span(&span(b"\x00\x02\xffa"), Ok(&[(0, "\u{fffd}a")]));
}

#[test]
fn a_record_that_claims_more_attributes_than_were_copied_is_read_as_far_as_it_goes() {
    let mut record = span(b"\x00\x02ab\x01\x01x");
    record[26..28].copy_from_slice(&600_u16.to_ne_bytes());
    check_span(&record, Ok(&[(0, "ab"), (1, "x")]));
}

#[test]
fn a_record_with_zero_ids_is_no_span() {
    let mut record = span(&[]);
    record[16..24].fill(0);
    check_span(&record, Err(NoSpan::ZeroIds));
}

#[test]
fn what_is_missing_or_meaningless_is_an_error() {
    let whole = bytes(
        SampleHeader { user_frame_count: 2, kernel_frame_count: 1, ..header() },
        &[1, 2, 3],
        &[],
    );
    for len in 0..whole.len() {
        assert_eq!(sample(&whole[..len]), Err(DecodeError::Short), "{len} bytes");
    }
    let unknown = |field, value| Err(DecodeError::Unknown { field, value });
    let of = |header| sample(&bytes(header, &[], &[]));
    assert_eq!(of(SampleHeader { kind: 9, ..header() }), unknown("kind", 9));
    assert_eq!(of(SampleHeader { user_stack: 99, ..header() }), unknown("user_stack", 99));
    assert_eq!(of(SampleHeader { span: 9, ..header() }), unknown("span", 9));
}

#[test]
fn process_events_are_read() {
    let record = |kind| ProcessEventRecord {
        boot_ns: 5,
        kind,
        tgid: 10,
        parent_tgid: 9,
        reserved: 0,
        address: 77,
    };
    let read = |kind| process_event(record(kind).as_bytes());
    let event = |kind| Ok(ProcessEvent { at: BootTime(5), pid: Pid(10), kind });
    assert_eq!(read(EVENT_EXEC), event(ProcessEventKind::Exec));
    assert_eq!(read(EVENT_FORK), event(ProcessEventKind::Fork { parent: Pid(9) }));
    assert_eq!(read(EVENT_EXIT), event(ProcessEventKind::Exit));
    let unknown_code = ProcessEventKind::UnknownCode { address: Addr(77) };
    assert_eq!(read(EVENT_UNKNOWN_CODE), event(unknown_code));
    let slot = ProcessEventRecord { address: (-24_i64).cast_unsigned(), ..record(EVENT_SPAN_SLOT) };
    let hooked = event(ProcessEventKind::SpanSlot { tp_offset: -24 });
    assert_eq!(process_event(slot.as_bytes()), hooked);
    assert_eq!(read(6), Err(DecodeError::Unknown { field: "kind", value: 6 }));
    assert_eq!(process_event(&[0; 31]), Err(DecodeError::Short));
}

proptest! {
    #[test]
    fn any_bytes_are_a_sample_or_an_error(
        bytes in proptest::collection::vec(any::<u8>(), 0..SAMPLE_LEN_MAX),
    ) {
        if let Ok(sample) = sample(&bytes) {
            prop_assert!(sample.frames.len() * 8 <= bytes.len());
        }
    }

    #[test]
    fn any_span_bytes_are_read_within_bounds(
        attributes in proptest::collection::vec(any::<u8>(), 0..612),
    ) {
        let record = span(&attributes);
        let header = SampleHeader {
            span: SPAN_READ,
            span_len: u16::try_from(record.len()).unwrap(),
            ..header()
        };
        let read = sample(&bytes(header, &[], &record)).unwrap().span.unwrap();
        // A value's bytes may each become a three-byte replacement character.
        let read_bytes: usize = read.attributes.iter().map(|(_, value)| 2 + value.len()).sum();
        prop_assert!(read_bytes <= 3 * attributes.len());
    }
}
