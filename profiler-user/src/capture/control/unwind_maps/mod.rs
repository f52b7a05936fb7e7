//! The BPF maps of unwinding: `profiler_common::unwind` describes them.
//!
//! What is published here is never modified in place. Who takes it back says so in two steps: first
//! nothing leads to it any more, then [`UnwindMaps::release`] waits for the programs that run.

mod memory;
mod rule_numbers;
mod runs;

use std::{
    collections::{HashMap, HashSet},
    io,
};

use aya::maps::{ArrayOfMaps, HashMap as BpfHashMap, MapData, MapError};
use profiler_common::unwind::{
    CHUNK_SEGMENTS, CHUNKS_MAX, MAPPING_SEGMENTS, Mapping, PAGES_MAX, RULES_MAX, Rule,
    SEGMENT_WORDS, SLICE_ENTRIES_MAX, SliceHead, page,
};
use zerocopy::IntoBytes as _;

pub(in crate::capture) use self::memory::MapMemory;
use self::rule_numbers::RuleNumbers;
use self::runs::Runs;
use crate::decode::Pid;
use crate::unwind::UnwindTable;

/// Bytes of a chunk.
const CHUNK_BYTES: usize = CHUNK_SEGMENTS * SEGMENT_WORDS * 4;
/// Words of all segments of a chunk.
const CHUNK_WORDS: u32 = small(CHUNK_SEGMENTS * SEGMENT_WORDS);
const MAPPING_SEGMENT_BYTES: usize = SLICE_ENTRIES_MAX * size_of::<Mapping>();
/// What is there before any table: mappings, pages, rules.
const FIXED_BYTES: usize = MAPPING_SEGMENTS * MAPPING_SEGMENT_BYTES + 8 * PAGES_MAX + 8 * RULES_MAX;
/// What mappings an entry of an 8-byte-word memory has.
const ENTRY_WORDS: usize = size_of::<Mapping>() / 8;

/// The smallest ceiling: the maps of fixed size, and room for some tables.
pub const MEMORY_MIN: u64 = 8 << 20;

/// One file may have a part of what is there for all: of the blocks' memory, if that is more than
/// a chunk, and of the rules. What it may have of the pages is bounded when its table is made.
const FILE_SHARE: usize = 4;
/// The most different rules of a file. Those that were seen have some thousand.
const FILE_RULES_MAX: usize = RULES_MAX / FILE_SHARE;

/// The maps, as they are taken from the loaded object.
pub(in crate::capture) struct Maps {
    pub(in crate::capture) processes: BpfHashMap<MapData, u32, u32>,
    pub(in crate::capture) mappings: MapData,
    pub(in crate::capture) pages: MapData,
    pub(in crate::capture) rules: MapData,
    pub(in crate::capture) rows: ArrayOfMaps<MapData, MapData>,
}

/// The maps, and what of them is in use.
pub struct UnwindMaps {
    processes: BpfHashMap<MapData, u32, u32>,
    mappings: MapMemory,
    pages: MapMemory,
    rules: MapMemory,
    rows: ArrayOfMaps<MapData, MapData>,
    chunks: Vec<(MapData, MapMemory)>,
    chunks_max: usize,
    free_words: Runs,
    free_pages: Runs,
    free_entries: Runs,
    rule_numbers: RuleNumbers,
    // Kept open for as long as they are mapped.
    _maps: [MapData; 3],
}

/// A table that is in the maps.
#[derive(Debug, PartialEq, Eq)]
pub struct PlacedTable {
    /// Its first page in `PAGES`.
    pub first_page: u32,
    /// How many pages it has.
    pub pages: u32,
    /// Bytes of its blocks.
    pub bytes: u64,
    /// The numbers of its rules.
    pub rules: Vec<u16>,
}

/// A process's mappings that are in the maps.
#[derive(Debug, PartialEq, Eq)]
pub struct Slice {
    /// Its head in `MAPPINGS`, counted over all segments.
    pub start: u32,
    /// How many entries it has, with its head.
    pub entries: u32,
}

/// Why something was not published.
#[derive(Debug, thiserror::Error)]
pub enum UnwindMapsError {
    /// The ceiling is reached, or a map of fixed size is full.
    #[error("no room in the maps of unwinding")]
    Full,
    /// It would take more than one file may.
    #[error("more than one file's share of the maps of unwinding")]
    OverShare,
    /// The kernel.
    #[error("a map of unwinding cannot be changed")]
    Map(#[source] io::Error),
}

impl UnwindMaps {
    /// `memory_max` is what all maps of unwinding may take together, in bytes.
    pub(in crate::capture) fn new(maps: Maps, memory_max: u64) -> io::Result<Self> {
        let Maps { processes, mappings, pages, rules, rows } = maps;
        let for_tables = usize::try_from(memory_max).unwrap_or(usize::MAX);
        let chunks_max = for_tables.saturating_sub(FIXED_BYTES) / CHUNK_BYTES;
        let entries = MAPPING_SEGMENTS * SLICE_ENTRIES_MAX;
        let mut new = Self {
            processes,
            mappings: MapMemory::new(mappings.fd(), MAPPING_SEGMENTS * MAPPING_SEGMENT_BYTES)?,
            pages: MapMemory::new(pages.fd(), 8 * PAGES_MAX)?,
            rules: MapMemory::new(rules.fd(), 8 * RULES_MAX)?,
            rows,
            chunks: Vec::new(),
            chunks_max: chunks_max.clamp(1, CHUNKS_MAX - 1),
            free_words: Runs::new(0, small(SEGMENT_WORDS)),
            free_pages: Runs::new(small(PAGES_MAX), small(PAGES_MAX)),
            free_entries: Runs::new(small(entries), small(SLICE_ENTRIES_MAX)),
            rule_numbers: RuleNumbers::new(RULES_MAX),
            _maps: [mappings, pages, rules],
        };
        // A slice at 0 would be what an empty map's value leads to.
        new.free_entries.take(1);
        // Number 0 is what the BPF program takes where it finds none.
        new.take_rules(&[Rule::NONE]).map_err(io::Error::other)?;
        // A chunk more waits for running programs, and there are none yet.
        new.add_chunk().map_err(io::Error::other)?;
        Ok(new)
    }

    /// Puts a table into the maps. Nothing leads to it yet.
    ///
    /// # Errors
    ///
    /// There is no room, or not for a table of this size, and nothing was changed.
    pub fn place(&mut self, table: &UnwindTable) -> Result<PlacedTable, UnwindMapsError> {
        let share = self.table_bytes_max() / FILE_SHARE as u64;
        if table.block_bytes() > share.max(CHUNK_BYTES as u64)
            || table.rules().len() > FILE_RULES_MAX
        {
            return Err(UnwindMapsError::OverShare);
        }
        let rules = self.take_rules(table.rules())?;
        let pages = u32::try_from(table.page_count()).map_err(|_size| UnwindMapsError::Full)?;
        let Some(first_page) = self.free_pages.take(pages) else {
            self.give_back_rules(&rules);
            return Err(UnwindMapsError::Full);
        };
        let mut placed = PlacedTable { first_page, pages: 0, bytes: 0, rules };
        if let Err(error) = self.place_blocks(table, &mut placed) {
            let unused = pages.saturating_sub(placed.pages);
            self.free_pages.give_back(first_page.saturating_add(placed.pages), unused);
            self.free_table(&placed);
            return Err(error);
        }
        Ok(placed)
    }

    /// Pages with one rule throughout have the same block: a file with a page of text can say that
    /// it has gigabytes.
    fn place_blocks(
        &mut self,
        table: &UnwindTable,
        placed: &mut PlacedTable,
    ) -> Result<(), UnwindMapsError> {
        let mut shared: HashMap<u16, u32> = HashMap::new();
        let mut block = Vec::new();
        for index in 0..table.page_count() {
            let only_rule = table.only_rule(index);
            let known = only_rule.and_then(|rule| shared.get(&rule).copied());
            let start = if let Some(start) = known {
                start
            } else {
                table.block(index, &placed.rules, &mut block);
                let start = self.place_block(&block)?;
                placed.bytes = placed.bytes.saturating_add(4 * block.len() as u64);
                if let Some(rule) = only_rule {
                    shared.insert(rule, start);
                }
                start
            };
            let at = usize::try_from(placed.first_page).unwrap_or(0).saturating_add(index);
            self.pages.store_u64(at, &[page(start, table.rows_in(index))]);
            placed.pages = placed.pages.saturating_add(1);
        }
        Ok(())
    }

    fn place_block(&mut self, block: &[u32]) -> Result<u32, UnwindMapsError> {
        let start = self.take_words(u32::try_from(block.len()).unwrap_or(u32::MAX))?;
        let chunk = usize::try_from(start / CHUNK_WORDS).unwrap_or(usize::MAX);
        if let Some((_, memory)) = self.chunks.get(chunk) {
            memory.store_u32(usize::try_from(start % CHUNK_WORDS).unwrap_or(0), block);
        }
        Ok(start)
    }

    fn free_table(&mut self, table: &PlacedTable) {
        use profiler_common::unwind::{END_WORDS, GRANULE_WORDS};
        let mut shared = HashSet::new();
        for index in table.first_page..table.first_page.saturating_add(table.pages) {
            let word = self.pages.load_u64(usize::try_from(index).unwrap_or(usize::MAX));
            let rows = u32::try_from(word >> 32 & 0xffff).unwrap_or(0);
            let start = u32::try_from(word & 0xffff_ffff).unwrap_or(0);
            if rows == 1 && !shared.insert(start) {
                continue;
            }
            self.free_words.give_back(start, rows.saturating_add(small(GRANULE_WORDS + END_WORDS)));
        }
        if table.pages > 0 {
            self.free_pages.give_back(table.first_page, table.pages);
        }
        self.give_back_rules(&table.rules);
    }

    /// Puts a process's mappings into the maps. No process has them yet.
    ///
    /// # Errors
    ///
    /// There is no room.
    pub fn place_slice(
        &mut self,
        head: SliceHead,
        mappings: &[Mapping],
    ) -> Result<Slice, UnwindMapsError> {
        let entries = u32::try_from(mappings.len()).ok().and_then(|len| len.checked_add(1));
        let entries = entries.ok_or(UnwindMapsError::Full)?;
        let start = self.free_entries.take(entries).ok_or(UnwindMapsError::Full)?;
        let at = usize::try_from(start).unwrap_or(usize::MAX).saturating_mul(ENTRY_WORDS);
        self.mappings.store_u64(at, &words(head.as_bytes()));
        self.mappings.store_u64(at.saturating_add(ENTRY_WORDS), &words(mappings.as_bytes()));
        Ok(Slice { start, entries })
    }

    /// The process has these mappings from now on. `only_if_known`: unless the kernel has forgotten
    /// it meanwhile, because it runs another program.
    ///
    /// # Errors
    ///
    /// The map is full.
    pub fn set_process(
        &mut self,
        pid: Pid,
        slice: &Slice,
        only_if_known: bool,
    ) -> Result<(), UnwindMapsError> {
        /// Update an element, and make none.
        const BPF_EXIST: u64 = 2;
        let flags = if only_if_known { BPF_EXIST } else { 0 };
        match self.processes.insert(pid.0, slice.start, flags) {
            Err(error) if only_if_known && is_missing(&error) => Ok(()),
            other => other.map_err(map_error),
        }
    }

    /// Nothing is known of the process's mappings any more.
    ///
    /// # Errors
    ///
    /// The map cannot be changed. That nothing was there is no error.
    pub fn remove_process(&mut self, pid: Pid) -> Result<(), UnwindMapsError> {
        match self.processes.remove(&pid.0) {
            Err(error) if is_missing(&error) => Ok(()),
            other => other.map_err(map_error),
        }
    }

    /// Takes slices and tables out of the maps that no process is to use any more.
    ///
    /// A child may still have its parent's old slice: the kernel copies it without a word. It loses
    /// it here, and is known again when it is sampled next.
    ///
    /// # Errors
    ///
    /// A map cannot be changed: nothing was taken out.
    pub fn release(
        &mut self,
        slices: &mut Vec<Slice>,
        tables: &mut Vec<PlacedTable>,
    ) -> Result<(), UnwindMapsError> {
        let starts: HashSet<u32> = slices.iter().map(|slice| slice.start).collect();
        loop {
            // What a program that runs now does with them is seen after this.
            self.wait_for_programs()?;
            let mut found = false;
            let entries: Vec<(u32, u32)> = self.processes.iter().filter_map(Result::ok).collect();
            for (pid, start) in entries {
                if starts.contains(&start) {
                    found = true;
                    self.remove_process(Pid(pid))?;
                }
            }
            if !found {
                break;
            }
        }
        for slice in slices.drain(..) {
            self.free_entries.give_back(slice.start, slice.entries);
        }
        for table in tables.drain(..) {
            self.free_table(&table);
        }
        Ok(())
    }

    /// Waits until every program that runs now has ended: an update of a map of maps does that
    /// (`maybe_wait_bpf_programs` in kernel/bpf/syscall.c, since Linux 4.20).
    ///
    /// # Errors
    ///
    /// The map cannot be changed, and nothing was waited for.
    fn wait_for_programs(&mut self) -> Result<(), UnwindMapsError> {
        if let Some((chunk, _)) = self.chunks.first() {
            return self.rows.set(0, chunk, 0).map_err(map_error);
        }
        self.add_chunk()
    }

    /// Bytes of all maps of unwinding.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (FIXED_BYTES.saturating_add(self.chunks.len().saturating_mul(CHUNK_BYTES))) as u64
    }

    /// The most bytes that tables can have.
    #[must_use]
    pub fn table_bytes_max(&self) -> u64 {
        (self.chunks_max.saturating_mul(CHUNK_BYTES)) as u64
    }

    /// Entries of mappings that are free.
    #[must_use]
    pub fn free_entries(&self) -> u32 {
        self.free_entries.free()
    }

    /// Different rules in use.
    #[must_use]
    pub fn rules(&self) -> usize {
        self.rule_numbers.len()
    }

    /// The numbers of a table's rules.
    fn take_rules(&mut self, rules: &[Rule]) -> Result<Vec<u16>, UnwindMapsError> {
        let mut numbers = Vec::with_capacity(rules.len());
        for rule in rules {
            let Some(number) = self.rule_numbers.take(*rule) else {
                self.give_back_rules(&numbers);
                return Err(UnwindMapsError::Full);
            };
            // It may be there already: then it is the same.
            self.rules.store_u64(usize::from(number), &[rule.to_bits()]);
            numbers.push(number);
        }
        Ok(numbers)
    }

    fn give_back_rules(&mut self, numbers: &[u16]) {
        numbers.iter().for_each(|number| self.rule_numbers.give_back(*number));
    }

    fn take_words(&mut self, len: u32) -> Result<u32, UnwindMapsError> {
        if let Some(start) = self.free_words.take(len) {
            return Ok(start);
        }
        self.add_chunk()?;
        self.free_words.take(len).ok_or(UnwindMapsError::Full)
    }

    fn add_chunk(&mut self) -> Result<(), UnwindMapsError> {
        const ARRAY: u32 = aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
        let number = self.chunks.len();
        if number >= self.chunks_max {
            return Err(UnwindMapsError::Full);
        }
        let map = aya_obj::Map::new_from_params(
            ARRAY,
            4,
            small(SEGMENT_WORDS * 4),
            small(CHUNK_SEGMENTS),
            aya_obj::generated::BPF_F_MMAPABLE,
        );
        let chunk = MapData::create(map, "rows", None).map_err(map_error)?;
        let memory = MapMemory::new(chunk.fd(), CHUNK_BYTES).map_err(UnwindMapsError::Map)?;
        let index = u32::try_from(number).map_err(|_number| UnwindMapsError::Full)?;
        self.rows.set(index, &chunk, 0).map_err(map_error)?;
        self.chunks.push((chunk, memory));
        self.free_words.extend(index.saturating_mul(CHUNK_WORDS), CHUNK_WORDS);
        Ok(())
    }
}

/// One of the constants above, which are at most some 100,000.
#[expect(clippy::cast_possible_truncation, reason = "compared just before")]
const fn small(constant: usize) -> u32 {
    assert!(constant < 1 << 20);
    constant as u32
}

/// As the kernel's byte order has them.
fn words(bytes: &[u8]) -> Vec<u64> {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().map(|word| u64::from_ne_bytes(*word)).collect()
}

fn map_error(error: MapError) -> UnwindMapsError {
    UnwindMapsError::Map(io::Error::other(error))
}

/// That an element is not there says more than one error.
fn is_missing(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound | MapError::ElementNotFound => true,
        MapError::SyscallError(error) => error.io_error.raw_os_error() == Some(libc::ENOENT),
        _ => false,
    }
}
