//! Names as they are stored, to be used again on another machine.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Binary, NamedFrame, Names};
use crate::attribute::Location;
use crate::process::ElfId;

/// [`Names`] in one order, so that the same names are the same bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedNames {
    /// The functions at each location, innermost first, ordered by location.
    pub entries: Vec<(Location, Vec<NamedFrame>)>,
    /// The binaries, ordered by id.
    pub binaries: Vec<(ElfId, Binary)>,
}

impl From<&Names> for RecordedNames {
    fn from(names: &Names) -> Self {
        let Names { frames, binaries } = names;
        let entries = frames.iter().map(|(location, frames)| (*location, frames.to_vec()));
        let mut entries: Vec<_> = entries.collect();
        entries.sort_unstable_by_key(|(location, _)| *location);
        let binaries = binaries.iter().map(|(elf, binary)| (*elf, binary.clone()));
        let mut binaries: Vec<_> = binaries.collect();
        binaries.sort_unstable_by_key(|(elf, _)| *elf);
        Self { entries, binaries }
    }
}

impl From<RecordedNames> for Names {
    /// Locations without a frame, which no recording has, are left out: their frames are never
    /// empty.
    fn from(recorded: RecordedNames) -> Self {
        let RecordedNames { entries, binaries } = recorded;
        let entries = entries.into_iter().filter(|(_, frames)| !frames.is_empty());
        Self {
            frames: entries.map(|(location, frames)| (location, Arc::from(frames))).collect(),
            binaries: binaries.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::Unresolved;
    use crate::decode::Addr;
    use crate::process::BuildId;

    fn names() -> Names {
        let frame = |function: &str, line| NamedFrame {
            function: function.into(),
            file: (line > 0).then(|| "a.rs".into()),
            line,
        };
        let mut names = Names::default();
        for file_offset in 0..50 {
            let location = Location::Elf { elf: ElfId(1), file_offset };
            names.frames.insert(location, [frame("inner", 7), frame("outer", 0)].into());
        }
        names.frames.insert(Location::Kernel(Addr(u64::MAX)), [frame("schedule", 0)].into());
        let unmapped = Location::Unresolved(Unresolved::Unmapped);
        names.frames.insert(unmapped, [frame("[unmapped]", 0)].into());
        for (id, build_id) in [(1, Some(BuildId([0xab, 0x01].into()))), (2, None)] {
            names.binaries.insert(ElfId(id), Binary { path: "/bin/app".into(), build_id });
        }
        names
    }

    #[test]
    fn names_survive_being_recorded_and_the_same_names_are_the_same_bytes() {
        let recorded = RecordedNames::from(&names());
        let json = serde_json::to_string(&recorded).unwrap();
        // A map of its own order each time.
        assert_eq!(json, serde_json::to_string(&RecordedNames::from(&names())).unwrap());
        assert!(json.contains(r#""build_id":"ab01""#), "{json}");
        let read: RecordedNames = serde_json::from_str(&json).unwrap();
        assert_eq!(read, recorded);
        let again = Names::from(read);
        assert_eq!(again.frames, names().frames);
        assert_eq!(again.binaries, names().binaries);
    }

    #[test]
    fn a_build_id_that_is_not_hex_is_refused() {
        for text in [r#""abc""#, r#""zz""#, "7"] {
            assert!(serde_json::from_str::<BuildId>(text).is_err(), "{text}");
        }
        let long = format!("\"{}\"", "00".repeat(65));
        assert!(serde_json::from_str::<BuildId>(&long).is_err());
    }

    #[test]
    fn a_recorded_location_without_frames_is_left_out() {
        let entries = vec![(Location::Kernel(Addr(1)), Vec::new())];
        let names = Names::from(RecordedNames { entries, binaries: Vec::new() });
        assert!(names.frames.is_empty());
    }
}
