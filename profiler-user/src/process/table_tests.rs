//! The table on a fake `/proc` and a fake clock.

use std::fs;

use super::fake_proc::FakeProc;
use super::looks::SECOND;
use super::*;
use crate::decode::{Addr, BootTime, Pid, ProcessEvent, ProcessEventKind};

const MS: u64 = 1_000_000;

pub(super) fn at(ms: u64) -> BootTime {
    BootTime(ms * MS)
}

/// Long after boot, as on any host: `start_time` 5000 is 50 s.
pub(super) const NOW: u64 = 60_000;

pub(super) fn table(fake: &FakeProc, limits: TableLimits) -> ProcessTable {
    ProcessTable::scan(fake.proc(), limits, at(NOW)).unwrap()
}

pub(super) fn event(pid: u32, ms: u64, kind: ProcessEventKind) -> ProcessEvent {
    ProcessEvent { at: at(ms), pid: Pid(pid), kind }
}

pub(super) fn anonymous(start: u64) -> String {
    format!("{start:x}-{:x} r-xp 00000000 00:00 0\n", start + 0x1000)
}

pub(super) fn epoch(table: &ProcessTable, pid: u32, ms: u64) -> u64 {
    table.view(Pid(pid), at(ms)).unwrap().snapshot.epoch()
}

fn knows(table: &ProcessTable, pid: u32, ms: u64, addr: u64) -> bool {
    table.view(Pid(pid), at(ms)).unwrap().snapshot.find(Addr(addr)).is_some()
}

#[test]
fn scans_processes_but_not_kernel_threads() {
    let fake = FakeProc::new();
    fake.add(7, 5000, &anonymous(0x1000));
    fake.add(8, 10, "");
    fake.set_stat(8, 'S', 0x0020_0000, 10, 0);
    fs::create_dir(fake.proc().root.join("sys")).unwrap();
    let mut table = table(&fake, TableLimits::default());
    let process = table.view(Pid(7), at(NOW)).unwrap();
    assert_eq!((&*process.name, process.start_time), ("fake", 5000));
    assert_eq!(process.service.name, "unknown_service:fake");
    assert_eq!(process.unreadable, None);
    assert!(table.view(Pid(8), at(NOW)).is_none());

    table.refresh(Pid(8), at(NOW), &[Addr(0x9000)]);
    let kernel = table.view(Pid(8), at(NOW)).unwrap();
    assert_eq!((&*kernel.name, &*kernel.service.name), ("fake", "[kernel]"));
    assert_eq!(kernel.unreadable, None);
    let read = table.stats().reads_for_samples;
    table.refresh(Pid(8), at(NOW + 1000), &[Addr(0x9000)]);
    assert_eq!(table.stats().reads_for_samples, read, "there is nothing to find");
}

#[test]
fn an_unknown_address_is_a_reason_to_read_but_not_each_time() {
    let fake = FakeProc::new();
    fake.add(7, 5000, &anonymous(0x1000));
    let mut table = table(&fake, TableLimits::default());
    table.refresh(Pid(7), at(NOW), &[Addr(0x1000), Addr(0x1fff)]);
    assert_eq!(table.stats().reads_for_samples, 0);

    let first = epoch(&table, 7, NOW);
    table.refresh(Pid(7), at(NOW + 1), &[Addr(0x5000)]);
    assert_eq!(table.stats().reads_for_samples, 1);
    assert_eq!(epoch(&table, 7, NOW + 1), first, "nothing changed");

    fs::write(fake.path(7, "maps"), anonymous(0x1000) + &anonymous(0x5000)).unwrap();
    table.refresh(Pid(7), at(NOW + 50), &[Addr(0x5000)]);
    assert_eq!(table.stats().reads_backed_off, 1);
    table.refresh(Pid(7), at(NOW + 101), &[Addr(0x5000)]);
    assert!(knows(&table, 7, NOW + 101, 0x5000));
    assert_ne!(epoch(&table, 7, NOW + 101), first);
    // The new mappings are newer than the last read; a sample before that has the old ones.
    assert_eq!(epoch(&table, 7, NOW), first);

    // It was worth it: the next one does not wait.
    fs::write(fake.path(7, "maps"), anonymous(0x7000)).unwrap();
    table.refresh(Pid(7), at(NOW + 102), &[Addr(0x7000)]);
    assert!(knows(&table, 7, NOW + 102, 0x7000));
}

#[test]
fn a_process_that_is_gone_is_read_once_in_a_while() {
    let fake = FakeProc::new();
    fake.add(7, 5000, &anonymous(0x1000));
    let mut table = table(&fake, TableLimits::default());
    table.refresh(Pid(9), at(NOW), &[]);
    assert_eq!(table.view(Pid(9), at(NOW)).unwrap().unreadable, Some(Unreadable::Gone));
    for ms in 1..1000 {
        table.refresh(Pid(9), at(NOW + ms), &[]);
    }
    assert_eq!(table.stats().unreadable_gone, 1);

    // Gone between its status and its mappings.
    fake.add(10, 5000, "");
    table.refresh(Pid(10), at(NOW), &[]);
    assert_eq!(table.view(Pid(10), at(NOW)).unwrap().unreadable, Some(Unreadable::Gone));
    fs::remove_file(fake.path(7, "maps")).unwrap();
    table.refresh(Pid(7), at(NOW + 1), &[Addr(0x9000)]);
    assert!(knows(&table, 7, NOW + 1, 0x1000), "what was known stays known");
}

#[test]
fn a_process_without_code_is_read_again() {
    let fake = FakeProc::new();
    let stack = "7000-8000 rw-p 00000000 00:00 0   [stack]\n\
                 ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0   [vsyscall]\n";
    fake.add(7, 5000, stack);
    let mut table = table(&fake, TableLimits::default());
    assert_eq!(table.view(Pid(7), at(NOW)).unwrap().unreadable, Some(Unreadable::NotRead));
    assert_eq!(table.stats().unreadable_without_code, 1);
    fs::write(fake.path(7, "maps"), anonymous(0x1000)).unwrap();
    table.refresh(Pid(7), at(NOW + 1), &[]);
    assert!(knows(&table, 7, NOW + 1, 0x1000));
}

#[test]
fn an_exec_ends_what_was_known_but_not_before_it() {
    let fake = FakeProc::new();
    fake.add(7, 5000, &anonymous(0x1000));
    let mut table = table(&fake, TableLimits::default());
    let old = epoch(&table, 7, NOW);
    fs::write(fake.path(7, "maps"), anonymous(0x5000)).unwrap();
    table.on_event(event(7, NOW + 10, ProcessEventKind::Exec));
    table.refresh(Pid(7), at(NOW + 9), &[Addr(0x9000)]);
    assert_eq!(table.stats().reads_for_samples, 0, "nothing to learn of the old program");
    table.refresh(Pid(7), at(NOW + 10), &[]);
    assert_eq!(epoch(&table, 7, NOW + 9), old);
    assert!(knows(&table, 7, NOW + 10, 0x5000) && !knows(&table, 7, NOW + 10, 0x1000));

    // Some seconds later nobody asks for the old one.
    table.on_event(event(7, NOW + 20_000, ProcessEventKind::Exec));
    table.tick(at(NOW + 40_000));
    table.on_event(event(7, NOW + 40_000, ProcessEventKind::Exec));
    assert_ne!(epoch(&table, 7, NOW + 9), old);
}

#[test]
fn after_an_exec_it_is_looked_at_five_times() {
    let fake = FakeProc::new();
    fake.add(7, 5000, &anonymous(0x1000));
    let limits = TableLimits { rescan_every_ns: 1000 * SECOND, ..TableLimits::default() };
    let mut table = table(&fake, limits);
    table.on_event(event(7, NOW, ProcessEventKind::Exec));
    let mut looks = Vec::new();
    for ms in 0..2000 {
        let before = table.stats().looks;
        table.tick(at(NOW + ms));
        if table.stats().looks > before {
            looks.push(ms);
        }
    }
    assert_eq!(looks, [5, 20, 80, 150, 1000]);
}

#[test]
fn a_child_is_its_parent_until_it_is_read() {
    let fake = FakeProc::new();
    fake.add(7, 5000, &anonymous(0x1000));
    let mut table = table(&fake, TableLimits::default());
    let fork = ProcessEventKind::Fork { parent: Pid(7) };
    table.on_event(event(8, NOW, fork));
    assert_eq!(epoch(&table, 8, NOW), epoch(&table, 7, NOW));
    table.refresh(Pid(8), at(NOW), &[Addr(0x1000)]);
    assert_eq!(table.stats().reads_for_samples, 0);
    let start = NOW / 10;
    fake.add(8, start, &(anonymous(0x1000) + &anonymous(0x3000)));
    table.refresh(Pid(8), at(NOW + 5), &[Addr(0x3000)]);
    assert!(knows(&table, 8, NOW + 5, 0x3000));
    assert_eq!(table.view(Pid(8), at(NOW + 5)).unwrap().start_time, start);

    // A fork that is reported after the child was read is no news.
    let known = epoch(&table, 8, NOW + 6);
    table.on_event(event(8, NOW + 3, fork));
    assert_eq!(epoch(&table, 8, NOW + 6), known);
    assert!(knows(&table, 8, NOW, 0x3000), "read, it is known since the fork");
    // One of another process of the same id is.
    table.on_event(event(8, NOW + 3000, fork));
    assert_eq!(epoch(&table, 8, NOW + 3000), epoch(&table, 7, NOW));
    assert_eq!(epoch(&table, 8, NOW + 6), known);

    // Of a parent that is not known, nothing is inherited.
    table.on_event(event(20, NOW, ProcessEventKind::Fork { parent: Pid(19) }));
    let child = table.view(Pid(20), at(NOW)).unwrap();
    assert_eq!(child.unreadable, Some(Unreadable::NotRead));
}

#[test]
fn another_process_of_the_same_id_is_noticed() {
    let fake = FakeProc::new();
    fake.add(7, 5000, &anonymous(0x1000));
    fs::write(fake.path(7, "environ"), "OTEL_SERVICE_NAME=old\0").unwrap();
    let mut table = table(&fake, TableLimits::default());
    fake.add(7, 6100, &anonymous(0x1000));
    fs::write(fake.path(7, "environ"), "OTEL_SERVICE_NAME=new\0").unwrap();
    table.tick(at(NOW + 10_000));
    let service = |ms| table.view(Pid(7), at(ms)).unwrap().service.name.clone();
    assert_eq!((service(NOW), service(NOW + 10_000)), ("old".into(), "new".into()));
    assert_eq!(table.stats().pids_reused, 1);
}

#[test]
fn a_process_that_exited_is_kept_for_late_samples() {
    let fake = FakeProc::new();
    fake.add(7, 5000, &anonymous(0x1000));
    let mut table = table(&fake, TableLimits::default());
    table.on_event(event(7, NOW, ProcessEventKind::Exit));
    fake.remove(7);
    for ms in (0..10_000).step_by(10) {
        table.tick(at(NOW + ms));
        table.refresh(Pid(7), at(NOW), &[Addr(0x9000)]);
        assert!(knows(&table, 7, NOW, 0x1000));
    }
    table.tick(at(NOW + 12_000));
    assert!(table.view(Pid(7), at(NOW)).is_none());
    assert_eq!(table.stats().processes_exited, 1);
}

#[test]
fn a_process_whose_first_thread_exited_goes_on() {
    let fake = FakeProc::new();
    fake.add(7, 5000, &anonymous(0x1000));
    let mut table = table(&fake, TableLimits::default());
    table.on_event(event(7, NOW, ProcessEventKind::Exit));
    // Its own files are empty, those of another thread are not.
    fs::write(fake.path(7, "maps"), "").unwrap();
    fs::create_dir_all(fake.path(7, "task/9")).unwrap();
    fs::write(fake.path(7, "task/9/maps"), anonymous(0x3000)).unwrap();
    for ms in (0..40_000).step_by(100) {
        table.tick(at(NOW + ms));
    }
    table.refresh(Pid(7), at(NOW + 40_000), &[Addr(0x3000)]);
    assert!(knows(&table, 7, NOW + 40_000, 0x3000));
}

#[test]
fn a_rescan_reads_the_mappings_of_what_grew() {
    let fake = FakeProc::new();
    for pid in 100..110 {
        fake.add(pid, 5000, &anonymous(0x1000));
    }
    let mut table = table(&fake, TableLimits { rescan_per_tick: 4, ..TableLimits::default() });
    assert_eq!(table.stats().maps_read, 10);
    fake.set_stat(103, 'S', 0, 5000, 8192);
    fs::write(fake.path(103, "maps"), anonymous(0x3000)).unwrap();
    fake.add(200, 5000, &anonymous(0x1000));
    table.tick(at(NOW + 10_000));
    assert_eq!(table.stats().rescanned, 4, "a part of it in each tick");
    assert_eq!(table.next_due(), at(NOW + 10_000));
    table.tick(at(NOW + 10_001));
    table.tick(at(NOW + 10_002));
    assert_eq!((table.stats().rescanned, table.stats().maps_read), (11, 12));
    assert!(knows(&table, 103, NOW + 10_002, 0x3000));
    assert!(table.view(Pid(200), at(NOW)).is_some());
    // One in six reads all.
    for round in 2..=6 {
        for ms in 0..5 {
            table.tick(at(NOW + round * 10_000 + ms));
        }
    }
    assert_eq!(table.stats().maps_read, 12 + 11);
}

#[test]
fn an_exec_storm_costs_no_more_than_is_allowed() {
    let fake = FakeProc::new();
    let limits = TableLimits {
        looks_per_second: 10,
        reads_per_second: 10,
        rescan_every_ns: 1000 * SECOND,
        ..TableLimits::default()
    };
    fake.add(1, 1, &anonymous(0x1000));
    let mut table = table(&fake, limits);
    for pid in 10..6010 {
        table.on_event(event(pid, NOW, ProcessEventKind::Exec));
        table.refresh(Pid(pid), at(NOW), &[]);
    }
    assert_eq!(table.stats().looks_dropped, 6000 - 4096);
    assert_eq!(table.stats().reads_for_samples, 11);
    assert_eq!(table.stats().reads_over_allowance, 6000 - 11);
    let waiting = table.view(Pid(5000), at(NOW)).unwrap();
    assert_eq!(waiting.unreadable, Some(Unreadable::NotRead));
    for ms in 0..1000 {
        table.tick(at(NOW + ms));
    }
    assert!(table.stats().looks <= 21, "{:?}", table.stats());
}

#[test]
fn processes_and_mappings_are_bounded() {
    let fake = FakeProc::new();
    for pid in 100..120 {
        fake.add(pid, 5000, &(anonymous(0x1000) + &anonymous(0x3000)));
    }
    let limits = TableLimits { processes: 5, ..TableLimits::default() };
    let mut small = table(&fake, limits.clone());
    assert_eq!(small.stats().processes_evicted, 15);
    small.refresh(Pid(100), at(NOW), &[]);
    small.tick(at(NOW + 10_000));
    assert!(small.view(Pid(100), at(NOW)).is_some(), "what is sampled stays");
    assert_eq!(small.stats().rescan_table_full, 15);

    let small = table(&fake, TableLimits { mappings: 6, ..TableLimits::default() });
    assert_eq!(small.stats().processes_evicted, 17);
}

#[test]
fn a_process_that_is_gone_is_told_once() {
    let fake = FakeProc::new();
    fake.add(7, 5000, &anonymous(0x1000));
    let mut table = table(&fake, TableLimits::default());
    assert_eq!(table.take_control(), []);
    table.on_event(event(7, NOW, ProcessEventKind::Exit));
    fake.remove(7);
    for ms in [30, 2000, 4000] {
        table.tick(at(NOW + ms));
    }
    assert_eq!(table.take_control(), [ControlFact::Gone { pid: Pid(7) }]);
    table.tick(at(NOW + 20_000));
    assert_eq!(table.take_control(), []);
}

#[test]
fn after_lost_events_nothing_that_was_known_is_believed() {
    let fake = FakeProc::new();
    fake.add(7, 5000, &anonymous(0x1000));
    let mut table = table(&fake, TableLimits::default());
    let service =
        |table: &ProcessTable| table.view(Pid(7), at(NOW + 99_999)).unwrap().service.name.clone();
    assert_eq!(service(&table), "unknown_service:fake");
    // It runs another program, and nobody said so.
    std::os::unix::fs::symlink("/opt/shop", fake.path(7, "exe")).unwrap();
    fake.add(8, 6000, &anonymous(0x1000));
    table.tick(at(NOW + 1));
    assert_eq!(service(&table), "unknown_service:fake");
    table.on_events_lost();
    table.tick(at(NOW + 2));
    assert_eq!(service(&table), "unknown_service:shop");
    assert!(table.view(Pid(8), at(NOW + 2)).is_some(), "a process that was missed is found");
    // And one whose end was missed is forgotten.
    fake.remove(7);
    table.on_events_lost();
    table.tick(at(NOW + 3));
    table.tick(at(NOW + 30_000));
    assert!(table.view(Pid(7), at(NOW + 30_000)).is_none());
}
