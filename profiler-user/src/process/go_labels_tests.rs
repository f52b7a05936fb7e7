use std::{
    fs::File,
    io::{Read as _, Write as _},
};

use proptest::prelude::*;

use super::*;

/// `runtime.stackcheck` of Go 1.26 in a program with C, and in one that may be anywhere.
const FIXED: &[u8] = b"\xcc\xcc\x64\x48\x8b\x04\x25\x90\xff\xff\xff\x48\x39\x60\x08\x77\x05\xe8\
    \xcc\xff\xff\xff\x48\x3b\x20\x77\x05\xe8\xc2\xff\xff\xff\xc3";
const ANYWHERE: &[u8] = b"\xcc\xcc\x48\xc7\xc1\x48\xff\xff\xff\x64\x48\x8b\x01\x48\x39\x60\x08\
    \x77\x05\xe8\xca\xff\xff\xff\x48\x3b\x20\x77\x05\xe8\xc0\xff\xff\xff\xc3";

#[test]
fn the_code_says_where_the_goroutine_is() {
    assert_eq!(offset_in(FIXED), Some(-0x70));
    assert_eq!(offset_in(ANYWHERE), Some(-0xb8));
    let other = [&COMPARE[..], &[0x90; 9], &COMPARE, FIXED].concat();
    assert_eq!(offset_in(&other), Some(-0x70), "what is like a part of it is not it");
    assert_eq!(offset_in(&FIXED[..17]), None);
    assert_eq!(offset_in(&COMPARE), None);
    // The longest form, as far as it is looked at.
    assert_eq!(ANYWHERE[2..].windows(7).position(|it| it == COMPARE), Some(STACK_CHECK_MAX - 7));
}

fn info(version: &str) -> Vec<u8> {
    let mut info = vec![0; VERSION_AT];
    info[..BUILD_INFO_MAGIC.len()].copy_from_slice(BUILD_INFO_MAGIC);
    info[FLAGS_AT] = INLINE;
    let len = u8::try_from(version.len()).unwrap();
    if len < 0x80 {
        info.push(len)
    } else {
        info.extend([len, len >> 7])
    };
    [&info, version.as_bytes()].concat()
}

#[test]
fn a_version_is_its_minor_number() {
    let long = format!("go1.26.8 X:{}", "experiment,".repeat(16));
    for (version, minor) in [
        ("go1.26.8", Some(26)),
        ("go1.23", Some(23)),
        ("go1.27rc1", Some(27)),
        ("go1.25.3-custom", Some(25)),
        ("devel go1.28-f00d Mon Jan 1", Some(28)),
        (&*long, Some(26)),
        ("go2.1", None),
        ("go1.", None),
        ("go1.99999", None),
        ("", None),
    ] {
        assert_eq!(minor_version(&info(version)), minor, "{version}");
    }
    let mut old = info("go1.17");
    old[FLAGS_AT] = 0;
    assert_eq!(minor_version(&old), None, "it points to the text");
}

#[test]
fn layouts_are_known_of_five_releases() {
    let known: Vec<_> = (0..100).filter(|minor| layout(*minor).is_some()).collect();
    assert_eq!(known, [23, 24, 25, 26, 27]);
    assert!(
        known.iter().all(|minor| layout(*minor).unwrap().labels_are_map == u16::from(*minor == 23))
    );
}

#[test]
fn a_program_without_go_is_none() {
    let own = File::open("/proc/self/exe").unwrap();
    assert_eq!(go_labels(&ElfReader::open(&own).unwrap(), &mut 0), GoLabels::NotGo);
}

proptest! {
    #[test]
    fn any_bytes_are_a_go_program_or_none(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        at in 16..500_usize,
    ) {
        _ = minor_version(&bytes);
        _ = offset_in(&bytes);
        let mut file = tempfile::tempfile().unwrap();
        let mut program = start_of_this_program();
        program[at..at + bytes.len()].copy_from_slice(&bytes);
        file.write_all(&program).unwrap();
        if let Some(elf) = ElfReader::open(&file) {
            _ = go_labels(&elf, &mut 0);
        }
    }
}

/// Its ELF headers.
fn start_of_this_program() -> Vec<u8> {
    let mut program = vec![0; 4096];
    File::open("/proc/self/exe").unwrap().read_exact(&mut program).unwrap();
    program
}
