//! The right names for known programs.

use std::hint::black_box;
use std::path::Path;

use profiler_user::attribute::{Location, Unresolved};
use profiler_user::symbolize::{Symbolizer, Unsymbolized};

use crate::support::{
    Known, at, compile, config, elf, folder, functions, name, opened, run, unsymbolized,
};

pub(crate) const TESTS: &[crate::Test] = &[
    ("functions_by_symbol_table", functions_by_symbol_table),
    ("every_instruction_is_named_as_addr2line_names_it", every_instruction),
    ("inlined_functions_have_their_lines", inlined_functions_have_their_lines),
    ("its_own_rust_functions", its_own_rust_functions),
    ("a_stripped_binary_has_addresses", a_stripped_binary_has_addresses),
    ("what_has_no_file_says_why", what_has_no_file_says_why),
    ("known_locations_need_no_worker", known_locations_need_no_worker),
    ("more_locations_than_a_request_holds", more_locations_than_a_request_holds),
    ("names_that_fill_an_answer", names_that_fill_an_answer),
];

fn functions_by_symbol_table() {
    let folder = folder();
    let program = compile(folder.path(), "program");
    let known = Known::read(&program);
    let mut symbolizer = Symbolizer::new(config(false));
    let expected = [
        ("visible", "visible"),
        ("hidden", "hidden"),
        ("main", "main"),
        ("_ZN6engine4turnEl", "engine::turn(long)"),
        ("_ZN6engine4stop17h0123456789abcdefE", "engine::stop"),
    ];
    let locations = expected.map(|(symbol, _)| {
        let (address, size) = known.function(symbol);
        // The last byte: a size, not the next symbol, says where a function ends.
        at(1, known.offset(address + size - 1))
    });
    let names = name(&mut symbolizer, &[elf(1, &program, None)], &locations);
    for ((_, function), location) in expected.into_iter().zip(locations) {
        assert_eq!(functions(&names, location), [function]);
        assert_eq!(names.frames[&location][0].file, None);
    }
    let binary = &names.binaries[&profiler_user::process::ElfId(1)];
    assert_eq!(Path::new(&*binary.path), program);
}

/// binutils is the judge, for each byte of the functions.
fn every_instruction() {
    let folder = folder();
    let program = compile(folder.path(), "program");
    let known = Known::read(&program);
    let mut addresses = Vec::new();
    for symbol in ["visible", "hidden", "main", "_ZN6engine4turnEl"] {
        let (address, size) = known.function(symbol);
        addresses.extend(address..address + size);
    }
    let locations: Vec<_> = addresses.iter().map(|a| at(1, known.offset(*a))).collect();
    let mut symbolizer = Symbolizer::new(config(true));
    let names = name(&mut symbolizer, &[elf(1, &program, None)], &locations);
    for (address, location) in addresses.iter().zip(&locations) {
        let judge = run("addr2line", &[&"-Cfi", &"-e", &program, &format!("{address:#x}")]);
        let ours: String = names.frames[location]
            .iter()
            .map(|frame| {
                let file = frame.file.as_deref().unwrap_or("??");
                format!("{}\n{file}:{}\n", frame.function, frame.line)
            })
            .collect();
        // A note that our format has no place for.
        let judge: Vec<_> = judge.lines().map(|l| l.split(" (disc").next().unwrap()).collect();
        assert_eq!(ours.lines().collect::<Vec<_>>(), judge, "at {address:#x}");
    }
}

fn inlined_functions_have_their_lines() {
    let folder = folder();
    let program = compile(folder.path(), "program");
    let known = Known::read(&program);
    let (address, size) = known.function("visible");
    let locations: Vec<_> =
        (address..address + size).map(|address| at(1, known.offset(address))).collect();
    let mut symbolizer = Symbolizer::new(config(true));
    let names = name(&mut symbolizer, &[elf(1, &program, None)], &locations);
    let stacks: Vec<Vec<(&str, u32)>> = locations
        .iter()
        .map(|location| names.frames[location].iter().map(|f| (&*f.function, f.line)).collect())
        .collect();
    let expected = vec![("innermost", 4), ("between", 8), ("visible", 11)];
    assert!(stacks.contains(&expected), "{stacks:?}");
    assert!(stacks.contains(&vec![("visible", 12)]), "{stacks:?}");
    let source = names.frames[&locations[0]][0].file.as_deref().unwrap();
    assert!(source.ends_with("/program.c"), "{source}");
}

#[inline(never)]
fn known_rust_function(x: u64) -> u64 {
    black_box(x).wrapping_mul(3)
}

/// Where the kernel has mapped a running function from: nothing of ours has computed it.
fn mapped_from(address: u64) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let offset = maps.lines().find_map(|line| {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let (start, end) = words[0].split_once('-').unwrap();
        let number = |hex| u64::from_str_radix(hex, 16).unwrap();
        (number(start)..number(end))
            .contains(&address)
            .then(|| address - number(start) + number(words[2]))
    });
    offset.unwrap()
}

fn its_own_rust_functions() {
    let program = std::env::current_exe().unwrap();
    assert_eq!(known_rust_function(2), 6);
    let function: fn(u64) -> u64 = black_box(known_rust_function);
    let offset = mapped_from(u64::try_from(function as usize).unwrap());
    for inlined in [false, true] {
        let mut symbolizer = Symbolizer::new(config(inlined));
        let names = name(&mut symbolizer, &[elf(1, &program, None)], &[at(1, offset)]);
        // The outermost: with optimization another function is inlined there.
        let frame = names.frames[&at(1, offset)].last().unwrap();
        assert_eq!(&*frame.function, "symbolize::naming::known_rust_function");
        let source = frame.file.as_deref().unwrap_or_default();
        assert_eq!(source.ends_with("tests/symbolize/naming.rs"), inlined, "{source}");
    }
}

fn a_stripped_binary_has_addresses() {
    let folder = folder();
    let program = compile(folder.path(), "program");
    let known = Known::read(&program);
    let stripped = folder.path().join("stripped");
    run("strip", &[&"-o", &stripped, &program]);
    let (address, _) = known.function("hidden");
    let location = at(1, known.offset(address));
    for inlined in [false, true] {
        let mut symbolizer = Symbolizer::new(config(inlined));
        let names = name(&mut symbolizer, &[elf(1, &stripped, None)], &[location]);
        assert_eq!(functions(&names, location), [format!("stripped+{address:#x}")]);
        assert_eq!(unsymbolized(&symbolizer, Unsymbolized::NoSymbols), 1);
    }
}

fn what_has_no_file_says_why() {
    let mut symbolizer = Symbolizer::new(config(false));
    let unmapped = Location::Unresolved(Unresolved::Unmapped);
    let closed = opened(1, Path::new("/opt/app"), None, None);
    let names = name(&mut symbolizer, &[closed], &[unmapped, at(1, 0x10), at(2, 0x20)]);
    assert_eq!(functions(&names, unmapped), ["[unmapped]"]);
    assert_eq!(functions(&names, at(1, 0x10)), ["app+0x10"]);
    assert_eq!(functions(&names, at(2, 0x20)), ["[unknown]+0x20"]);
    assert_eq!(unsymbolized(&symbolizer, Unsymbolized::NoFile), 1);
    assert_eq!(unsymbolized(&symbolizer, Unsymbolized::FileUnavailable), 2);
}

fn known_locations_need_no_worker() {
    let folder = folder();
    let program = compile(folder.path(), "program");
    let known = Known::read(&program);
    let location = at(1, known.offset(known.function("visible").0));
    let mut setup = config(false);
    let mut symbolizer = Symbolizer::new(setup.clone());
    let first = name(&mut symbolizer, &[elf(1, &program, None)], &[location, location]);
    // The process table has closed the file since.
    let closed = opened(1, &program, None, None);
    let second = name(&mut symbolizer, &[closed], &[location]);
    assert_eq!(first.frames, second.frames);
    let stats = symbolizer.stats();
    assert_eq!((stats.requested, stats.from_cache, stats.worker_starts), (2, 1, 1));

    setup.cached_bytes = 0;
    let mut symbolizer = Symbolizer::new(setup);
    for _ in 0..2 {
        name(&mut symbolizer, &[elf(1, &program, None)], &[location]);
    }
    assert_eq!(symbolizer.stats().from_cache, 0);
}

fn more_locations_than_a_request_holds() {
    let program = std::env::current_exe().unwrap();
    let known = Known::read(&program);
    let main = known.offset(known.function("main").0);
    let locations: Vec<_> = (0..5_000).map(|i| at(1, main - 16 * i)).collect();
    let mut symbolizer = Symbolizer::new(config(true));
    let names = name(&mut symbolizer, &[elf(1, &program, None)], &locations);
    assert_eq!(names.frames.len(), 5_000);
    assert!(symbolizer.stats().symbolized > 4_500, "{:?}", symbolizer.stats());
    assert!(symbolizer.stats().worker_deaths.is_empty());
}

/// 500 names of 4,000 bytes are asked for again in smaller parts; longer ones are cut.
fn names_that_fill_an_answer() {
    let folder = folder();
    let (source, program) = (folder.path().join("long.c"), folder.path().join("long"));
    let function = |i| format!("f{i}_{}", "x".repeat(if i == 0 { 9_000 } else { 4_000 }));
    let functions_text: String =
        (0..500).map(|i| format!("int {}(void) {{ return {i}; }}\n", function(i))).collect();
    std::fs::write(&source, format!("{functions_text}int main(void) {{ return 0; }}\n")).unwrap();
    run("cc", &[&"-O1", &source, &"-o", &program]);
    let known = Known::read(&program);
    let addresses = known.functions();
    let location = |i| at(1, known.offset(addresses[&function(i)]));
    let locations: Vec<_> = (0..500).map(location).collect();
    let mut symbolizer = Symbolizer::new(config(false));
    let names = name(&mut symbolizer, &[elf(1, &program, None)], &locations);
    assert_eq!(functions(&names, locations[0]), [&function(0)[..4096]]);
    for (i, location) in (0..).zip(locations).skip(1) {
        assert_eq!(functions(&names, location), [function(i)]);
    }
    assert_eq!(symbolizer.stats().symbolized, 500);
}
