use std::{io::Write as _, path::Path, process::Command};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn compile(folder: &Path, flags: &[&str]) -> std::path::PathBuf {
    let (source, program) = (folder.join("program.c"), folder.join("program"));
    std::fs::write(&source, "int main(void) { return 0; }").unwrap();
    let status =
        Command::new("cc").args(flags).arg("-o").args([&program, &source]).status().unwrap();
    assert!(status.success(), "{flags:?}");
    program
}

#[track_caller]
fn check_build_id(flag: &str, expected: Option<&str>) {
    let folder = TempDir::new().unwrap();
    let file = File::open(compile(folder.path(), &[flag])).unwrap();
    let found = ElfReader::open(&file).unwrap().build_id().map(|id| id.to_string());
    assert_eq!(found.as_deref(), expected);
}

#[test]
fn finds_the_build_id() {
    check_build_id("-Wl,--build-id=0x0123456789abcdef0011", Some("0123456789abcdef0011"));
    check_build_id("-Wl,--build-id=none", None);
}

#[test]
fn a_long_build_id_is_cut() {
    let flag = format!("-Wl,--build-id=0x{}", "ab".repeat(100));
    check_build_id(&flag, Some("ab".repeat(64).as_str()));
}

#[test]
fn other_files_are_refused() {
    let mut file = tempfile::tempfile().unwrap();
    assert!(!is_elf(&file).unwrap());
    assert!(ElfReader::open(&file).is_none());
    file.write_all(b"\x7fELF\x01\x01\x01").unwrap();
    assert!(is_elf(&file).unwrap());
    assert!(ElfReader::open(&file).is_none());
}

#[test]
fn knows_the_interpreter_and_where_the_text_is() {
    let folder = TempDir::new().unwrap();
    let file = File::open(compile(folder.path(), &[])).unwrap();
    let reader = ElfReader::open(&file).unwrap();
    let interpreter = reader.interpreter().unwrap();
    assert!(interpreter.starts_with(b"/") && interpreter.ends_with(b"\0"), "{interpreter:?}");
    let text = reader.text();
    assert!(!text.is_empty());
    let file = File::open(compile(folder.path(), &["-static"])).unwrap();
    assert_eq!(ElfReader::open(&file).unwrap().interpreter(), None);
}

#[test]
fn a_mapping_tells_the_load_bias() {
    let text = TextSegment { offset: 0x1234, address: 0x40_2234, size: 0x2000 };
    // Mapped from the page on that holds its first byte.
    assert_eq!(text.load_bias(0x7f00_0000_1000, 0x1000), Some(0x7f00_0000_1000 - 0x40_2000));
    // A later part of it.
    assert_eq!(text.load_bias(0x7f00_0000_2000, 0x2000), Some(0x7f00_0000_1000 - 0x40_2000));
    assert_eq!(text.load_bias(0x40_2000, 0x1000), Some(0));
    for elsewhere in [0, 0xfff, 0x4000] {
        assert_eq!(text.load_bias(0x7f00_0000_0000, elsewhere), None);
    }
    let broken = TextSegment { offset: u64::MAX, address: u64::MAX, size: u64::MAX };
    assert_eq!(broken.load_bias(0, u64::MAX), None);
}

proptest! {
    #[test]
    fn any_notes(notes in prop::collection::vec(any::<u8>(), 0..512)) {
        notes_in(&notes).for_each(drop);
    }
}

/// As mold lays out a segment that is aligned to 8: a note of `.note.gnu.property` and a build ID of
/// 20 bytes, and behind it another.
#[test]
fn notes_of_both_alignments_in_one_segment() {
    let note = |name: &[u8], desc: &[u8], kind: u32| {
        let lens = [name.len(), desc.len()].map(|len| u32::try_from(len).unwrap().to_ne_bytes());
        [&lens[0], &lens[1], &kind.to_ne_bytes(), name, desc].concat()
    };
    let notes = [
        note(b"GNU\0", &[5; 16], 5),
        note(b"GNU\0", &[7; 20], NT_GNU_BUILD_ID),
        note(NOTE_NAME, &[9; 16], NOTE_TYPE),
    ];
    let kinds: Vec<(u32, u8, usize)> =
        notes_in(&notes.concat()).map(|note| (note.kind, note.desc[0], note.desc_at)).collect();
    assert_eq!(kinds, [(5, 5, 16), (NT_GNU_BUILD_ID, 7, 48), (NOTE_TYPE, 9, 92)]);
}
