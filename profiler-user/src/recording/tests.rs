use std::io::Write as _;
use std::sync::Arc;

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;

use super::*;
use crate::decode::Pid;
use crate::process::Process;
use crate::symbolize::{Names, RecordedNames};

fn process(pid: u32) -> Arc<Process> {
    Arc::new(Process::not_read(Pid(pid), None))
}

fn end() -> End {
    End {
        start_unix_ns: 1,
        duration_ns: 2,
        period_ns: 3,
        host: "h".to_owned(),
        counters: vec![4, 5],
        lost_attribute_queue_full: 6,
    }
}

fn recorded() -> Vec<u8> {
    let mut writer = Writer::new(Vec::new()).unwrap();
    let (one, two) = (process(1), process(2));
    writer.sample(b"first", &one).unwrap();
    writer.sample(b"second", &two).unwrap();
    writer.sample(b"third", &one).unwrap();
    writer.finish(&end(), &RecordedNames::from(&Names::default())).unwrap()
}

type Samples = Vec<(Vec<u8>, u32)>;

/// Samples with their process, and how often an end and names came.
fn read(bytes: &[u8]) -> Result<(Samples, usize, usize), ReadError> {
    let mut reader = Reader::new(bytes)?;
    let (mut samples, mut ends, mut names) = (Vec::new(), 0, 0);
    while let Some(recorded) = reader.read_next()? {
        match recorded {
            Recorded::Sample { record, process } => samples.push((record.to_vec(), process.pid.0)),
            Recorded::End(found) => ends += usize::from(found == end()),
            Recorded::Names(_) => names += 1,
        }
    }
    Ok((samples, ends, names))
}

#[test]
fn a_file_gives_back_what_was_stored() {
    let (samples, ends, names) = read(&recorded()).unwrap();
    assert_eq!(samples, [(b"first".to_vec(), 1), (b"second".to_vec(), 2), (b"third".to_vec(), 1)]);
    assert_eq!((ends, names), (1, 1));
}

#[test]
fn other_files_are_told_apart() {
    assert!(matches!(read(b""), Err(ReadError::NotARecording)));
    assert!(matches!(read(b"\x1f\x8b a pprof, perhaps"), Err(ReadError::NotARecording)));
}

#[test]
fn a_file_that_is_cut_anywhere_is_an_error() {
    let whole = recorded();
    for len in 0..whole.len() {
        assert!(read(&whole[..len]).is_err(), "cut at {len} of {}", whole.len());
    }
}

#[track_caller]
fn refused(chunks: &[u8]) -> ReadError {
    let mut file = MAGIC.to_vec();
    let mut gzip = GzEncoder::new(&mut file, Compression::fast());
    gzip.write_all(chunks).unwrap();
    gzip.finish().unwrap();
    read(&file).unwrap_err()
}

#[test]
fn chunks_that_nobody_writes_are_refused() {
    assert!(matches!(refused(b"S\xff\xff\xff\xff"), ReadError::TooLong(u32::MAX)));
    assert!(matches!(refused(b"?\0\0\0\0"), ReadError::UnknownChunk(b'?')));
    assert!(matches!(refused(b"S\x04\0\0\0\0\0\0\0"), ReadError::NoSuchProcess));
    assert!(matches!(refused(b"S\x01\0\0\0\0"), ReadError::NoSuchProcess));
    assert!(matches!(refused(b"P\x02\0\0\0{}"), ReadError::Content { tag: b'P', .. }));
    assert!(matches!(refused(b"N\x03\0\0\0[1]"), ReadError::Content { tag: b'N', .. }));
}

proptest! {
    /// The checksum at the end finds what the chunks do not. A few bits of a gzip stream mean nothing:
    /// then what is read is what was stored.
    #[test]
    fn a_damaged_file_is_an_error_or_says_the_same(at in 0_usize..2000, flip in 1_u8..) {
        let whole = recorded();
        let mut file = whole.clone();
        let at = at % file.len();
        file[at] ^= flip;
        if let Ok(found) = read(&file) {
            prop_assert_eq!(found, read(&whole).unwrap(), "byte {} of {}", at, whole.len());
        }
    }
}
