//! Files with span-marker's hook, and what processes say by it.

use std::{fs, path::Path, process::Command};

use profiler_common::span::{SpanSlot, SpanSlots};

use super::fake_proc::{FakeProc, maps_line};
use super::looks::SECOND;
use super::*;
use crate::decode::{BootTime, Pid, ProcessEvent, ProcessEventKind};

const MS: u64 = 1_000_000;
const NOW: u64 = 60_000;

fn at(ms: u64) -> BootTime {
    BootTime(ms * MS)
}

fn event(ms: u64, kind: ProcessEventKind) -> ProcessEvent {
    ProcessEvent { at: at(ms), pid: Pid(7), kind }
}

fn hook(tp_offset: i64) -> ProcessEventKind {
    ProcessEventKind::SpanSlot { tp_offset }
}

fn slots(offsets: &[i64]) -> SpanSlots {
    let mut offsets = offsets.iter().map(|offset| SpanSlot::at_thread_pointer(*offset));
    let mut slots = SpanSlots::one(offsets.next().unwrap());
    offsets.for_each(|slot| _ = slots.add(slot));
    slots
}

fn set(offsets: &[i64]) -> [ControlFact; 1] {
    [ControlFact::SetSlots { pid: Pid(7), slots: slots(offsets) }]
}

/// A process, of which only its hook tells where its slot is.
fn one_process(fake: &FakeProc) -> ProcessTable {
    fake.add(7, 5000, "1000-2000 r-xp 00000000 00:00 0\n");
    let limits = TableLimits { rescan_every_ns: SECOND, ..TableLimits::default() };
    ProcessTable::scan(fake.proc(), limits, at(NOW)).unwrap()
}

#[test]
fn what_a_process_has_said_is_not_cleared_by_looking() {
    let fake = FakeProc::new();
    let mut table = one_process(&fake);
    table.on_event(event(NOW, ProcessEventKind::Exec));
    table.on_event(event(NOW + 3, hook(-64)));
    assert_eq!(table.stats().looks, 1, "it is looked at at once");
    assert_eq!(table.take_control(), set(&[-64]));
    for ms in 0..3000 {
        table.tick(at(NOW + ms));
    }
    assert!(table.stats().rescanned > 0);
    assert_eq!(table.take_control(), []);
    assert_eq!(table.stats().slots_by_hook, 1);
    assert_eq!(table.stats().slots_by_hook_after, SlotDelays { ms_5: 1, ..SlotDelays::default() });
}

#[test]
fn a_library_says_it_too_and_four_places_are_kept() {
    let fake = FakeProc::new();
    let mut table = one_process(&fake);
    for offset in [-8, -16, -24, -32, -40] {
        table.on_event(event(NOW, hook(offset)));
    }
    assert_eq!(table.take_control(), set(&[-8, -16, -24, -32]));
}

#[test]
fn another_program_and_a_child_have_said_nothing_yet() {
    let fake = FakeProc::new();
    let mut table = one_process(&fake);
    for (ms, next) in
        [(10, ProcessEventKind::Exec), (900, ProcessEventKind::Fork { parent: Pid(1) })]
    {
        table.on_event(event(NOW + ms, hook(-64)));
        assert_eq!(table.take_control(), set(&[-64]));
        table.on_event(event(NOW + ms + 1, next));
        table.tick(at(NOW + ms + 300));
        assert_eq!(table.take_control(), [ControlFact::ClearSlot { pid: Pid(7) }]);
    }
    // A child of which the kernel side has already heard is told again: the order is not known.
    table.on_event(event(NOW + 2000, ProcessEventKind::Fork { parent: Pid(1) }));
    table.on_event(event(NOW + 2001, hook(-8)));
    assert_eq!(table.take_control(), set(&[-8]));
}

#[test]
fn a_process_of_the_same_id_keeps_what_it_has_said_itself() {
    let fake = FakeProc::new();
    let mut table = one_process(&fake);
    table.on_event(event(NOW, hook(-64)));
    table.take_control();
    // Neither the end of the one nor the start of the other was reported.
    fake.add(7, 6100, "1000-2000 r-xp 00000000 00:00 0\n");
    table.on_event(event(61_005, hook(-8)));
    assert_eq!(table.stats().pids_reused, 1);
    assert_eq!(table.take_control(), set(&[-64, -8]));
}

#[test]
fn where_too_many_look_at_once_it_waits() {
    let fake = FakeProc::new();
    fake.add(7, 5000, "1000-2000 r-xp 00000000 00:00 0\n");
    let limits = TableLimits { looks_per_second: 1, reads_per_second: 1, ..TableLimits::default() };
    let mut table = ProcessTable::scan(fake.proc(), limits, at(NOW)).unwrap();
    let events = (0..10).map(|ms| event(NOW + ms, hook(-8 * i64::try_from(ms + 1).unwrap())));
    events.for_each(|event| table.on_event(event));
    // Of each allowance one more: what is left of the last one counts.
    assert_eq!(table.stats().looks, 4);
    table.tick(at(NOW + 2000));
    assert!(table.stats().looks > 4);
}

/// `tests/fixtures/hooked.c`, which knows the note by its description only.
fn compile(to: &Path) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/hooked.c");
    let status = Command::new("cc").args(["-O1", "-o"]).arg(to).arg(source).status().unwrap();
    assert!(status.success());
}

#[test]
fn files_with_a_hook_are_told_up_to_a_limit() {
    let fake = FakeProc::new();
    fake.add(7, 1, "");
    let registry = ElfRegistry::new(ElfLimits { files: 4, hooks: 2, ..ElfLimits::default() });
    let process = fake.proc().process(Pid(7)).unwrap();
    let find = |name: &str| {
        let path = fake.path(7, "root").join(name);
        let maps = maps_line(0x1000, &path, &format!("/{name}"));
        let maps = maps::Maps::parse(maps.as_bytes());
        match registry.backing(&process, &maps.executable[0]) {
            Backing::Elf(id) => id,
            other => panic!("{other:?}"),
        }
    };
    let told = || -> Vec<_> {
        let name = |fact| match fact {
            HookFact::Attach { offset, .. } if offset > 0 => "attach",
            HookFact::Detach { over_limit: true } => "over limit",
            HookFact::Detach { over_limit: false } => "forgotten",
            HookFact::Attach { .. } => "at zero",
        };
        registry.take_hooks().into_iter().map(|(id, fact)| (id, name(fact))).collect()
    };
    compile(&fake.path(7, "root/a"));
    for other in ["b", "c"] {
        fs::copy(fake.path(7, "root/a"), fake.path(7, "root").join(other)).unwrap();
    }
    fake_proc::write_elf(&fake.path(7, "root/none"));
    let (none, a, b) = (find("none"), find("a"), find("b"));
    assert_eq!(told(), [(a, "attach"), (b, "attach")]);
    assert_eq!((find("a"), told()), (a, vec![]), "it is told once");
    let c = find("c");
    assert_eq!(told(), [(b, "over limit"), (c, "attach")], "`a` was used after `b`");
    // What is forgotten has no probe any more; `none` and `b` are used, `a` is not.
    for more in ["d", "e"] {
        find("none");
        find("b");
        fake_proc::write_elf(&fake.path(7, "root").join(more));
        find(more);
    }
    assert_eq!(told(), [(a, "forgotten"), (c, "forgotten")]);
    assert!(registry.knows(none));
}
