//! Stacks as text, root first, with the service and the span as their first frames.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use crate::aggregate::{Group, Row, Window};
use crate::attribute::Location;
use crate::encode::{NO_STACK, unnamed};
use crate::symbolize::Names;

use super::text::printable;

/// The frame that stands for the span of samples outside of any.
pub(super) const NO_SPAN: &str = "(no span)";
/// The frame that stands for spans whose process does not publish their names.
pub(super) const UNNAMED_SPAN: &str = "(unnamed span)";

/// Counts by stack, sorted frame by frame: stacks that share a root are neighbours.
pub(super) struct Stacks {
    counts: BTreeMap<Vec<Rc<str>>, u64>,
}

impl Stacks {
    /// With `by_span`, the second frame is the span's name.
    pub(super) fn new(window: &Window, names: &Names, by_span: bool) -> Self {
        let mut functions = Functions { names, known: HashMap::new() };
        let mut counts = BTreeMap::new();
        for group in &window.groups {
            let service: Rc<str> = frame_text(&group.service.name).into();
            for row in group.rows.iter().filter(|row| row.samples > 0) {
                let mut frames = vec![Rc::clone(&service)];
                if by_span {
                    frames.push(frame_text(span_name(group, row)).into());
                }
                let stack = &group.stacks[row.stack];
                if stack.is_empty() {
                    frames.push(NO_STACK.into());
                }
                for location in stack.iter().rev() {
                    frames.extend_from_slice(functions.of(*location));
                }
                let count: &mut u64 = counts.entry(frames).or_default();
                *count = count.saturating_add(row.samples);
            }
        }
        Self { counts }
    }

    /// `frame;frame;frame count`, the format of flame graph tools.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> {
        self.counts.iter().map(|(frames, count)| format!("{} {count}", frames.join(";")))
    }
}

fn span_name<'g>(group: &'g Group, row: &Row) -> &'g str {
    let Some(span) = row.span else { return NO_SPAN };
    group.spans[span].name.as_deref().filter(|name| !name.is_empty()).unwrap_or(UNNAMED_SPAN)
}

struct Functions<'n> {
    names: &'n Names,
    /// Root first.
    known: HashMap<Location, Vec<Rc<str>>>,
}

impl Functions<'_> {
    fn of(&mut self, location: Location) -> &[Rc<str>] {
        self.known.entry(location).or_insert_with(|| match self.names.frames.get(&location) {
            Some(frames) if !frames.is_empty() => {
                frames.iter().rev().map(|frame| frame_text(&frame.function).into()).collect()
            }
            _ => {
                let path = match location {
                    Location::Elf { elf, .. } => {
                        self.names.binaries.get(&elf).map(|binary| &*binary.path)
                    }
                    Location::Kernel(_) | Location::Jit { .. } | Location::Unresolved(_) => None,
                };
                vec![frame_text(&unnamed(location, path.unwrap_or("[unknown]"))).into()]
            }
        })
    }
}

/// A name that no reader of folded stacks takes for anything but one frame.
///
/// A `;` would be two frames. A last word that is a number would be a second count: readers of
/// folded stacks then show a difference between two profiles. A line that begins with `# ` would be
/// a comment.
fn frame_text(name: &str) -> String {
    let name = printable(name.trim());
    let mut name: String = name.replace(';', ":");
    if name.is_empty() {
        name.push_str("[unnamed]");
    }
    if let Some((words, last)) = name.rsplit_once(' ')
        && last.chars().all(|character| character.is_ascii_digit() || character == '.')
    {
        name = format!("{words}_{last}");
    }
    match name.strip_prefix("# ") {
        Some(rest) => format!("#_{rest}"),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_frame() {
        for (name, expected) in [
            ("main", "main"),
            ("<[u8; 8] as T>::f", "<[u8: 8] as T>::f"),
            ("GET 200", "GET_200"),
            ("a 1 2.5", "a 1_2.5"),
            ("a 1b", "a 1b"),
            ("# a", "#_a"),
            (" a\n", "a"),
            ("a\nb", "a\u{fffd}b"),
            ("", "[unnamed]"),
            (" ", "[unnamed]"),
        ] {
            assert_eq!(frame_text(name), expected);
        }
    }
}
