//! The table on real processes.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use profiler_common::span::{SpanSlot, SpanSlots};
use prost::Message as _;
use tempfile::TempDir;

use super::context_proto::{
    AnyValue, ArrayValue, KeyValue, ProcessContext, Resource, any_value::Value,
};
use super::*;
use crate::decode::{Addr, BootTime, Pid, ProcessEvent, ProcessEventKind};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

/// Publishes the payload in the file that is its argument, then does what it is told.
const PUBLISHER: &str = r#"
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>
struct header { char signature[8]; uint32_t version, size; uint64_t published_at, payload; };
static unsigned char payload[1 << 18];
__thread void *otel_thread_ctx_v1;
static size_t load(const char *path) {
    FILE *file = fopen(path, "rb");
    size_t size = fread(payload, 1, sizeof payload, file);
    fclose(file);
    return size;
}
static void publish(const char *path, int protection, uint64_t at) {
    int fd = memfd_create("OTEL_CTX", MFD_CLOEXEC);
    struct header header = {"", 2, load(path), at, (uintptr_t)payload};
    memcpy(header.signature, "OTEL_CTX", 8);
    if (write(fd, &header, sizeof header) != sizeof header) exit(2);
    if (mmap(0, sizeof header, protection, MAP_PRIVATE, fd, 0) == MAP_FAILED) exit(3);
    close(fd);
}
int main(int argc, char **argv) {
    char line[512];
    printf("%ld %lx\n", (long)((char *)&otel_thread_ctx_v1 - (char *)__builtin_thread_pointer()),
           (long)main);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        char *argument = line + 2;
        argument[strcspn(argument, "\n")] = 0;
        switch (line[0]) {
        case 'p': /* publish */
            publish(argument, PROT_READ | PROT_WRITE, 1);
            break;
        case 'x': /* publish in executable memory */
            publish(argument, PROT_READ | PROT_WRITE | PROT_EXEC, 1);
            break;
        case 'z': /* publish, and be in the middle of it for ever */
            publish(argument, PROT_READ | PROT_WRITE, 0);
            break;
        case 'e': /* run another program */
            execlp(argument, argument, "1000", (char *)0);
            return 4;
        case 'f': { /* a child that waits, as long as its parent lives */
            int parent = getpid(), pid = fork();
            if (pid == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                /* There is no signal for a parent that is gone already. */
                if (getppid() == parent) pause();
                return 0;
            }
            printf("%d\n", pid);
            fflush(stdout);
            continue;
        }
        }
        puts("done");
        fflush(stdout);
    }
    return 0;
}
"#;

struct Publisher {
    folder: TempDir,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    tp_offset: i64,
    main: Addr,
}

impl Publisher {
    fn start(flags: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let source = folder.path().join("publisher.c");
        let program = folder.path().join("publisher");
        fs::write(&source, PUBLISHER).unwrap();
        let mut compiler = Command::new("cc");
        let status = compiler.args(flags).arg("-o").args([&program, &source]).status().unwrap();
        assert!(status.success());
        let mut child = Command::new(&program)
            .env_clear()
            .env("OTEL_SERVICE_NAME", "told")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let (tp_offset, main) = line.trim().split_once(' ').unwrap();
        let tp_offset = tp_offset.parse().unwrap();
        let main = Addr(u64::from_str_radix(main, 16).unwrap());
        Self { folder, child, stdin, stdout, tp_offset, main }
    }

    fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("publisher")
    }

    fn tell(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").unwrap();
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn publish(&mut self, how: char, payload: &[u8]) {
        let path = self.folder.path().join("payload");
        fs::write(&path, payload).unwrap();
        self.tell(&format!("{how} {}", path.display()));
        assert_eq!(self.answer(), "done");
    }

    /// Writes the time stamp of what it published.
    fn poke_published_at(&self, published_at: u64) {
        let pid = self.pid().0;
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let line = maps.lines().find(|line| line.contains("OTEL_CTX")).unwrap();
        let start = u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
        let memory = fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/mem")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&memory, &published_at.to_ne_bytes(), start + 16)
            .unwrap();
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A table and its clock.
struct Watch {
    table: ProcessTable,
    now: BootTime,
}

impl Watch {
    fn new() -> Self {
        let now = BootTime(1000 * SECOND);
        let table = ProcessTable::new(Proc::default(), TableLimits::default(), now);
        Self { table, now }
    }

    fn event(&mut self, pid: Pid, kind: ProcessEventKind) {
        self.table.on_event(ProcessEvent { at: self.now, pid, kind });
    }

    fn pass(&mut self, ns: u64) {
        self.now = BootTime(self.now.0 + ns);
        self.table.tick(self.now);
    }

    /// What a look after an `exec` finds.
    fn look(&mut self, pid: Pid) {
        self.event(pid, ProcessEventKind::Exec);
        self.pass(5 * MS);
    }

    fn process(&self, pid: Pid) -> &Process {
        self.table.view(pid, self.now).unwrap()
    }
}

fn text(text: &str) -> AnyValue {
    AnyValue { value: Some(Value::StringValue(text.into())) }
}

fn attribute(key: &str, value: AnyValue) -> KeyValue {
    KeyValue { key: key.into(), value: Some(value) }
}

fn context(service: &str, tp_offset: Option<i64>) -> Vec<u8> {
    let keys = ArrayValue { values: vec![text("local_root_span_id"), text("span_name")] };
    let mut attributes = vec![
        attribute("threadlocal.schema_version", text("tlsdesc_v1_dev")),
        attribute(
            "threadlocal.attribute_key_map",
            AnyValue { value: Some(Value::ArrayValue(keys)) },
        ),
    ];
    attributes.extend(tp_offset.map(|offset| {
        attribute("span_marker.tp_offset", AnyValue { value: Some(Value::IntValue(offset)) })
    }));
    let resource = vec![
        attribute("service.name", text(service)),
        attribute("service.namespace", text("shop")),
    ];
    let resource = Some(Resource { attributes: resource });
    ProcessContext { resource, attributes }.encode_to_vec()
}

fn set(pid: Pid, tp_offset: i64) -> ControlFact {
    ControlFact::SetSlots { pid, slots: SpanSlots::one(SpanSlot::at_thread_pointer(tp_offset)) }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

fn executable(pid: Pid) -> Option<PathBuf> {
    fs::read_link(Path::new("/proc").join(pid.0.to_string()).join("exe")).ok()
}

#[test]
fn finds_what_a_process_publishes() {
    let mut publisher = Publisher::start(&["-s"]);
    let pid = publisher.pid();
    let mut watch = Watch::new();
    watch.look(pid);
    assert_eq!(watch.process(pid).service.name, "told");
    assert_eq!(watch.table.take_control(), []);

    publisher.publish('p', &context("checkout", Some(-4096)));
    watch.pass(15 * MS);
    let process = watch.process(pid);
    assert_eq!(process.service.name, "checkout");
    assert_eq!(process.service.namespace.as_deref(), Some("shop"));
    let keys: Vec<&str> = process.attribute_keys.iter().map(AsRef::as_ref).collect();
    assert_eq!(keys, ["local_root_span_id", "span_name"]);
    assert_eq!(watch.table.take_control(), [set(pid, -4096)]);
    assert_eq!(watch.table.take_control(), []);

    // An update is found by the slow rescan; one that is not complete is not.
    let looked = watch.process(pid).clone();
    publisher.poke_published_at(0);
    watch.table.rescan.queue.push_back(pid);
    watch.pass(MS);
    assert_eq!(watch.table.stats().context_torn, 1);
    assert!(watch.process(pid).says_the_same(&looked));
    publisher.poke_published_at(2);
    watch.table.rescan.queue.push_back(pid);
    watch.pass(MS);
    assert_eq!(watch.table.stats().context_torn, 1);
    assert_eq!(watch.table.take_control(), []);

    let pid_before = pid;
    drop(publisher);
    watch.event(pid_before, ProcessEventKind::Exit);
    watch.pass(20 * MS);
    let facts = [ControlFact::Gone { pid }, ControlFact::ClearSlot { pid }];
    assert_eq!(watch.table.take_control(), facts);
    assert_eq!(watch.process(pid).service.name, "checkout", "for samples that come late");
}

#[test]
fn a_context_that_is_not_sound_is_counted() {
    let mut watch = Watch::new();
    let mut check = |how, payload: &[u8], counted: fn(&TableStats) -> u64| {
        let mut publisher = Publisher::start(&["-s"]);
        publisher.publish(how, payload);
        watch.look(publisher.pid());
        let process = watch.process(publisher.pid());
        assert_eq!((&*process.service.name, process.unreadable), ("told", None));
        let facts = watch.table.take_control();
        assert!(facts.iter().all(|fact| matches!(fact, ControlFact::Gone { .. })), "{facts:?}");
        counted(watch.table.stats())
    };
    let good = context("checkout", Some(-8));
    assert_eq!(check('x', &good, |stats| stats.context_refused), 1);
    assert_eq!(check('z', &good, |stats| stats.context_torn), 1);
    assert_eq!(check('p', &[0xff; 100], |stats| stats.context_refused), 2);
    assert_eq!(check('p', &vec![0; (64 << 10) + 1], |stats| stats.context_refused), 3);
    assert_eq!(check('p', &[], |stats| stats.context_refused), 4);
}

#[test]
fn finds_the_slot_by_the_executables_symbols() {
    for flags in [&["-rdynamic"][..], &["-rdynamic", "-no-pie", "-s"]] {
        let mut publisher = Publisher::start(flags);
        let pid = publisher.pid();
        let mut watch = Watch::new();
        watch.look(pid);
        assert_eq!(watch.table.take_control(), [set(pid, publisher.tp_offset)]);
        assert!(watch.process(pid).attribute_keys.is_empty());

        // Its context names the keys, and no offset.
        publisher.publish('p', &context("checkout", None));
        watch.pass(15 * MS);
        assert_eq!(watch.table.take_control(), []);
        assert_eq!(watch.process(pid).attribute_keys.len(), 2);
        let stats = watch.table.stats();
        assert_eq!((stats.slots_by_context, stats.slots_by_dynamic_symbol), (0, 1));
    }
}

#[test]
fn an_attribute_that_has_no_name_yet_is_looked_up_and_not_too_often() {
    let mut publisher = Publisher::start(&[]);
    let pid = publisher.pid();
    let mut watch = Watch::new();
    watch.look(pid);
    publisher.publish('p', &context("checkout", Some(-8)));
    let refresh = |watch: &mut Watch, greatest| {
        watch.table.refresh_attribute_keys(pid, watch.now, greatest);
        watch.table.stats().reads_for_attribute_keys
    };
    assert_eq!(refresh(&mut watch, 1), 1);
    assert_eq!(watch.process(pid).attribute_keys.len(), 2);
    assert_eq!(refresh(&mut watch, 1), 1, "it is known");
    // One that it never names.
    assert_eq!((0..100).map(|_| refresh(&mut watch, 2)).max(), Some(1));
    assert_eq!(watch.table.stats().reads_backed_off, 100);
    for reads in 2..6 {
        watch.now = BootTime(watch.now.0 + 10 * SECOND);
        assert_eq!(refresh(&mut watch, 255), reads);
        assert_eq!(refresh(&mut watch, 255), reads);
    }
}

#[test]
fn an_address_of_a_function_is_in_its_program() {
    let publisher = Publisher::start(&[]);
    let pid = publisher.pid();
    let mut watch = Watch::new();
    watch.table.refresh(pid, watch.now, &[publisher.main]);
    let process = watch.process(pid);
    let mapping = process.snapshot.find(publisher.main).unwrap();
    assert_eq!(mapping.backing, Backing::Elf(process.main_elf.unwrap()));
    // The symbol table of the file, read by another reader, says where `main` is.
    let bytes = fs::read(publisher.program()).unwrap();
    use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};
    let elf = object::File::parse(bytes.as_slice()).unwrap();
    let main = elf.symbols().find(|symbol| symbol.name() == Ok("main")).unwrap().address();
    let segment = elf
        .segments()
        .find(|segment| (segment.address()..segment.address() + segment.size()).contains(&main))
        .unwrap();
    let expected = main - segment.address() + segment.file_range().0;
    assert_eq!(mapping.file_offset_of(publisher.main), expected);
}

#[test]
fn an_exec_gives_another_program_from_its_time_on() {
    let mut publisher = Publisher::start(&["-rdynamic"]);
    let pid = publisher.pid();
    let mut watch = Watch::new();
    watch.look(pid);
    assert_eq!(watch.table.take_control().len(), 1);
    let before = watch.now;
    publisher.tell("e sleep");
    let program = publisher.program();
    wait_until("the other program", || executable(pid).is_some_and(|exe| exe != program));
    watch.pass(MS);
    watch.event(pid, ProcessEventKind::Exec);
    assert_eq!(watch.table.take_control(), [ControlFact::ClearSlot { pid }]);
    assert_eq!(watch.process(pid).unreadable, Some(Unreadable::NotRead));
    // It can still be in the middle of its exec: without code, it is read again.
    wait_until("its code", || {
        watch.pass(200 * MS);
        watch.table.refresh(pid, watch.now, &[]);
        watch.process(pid).unreadable.is_none()
    });
    let after = watch.process(pid);
    let path = executable(pid).unwrap();
    assert_eq!(&*after.name, path.file_name().unwrap().to_str().unwrap());
    assert_eq!(after.unreadable, None);
    let old = watch.table.view(pid, before).unwrap();
    assert_eq!(&*old.name, "publisher");
    assert!(old.snapshot.find(publisher.main).is_some());
    assert!(after.snapshot.find(publisher.main).is_none());
}

#[test]
fn a_child_has_its_parents_program_but_not_its_context() {
    let mut publisher = Publisher::start(&[]);
    let parent = publisher.pid();
    let mut watch = Watch::new();
    // The mapping stays in the child: `MADV_DONTFORK` is the writer's duty.
    watch.look(parent);
    publisher.tell("f -");
    let child = Pid(publisher.answer().parse().unwrap());
    watch.event(child, ProcessEventKind::Fork { parent });
    let process = watch.process(child);
    assert!(process.snapshot.find(publisher.main).is_some());
    assert_eq!((process.start_time, &*process.service.name), (0, "told"));
    watch.pass(150 * MS);
    assert!(watch.process(child).start_time > 0);
}

/// The program file is gone, its process is not: the kernel's link still leads to it, where that
/// is permitted; otherwise it is a counted reason.
#[test]
fn a_deleted_program_is_read_while_it_runs() {
    let publisher = Publisher::start(&["-Wl,--build-id=0x0123456789abcdef"]);
    let pid = publisher.pid();
    fs::remove_file(publisher.program()).unwrap();
    let mut watch = Watch::new();
    watch.table.refresh(pid, watch.now, &[publisher.main]);
    let process = watch.process(pid);
    assert_eq!(&*process.name, "publisher");
    let file = watch.table.elfs().get(process.main_elf.unwrap()).unwrap();
    assert_eq!(file.build_id.as_ref().unwrap().to_string(), "0123456789abcdef");
    assert_eq!(file.name(), "publisher");
    let mapping = process.snapshot.find(publisher.main).unwrap();
    let Backing::Elf(mapped) = mapping.backing else { panic!("{mapping:?}") };
    let links = Path::new("/proc").join(pid.0.to_string()).join("map_files");
    let link = fs::read_dir(links).unwrap().next().unwrap().unwrap().path();
    if fs::File::open(link).is_ok() {
        assert_eq!(Some(mapped), process.main_elf);
    } else {
        let stats = watch.table.elfs().stats();
        assert!(stats.unreachable + stats.other_file > 0);
    }
}

#[test]
fn a_process_that_exits_at_any_time_is_a_reason_and_no_more() {
    let mut watch = Watch::new();
    for _ in 0..30 {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = Pid(child.id());
        // Some of these are read before, some while, some after the exit.
        watch.table.refresh(pid, watch.now, &[Addr(0x1000)]);
        let process = watch.process(pid);
        let known = !process.snapshot.mappings().is_empty();
        assert_eq!(known, process.unreadable.is_none(), "{process:?}");
        child.wait().unwrap();
        watch.pass(SECOND);
    }
}
