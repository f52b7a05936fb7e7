//! A file's table, from whatever in it describes its text.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use profiler_common::unwind::Rule;

use super::cfi::{self, PADDING_MAX, Rows};
use super::elf::{Elf, Section};
use super::go_table::{self, LineTable};
use super::table::{LoadSegment, Source, UnwindTable};
use super::{BuildError, Limits, ReadAt, go, restorer};

/// How much of the code at the entry point is taken for start-up code where nothing describes it.
const ENTRY_LEN: u64 = 64;

/// A range of text and its rule.
pub(super) type Range = (u64, u64, Rule);

/// Makes the table of an ELF file.
///
/// # Errors
///
/// See [`BuildError`].
pub fn build(file: &dyn ReadAt, limits: &Limits) -> Result<UnwindTable, BuildError> {
    let elf = Elf::read(file, *limits)?;
    let (mut source, Rows { mut rows, mut stats }) = described(&elf, *limits)?;
    let segments = elf.load_segments();
    let gaps = gaps(&segments, &rows);
    let mut extra = restorer::signal_returns(&elf, &gaps);
    stats.go = go_table::is_go(&elf);
    let line_table = if stats.go { LineTable::read(&elf) } else { None };
    if stats.go {
        if source == Source::DebugFrame {
            go::add_frame_pointers(&elf, &mut rows);
        }
        extra.extend(go::ranges(&elf, line_table.as_ref(), &gaps));
        elf.work.charge_moving(extra.len())?;
    } else if let Some((_, end)) =
        gaps.iter().find(|(begin, end)| (begin..end).contains(&&elf.entry))
    {
        // Whatever is at the entry point has no caller.
        extra.push((elf.entry, elf.entry.saturating_add(ENTRY_LEN).min(*end), Rule::STOP));
    }
    if rows.is_empty() {
        if extra.is_empty() {
            return Err(BuildError::NoUnwindInformation);
        }
        source = if line_table.is_some() { Source::GoLineTable } else { Source::Code };
    }
    fill(&mut rows, extra);
    if let Some(line_table) = line_table {
        go::correct(&elf, &line_table, &mut rows)?;
    }
    // What could not be read for want of it was taken for nothing.
    elf.work.charge(0)?;
    UnwindTable::new(segments, source, stats, &rows)
}

/// The rows of the first of the sources that there is.
fn described(elf: &Elf<'_>, limits: Limits) -> Result<(Source, Rows), BuildError> {
    if let Some(section) = elf.section(".eh_frame")? {
        let rows = cfi::eh_frame(elf, &section, limits)?;
        if !rows.rows.is_empty() {
            return Ok((Source::EhFrame, rows));
        }
    } else if let Some(section) = eh_frame_by_header(elf)? {
        let rows = cfi::eh_frame(elf, &section, limits)?;
        if !rows.rows.is_empty() {
            return Ok((Source::EhFrameHeader, rows));
        }
    }
    if let Some(section) = elf.section(".debug_frame")? {
        let rows = cfi::debug_frame(elf, &section, limits)?;
        return Ok((Source::DebugFrame, rows));
    }
    Ok((Source::Code, Rows::default()))
}

fn eh_frame_by_header(elf: &Elf<'_>) -> Result<Option<Section>, BuildError> {
    let Some(header) = elf.eh_frame_header()? else { return Ok(None) };
    let bases = gimli::BaseAddresses::default().set_eh_frame_hdr(header.address);
    let parsed = gimli::EhFrameHdr::new(&header.bytes, gimli::LittleEndian).parse(&bases, 8);
    let Ok(gimli::Pointer::Direct(address)) = parsed.map(|parsed| parsed.eh_frame_ptr()) else {
        return Ok(None);
    };
    // It ends in a terminator, somewhere in its segment.
    elf.memory(address, elf.limits.section_bytes)
}

/// The parts of the text that no row describes, in ascending order. Padding between functions is
/// none.
fn gaps(segments: &[LoadSegment], rows: &[(u64, Rule)]) -> Vec<(u64, u64)> {
    let mut gaps = Vec::new();
    for (begin, end) in text(segments) {
        let mut at = begin;
        let first = rows.partition_point(|(row, _)| *row <= at);
        let mut described = first
            .checked_sub(1)
            .and_then(|row| rows.get(row))
            .is_some_and(|row| row.1 != Rule::NONE);
        for (row, rule) in rows.get(first..).unwrap_or_default() {
            if *row >= end {
                break;
            }
            if !described && row.saturating_sub(at) > PADDING_MAX {
                gaps.push((at, *row));
            }
            (at, described) = (*row, *rule != Rule::NONE);
        }
        if !described && end.saturating_sub(at) > PADDING_MAX {
            gaps.push((at, end));
        }
    }
    gaps
}

/// Where there is text, in ascending order. Segments of a file that is made to harm can overlap, and
/// each would have the same gaps again.
fn text(segments: &[LoadSegment]) -> Vec<(u64, u64)> {
    let executable = segments.iter().filter(|segment| segment.executable);
    let mut ranges: Vec<_> = executable.map(|segment| (segment.address, segment.end())).collect();
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for (begin, end) in ranges {
        match joined.last_mut() {
            Some((_, last)) if begin <= *last => *last = end.max(*last),
            _ => joined.push((begin, end)),
        }
    }
    joined
}

/// Gives rules to ranges that lie in gaps. Of two that overlap, the one that begins later counts
/// from there on, and the other one after it.
fn fill(rows: &mut Vec<(u64, Rule)>, mut ranges: Vec<Range>) {
    if ranges.is_empty() {
        return;
    }
    ranges.sort_by_key(|(begin, end, _)| (*begin, std::cmp::Reverse(*end)));
    let mut added: Vec<(u64, Rule)> = Vec::new();
    let mut open: Vec<(u64, Rule)> = Vec::new();
    let close = |upto: u64, open: &mut Vec<(u64, Rule)>, added: &mut Vec<(u64, Rule)>| {
        while let Some((end, _)) = open.last().copied().filter(|(end, _)| *end <= upto) {
            open.pop();
            open.retain(|(outer, _)| *outer > end);
            added.push((end, open.last().map_or(Rule::NONE, |(_, rule)| *rule)));
        }
    };
    for (begin, end, rule) in ranges {
        close(begin, &mut open, &mut added);
        added.push((begin, rule));
        open.push((end, rule));
    }
    close(u64::MAX, &mut open, &mut added);
    // Of what begins at the same address, a range counts before the end of a description, and a
    // description before a range.
    let described = std::mem::take(rows);
    let mut filled: Vec<(u64, Rule)> =
        Vec::with_capacity(described.len().saturating_add(added.len()));
    let mut push = |(at, rule): (u64, Rule)| match filled.last_mut() {
        Some((last, known)) if *last == at => *known = rule,
        Some((_, known)) if *known == rule => {}
        _ => filled.push((at, rule)),
    };
    let mut added = added.into_iter().peekable();
    for (at, rule) in described {
        let ends = rule == Rule::NONE;
        while let Some(range) = added.next_if(|(from, _)| *from < at || (*from == at && !ends)) {
            push(range);
        }
        push((at, rule));
    }
    added.for_each(push);
    *rows = filled;
}

/// Gives a range another rule than it has. It costs as much as there are rows behind it.
pub(super) fn replace(rows: &mut Vec<(u64, Rule)>, (begin, end, rule): Range) {
    if begin >= end {
        return;
    }
    let first = rows.partition_point(|(at, _)| *at < begin);
    let behind = rows.partition_point(|(at, _)| *at <= end);
    let before = behind.checked_sub(1).and_then(|at| rows.get(at));
    let goes_on = before.map_or(Rule::NONE, |(_, rule)| *rule);
    rows.splice(first..behind, [(begin, rule), (end, goes_on)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use profiler_common::unwind::CFA_SP;

    fn sp(offset: i32) -> Rule {
        Rule { cfa_offset: offset, ..Rule::plain(CFA_SP) }
    }

    fn text(address: u64, file_size: u64) -> LoadSegment {
        LoadSegment { file_offset: 0, address, file_size, executable: true }
    }

    #[test]
    fn gaps_are_where_no_row_describes_the_text() {
        let rows = [(0x1100, sp(8)), (0x1200, Rule::NONE), (0x1300, sp(8)), (0x1ff8, Rule::NONE)];
        let segments = [text(0x1000, 0x1000), text(0x5000, 0x100)];
        let expected = [(0x1000, 0x1100), (0x1200, 0x1300), (0x5000, 0x5100)];
        assert_eq!(gaps(&segments, &rows), expected);
        assert_eq!(gaps(&segments, &[]), [(0x1000, 0x2000), (0x5000, 0x5100)]);
    }

    #[test]
    fn segments_that_overlap_have_their_gaps_once() {
        let rows = [(0x1100, sp(8)), (0x1200, Rule::NONE)];
        let segments = [text(0x1800, 0x1000), text(0x1000, 0x1000), text(0x1000, 0x1000)];
        assert_eq!(gaps(&segments, &rows), [(0x1000, 0x1100), (0x1200, 0x2800)]);
    }

    #[test]
    fn ranges_fill_gaps_and_nothing_else() {
        let mut rows = vec![(0x1100, sp(8)), (0x1200, Rule::NONE), (0x1300, sp(16))];
        let ranges =
            vec![(0x1200, 0x1300, sp(32)), (0x1240, 0x1280, Rule::STOP), (0x1000, 0x1010, sp(64))];
        fill(&mut rows, ranges);
        let expected = [
            (0x1000, sp(64)),
            (0x1010, Rule::NONE),
            (0x1100, sp(8)),
            (0x1200, sp(32)),
            (0x1240, Rule::STOP),
            (0x1280, sp(32)),
            (0x1300, sp(16)),
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn a_range_can_be_replaced() {
        let rows = [(0x1000, sp(8)), (0x1010, sp(16)), (0x1020, sp(24))];
        let with = |begin, end| {
            let mut rows = rows.to_vec();
            replace(&mut rows, (begin, end, Rule::STOP));
            rows
        };
        let stop = Rule::STOP;
        let [a, b, c] = rows;
        assert_eq!(with(0x1008, 0x1018), [a, (0x1008, stop), (0x1018, sp(16)), c]);
        assert_eq!(with(0x1010, 0x1020), [a, (0x1010, stop), c]);
        assert_eq!(with(0x1000, 0x1008), [(0x1000, stop), (0x1008, sp(8)), b, c]);
        assert_eq!(with(0x1030, 0x1040), [a, b, c, (0x1030, stop), (0x1040, sp(24))]);
    }

    /// This program and its C library.
    #[test]
    fn what_compilers_write_is_far_from_what_is_allowed() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mut mapped = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
        let libc = mapped.find(|path| path.contains("/libc."));
        for path in ["/proc/self/exe"].into_iter().chain(libc) {
            let file = std::fs::File::open(path).unwrap();
            let elf = Elf::read(&file, Limits::default()).unwrap();
            let (_, rows) = described(&elf, Limits::default()).unwrap();
            let (spent, allowed) = elf.work.spent_of();
            assert!(rows.rows.len() > 1000 && spent * 2 < allowed, "{path}: {spent} of {allowed}");
        }
    }
}
