use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::super::{Proc, ProcessTable, TableLimits};
use super::*;
use crate::decode::{BootTime, Pid};

/// A program with span-marker's note, filled in as it is told; its variable has another name. It
/// says where that is, and waits for the end of its stdin.
const NOTED: &str = r#"
#include <stdint.h>
#include <stdio.h>
#ifndef MAGIC
#define MAGIC "SPANMRK1"
#endif
#ifndef FLAGS
#define FLAGS 1
#endif
__thread void *a_variable;
__attribute__((visibility("hidden"), used))
struct { char magic[8]; uint32_t abi, flags; int64_t tp_offset; uint64_t reserved; }
    info = {MAGIC, 1, 0, 0, 0};
__attribute__((visibility("hidden"), used)) void hook(void) {}
__asm__(".pushsection .note.span_marker,\"a\",%note\n .balign 4\n .long 12, 16, 1\n"
        ".asciz \"span-marker\"\n .balign 4\n .quad info - .\n .quad hook - .\n .popsection");
int main(void) {
    info.tp_offset = (char *)&a_variable - (char *)__builtin_thread_pointer();
    info.flags = FLAGS;
    printf("%ld\n", (long)info.tp_offset);
    fflush(stdout);
    getchar();
    return 0;
}
"#;

struct Noted {
    child: Child,
    tp_offset: i64,
    folder: TempDir,
}

impl Noted {
    fn start(flags: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let (source, program) = (folder.path().join("noted.c"), folder.path().join("noted"));
        fs::write(&source, NOTED).unwrap();
        let mut compiler = Command::new("cc");
        let status = compiler.args(["-s", "-o"]).args([&program, &source]).args(flags).status();
        assert!(status.unwrap().success(), "{flags:?}");
        let mut command = Command::new(program);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, tp_offset: line.trim().parse().unwrap(), folder }
    }

    /// What the table finds.
    fn slots(&self) -> Vec<FoundSlot> {
        let (pid, now) = (Pid(self.child.id()), BootTime(1));
        let mut table = ProcessTable::new(Proc::default(), TableLimits::default(), now);
        table.refresh(pid, now, &[]);
        table.slots(pid).to_vec()
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn a_note_leads_to_the_slot_of_a_stripped_program() {
    for flags in [&[][..], &["-no-pie"], &["-static"], &["-static-pie"]] {
        let noted = Noted::start(flags);
        let found = noted.slots();
        assert_eq!(found.len(), 1, "{flags:?}: {found:?}");
        assert_eq!(found[0].slot, at_distance(noted.tp_offset, SLOT_RECORD), "{flags:?}");
        assert_eq!((found[0].source, found[0].model), (SlotSource::Note, TlsModel::Published));
        let file = File::open(noted.folder.path().join("noted")).unwrap();
        assert!(span_note_of_file(&file).is_some() && span_slot_of_file(&file).is_none());
    }
}

#[test]
fn a_note_that_leads_to_nothing_good_is_none() {
    // Not filled in, or not what it should be.
    for flag in ["-DFLAGS=0", "-DFLAGS=2", "-DMAGIC=\"SPANMRK2\""] {
        assert_eq!(Noted::start(&[flag]).slots(), [], "{flag}");
    }
}

fn found(offset: i64, source: SlotSource) -> FoundSlot {
    let slot = at_distance(offset, SLOT_RECORD);
    FoundSlot { slot, source, model: TlsModel::LocalExec, file: None, variable: 0 }
}

#[test]
fn the_kernel_is_told_all_slots_in_their_order() {
    assert_eq!(FoundSlots::default().to_control(), None);
    let list = vec![found(-8, SlotSource::Note), found(-16, SlotSource::SymbolTable)];
    let slots = FoundSlots { list, announced: false }.to_control().unwrap().slots;
    let offsets = slots.map(|slot| (slot.offset, slot.format));
    assert_eq!(offsets, [(-8, SLOT_RECORD), (-16, SLOT_RECORD), (0, 0), (0, 0)]);
}

#[test]
fn slots_count_by_who_tells_once_each_and_only_so_many() {
    use SlotSource::{DynamicSymbol, Note, ProcessContext, SymbolTable};
    let mut list = vec![
        found(-8, SymbolTable),
        found(-16, DynamicSymbol),
        found(-24, Note),
        found(-16, ProcessContext),
        found(-24, SymbolTable),
        found(-32, SymbolTable),
        found(-40, SymbolTable),
    ];
    assert!(rank(&mut list));
    let ranked: Vec<_> = list.iter().map(|it| (it.slot.offset, it.source)).collect();
    let expected = [(-16, ProcessContext), (-24, Note), (-8, SymbolTable), (-32, SymbolTable)];
    assert_eq!(ranked, expected);
    assert!(!rank(&mut list), "no more than there is room for");
}
