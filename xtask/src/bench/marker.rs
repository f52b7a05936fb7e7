//! `cargo xtask bench marker`: what marking costs the traced program, beside what others cost that
//! publish the same for the same purpose.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Spread, load_average, machine_line};
use crate::exec::{ask, cargo, exec, target_dir, workspace};
use crate::setup::shout;

/// How often everything is measured, one after the other.
const RUNS: usize = 7;

/// What is measured, and what it is called in the example's output.
pub(super) const ROWS: [(&str, &str); 11] = [
    ("span-marker, enter and exit", "enter_exit_ns"),
    ("span-marker, enter and exit with a shared record", "enter_owned_exit_ns"),
    ("span-marker, a record with its name and its root's, made and freed", "build_ns"),
    ("tracing's registry, enter and exit, without span-marker", "tracing_enter_exit_ns"),
    ("… and what span-marker adds", "tracing_enter_exit_extra_ns"),
    ("tracing's registry, a span, without span-marker", "tracing_span_ns"),
    ("… and what span-marker adds", "tracing_span_extra_ns"),
    ("OpenTelemetry attach and detach, without span-marker", "otel_attach_detach_ns"),
    ("… and what span-marker adds", "otel_attach_detach_extra_ns"),
    ("OpenTelemetry span with its context, without span-marker", "otel_span_ns"),
    ("… and what span-marker adds", "otel_span_extra_ns"),
];

/// What a change is held against, in nanoseconds.
const TARGETS: [(&str, f64); 4] = [
    ("enter_exit_ns", 3.0),
    ("build_ns", 80.0),
    ("tracing_enter_exit_extra_ns", 40.0),
    ("otel_attach_detach_extra_ns", 15.0),
];

/// Packages of their own beside this one: each defines symbols that clash with ours, or needs tools
/// that nothing else here does.
const PEERS: [(&str, &[(&str, &str)]); 2] = [
    (
        "libdd-otel-thread-ctx",
        &[
            ("attach and detach", "enter_exit_ns"),
            ("update in place", "update_ns"),
            ("a context with a name and a root's, made and freed", "build_ns"),
        ],
    ),
    (
        "custom-labels",
        &[
            ("enter and exit", "enter_exit_ns"),
            ("a label set of two ids and a name, made and freed", "build_ns"),
        ],
    ),
];

/// The command.
pub(crate) fn command() -> Result<()> {
    build()?;
    let peers: Vec<_> = PEERS.iter().filter(|(name, _)| build_peer(name)).collect();
    let load_before = load_average();
    let mut marking = Vec::new();
    let mut others = vec![Vec::new(); peers.len()];
    for number in 1..=RUNS {
        eprintln!("     run {number} of {RUNS}");
        marking.extend(measure(1)?);
        for ((name, _), runs) in peers.iter().zip(&mut others) {
            let program = target_dir().join("peers/release").join(format!("peer-{name}"));
            runs.push(numbers(&ask(&mut std::process::Command::new(program))?)?);
        }
    }
    println!("\n{}. {RUNS} runs; load average before: {load_before}.\n", machine_line()?);
    let mut text =
        String::from("| what | target | median ns | min – max |\n| --- | ---: | ---: | ---: |\n");
    for (what, key) in ROWS {
        let target = TARGETS.iter().find(|(of, _)| *of == key);
        let target = target.map_or(String::new(), |(_, ns)| format!("≤ {ns}"));
        row(&mut text, what, &target, values(&marking, key)?)?;
    }
    for ((name, rows), runs) in peers.iter().zip(&others) {
        for (what, key) in *rows {
            row(&mut text, &format!("{name}, {what}"), "", values(runs, key)?)?;
        }
    }
    print!("{text}");
    Ok(())
}

fn row(text: &mut String, what: &str, target: &str, values: Vec<f64>) -> Result<()> {
    let Spread { median, min, max } = Spread::of(values)?;
    writeln!(text, "| {what} | {target} | {median:.1} | {min:.1} – {max:.1} |")?;
    Ok(())
}

/// Builds what [`measure`] runs.
pub(super) fn build() -> Result<()> {
    exec(cargo().args(["build", "--release"]).args(EXAMPLE))
}

/// Runs the example so often.
pub(super) fn measure(runs: usize) -> Result<Vec<Value>> {
    let run = || ask(cargo().args(["run", "--quiet", "--release"]).args(EXAMPLE));
    (0..runs).map(|_| numbers(&run()?)).collect()
}

const EXAMPLE: [&str; 3] =
    ["--package=span-marker", "--features=opentelemetry,tracing", "--example=enter_exit"];

fn numbers(line: &str) -> Result<Value> {
    serde_json::from_str(line).context("the marker's numbers are not JSON")
}

/// One number of each run.
pub(super) fn values(runs: &[Value], key: &str) -> Result<Vec<f64>> {
    let value = |run: &Value| run[key].as_f64();
    runs.iter()
        .map(|run| value(run).with_context(|| format!("the marker's numbers have no {key}")))
        .collect()
}

/// Whether the other one could be built: custom-labels needs libclang and a C++ compiler.
fn build_peer(name: &str) -> bool {
    let manifest = workspace().join("xtask/peers").join(name).join("Cargo.toml");
    let mut build = cargo();
    build.args(["build", "--release", "--locked", "--manifest-path"]).arg(manifest);
    let built = exec(build.env("CARGO_TARGET_DIR", target_dir().join("peers")));
    if let Err(error) = &built {
        shout(&format!(
            "{error:#}: {name} IS NOT MEASURED. custom-labels needs a C++ compiler and libclang \
             (LIBCLANG_PATH names its folder)."
        ));
    }
    built.is_ok()
}
