//! What is published, and when: the thread's state without the thread.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

use profiler_common::unwind::{Mapping as Published, SLICE_ENTRIES_MAX, SliceHead};

use super::files::{self, Ready, Table};
use super::maps::Maps;
use super::queue::{Lane, PerLane, Queue, SMALL_MAX, Wanted};
use super::stats::{Times, ms};
use super::{Fact, GATHER, UnwindStats};
use crate::capture::{PlacedTable, Slice, UnwindMapsError};
use crate::decode::Pid;
use crate::process::{Backing, ElfId, ElfRegistry, MappingSnapshot};
use crate::unwind::{BuildError, UnwindTable};

/// How often room is made by taking out tables, and how long one that has no room waits.
const EVICTION_PAUSE: Duration = Duration::from_secs(1);
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// A table that samples were in so lately stays.
const KEPT_AFTER_USE: Duration = Duration::from_secs(5);
/// Files that are handed on to be built at once.
const BATCH_FILES: usize = 32;
/// So many new files of one process are wanted now. A browser has some 300.
const WANTED_NOW_MAX: usize = 512;
/// When so many files are known, those that are gone are forgotten: a file that is written to is
/// another one each time.
const FILES_MAX: usize = 65_536;
/// User space ends here (x86-64 with five page-table levels).
const USER_END: u64 = 1 << 56;
/// When so many slices are replaced, what they take is used again.
const RETIRED_MAX: usize = 2048;

/// A set of mappings, and the processes that have it.
struct Snapshot {
    mappings: Arc<MappingSnapshot>,
    /// `None`: there was no room for it.
    slice: Option<Slice>,
    pids: HashSet<Pid>,
}

/// What is published.
pub(super) struct Publisher<M> {
    maps: M,
    elfs: ElfRegistry,
    tables: HashMap<ElfId, Table>,
    /// How many tables make it look for those of files that are gone.
    tables_max: usize,
    queue: Queue,
    building: PerLane<HashSet<ElfId>>,
    /// By epoch.
    snapshots: HashMap<u64, Snapshot>,
    processes: HashMap<Pid, u64>,
    /// Epochs that are to be published anew, and since when.
    changed: BTreeSet<u64>,
    changed_since: Option<Instant>,
    /// Files whose table was placed and is not led to yet.
    placed: Vec<(ElfId, Instant, Duration)>,
    retired: Vec<Slice>,
    retired_tables: Vec<PlacedTable>,
    publications: u64,
    evicted_at: Option<Instant>,
    counts: UnwindStats,
    times: Times,
}

impl<M: Maps> Publisher<M> {
    pub(super) fn new(maps: M, elfs: ElfRegistry) -> Self {
        Self {
            maps,
            elfs,
            tables: HashMap::new(),
            tables_max: FILES_MAX,
            queue: Queue::default(),
            building: PerLane::default(),
            snapshots: HashMap::new(),
            processes: HashMap::new(),
            changed: BTreeSet::new(),
            changed_since: None,
            placed: Vec::new(),
            retired: Vec::new(),
            retired_tables: Vec::new(),
            publications: 0,
            evicted_at: None,
            counts: UnwindStats::default(),
            times: Times::default(),
        }
    }

    /// Takes note of a fact. What follows from it for a process is published at once.
    pub(super) fn learn(&mut self, fact: Fact, now: Instant) {
        match fact {
            Fact::Mappings { pid, snapshot, is_new } => self.mappings(pid, snapshot, is_new, now),
            Fact::Forget { pid } => {
                let removed = self.maps.remove_process(pid);
                self.note_error(removed);
                self.leave(pid);
            }
            Fact::Used(elfs) => elfs.into_iter().for_each(|id| self.used(id, now)),
        }
    }

    /// A table is made, or cannot be.
    pub(super) fn built(
        &mut self,
        id: ElfId,
        table: Result<UnwindTable, BuildError>,
        took: Duration,
        now: Instant,
    ) {
        for lane in Lane::ALL {
            self.building.of_mut(lane).remove(&id);
        }
        let wanted_since = match self.tables.get(&id) {
            Some(Table::Pending { since }) => *since,
            _ => None,
        };
        self.counts.build_ms += ms(took);
        if let Ok(table) = &table {
            self.counts.rows_built += table.row_count() as u64;
        }
        let state = match table {
            Ok(table) => match self.place(&table, now) {
                Ok(placed) => {
                    if let Some(since) = wanted_since {
                        self.placed.push((id, since, took));
                    }
                    let layout = Arc::new(table.layout().clone());
                    Table::Ready(Ready { placed, layout, rows: table.row_count(), used: now })
                }
                // It will not be smaller another time.
                Err(UnwindMapsError::OverShare) => files::too_large("over_share"),
                Err(error) => {
                    self.note_error(Err(error));
                    Table::OverLimit { since: now }
                }
            },
            Err(error @ BuildError::NoUnwindInformation) => files::without(error.reason()),
            Err(error @ BuildError::TooLarge(_)) => files::too_large(error.reason()),
            Err(error) => files::unreadable(error.reason()),
        };
        self.tables.insert(id, state);
        self.mark_users(id, now);
    }

    /// The next files of a lane to make tables of, if none are being made there: many small ones or a
    /// large one, so that threads do not wait for each other after each small file.
    pub(super) fn next_to_build(&mut self, lane: Lane, now: Instant) -> Vec<(ElfId, Arc<File>)> {
        let mut files = Vec::new();
        let mut bytes = 0_u64;
        let is_idle = self.building.of(lane).is_empty();
        while is_idle && bytes < SMALL_MAX && files.len() < BATCH_FILES {
            let Some(id) = self.queue.take(lane) else { break };
            if let Some(file) = self.elfs.get(id).and_then(|elf| elf.file) {
                bytes = bytes.saturating_add(file.metadata().map_or(0, |metadata| metadata.len()));
                files.push((id, file));
            } else {
                self.tables.insert(id, files::unreadable("not_open"));
                self.mark_users(id, now);
            }
        }
        self.building.of_mut(lane).extend(files.iter().map(|(id, _)| *id));
        files
    }

    fn is_building(&self, id: ElfId) -> bool {
        Lane::ALL.iter().any(|lane| self.building.of(*lane).contains(&id))
    }

    /// When there is something to publish.
    pub(super) fn due(&self) -> Option<Instant> {
        self.changed_since.map(|since| since + GATHER)
    }

    /// Publishes what changed, if it has waited long enough or nothing more is to come.
    pub(super) fn publish(&mut self, now: Instant) {
        let builds = |lane: &Lane| !self.building.of(*lane).is_empty();
        let idle = self.queue.len() == 0 && !Lane::ALL.iter().any(builds);
        if self.changed_since.is_some_and(|since| idle || now >= since + GATHER) {
            self.publish_changed();
        }
        if self.tables.len() >= self.tables_max {
            self.forget_files();
        }
        if self.retired.len() >= RETIRED_MAX {
            self.release();
        }
    }

    /// Everything that is counted.
    pub(super) fn stats(&self) -> UnwindStats {
        let mut stats = self.counts.clone();
        for table in self.tables.values() {
            match table {
                Table::Pending { .. } => stats.files_pending += 1,
                Table::Ready(ready) => {
                    stats.files_ready += 1;
                    stats.rows += ready.rows;
                    stats.table_bytes += ready.placed.bytes;
                }
                Table::Without { reason, .. } => {
                    *stats.files_without.entry(reason).or_default() += 1;
                }
                Table::OverLimit { .. } => stats.files_over_limit += 1,
            }
        }
        stats.processes = self.processes.len();
        stats.snapshots = self.snapshots.len();
        stats.ready = self.times.summed_up();
        self.maps.note(&mut stats);
        stats
    }

    fn mappings(&mut self, pid: Pid, mappings: Arc<MappingSnapshot>, is_new: bool, now: Instant) {
        let epoch = mappings.epoch();
        let before = self.processes.insert(pid, epoch);
        if before != Some(epoch) {
            self.want_tables(&mappings, is_new, now);
            let known = self.snapshots.entry(epoch);
            known
                .or_insert(Snapshot { mappings, slice: None, pids: HashSet::new() })
                .pids
                .insert(pid);
        }
        if self.snapshots.get(&epoch).is_some_and(|snapshot| snapshot.slice.is_none()) {
            self.publish_snapshot(epoch);
        } else if let Some(Snapshot { slice: Some(slice), .. }) = self.snapshots.get(&epoch) {
            let set = self.maps.set_process(pid, slice, false);
            self.note_error(set);
        }
        // The one before is left when the new one is there.
        if let Some(before) = before.filter(|before| *before != epoch) {
            self.leave_snapshot(before, pid);
        }
    }

    fn want_tables(&mut self, mappings: &MappingSnapshot, is_new: bool, now: Instant) {
        let mut new = 0;
        for mapping in mappings.mappings() {
            let Backing::Elf(id) = mapping.backing else { continue };
            let since = is_new.then_some(now);
            match self.tables.get_mut(&id) {
                None | Some(Table::Without { reason: "not_open", .. }) => {
                    self.tables.insert(id, Table::Pending { since });
                }
                Some(Table::Pending { since: before }) => *before = before.or(since),
                Some(_) => continue,
            }
            if !self.is_building(id) {
                let is_now = is_new && new < WANTED_NOW_MAX;
                let wanted = if is_now { Wanted::Now } else { Wanted::Sometime };
                new += usize::from(self.queue.add(id, wanted, self.file_bytes(id)));
            }
        }
    }

    /// Forgets files that nobody has mapped, and that would have another id if they were seen again.
    fn forget_files(&mut self) {
        let mappings = self.snapshots.values().flat_map(|snapshot| snapshot.mappings.mappings());
        let mapped: HashSet<ElfId> = mappings
            .filter_map(|mapping| match mapping.backing {
                Backing::Elf(id) => Some(id),
                Backing::Anonymous | Backing::Special(_) => None,
            })
            .collect();
        let elfs = &self.elfs;
        let gone = |id: &ElfId, _: &mut Table| !mapped.contains(id) && !elfs.knows(*id);
        for (id, table) in self.tables.extract_if(gone) {
            self.queue.remove(id);
            if let Table::Ready(ready) = table {
                self.retired_tables.push(ready.placed);
            }
        }
        // Not again before there are as many more.
        self.tables_max = FILES_MAX.max(2 * self.tables.len());
    }

    fn file_bytes(&self, id: ElfId) -> u64 {
        let file = self.elfs.get(id).and_then(|elf| elf.file);
        file.and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len())
    }

    fn leave(&mut self, pid: Pid) {
        if let Some(epoch) = self.processes.remove(&pid) {
            self.leave_snapshot(epoch, pid);
        }
    }

    fn leave_snapshot(&mut self, epoch: u64, pid: Pid) {
        let Some(snapshot) = self.snapshots.get_mut(&epoch) else { return };
        snapshot.pids.remove(&pid);
        if snapshot.pids.is_empty()
            && let Some(Snapshot { slice, .. }) = self.snapshots.remove(&epoch)
        {
            self.changed.remove(&epoch);
            self.retired.extend(slice);
        }
    }

    fn used(&mut self, id: ElfId, now: Instant) {
        match self.tables.get_mut(&id) {
            Some(Table::Ready(ready)) => ready.used = now,
            Some(Table::OverLimit { since }) if now >= *since + RETRY_AFTER => {
                *since = now;
                let bytes = self.file_bytes(id);
                self.tables.insert(id, Table::Pending { since: None });
                self.queue.add(id, Wanted::Sometime, bytes);
            }
            _ => {}
        }
    }

    fn mark_users(&mut self, id: ElfId, now: Instant) {
        let uses = |snapshot: &Snapshot| {
            snapshot.mappings.mappings().iter().any(|mapping| mapping.backing == Backing::Elf(id))
        };
        let users = self.snapshots.iter().filter(|(_, snapshot)| uses(snapshot));
        self.changed.extend(users.map(|(epoch, _)| *epoch));
        if !self.changed.is_empty() {
            self.changed_since.get_or_insert(now);
        }
    }

    fn publish_changed(&mut self) {
        self.changed_since = None;
        for epoch in std::mem::take(&mut self.changed) {
            self.publish_snapshot(epoch);
        }
        let now = Instant::now();
        for (id, since, build) in std::mem::take(&mut self.placed) {
            let elf = self.elfs.get(id);
            let name = elf.as_ref().map_or("", |elf| elf.name());
            self.times.add(name, self.file_bytes(id), now.saturating_duration_since(since), build);
        }
    }

    /// Makes a slice of a snapshot as things are now, and gives it to its processes.
    fn publish_snapshot(&mut self, epoch: u64) {
        let Some(snapshot) = self.snapshots.get(&epoch) else { return };
        let (mappings, cut) = self.slice_of(&snapshot.mappings);
        self.counts.mappings_cut = self.counts.mappings_cut.saturating_add(cut);
        self.publications = self.publications.saturating_add(1);
        let head = SliceHead {
            epoch,
            len: mappings.len() as u64,
            publication: self.publications,
            reserved: 0,
        };
        let placed = match self.maps.place_slice(head, &mappings) {
            Err(UnwindMapsError::Full) => {
                self.release();
                self.maps.place_slice(head, &mappings)
            }
            other => other,
        };
        let slice = match placed {
            Ok(slice) => slice,
            Err(error) => {
                // What was published before stays, as far as it goes.
                self.counts.slices_refused = self.counts.slices_refused.saturating_add(1);
                return self.note_error(Err(error));
            }
        };
        self.counts.slices = self.counts.slices.saturating_add(1);
        let Some(snapshot) = self.snapshots.get_mut(&epoch) else { return };
        let again = snapshot.slice.is_some();
        let mut failed = None;
        for pid in &snapshot.pids {
            failed = self.maps.set_process(*pid, &slice, again).err().or(failed);
        }
        self.retired.extend(snapshot.slice.replace(slice));
        if let Some(error) = failed {
            self.note_error(Err(error));
        }
    }

    /// A snapshot's mappings as they are published; of too many, those of files stay.
    fn slice_of(&self, snapshot: &MappingSnapshot) -> (Vec<Published>, u64) {
        const MOST: usize = SLICE_ENTRIES_MAX - 1;
        // `[vsyscall]` is above: no stack leads there, and the kernel's search compares signed.
        let end = snapshot.mappings().partition_point(|mapping| mapping.end <= USER_END);
        let all = snapshot.mappings().get(..end).unwrap_or_default();
        let one = |mapping| files::published(&self.tables, mapping);
        if all.len() <= MOST {
            return (all.iter().map(one).collect(), 0);
        }
        let is_file =
            |mapping: &&crate::process::Mapping| matches!(mapping.backing, Backing::Elf(_));
        let files = all.iter().filter(is_file).take(MOST);
        let mut chosen: Vec<&crate::process::Mapping> = files.collect();
        let others = all.iter().filter(|mapping| !is_file(mapping));
        chosen.extend(others.take(MOST.saturating_sub(chosen.len())));
        chosen.sort_by_key(|mapping| mapping.start);
        let cut = all.len().saturating_sub(chosen.len());
        (chosen.into_iter().map(one).collect(), cut as u64)
    }

    fn place(&mut self, table: &UnwindTable, now: Instant) -> Result<PlacedTable, UnwindMapsError> {
        match self.maps.place(table) {
            Err(UnwindMapsError::Full) if self.make_room(table, now) => self.maps.place(table),
            other => other,
        }
    }

    /// Takes out the tables that were used longest ago, until there could be room for another.
    fn make_room(&mut self, table: &UnwindTable, now: Instant) -> bool {
        if self.evicted_at.is_some_and(|at| now < at + EVICTION_PAUSE) {
            return false;
        }
        let mut oldest: Vec<(Instant, ElfId)> = Vec::new();
        let mut total = 0_u64;
        for (id, table) in &self.tables {
            let Table::Ready(ready) = table else { continue };
            total = total.saturating_add(ready.placed.bytes);
            if now >= ready.used + KEPT_AFTER_USE {
                oldest.push((ready.used, *id));
            }
        }
        oldest.sort_unstable();
        // A tenth more, so that the next one does not need the same again.
        let wanted = table.block_bytes().saturating_add(total / 10);
        let (mut freed, mut freed_pages) = (0_u64, 0_usize);
        for (_, id) in oldest {
            if freed >= wanted && freed_pages >= table.page_count() {
                break;
            }
            let evicted = self.tables.insert(id, Table::OverLimit { since: now });
            if let Some(Table::Ready(ready)) = evicted {
                freed = freed.saturating_add(ready.placed.bytes);
                let pages = usize::try_from(ready.placed.pages).unwrap_or(0);
                freed_pages = freed_pages.saturating_add(pages);
                self.retired_tables.push(ready.placed);
            }
            self.counts.evictions = self.counts.evictions.saturating_add(1);
            self.mark_users(id, now);
        }
        if freed == 0 {
            return false;
        }
        self.evicted_at = Some(now);
        self.publish_changed();
        self.release()
    }

    /// Uses again what slices and tables take that nothing leads to any more.
    fn release(&mut self) -> bool {
        let released = self.maps.release(&mut self.retired, &mut self.retired_tables);
        let done = released.is_ok();
        self.note_error(released);
        done
    }

    fn note_error(&mut self, result: Result<(), UnwindMapsError>) {
        if let Err(error @ UnwindMapsError::Map(_)) = result {
            self.counts.map_errors = self.counts.map_errors.saturating_add(1);
            tracing::debug!(error = &error as &dyn std::error::Error, "unwinding");
        }
    }
}

#[cfg(test)]
#[path = "publisher_tests.rs"]
mod tests;
