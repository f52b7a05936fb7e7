//! A file's unwind table.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::collections::{HashMap, HashSet};

use profiler_common::unwind::{
    END_WORDS, GRANULE_SHIFT, GRANULE_WORDS, GRANULES, PAGE_ROWS_MAX, PAGE_SHIFT, PAGES_MAX, Rule,
    row,
};

use super::BuildError;

/// Text that a file may spread over: 2 GiB, a quarter of the pages that there are. Calls reach that
/// far in the code models that programs are made in.
const FILE_PAGES_MAX: u64 = PAGES_MAX as u64 / 4;

/// A part of a file that is mapped when it runs (`PT_LOAD`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadSegment {
    /// Where in the file it begins.
    pub file_offset: u64,
    /// The address of its first byte, before the file is moved to where it is mapped.
    pub address: u64,
    /// How many bytes of it are in the file, which may have fewer than it says.
    pub file_size: u64,
    /// It can hold code.
    pub executable: bool,
}

impl LoadSegment {
    /// The address behind its last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.address.saturating_add(self.file_size)
    }
}

/// What a table was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The section `.eh_frame`.
    EhFrame,
    /// `.eh_frame`, found through the program header `PT_GNU_EH_FRAME`.
    EhFrameHeader,
    /// The section `.debug_frame`.
    DebugFrame,
    /// The section `.gopclntab` of a Go program.
    GoLineTable,
    /// None of these: only what is known of start-up code and signal returns.
    Code,
}

/// What was met when a table was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct TableStats {
    /// Functions that are described.
    pub fdes: usize,
    /// Descriptions that are damaged or of nothing, and were left out as far as they are.
    pub fdes_skipped: usize,
    /// Rows whose rule cannot be said in our terms.
    pub unsupported: usize,
    /// Pages with more rows than a page may have: their rule is that there is none that can be said.
    pub pages_too_dense: usize,
    /// The section ends in bytes that are not call frame information.
    pub damaged: bool,
    /// It is a Go program: code without rules is walked by frame pointer.
    pub go: bool,
}

/// Where a file's text is, and where its pages begin.
#[derive(Clone, Debug)]
pub struct TextLayout {
    segments: Vec<LoadSegment>,
    /// The address of the first page, without its low 16 bits.
    first_page: u64,
}

impl TextLayout {
    /// The parts of the file that are mapped when it runs.
    #[must_use]
    pub fn segments(&self) -> &[LoadSegment] {
        &self.segments
    }

    /// The address of the first page's first byte.
    #[must_use]
    pub fn first_address(&self) -> u64 {
        self.first_page << PAGE_SHIFT
    }

    /// What to take from an address in a mapping to have the place in the table: page number and
    /// offset. The mapping shows the file from `file_offset` on, and begins at `begin`.
    ///
    /// `None` if it shows no text of this file.
    #[must_use]
    pub fn bias(&self, begin: u64, end: u64, file_offset: u64) -> Option<u64> {
        let address = self.address_of(end.saturating_sub(begin), file_offset)?;
        Some(begin.wrapping_sub(address).wrapping_add(self.first_address()))
    }

    /// The address in the file's own terms of a mapping of `len` bytes from `file_offset` on.
    #[must_use]
    pub fn address_of(&self, len: u64, file_offset: u64) -> Option<u64> {
        let file_end = file_offset.saturating_add(len);
        // A mapping begins and ends at whole pages, a segment anywhere. Linkers make addresses and
        // offsets differ, so both are needed.
        let segment = self.segments.iter().find(|segment| {
            segment.executable
                && segment.file_offset < file_end
                && file_offset < segment.file_offset.saturating_add(segment.file_size)
        })?;
        Some(segment.address.wrapping_sub(segment.file_offset).wrapping_add(file_offset))
    }
}

/// The unwind rules of a file's text.
#[derive(Debug)]
pub struct UnwindTable {
    layout: TextLayout,
    source: Source,
    stats: TableStats,
    rules: Vec<Rule>,
    /// Where each page's rows begin in `rows`; one more for the end.
    starts: Vec<u32>,
    /// `profiler_common::unwind::row`s, with numbers of `rules`.
    rows: Vec<u32>,
}

impl UnwindTable {
    /// Of rows in ascending order; what is before the first has no rule.
    pub(super) fn new(
        segments: Vec<LoadSegment>,
        source: Source,
        stats: TableStats,
        rows: &[(u64, Rule)],
    ) -> Result<Self, BuildError> {
        let is_text = |segment: &&LoadSegment| segment.executable && segment.file_size > 0;
        let text = || segments.iter().filter(is_text);
        let begin = text().map(|segment| segment.address).min();
        let end = text().map(LoadSegment::end).max();
        let (Some(begin), Some(end)) = (begin, end) else {
            return Err(BuildError::Malformed("no text"));
        };
        let first_page = begin >> PAGE_SHIFT;
        let last_page = end.saturating_sub(1) >> PAGE_SHIFT;
        if last_page.saturating_sub(first_page) >= FILE_PAGES_MAX {
            return Err(BuildError::TooLarge("text"));
        }
        let mut table = Self {
            layout: TextLayout { segments, first_page },
            source,
            stats,
            rules: Vec::new(),
            starts: vec![0],
            rows: Vec::with_capacity(rows.len()),
        };
        let mut numbers = Numbers::default();
        let before = rows.partition_point(|(at, _)| *at < first_page << PAGE_SHIFT);
        let (before, mut rows) = rows.split_at(before);
        let mut current = before.last().map_or(Rule::NONE, |(_, rule)| *rule);
        for page in first_page..=last_page {
            let len = rows.partition_point(|(at, _)| at >> PAGE_SHIFT == page);
            let (these, rest) = rows.split_at(len);
            rows = rest;
            table.add_page(page << PAGE_SHIFT, current, these, &mut numbers);
            current = these.last().map_or(current, |(_, rule)| *rule);
        }
        table.rules = numbers.rules;
        table.rows.shrink_to_fit();
        Ok(table)
    }

    fn add_page(
        &mut self,
        address: u64,
        current: Rule,
        rows: &[(u64, Rule)],
        numbers: &mut Numbers,
    ) {
        let synthesised = rows.first().is_none_or(|(at, _)| *at != address);
        let len = rows.len().saturating_add(usize::from(synthesised));
        if len > PAGE_ROWS_MAX {
            self.stats.pages_too_dense = self.stats.pages_too_dense.saturating_add(1);
            self.rows.push(row(0, numbers.of(Rule::UNSUPPORTED)));
        } else {
            if synthesised {
                self.rows.push(row(0, numbers.of(current)));
            }
            for (at, rule) in rows {
                let offset = u16::try_from(at.saturating_sub(address)).unwrap_or(u16::MAX);
                self.rows.push(row(offset, numbers.of(*rule)));
            }
        }
        // Bounded by the limit of rows.
        self.starts.push(u32::try_from(self.rows.len()).unwrap_or(u32::MAX));
    }

    /// Where the text is.
    #[must_use]
    pub fn layout(&self) -> &TextLayout {
        &self.layout
    }

    /// What it was made from.
    #[must_use]
    pub fn source(&self) -> Source {
        self.source
    }

    /// What was met when it was made.
    #[must_use]
    pub fn stats(&self) -> &TableStats {
        &self.stats
    }

    /// Its different rules; rows have their numbers.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// How many rows it has.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.rows.len()
    }

    /// How many pages it has.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// The one rule that holds throughout a page, by its number in `rules`; `None` if there are more.
    /// The blocks of all pages with the same one are the same.
    #[must_use]
    pub fn only_rule(&self, page: usize) -> Option<u16> {
        match self.page(page) {
            [row] => u16::try_from(*row & 0xffff).ok(),
            _ => None,
        }
    }

    /// Bytes of all blocks that are different.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        let mut only_rules = HashSet::new();
        let words = (0..self.page_count())
            .filter(|page| self.only_rule(*page).is_none_or(|rule| only_rules.insert(rule)))
            .map(|page| u64::try_from(self.block_len(page)).unwrap_or(u64::MAX))
            .fold(0, u64::saturating_add);
        words.saturating_mul(4)
    }

    /// How many words the block of a page has.
    #[must_use]
    pub fn block_len(&self, page: usize) -> usize {
        self.page(page).len().saturating_add(GRANULE_WORDS + END_WORDS)
    }

    /// How many rows a page has.
    #[must_use]
    pub fn rows_in(&self, page: usize) -> u16 {
        u16::try_from(self.page(page).len()).unwrap_or(u16::MAX)
    }

    /// Writes the block of a page, as `profiler_common::unwind` describes it: the index of its
    /// granules, then its rows, then the end. `numbers` are those that the rules have in the end.
    pub fn block(&self, page: usize, numbers: &[u16], words: &mut Vec<u32>) {
        words.clear();
        let rows = self.page(page);
        let mut at = 0_u16;
        let mut next = rows.iter().skip(1).peekable();
        let mut entry = |granule: usize| {
            let start = u32::try_from(granule << GRANULE_SHIFT).unwrap_or(u32::MAX);
            while next.next_if(|row| **row >> PAGE_SHIFT <= start).is_some() {
                at = at.saturating_add(1);
            }
            u32::from(at)
        };
        for granule in (0..GRANULES).step_by(2) {
            let low = entry(granule);
            let high = entry(granule.saturating_add(1));
            words.push(high << 16 | low);
        }
        words.extend(rows.iter().map(|word| {
            let number = usize::try_from(*word & 0xffff).unwrap_or(usize::MAX);
            *word & 0xffff_0000 | u32::from(numbers.get(number).copied().unwrap_or(0))
        }));
        words.extend([u32::MAX; END_WORDS]);
    }

    /// The rule at an address of the file.
    #[must_use]
    pub fn lookup(&self, address: u64) -> Rule {
        let at = address.checked_sub(self.layout.first_address());
        let page = at.and_then(|at| usize::try_from(at >> PAGE_SHIFT).ok());
        let Some(page) = page.filter(|page| *page < self.page_count()) else { return Rule::NONE };
        let offset = address & 0xffff;
        let rows = self.page(page);
        let behind = rows.partition_point(|row| u64::from(*row >> PAGE_SHIFT) <= offset);
        let row = behind.checked_sub(1).and_then(|at| rows.get(at)).copied().unwrap_or(0);
        let number = usize::try_from(row & 0xffff).unwrap_or(usize::MAX);
        self.rules.get(number).copied().unwrap_or(Rule::NONE)
    }

    /// All rows, by address.
    pub fn rows(&self) -> impl Iterator<Item = (u64, Rule)> {
        (0..self.page_count()).flat_map(move |page| {
            let first = self.layout.first_address();
            let pages = u64::try_from(page).unwrap_or(u64::MAX);
            let address = first.saturating_add(pages << PAGE_SHIFT);
            self.page(page).iter().map(move |row| {
                let number = usize::try_from(*row & 0xffff).unwrap_or(usize::MAX);
                let rule = self.rules.get(number).copied().unwrap_or(Rule::NONE);
                (address.saturating_add(u64::from(*row >> PAGE_SHIFT)), rule)
            })
        })
    }

    fn page(&self, page: usize) -> &[u32] {
        let start = self.starts.get(page).copied().unwrap_or(0);
        let end = self.starts.get(page.saturating_add(1)).copied().unwrap_or(0);
        let index = |at: u32| usize::try_from(at).unwrap_or(usize::MAX);
        self.rows.get(index(start)..index(end)).unwrap_or_default()
    }
}

/// The numbers of a table's rules.
#[derive(Default)]
struct Numbers {
    rules: Vec<Rule>,
    by_rule: HashMap<Rule, u16>,
    last: Option<(Rule, u16)>,
}

impl Numbers {
    /// A file with more than 65,535 different rules has none that can be said from there on.
    fn of(&mut self, rule: Rule) -> u16 {
        if let Some((last, number)) = self.last
            && last == rule
        {
            return number;
        }
        let next = self.rules.len();
        let number = match (self.by_rule.get(&rule), u16::try_from(next)) {
            (Some(number), _) => *number,
            (None, Ok(number)) if number < u16::MAX || rule == Rule::UNSUPPORTED => {
                self.by_rule.insert(rule, number);
                self.rules.push(rule);
                number
            }
            (None, _) => return self.of(Rule::UNSUPPORTED),
        };
        self.last = Some((rule, number));
        number
    }
}
