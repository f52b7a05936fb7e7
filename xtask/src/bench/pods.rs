//! `cargo xtask bench pods`: what the agent costs a node with many pods, by the kernel's accounting.

use anyhow::Result;

use super::machine_line;
use crate::build::release_binary;
use crate::exec::{cargo, exec, target_dir};
use crate::go_programs;
use crate::setup::{Tools, provide};
use crate::test::build_measured;

/// As long as is measured.
const SECONDS: &str = "600";

/// The command.
pub(crate) fn command() -> Result<()> {
    let cache = provide(Tools::Test)?;
    let spanprof = release_binary()?;
    let [_, checkout] = build_measured()?;
    exec(cargo().args(["build", "--release", "--package=spanprof-tests", "--bin=bench_pods"]))?;
    println!("\n{}.", machine_line()?);
    let mut bench = std::process::Command::new(target_dir().join("release/bench_pods"));
    bench.arg(SECONDS).env("SPANPROF_BIN", spanprof).env("SPANPROF_CHECKOUT_BIN", checkout);
    exec(bench.env("SPANPROF_KUBERNETES_BIN", go_programs::binaries(&cache)?.kubernetes))
}
