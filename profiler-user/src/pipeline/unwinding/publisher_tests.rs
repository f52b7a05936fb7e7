use std::collections::BTreeMap;

use profiler_common::unwind::{
    MAPPING_ANONYMOUS, MAPPING_KIND_SHIFT, MAPPING_NO_TABLE, MAPPING_OVER_LIMIT, MAPPING_PENDING,
    MAPPING_TABLE, MAPPING_UNREADABLE,
};

use super::*;
use crate::process::{ElfLimits, Mapping};
use crate::unwind::{Limits, build};

/// What a kernel would have: slices, and who has which.
#[derive(Default)]
struct Fake {
    slices: BTreeMap<u32, (SliceHead, Vec<Published>)>,
    processes: BTreeMap<Pid, u32>,
    tables: usize,
    tables_max: usize,
    over_share: bool,
    next: u32,
    released: usize,
}

impl Maps for Fake {
    fn place(&mut self, table: &UnwindTable) -> Result<PlacedTable, UnwindMapsError> {
        if self.over_share {
            return Err(UnwindMapsError::OverShare);
        }
        if self.tables == self.tables_max {
            return Err(UnwindMapsError::Full);
        }
        self.tables += 1;
        self.next += 1;
        let pages = u32::try_from(table.page_count()).unwrap();
        Ok(PlacedTable { first_page: self.next, pages, bytes: 100, rules: Vec::new() })
    }

    fn place_slice(
        &mut self,
        head: SliceHead,
        mappings: &[Published],
    ) -> Result<Slice, UnwindMapsError> {
        self.next += 1;
        self.slices.insert(self.next, (head, mappings.to_vec()));
        Ok(Slice { start: self.next, entries: 1 })
    }

    fn set_process(
        &mut self,
        pid: Pid,
        slice: &Slice,
        only_if_known: bool,
    ) -> Result<(), UnwindMapsError> {
        if !only_if_known || self.processes.contains_key(&pid) {
            self.processes.insert(pid, slice.start);
        }
        Ok(())
    }

    fn remove_process(&mut self, pid: Pid) -> Result<(), UnwindMapsError> {
        self.processes.remove(&pid);
        Ok(())
    }

    fn release(
        &mut self,
        slices: &mut Vec<Slice>,
        tables: &mut Vec<PlacedTable>,
    ) -> Result<(), UnwindMapsError> {
        for slice in slices.drain(..) {
            assert!(self.slices.remove(&slice.start).is_some(), "released once");
            self.processes.retain(|_, start| *start != slice.start);
            self.released += 1;
        }
        self.tables -= tables.drain(..).count();
        Ok(())
    }

    fn note(&self, _stats: &mut UnwindStats) {}
}

fn publisher(tables_max: usize) -> Publisher<Fake> {
    let fake = Fake { tables_max, ..Fake::default() };
    Publisher::new(fake, ElfRegistry::new(ElfLimits::default()))
}

fn snapshot(backings: &[Backing]) -> Arc<MappingSnapshot> {
    let mapping = |(index, backing): (usize, &Backing)| {
        let start = 0x10_0000 * (index as u64 + 1);
        Mapping { start, end: start + 0x1000, file_offset: 0, backing: backing.clone() }
    };
    Arc::new(MappingSnapshot::new(backings.iter().enumerate().map(mapping).collect(), false))
}

fn elf(id: u32) -> Backing {
    Backing::Elf(ElfId(id))
}

fn tell(publisher: &mut Publisher<Fake>, pid: u32, snapshot: &Arc<MappingSnapshot>) {
    let fact = Fact::Mappings { pid: Pid(pid), snapshot: Arc::clone(snapshot), is_new: true };
    publisher.learn(fact, Instant::now());
}

/// This program's own table.
fn table() -> UnwindTable {
    build(&File::open("/proc/self/exe").unwrap(), &Limits::default()).unwrap()
}

impl Publisher<Fake> {
    /// The kinds of the mappings that a process has.
    fn kinds(&self, pid: u32) -> Option<Vec<u8>> {
        let start = self.maps.processes.get(&Pid(pid))?;
        let (_, mappings) = &self.maps.slices[start];
        let kind = |mapping: &Published| (mapping.kind_and_pages >> MAPPING_KIND_SHIFT) as u8;
        Some(mappings.iter().map(kind).collect())
    }

    /// The file's table is made. Where the mapping is in this file does not matter here.
    fn ready(&mut self, id: u32, now: Instant) {
        self.built(ElfId(id), Ok(table()), Duration::ZERO, now);
        self.publish(now + GATHER);
    }
}

#[test]
fn a_process_is_published_at_once_and_again_with_its_tables() {
    let mut publisher = publisher(10);
    let mappings = snapshot(&[elf(1), Backing::Anonymous, elf(2), elf(3)]);
    tell(&mut publisher, 7, &mappings);
    let pending = MAPPING_PENDING;
    assert_eq!(publisher.kinds(7).unwrap(), [pending, MAPPING_ANONYMOUS, pending, pending]);
    let first = publisher.maps.slices[&publisher.maps.processes[&Pid(7)]].0;
    assert_eq!(first.epoch, mappings.epoch());
    let now = Instant::now();
    publisher.ready(1, now);
    publisher.built(ElfId(2), Err(BuildError::NoUnwindInformation), Duration::ZERO, now);
    publisher.built(ElfId(3), Err(BuildError::OtherMachine), Duration::ZERO, now);
    publisher.publish(now + GATHER);
    let kinds = publisher.kinds(7).unwrap();
    // The mapping at offset 0 of this file is text or not, as it was linked.
    assert!([MAPPING_TABLE, MAPPING_NO_TABLE].contains(&kinds[0]));
    assert_eq!(kinds[1..], [MAPPING_ANONYMOUS, MAPPING_NO_TABLE, MAPPING_UNREADABLE]);
    let second = publisher.maps.slices[&publisher.maps.processes[&Pid(7)]].0;
    assert_eq!(second.epoch, first.epoch);
    assert!(second.publication > first.publication);
}

#[test]
fn processes_with_the_same_snapshot_share_a_slice() {
    let mut publisher = publisher(10);
    let mappings = snapshot(&[elf(1)]);
    tell(&mut publisher, 7, &mappings);
    tell(&mut publisher, 8, &mappings);
    assert_eq!(publisher.maps.processes[&Pid(7)], publisher.maps.processes[&Pid(8)]);
    publisher.learn(Fact::Forget { pid: Pid(7) }, Instant::now());
    assert!(publisher.retired.is_empty(), "the other has it");
    publisher.learn(Fact::Forget { pid: Pid(8) }, Instant::now());
    assert_eq!((publisher.retired.len(), publisher.maps.processes.len()), (1, 0));
}

#[test]
fn a_process_that_the_kernel_forgot_is_not_given_its_old_mappings_again() {
    let mut publisher = publisher(10);
    let old = snapshot(&[elf(1)]);
    tell(&mut publisher, 7, &old);
    // Another program: the kernel deletes, and the report is on its way.
    publisher.maps.processes.remove(&Pid(7));
    publisher.ready(1, Instant::now());
    assert_eq!(publisher.kinds(7), None);
    let new = snapshot(&[elf(1)]);
    tell(&mut publisher, 7, &new);
    let (head, _) = publisher.maps.slices[&publisher.maps.processes[&Pid(7)]];
    assert_eq!(head.epoch, new.epoch());
    // Nobody has the old one any more, and it is released, not the new one.
    publisher.release();
    assert!(publisher.maps.processes.contains_key(&Pid(7)));
}

#[test]
fn what_is_told_again_is_repaired() {
    let mut publisher = publisher(10);
    let mappings = snapshot(&[elf(1)]);
    tell(&mut publisher, 7, &mappings);
    let slices = publisher.maps.slices.len();
    publisher.maps.processes.remove(&Pid(7));
    tell(&mut publisher, 7, &mappings);
    assert!(publisher.maps.processes.contains_key(&Pid(7)));
    assert_eq!(publisher.maps.slices.len(), slices, "the slice is there already");
}

#[test]
fn the_table_used_longest_ago_makes_room() {
    let mut publisher = publisher(2);
    let start = Instant::now();
    let mappings = snapshot(&[elf(1), elf(2), elf(3)]);
    tell(&mut publisher, 7, &mappings);
    publisher.ready(1, start);
    publisher.ready(2, start);
    let later = start + KEPT_AFTER_USE + Duration::from_secs(1);
    publisher.learn(Fact::Used(vec![ElfId(1)]), later);
    publisher.ready(3, later);
    assert!(matches!(publisher.tables[&ElfId(2)], Table::OverLimit { .. }));
    assert!(matches!(publisher.tables[&ElfId(1)], Table::Ready(_)));
    assert!(matches!(publisher.tables[&ElfId(3)], Table::Ready(_)));
    assert_eq!(publisher.kinds(7).unwrap()[1], MAPPING_OVER_LIMIT);
    assert_eq!((publisher.counts.evictions, publisher.maps.tables), (1, 2));
    // It is asked for again: its turn comes, but not at once.
    publisher.learn(Fact::Used(vec![ElfId(2)]), later + Duration::from_secs(1));
    assert!(matches!(publisher.tables[&ElfId(2)], Table::OverLimit { .. }));
    publisher.learn(Fact::Used(vec![ElfId(2)]), later + RETRY_AFTER);
    assert!(matches!(publisher.tables[&ElfId(2)], Table::Pending { .. }));
}

#[test]
fn tables_that_are_all_in_use_stay() {
    let mut publisher = publisher(1);
    let now = Instant::now();
    tell(&mut publisher, 7, &snapshot(&[elf(1), elf(2)]));
    publisher.ready(1, now);
    publisher.ready(2, now);
    assert!(matches!(publisher.tables[&ElfId(1)], Table::Ready(_)));
    assert!(matches!(publisher.tables[&ElfId(2)], Table::OverLimit { .. }));
    assert_eq!(publisher.stats().files_over_limit, 1);
}

#[test]
fn a_file_that_takes_too_much_makes_no_other_one_go_and_is_not_tried_again() {
    let mut publisher = publisher(10);
    let now = Instant::now();
    tell(&mut publisher, 7, &snapshot(&[elf(1), elf(2), elf(3)]));
    publisher.ready(1, now);
    publisher.maps.over_share = true;
    publisher.ready(2, now);
    let too_large = Err(BuildError::TooLarge("text"));
    publisher.built(ElfId(3), too_large, Duration::ZERO, now);
    publisher.learn(Fact::Used(vec![ElfId(2), ElfId(3)]), now + RETRY_AFTER);
    publisher.publish(now + RETRY_AFTER);
    assert_eq!(publisher.kinds(7).unwrap()[1..], [MAPPING_OVER_LIMIT, MAPPING_OVER_LIMIT]);
    let stats = publisher.stats();
    assert_eq!(stats.files_without, BTreeMap::from([("over_share", 1), ("too_large", 1)]));
    assert_eq!((stats.files_ready, stats.evictions, stats.files_pending), (1, 0, 0));
}

#[test]
fn files_that_are_gone_are_forgotten_when_there_are_many() {
    let mut publisher = publisher(10);
    let (now, files) = (Instant::now(), u32::try_from(FILES_MAX).unwrap());
    tell(&mut publisher, 7, &snapshot(&[elf(1), elf(2)]));
    publisher.ready(1, now);
    publisher.ready(2, now);
    // Each time the file is another one.
    let written: Vec<Backing> = (2..files).map(elf).collect();
    tell(&mut publisher, 7, &snapshot(&written));
    publisher.publish(now);
    assert_eq!((publisher.tables.len(), publisher.retired_tables.len()), (FILES_MAX - 1, 0));
    tell(&mut publisher, 7, &snapshot(&[elf(2), elf(files), elf(files + 1)]));
    publisher.publish(now);
    let mut left: Vec<ElfId> = publisher.tables.keys().copied().collect();
    left.sort_unstable();
    assert_eq!(left, [2, files, files + 1].map(ElfId));
    // None was taken from the queue here.
    assert_eq!((publisher.retired_tables.len(), publisher.queue.len()), (1, left.len()));
}

#[test]
fn of_too_many_mappings_those_of_files_stay() {
    let mut publisher = publisher(1);
    let mut backings = vec![Backing::Anonymous; 6000];
    backings[5999] = elf(1);
    tell(&mut publisher, 7, &snapshot(&backings));
    let kinds = publisher.kinds(7).unwrap();
    assert_eq!((kinds.len(), kinds.last()), (SLICE_ENTRIES_MAX - 1, Some(&MAPPING_PENDING)));
    assert_eq!(publisher.counts.mappings_cut, 6000 - (SLICE_ENTRIES_MAX as u64 - 1));
}
