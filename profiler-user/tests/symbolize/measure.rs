//! What symbolizing costs: `cargo test --release --test symbolize -- measure FILE`.

use std::path::Path;

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
            let before = cpu_ns(&symbolizer);
            let source = elf(1, Path::new(path), None);
            name(&mut symbolizer, &[source], &locations);
            let after = cpu_ns(&symbolizer);
            let each = |i: usize| (after[i] - before[i]) / count;
            let pid = symbolizer.worker_pid().unwrap();
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let memory: Vec<_> = status
                .lines()
                .filter(|line| line.starts_with("VmRSS") || line.starts_with("RssAnon"))
                .collect();
            let [client, worker] = [each(0), each(1)];
            println!("inlined={inlined} {run}: {client} + {worker} ns a location, {memory:?}");
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
        let before = cpu_ns(&symbolizer);
        name(&mut symbolizer, &[], locations);
        let after = cpu_ns(&symbolizer);
        let [client, worker] = [0, 1].map(|i| after[i] - before[i]);
        println!("kernel {run}: {client} + {worker} ns for {}", locations.len());
    }
}

/// CPU time so far of the client, which is this process, and of the worker: a busy machine does not
/// change it.
fn cpu_ns(symbolizer: &Symbolizer) -> [u64; 2] {
    let of = |pid: u32| {
        let path = format!("/proc/{pid}/schedstat");
        let text = std::fs::read_to_string(path).unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    };
    [of(std::process::id()), symbolizer.worker_pid().map_or(0, of)]
}
