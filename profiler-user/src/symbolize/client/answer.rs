//! Checks the worker's answers: it may have been taken over by a file.

use std::sync::Arc;

use crate::symbolize::NamedFrame;
use crate::symbolize::protocol::{FRAMES_MAX, Named, Nameless, Opened, SEGMENTS_MAX, printable};

/// The functions at a location, or why there are none.
pub(super) type LocationNames = Result<Arc<[NamedFrame]>, Nameless>;

/// The names of `count` locations; `None` if the answer cannot come from an honest worker.
pub(super) fn check_named(named: Named, count: usize) -> Option<Vec<LocationNames>> {
    let Named { strings, locations, memory_bytes: _ } = named;
    if locations.len() != count {
        return None;
    }
    let strings: Vec<Arc<str>> =
        strings.iter().map(|string| Arc::from(&*printable(string))).collect();
    let string = |index: u32| strings.get(usize::try_from(index).ok()?).cloned();
    let names = |location: Result<Vec<_>, _>| {
        let frames: Vec<_> = match location {
            Ok(frames) => frames,
            Err(nameless) => return Some(Err(nameless)),
        };
        if frames.is_empty() || frames.len() > FRAMES_MAX {
            return None;
        }
        let frames = frames.into_iter().map(|frame: crate::symbolize::protocol::Frame| {
            let function = string(frame.function).filter(|function| !function.is_empty())?;
            let file = match frame.file {
                Some(file) => Some(string(file)?).filter(|file| !file.is_empty()),
                None => None,
            };
            Some(NamedFrame { function, file, line: frame.line })
        });
        frames.collect::<Option<Arc<[_]>>>().map(Ok)
    };
    locations.into_iter().map(names).collect()
}

/// What the worker says of a file; `None` if it cannot come from an honest worker.
pub(super) fn check_opened(opened: Opened) -> Option<Opened> {
    (opened.segments.len() <= SEGMENTS_MAX).then_some(opened)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbolize::protocol::{Frame, STRING_LEN_MAX, Segment};

    fn named(strings: &[&str], frames: &[(u32, Option<u32>)]) -> Named {
        let frames = frames.iter().map(|&(function, file)| Frame { function, file, line: 3 });
        Named {
            strings: strings.iter().map(|string| (*string).to_owned()).collect(),
            locations: vec![Ok(frames.collect())],
            memory_bytes: 0,
        }
    }

    #[track_caller]
    fn refused(named: Named) {
        assert!(check_named(named, 1).is_none());
    }

    #[test]
    fn an_honest_answer_is_taken() {
        let names = check_named(named(&["f", "a.c"], &[(0, Some(1))]), 1).unwrap();
        let [Ok(frames)] = &names[..] else { panic!("{names:?}") };
        let expected = NamedFrame { function: "f".into(), file: Some("a.c".into()), line: 3 };
        assert_eq!(**frames, [expected]);
    }

    #[test]
    fn an_answer_that_does_not_fit_its_request_is_refused() {
        refused(Named::default());
        refused(named(&["f"], &[]));
        refused(named(&["f"], &[(1, None)]));
        refused(named(&["f"], &[(0, Some(1))]));
        refused(named(&[""], &[(0, None)]));
        refused(named(&["f"], &[(0, None); FRAMES_MAX + 1]));
    }

    #[test]
    fn long_names_and_control_characters_are_made_harmless() {
        let long = format!("\u{7}{}", "x".repeat(2 * STRING_LEN_MAX));
        let names = check_named(named(&[&long], &[(0, None)]), 1).unwrap();
        let [Ok(frames)] = &names[..] else { panic!("{names:?}") };
        assert_eq!(frames[0].function.len(), STRING_LEN_MAX);
        assert!(frames[0].function.starts_with("?x"));
    }

    #[test]
    fn more_segments_than_files_have_are_refused() {
        let segment = Segment { offset: 0, len: 1, address: 0 };
        let segments = vec![segment; SEGMENTS_MAX + 1];
        assert!(check_opened(Opened { segments, ..Opened::default() }).is_none());
        assert!(check_opened(Opened::default()).is_some());
    }
}
