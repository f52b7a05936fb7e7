//! `cargo xtask bench unwind`: what a walk costs, as a ratio to a program that does everything else
//! that a sample is.
//!
//! The two programs take turns over one load, so that what else the host does falls on both. Only
//! the steady state counts: from the second window on, and only if the kernel's own counters say
//! that stacks are complete.

mod run;
mod workloads;

use anyhow::{Context as _, Result, ensure};
use aya::programs::loaded_programs;

use self::run::{Cost, Tables, depth, ratio, run};
use self::workloads::{Load, Workload};
use super::kernel_stats::KernelStats;
use super::{Spread, machine_line};
use crate::build::release_binary;
use crate::setup::{Tools, provide};

/// How often each program has its turn.
const ROUNDS: usize = 3;

/// What stands for everything but the walk, and the ways to walk.
const FLOOR: &[&str] = &["--bpf-sampler", "floor"];
/// As it is without an option: only this has limits, the others are told.
const DEFAULT: &str = "with reuse";
const WALKS: [(&str, &[&str]); 3] = [
    ("each from its leaf", &["--stack-reuse", "off"]),
    (DEFAULT, &["--stack-reuse", "on"]),
    ("bounded loop", &["--bpf-sampler", "bounded"]),
];

/// The command.
pub(crate) fn command(versus: Option<&str>) -> Result<()> {
    provide(Tools::Build)?;
    let spanprof = release_binary()?;
    let workloads = workloads::build()?;
    let _stats = KernelStats::on()?;
    println!("{}\n", machine_line()?);
    println!(
        "| load | Hz | frames | walk | ns per sample | ratio to the floor | at most | complete |"
    );
    println!("| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |");
    let mut exceeded = Vec::new();
    let mut tables = None;
    for workload in &workloads {
        let running = Load::start(workload)?;
        let frames = match workload.program {
            Some(program) => format!("{:.1}", depth(&spanprof, program)?),
            None => "–".to_owned(),
        };
        let mut floors = Vec::new();
        let mut walks: [Vec<Cost>; WALKS.len()] = Default::default();
        for _ in 0..ROUNDS {
            floors.push(run(&spanprof, workload.hz, FLOOR)?);
            for ((_, options), costs) in WALKS.iter().zip(&mut walks) {
                costs.push(run(&spanprof, workload.hz, options)?);
            }
        }
        drop(running);
        let floor = median(&floors, |cost| cost.ns)?;
        let (name, hz) = (workload.name, workload.hz);
        println!("| {name} | {hz} | {frames} | none: the floor | {floor:.0} | 1 | | |");
        for ((walk, _), costs) in WALKS.iter().zip(&walks) {
            let ns = median(costs, |cost| cost.ns)?;
            let (complete, ratio) = (median(costs, |cost| cost.complete)?, ns / floor);
            let limit = workload.limit.filter(|_| *walk == DEFAULT);
            let limit = limit.map_or(String::new(), |limit| limit.to_string());
            let percent = complete * 100.0;
            println!(
                "| {name} | {hz} | {frames} | {walk} | {ns:.0} | {ratio:.2} | {limit} | {percent:.1} % |"
            );
            ensure!(complete >= workload.complete, "{name}: stacks are not complete");
            if workload.limit.is_some_and(|limit| ratio > limit) && *walk == DEFAULT {
                exceeded.push(name);
            }
        }
        spread(workload, &walks)?;
        tables = walks.iter().flatten().last().map(|cost| cost.tables);
        if let Some(name) = versus {
            against(name, workload)?;
        }
    }
    // Of the last load, which runs the most files.
    let Tables { files, rows, bytes, rows_per_second } = tables.context("nothing was measured")?;
    println!(
        "\nTables: {files} files, {rows} rows, {} bytes a file, {:.1} bytes a row; made at {:.1} \
         million rows a second.",
        bytes / files.max(1),
        ratio(bytes, rows),
        rows_per_second / 1e6
    );
    ensure!(exceeded.is_empty(), "costs more than it may: {}", exceeded.join("; "));
    Ok(())
}

fn median(costs: &[Cost], of: impl Fn(&Cost) -> f64) -> Result<f64> {
    Ok(Spread::of(costs.iter().map(of).collect())?.median)
}

/// The averages of single seconds, for a load whose samples differ much.
fn spread(workload: &Workload, walks: &[Vec<Cost>; WALKS.len()]) -> Result<()> {
    if workload.limit.is_some() {
        return Ok(());
    }
    for ((name, _), costs) in WALKS.iter().zip(walks) {
        let mut seconds: Vec<f64> = costs.iter().flat_map(|cost| cost.seconds.clone()).collect();
        seconds.sort_by(f64::total_cmp);
        let at = |hundredth: usize| {
            let index = seconds.len().saturating_sub(1) * hundredth / 100;
            seconds.get(index).copied().context("nothing was measured")
        };
        println!("  {name}: averages of single seconds: p50 {:.0}, p99 {:.0} ns", at(50)?, at(99)?);
    }
    Ok(())
}

/// What another loaded program costs over the same load: after a while, and second by second.
fn against(name: &str, workload: &Workload) -> Result<()> {
    const WARM_UP: u32 = 10;
    let _load = Load::start(workload)?;
    let read = || -> Result<Vec<(u32, u64, u64)>> {
        let programs = loaded_programs().filter_map(Result::ok);
        let named = programs.filter(|program| {
            program.name_as_str().is_some_and(|known| !known.is_empty() && name.starts_with(known))
        });
        named
            .map(|program| {
                let cost = program.run_time().as_nanos();
                Ok((program.id(), u64::try_from(cost)?, program.run_count()))
            })
            .collect()
    };
    ensure!(!read()?.is_empty(), "no BPF program is called {name}");
    let mut before = read()?;
    for second in 0..WARM_UP + 10 {
        std::thread::sleep(std::time::Duration::from_secs(1));
        let now = read()?;
        if second >= WARM_UP {
            for (id, ns, count) in &now {
                let earlier = before.iter().find(|(known, ..)| known == id);
                let (ns_before, count_before) =
                    earlier.map_or((0, 0), |(_, ns, count)| (*ns, *count));
                let runs = count.saturating_sub(count_before).max(1);
                let each = ns.saturating_sub(ns_before) / runs;
                println!("  {name} ({id}): {each} ns a run, {runs} runs in a second");
            }
        }
        before = now;
    }
    Ok(())
}
