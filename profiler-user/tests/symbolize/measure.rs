//! What symbolizing costs: `cargo test --release --test symbolize -- measure FILE`.

use std::path::Path;
use std::time::Instant;

use object::{Object as _, ObjectSection as _, SectionKind};
use profiler_user::symbolize::Symbolizer;

use crate::support::{at, config, elf, name};

/// Names places all over a program's text, twice: the first time with everything to be read.
pub(crate) fn run(arguments: &[String]) {
    let path = arguments.first().map_or("/proc/self/exe", String::as_str);
    let bytes = std::fs::read(path).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let text = file.sections().find(|section| section.kind() == SectionKind::Text).unwrap();
    let (offset, len) = text.file_range().unwrap();
    for inlined in [false, true] {
        let mut symbolizer = Symbolizer::new(config(inlined));
        for (run, count) in [("first", 1), ("cold", 10_000), ("warm", 10_000)] {
            let shift = u64::from(run == "warm") * 7;
            let locations: Vec<_> =
                (0..count).map(|i| at(1, offset + (len - 8) * i / count + shift)).collect();
            let start = Instant::now();
            let source = elf(1, Path::new(path), None);
            name(&mut symbolizer, &[source], &locations);
            let time = start.elapsed();
            let pid = symbolizer.worker_pid().unwrap();
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let memory: Vec<_> = status
                .lines()
                .filter(|line| line.starts_with("VmRSS") || line.starts_with("RssAnon"))
                .collect();
            let each = time / u32::try_from(count).unwrap();
            println!("inlined={inlined} {run}: {time:?}, {each:?} a location, {memory:?}");
        }
    }
    let mut symbolizer = Symbolizer::new(config(false));
    let list = std::fs::read_to_string("/proc/kallsyms").unwrap();
    let kernel: Vec<_> = list
        .lines()
        .filter_map(|line| u64::from_str_radix(line.get(..16)?, 16).ok())
        .map(|address| {
            profiler_user::attribute::Location::Kernel(profiler_user::decode::Addr(address))
        })
        .take(10_000)
        .collect();
    for (run, locations) in [("first", &kernel[..1]), ("cold", &kernel[1..])] {
        let start = Instant::now();
        name(&mut symbolizer, &[], locations);
        println!("kernel {run}: {:?} for {}", start.elapsed(), locations.len());
    }
}
