//! `cargo xtask bench`: what sampling, the agent and marking cost on this machine, as a table for
//! the README.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use self::agent::{Load, Measured, Measurement};
use self::kernel_stats::KernelStats;
use crate::build::release_binary;
use crate::setup::{Tools, provide};
use crate::test::build_measured;

mod agent;
mod kernel_stats;
pub(crate) mod pods;
pub(crate) mod marker;
pub(crate) mod service;
mod sink;
pub(crate) mod unwind;

/// How often everything is measured.
const RUNS: usize = 5;

/// The command.
pub(crate) fn run() -> Result<()> {
    provide(Tools::Build)?;
    let spanprof = release_binary()?;
    let [_, checkout] = build_measured()?;
    marker::build()?;
    let load_before = load_average();

    let kernel_stats = KernelStats::on()?;
    let mut runs = [Vec::new(), Vec::new(), Vec::new()];
    let service = Load::Checkout(&checkout);
    for number in 1..=RUNS {
        eprintln!("     run {number} of {RUNS}");
        let loads = [(service, agent::HZ), (Load::Shells, agent::HZ), (service, agent::USUAL_HZ)];
        for ((load, hz), runs) in loads.into_iter().zip(&mut runs) {
            runs.push(Measurement::take(&spanprof, load, hz)?);
        }
    }
    drop(kernel_stats);
    let marking = marker::measure(RUNS)?;

    println!("\n{}", machine(&load_before)?);
    print!("{}", table(&runs, &marking)?);
    Ok(())
}

fn table(runs: &[Vec<Measurement>; 3], marking: &[Value]) -> Result<String> {
    let [checkout, shells, usual] = runs;
    let mut text =
        String::from("| what | unit | median | min – max |\n| --- | --- | ---: | ---: |\n");
    let mut row = |what: &str, unit: &str, values: Vec<f64>| -> Result<()> {
        let Spread { median, min, max } = Spread::of(values)?;
        let digits = if max < 10.0 { 2 } else { usize::from(max < 100.0) };
        writeln!(
            text,
            "| {what} | {unit} | {median:.digits$} | {min:.digits$} – {max:.digits$} |"
        )?;
        Ok(())
    };
    let agent_row = |measured: Measured| {
        let of = |runs: &[Measurement]| runs.iter().map(measured).collect::<Vec<f64>>();
        (of(checkout), of(shells))
    };
    let (spans, none) = agent_row(|run| run.bpf_ns_per_sample);
    row("BPF program, a service with spans and its load", "ns per sample", spans)?;
    row("BPF program, a shell loop", "ns per sample", none)?;
    let (spans, none) = agent_row(|run| run.agent_cpu_per_100k);
    row("agent, a service with spans and its load", "CPU s per 100,000 samples", spans)?;
    row("agent, a shell loop", "CPU s per 100,000 samples", none)?;
    let (spans, none) = agent_row(|run| run.worker_cpu_per_100k);
    row("symbolizing worker beside it, a service with spans", "CPU s per 100,000 samples", spans)?;
    row("symbolizing worker beside it, a shell loop", "CPU s per 100,000 samples", none)?;
    let (spans, _) = agent_row(|run| run.first_cpu_s);
    row("agent and worker, start and the names of the first window", "CPU s, once", spans)?;
    let (spans, _) = agent_row(|run| run.agent_rss_mib);
    row("agent, most resident memory", "MiB", spans)?;
    let (spans, _) = agent_row(|run| run.worker_rss_mib);
    row("symbolizing worker, most resident memory", "MiB", spans)?;
    let usual = |measured: Measured| usual.iter().map(measured).collect::<Vec<f64>>();
    let hz = agent::USUAL_HZ;
    row(
        &format!("agent and worker at {hz} Hz, a service on all CPUs"),
        "% of one CPU",
        usual(|run| run.cpu_percent),
    )?;
    row(&format!("agent at {hz} Hz, most resident memory"), "MiB", usual(|run| run.agent_rss_mib))?;
    for (what, key) in marker::ROWS {
        row(what, "ns", marker::values(marking, key)?)?;
    }
    Ok(text)
}

/// One of the counters that `--stats` writes.
fn counter(stats: &Value, part: &str, key: &str) -> Result<u64> {
    stats[part][key].as_u64().with_context(|| format!("the counters have no {part}.{key}"))
}

struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Result<Self> {
        ensure!(!values.is_empty(), "nothing was measured");
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Ok(Self { median: at(values.len() / 2), min: at(0), max: at(values.len() - 1) })
    }
}

/// What a reader needs to judge the numbers.
fn machine(load_before: &str) -> Result<String> {
    Ok(format!(
        "{}. The whole host sampled at {} Hz for {} s, {RUNS} runs; load average before: \
         {load_before}.\n",
        machine_line()?,
        agent::HZ,
        agent::LOAD_SECONDS
    ))
}

/// Processor and kernel.
fn machine_line() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let model = cpu_model(&cpus).unwrap_or("unknown CPU");
    let count = std::thread::available_parallelism().context("cannot count the CPUs")?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("no kernel release")?;
    let virtual_machine = if cpus.contains(" hypervisor") { ", a virtual machine" } else { "" };
    Ok(format!("{model}, {count} CPUs{virtual_machine}, Linux {}", kernel.trim()))
}

fn cpu_model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = Spread::of(vec![3.0, 1.0, 10.0]).expect("there are values");
        assert_eq!(
            [spread.min, spread.median, spread.max].map(f64::to_bits),
            [1.0, 3.0, 10.0].map(f64::to_bits)
        );
        assert!(Spread::of(Vec::new()).is_err());
    }

    #[test]
    fn the_cpu_is_named() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: A B\n"), Some("A B"));
        assert_eq!(cpu_model("CPU part\t: 0xd0c\n"), None);
    }
}
