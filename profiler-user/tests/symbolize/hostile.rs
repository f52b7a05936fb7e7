//! Files and workers that mean no good.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use profiler_user::attribute::Location;
use profiler_user::symbolize::{
    ElfSource, Symbolizer, SymbolizerConfig, Unsymbolized, WorkerDeath,
};

use crate::support::{
    Known, at, compile, config, deaths, elf, folder, functions, name, opened, run, unsymbolized,
};

pub(crate) const TESTS: &[crate::Test] = &[
    ("a_library_truncated_while_it_is_mapped", truncated_while_mapped),
    ("what_is_no_elf_file", what_is_no_elf_file),
    ("damaged_elf_files", damaged_elf_files),
    ("a_file_that_needs_too_much_memory", needs_too_much_memory),
    ("workers_that_answer_nonsense", workers_that_answer_nonsense),
    ("workers_that_do_not_answer", workers_that_do_not_answer),
    ("a_worker_that_cannot_be_started_is_not_tried_each_time", cannot_be_started),
    ("terminal_controls_in_names", terminal_controls_in_names),
    ("the_time_for_a_window_ends", the_time_for_a_window_ends),
];

/// A program that the tests trust, to see that the others do not suffer.
struct Good {
    source: ElfSource,
    location: Location,
}

fn good(folder: &Path, id: u32) -> Good {
    let program = compile(folder, "good");
    let known = Known::read(&program);
    let location = at(id, known.offset(known.function("hidden").0));
    Good { source: elf(id, &program, None), location }
}

fn truncated_while_mapped() {
    let folder = folder();
    let good = good(folder.path(), 2);
    let victim = folder.path().join("victim");
    // Large enough that what was not read is on pages that were not touched.
    fs::copy(std::env::current_exe().unwrap(), &victim).unwrap();
    let known = Known::read(&victim);
    let (main, size) = known.function("main");
    for inlined in [false, true] {
        fs::copy(std::env::current_exe().unwrap(), &victim).unwrap();
        let mut symbolizer = Symbolizer::new(config(inlined));
        let files = [elf(1, &victim, None), good.source.clone()];
        let first = at(1, known.offset(main));
        assert_eq!(functions(&name(&mut symbolizer, &files, &[first]), first), ["main"]);
        OpenOptions::new().write(true).open(&victim).unwrap().set_len(0).unwrap();
        let second = at(1, known.offset(main + size - 1));
        let names = name(&mut symbolizer, &files, &[second, good.location]);
        assert_eq!(deaths(&symbolizer, WorkerDeath::BusError), 1, "{:?}", symbolizer.stats());
        assert_eq!(functions(&names, second), [format!("victim+{:#x}", main + size - 1)]);
        assert_eq!(functions(&names, good.location), ["hidden"]);
        assert_eq!(symbolizer.stats().worker_starts, 2);
    }
}

fn what_is_no_elf_file() {
    let folder = folder();
    let path = folder.path();
    let good = good(path, 9);
    fs::write(path.join("empty"), "").unwrap();
    fs::write(path.join("script"), "#!/bin/sh\nexit 0\n").unwrap();
    run("mkfifo", &[&path.join("fifo")]);
    // Neither end waits for the other.
    let fifo = OpenOptions::new().read(true).write(true).open(path.join("fifo")).unwrap();
    let files = [
        elf(1, &path.join("empty"), None),
        elf(2, &path.join("script"), None),
        opened(3, &path.join("fifo"), Some(fifo), None),
        opened(4, path, Some(File::open(path).unwrap()), None),
        opened(5, Path::new("/dev/zero"), Some(File::open("/dev/zero").unwrap()), None),
        good.source.clone(),
    ];
    let mut locations: Vec<_> = (1..=5).map(|id| at(id, 0x1000)).collect();
    locations.push(good.location);
    let mut symbolizer = Symbolizer::new(config(true));
    let names = name(&mut symbolizer, &files, &locations);
    assert_eq!(functions(&names, at(1, 0x1000)), ["empty+0x1000"]);
    assert_eq!(functions(&names, at(3, 0x1000)), ["fifo+0x1000"]);
    assert_eq!(functions(&names, good.location), ["hidden"]);
    assert_eq!(unsymbolized(&symbolizer, Unsymbolized::NotElf), 5);
    assert!(symbolizer.stats().worker_deaths.is_empty(), "{:?}", symbolizer.stats());
}

/// Whatever is wrong with them, each location gets a frame and the good file its name.
fn damaged_elf_files() {
    let folder = folder();
    let good = good(folder.path(), 1000);
    let program = fs::read(compile(folder.path(), "program")).unwrap();
    let known = Known::read(&folder.path().join("program"));
    let offset = known.offset(known.function("visible").0);
    let mut files = vec![good.source.clone()];
    let mut locations = vec![good.location];
    let mut damage = |bytes: &[u8]| {
        let id = u32::try_from(files.len()).unwrap();
        let path = folder.path().join(format!("damaged{id}"));
        fs::write(&path, bytes).unwrap();
        files.push(elf(id, &path, None));
        locations.push(at(id, offset));
    };
    // Each field of the header at its largest.
    for at in [0x10, 0x12, 0x18, 0x20, 0x28, 0x30, 0x34, 0x36, 0x38, 0x3a, 0x3c, 0x3e] {
        let mut bytes = program.clone();
        bytes[at..at + 2].fill(0xff);
        damage(&bytes);
    }
    // Cut anywhere.
    for part in 1..12 {
        damage(&program[..program.len() * part / 12]);
    }
    // Bytes flipped all over, the same ones each time.
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..24 {
        let mut bytes = program.clone();
        for _ in 0..200 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let place = usize::try_from(random).unwrap() % (bytes.len() - 0x40) + 0x40;
            bytes[place] ^= random.to_le_bytes()[7];
        }
        damage(&bytes);
    }
    let mut symbolizer = Symbolizer::new(config(true));
    let names = name(&mut symbolizer, &files, &locations);
    assert_eq!(names.frames.len(), locations.len());
    assert_eq!(functions(&names, good.location), ["hidden"]);
}

/// A sparse file that says it has a symbol table of half a terabyte.
fn needs_too_much_memory() {
    let folder = folder();
    let good = good(folder.path(), 2);
    let program = compile(folder.path(), "program");
    let known = Known::read(&program);
    let file = OpenOptions::new().write(true).open(&program).unwrap();
    file.set_len(1 << 39).unwrap();
    let mut symbolizer = Symbolizer::new(config(true));
    let location = at(1, known.offset(known.function("visible").0));
    let files = [elf(1, &program, None), good.source.clone()];
    let names = name(&mut symbolizer, &files, &[location, good.location]);
    assert_eq!(functions(&names, location).len(), 1);
    assert_eq!(functions(&names, good.location), ["hidden"]);
    // And one whose section headers are as many as fit.
    let mut header = vec![0; 64];
    File::open(&program).unwrap().read_exact_at(&mut header, 0).unwrap();
    let sparse = folder.path().join("sparse");
    let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&sparse).unwrap();
    header[0x3c..0x3e].fill(0);
    header[0x28..0x30].copy_from_slice(&0x1000_u64.to_le_bytes());
    file.write_all_at(&header, 0).unwrap();
    // The first section's size is their count.
    file.write_all_at(&(1_u64 << 32).to_le_bytes(), 0x1020).unwrap();
    file.set_len(1 << 39).unwrap();
    let names = name(&mut symbolizer, &[elf(3, &sparse, None)], &[at(3, 0x1000)]);
    assert_eq!(functions(&names, at(3, 0x1000)), ["sparse+0x1000"]);
}

fn fake(role: &str) -> SymbolizerConfig {
    SymbolizerConfig {
        arguments: vec!["fake-worker".into(), role.into()],
        request_deadline: Duration::from_secs(20),
        ..config(true)
    }
}

fn program() -> (PathBuf, Location) {
    let program = std::env::current_exe().unwrap();
    let known = Known::read(&program);
    let location = at(1, known.offset(known.function("main").0));
    (program, location)
}

fn workers_that_answer_nonsense() {
    let (program, location) = program();
    let name_of = program.file_name().unwrap().to_string_lossy().into_owned();
    let roles = [
        ("leaves", WorkerDeath::Exit),
        ("garbage", WorkerDeath::Protocol),
        ("long", WorkerDeath::Protocol),
        ("not-json", WorkerDeath::Protocol),
        ("other-answer", WorkerDeath::Protocol),
        ("many-segments", WorkerDeath::Protocol),
        ("no-locations", WorkerDeath::Protocol),
        ("no-frames", WorkerDeath::Protocol),
        ("no-name", WorkerDeath::Protocol),
        ("no-string", WorkerDeath::Protocol),
    ];
    for (role, death) in roles {
        let mut symbolizer = Symbolizer::new(fake(role));
        for _ in 0..3 {
            let names = name(&mut symbolizer, &[elf(1, &program, None)], &[location]);
            let stand_in = functions(&names, location);
            assert!(stand_in[0].starts_with(&format!("{name_of}+0x")), "{role}: {stand_in:?}");
        }
        let stats = symbolizer.stats();
        assert_eq!(deaths(&symbolizer, death), 2, "{role}: {stats:?}");
        assert_eq!(stats.worker_starts, 2, "{role}");
        assert_eq!(stats.files_quarantined, 1, "{role}");
        assert_eq!(unsymbolized(&symbolizer, Unsymbolized::Quarantined), 3, "{role}");
    }
}

fn workers_that_do_not_answer() {
    let (program, location) = program();
    for role in ["hangs", "trickles"] {
        let request_deadline = Duration::from_millis(500);
        let setup = SymbolizerConfig { request_deadline, ..fake(role) };
        let mut symbolizer = Symbolizer::new(setup);
        let start = Instant::now();
        name(&mut symbolizer, &[elf(1, &program, None)], &[location]);
        assert_eq!(deaths(&symbolizer, WorkerDeath::Deadline), 2, "{role}");
        assert!(start.elapsed() >= request_deadline, "{role}");
        assert_eq!(symbolizer.worker_pid(), None, "{role}");
    }
}

fn cannot_be_started() {
    let (program, location) = program();
    let missing = SymbolizerConfig { program: "/does/not/exist".into(), ..config(true) };
    let silent = Duration::from_millis(50);
    let silent = SymbolizerConfig { request_deadline: silent, ..fake("never-ready") };
    for setup in [missing, silent, fake("exits")] {
        let mut symbolizer = Symbolizer::new(setup);
        for _ in 0..5 {
            name(&mut symbolizer, &[elf(1, &program, None)], &[location]);
        }
        assert_eq!(deaths(&symbolizer, WorkerDeath::Start), 1);
        assert_eq!(symbolizer.stats().worker_starts, 1);
        assert_eq!(unsymbolized(&symbolizer, Unsymbolized::WorkerUnavailable), 5);
    }
}

fn terminal_controls_in_names() {
    let (program, location) = program();
    let mut symbolizer = Symbolizer::new(fake("terminal"));
    let names = name(&mut symbolizer, &[elf(1, &program, None)], &[location]);
    assert_eq!(functions(&names, location), ["?[2Jf"]);
}

fn the_time_for_a_window_ends() {
    let (program, location) = program();
    let setup = SymbolizerConfig { window_budget: Duration::ZERO, ..config(false) };
    let mut symbolizer = Symbolizer::new(setup);
    name(&mut symbolizer, &[elf(1, &program, None)], &[location]);
    assert_eq!(unsymbolized(&symbolizer, Unsymbolized::OutOfTime), 1);
}
