//! Processes that map one file in the place of another, on a fake `/proc` and a fake clock.

use std::{fs, os::unix::fs::MetadataExt as _};

use super::fake_proc::{FakeProc, maps_line, write_elf};
use super::table_tests::{NOW, anonymous, at, epoch, event, table};
use super::*;
use crate::decode::{Addr, CodeMapping, FileNumber, Pid, ProcessEventKind};

/// A process that runs one of two libraries at one address.
struct Swap {
    fake: FakeProc,
    table: ProcessTable,
}

impl Swap {
    const HERE: Addr = Addr(0x5010);

    fn new() -> Self {
        let fake = FakeProc::new();
        fake.add(7, 5000, "");
        Self::write_files(&fake);
        fs::write(fake.path(7, "maps"), Self::line(&fake, "a.so")).unwrap();
        let table = table(&fake, TableLimits::default());
        Self { fake, table }
    }

    fn write_files(fake: &FakeProc) {
        for name in ["a.so", "b.so"] {
            write_elf(&fake.path(7, "root").join(name));
        }
    }

    fn line(fake: &FakeProc, name: &str) -> String {
        maps_line(0x5000, &fake.path(7, "root").join(name), &format!("/{name}"))
    }

    fn write(&self, name: &str) {
        fs::write(self.fake.path(7, "maps"), Self::line(&self.fake, name)).unwrap();
    }

    fn mapped(&mut self, pid: u32, ms: u64, begin: u64, name: &str) {
        let inode = fs::metadata(self.fake.path(7, "root").join(name)).unwrap().ino();
        self.table.on_code_mapped(CodeMapping {
            at: at(ms),
            pid: Pid(pid),
            begin: Addr(begin),
            end: Addr(begin + 0x1000),
            file_offset: 0x1000,
            file: FileNumber { device: (8, 1), inode },
        });
    }

    /// Whether a stack is stale that was walked with an epoch, and whether its leaf is known.
    fn walked(&self, pid: u32, ms: u64, epoch: u64) -> (bool, bool) {
        let walked = self.table.walked(Pid(pid), at(ms), epoch, &[Self::HERE]);
        let (process, stale) = walked.unwrap();
        (stale, process.snapshot.find(Self::HERE).is_some())
    }
}

#[test]
fn a_file_in_the_place_of_another_ends_what_was_known_when_it_was_mapped() {
    let mut swap = Swap::new();
    let old = epoch(&swap.table, 7, NOW);
    swap.mapped(7, NOW + 10, 0x9000, "b.so");
    swap.mapped(7, NOW + 10, 0x5000, "a.so");
    swap.mapped(9, NOW + 10, 0x5000, "b.so");
    let stats = swap.table.stats();
    assert_eq!((stats.maps_read, stats.code_replaced), (1, 0), "nothing is replaced");
    assert!(swap.table.view(Pid(9), at(NOW)).is_none());

    swap.write("b.so");
    swap.mapped(7, NOW + 20, 0x5000, "b.so");
    let stats = swap.table.stats();
    assert_eq!((stats.maps_read, stats.code_replaced), (2, 1));
    let new = epoch(&swap.table, 7, NOW + 20);
    assert_ne!(new, old);
    assert_eq!(swap.walked(7, NOW + 19, old), (false, true));
    assert_eq!(swap.walked(7, NOW + 20, old), (true, true));
    assert_eq!(swap.walked(7, NOW + 21, new), (false, true));
    // The leaf of a stale stack is in what is there now.
    let (process, _) = swap.table.walked(Pid(7), at(NOW + 20), old, &[Swap::HERE]).unwrap();
    assert_eq!(process.snapshot.epoch(), new);
    // And a stack that is elsewhere is right.
    assert!(!swap.table.walked(Pid(7), at(NOW + 20), old, &[Addr(0x9010)]).unwrap().1);
}

#[test]
fn mappings_are_as_old_as_they_were_read_not_as_the_sample_that_asked() {
    let mut swap = Swap::new();
    swap.write("b.so");
    // Read 90 ms after it was mapped, and this is reported after that.
    swap.table.tick(at(NOW + 100));
    swap.table.refresh(Pid(7), at(NOW + 5), &[Addr(0x9000)]);
    let new = epoch(&swap.table, 7, NOW + 100);
    swap.mapped(7, NOW + 10, 0x5000, "b.so");
    assert_eq!(swap.walked(7, NOW + 20, new), (false, true));
    assert_eq!(swap.table.stats().maps_read, 2);
}

#[test]
fn a_process_that_replaces_mappings_all_the_time_is_not_read_all_the_time() {
    let mut swap = Swap::new();
    let padding = anonymous(0x9000).repeat(3000);
    let mut stale = 0;
    for ms in 1..=1000 {
        let name = if ms % 2 == 0 { "a.so" } else { "b.so" };
        fs::write(swap.fake.path(7, "maps"), Swap::line(&swap.fake, name) + &padding).unwrap();
        let before = epoch(&swap.table, 7, NOW + ms);
        swap.mapped(7, NOW + ms, 0x5000, name);
        swap.table.refresh(Pid(7), at(NOW + ms), &[Swap::HERE]);
        if epoch(&swap.table, 7, NOW + ms) == before {
            // What is there now is not known, unless it is what was there at first.
            stale += u64::from(swap.walked(7, NOW + ms, before).0);
        }
    }
    // About 110 KB of text: a rest of 0.11 s after each read.
    let stats = swap.table.stats();
    assert!((5..=12).contains(&stats.maps_read), "{stats:?}");
    assert!(stats.reads_backed_off > 900, "{stats:?}");
    assert_eq!(stats.code_replaced, 1000);
    assert!((450..=1000).contains(&stale), "{stale}");
}

#[test]
fn a_process_that_was_read_in_vain_is_read_when_it_replaces_something() {
    let mut swap = Swap::new();
    swap.table.refresh(Pid(7), at(NOW + 10), &[Addr(0xbad)]);
    swap.table.refresh(Pid(7), at(NOW + 20), &[Addr(0xbad)]);
    assert_eq!((swap.table.stats().maps_read, swap.table.stats().reads_backed_off), (2, 1));
    swap.write("b.so");
    swap.mapped(7, NOW + 21, 0x5000, "b.so");
    assert_eq!((swap.table.stats().maps_read, swap.table.stats().reads_backed_off), (3, 1));
}

#[test]
fn of_a_process_that_maps_all_the_time_not_all_is_looked_at() {
    let mut swap = Swap::new();
    for _ in 0..5000 {
        swap.mapped(7, NOW + 10, 0x9000, "b.so");
    }
    assert_eq!(swap.table.stats().code_mappings_lost, 5000 - 1001);
    swap.mapped(7, NOW + 100, 0x5000, "b.so");
    assert_eq!(swap.table.stats().code_replaced, 1);
}

#[test]
fn a_child_has_what_its_parent_has_mapped_in_the_place_of_something_else() {
    let mut swap = Swap::new();
    let old = epoch(&swap.table, 7, NOW);
    // The parent cannot be read any more.
    swap.fake.remove(7);
    fs::create_dir_all(swap.fake.path(7, "root")).unwrap();
    Swap::write_files(&swap.fake);
    swap.mapped(7, NOW + 10, 0x5000, "b.so");
    swap.table.on_event(event(8, NOW + 20, ProcessEventKind::Fork { parent: Pid(7) }));
    assert_eq!(swap.walked(8, NOW + 21, old), (true, false), "it is not known what is there");

    swap.fake.add(8, (NOW + 20) / 10, &anonymous(0x5000));
    swap.table.refresh(Pid(8), at(NOW + 30), &[Swap::HERE]);
    assert_ne!(epoch(&swap.table, 8, NOW + 30), old);
    assert_eq!(swap.walked(8, NOW + 21, old), (true, true));
}

#[test]
fn after_lost_reports_of_mappings_the_next_rescan_reads_all() {
    let mut swap = Swap::new();
    swap.table.on_code_mappings_lost();
    swap.write("b.so");
    swap.table.tick(at(NOW + 5000));
    assert_eq!(swap.table.stats().maps_read, 1, "not at once");
    swap.table.tick(at(NOW + 10_000));
    assert_eq!(swap.table.stats().maps_read, 2);
    swap.table.tick(at(NOW + 20_000));
    assert_eq!((swap.table.stats().maps_read, swap.table.stats().rescans), (2, 2));
}
