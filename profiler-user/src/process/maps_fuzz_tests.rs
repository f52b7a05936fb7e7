//! `/proc/PID/maps` that are nearly right: those in `tests/data/fuzz/maps`, and others made of them
//! by chance. `PROPTEST_CASES` says how many.
//!
//! Names of the former begin with how many executable mappings and how many lines without sense are
//! in them.

use std::{fs, path::PathBuf, sync::OnceLock};

use proptest::{prelude::*, sample::Index};

use super::maps::{EntryName, MAPPINGS_MAX, Maps};

fn kept() -> &'static [(String, Vec<u8>)] {
    static KEPT: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    KEPT.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/fuzz/maps");
        let mut kept: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
            })
            .collect();
        kept.sort();
        kept
    })
}

/// No more comes out than went in, and each mapping is one.
fn check(text: &[u8]) -> Maps {
    let maps = Maps::parse(text);
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
    let malformed = usize::try_from(maps.malformed_lines).unwrap();
    assert!(maps.executable.len() + malformed <= lines);
    assert!(maps.executable.len() <= MAPPINGS_MAX && maps.contexts.len() <= 4);
    for entry in &maps.executable {
        assert!(entry.start < entry.end, "{entry:?}");
        if let EntryName::File(path) = &entry.name {
            assert!(path.starts_with(b"/"), "{entry:?}");
        }
    }
    // Where no line goes on, two texts are as much as both.
    let twice = Maps::parse(&[text, b"\n", text].concat());
    assert_eq!(twice.executable.len(), 2 * maps.executable.len());
    assert_eq!(twice.malformed_lines, 2 * maps.malformed_lines);
    maps
}

#[test]
fn texts_that_were_kept_come_to_what_their_names_say() {
    let kept = kept();
    assert!(kept.len() >= 8, "{}", kept.len());
    for (name, text) in kept {
        let maps = check(text);
        let expected = format!("{}-{}-", maps.executable.len(), maps.malformed_lines);
        assert!(name.starts_with(&expected), "{name}: {expected}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(2000),
        ..ProptestConfig::default()
    })]

    #[test]
    fn texts_that_are_nearly_right(
        which in any::<Index>(),
        changes in prop::collection::vec(
            (any::<Index>(), prop_oneof![any::<u8>(), prop::sample::select(b" -:\n\\/0fx[]".to_vec())]),
            1..12,
        ),
        cut in any::<Index>(),
        copied in any::<(Index, Index)>(),
    ) {
        let kept = kept();
        let mut text = kept[which.index(kept.len())].1.clone();
        for (at, byte) in &changes {
            let at = at.index(text.len());
            text[at] = *byte;
        }
        let (from, to) = (copied.0.index(text.len()), copied.1.index(text.len()));
        let len = 24.min(text.len() - from.max(to));
        text.copy_within(from..from + len, to);
        text.truncate(cut.index(text.len()) + 1);
        check(&text);
    }
}
