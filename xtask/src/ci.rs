//! `cargo xtask ci`: what a change must pass, in the order that fails soonest.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::exec::{cargo, exec, stream};
use crate::setup::{Tools, provide};
use crate::test::Missing;
use crate::{codegen, deny, test, tidy};

/// The command.
pub(crate) fn run() -> Result<()> {
    let mut times = Times::new();
    let cache = times.step("setup", || provide(Tools::All))?;
    times.step("format", || exec(cargo().args(["fmt", "--all", "--check"])))?;
    times.step("tidy", tidy::run)?;
    times.step("clippy", clippy)?;
    times.step("documentation", documentation)?;
    times.step("span-marker's package", package)?;
    times.step("codegen", || codegen::run(true))?;
    times.step("dependencies", || deny::check(&cache))?;
    times.step("second check rebuilds nothing", second_check)?;
    times.step("tests", || test::run(Missing::Fails))?;
    println!("\n{}", times.table());
    Ok(())
}

fn clippy() -> Result<()> {
    let what = ["clippy", "--workspace", "--all-targets", "--all-features"];
    exec(cargo().args(what).args(["--", "-D", "warnings"]))
}

fn documentation() -> Result<()> {
    let what = ["doc", "--workspace", "--no-deps", "--all-features"];
    exec(cargo().args(what).env("RUSTDOCFLAGS", "-D warnings"))
}

/// What others download of span-marker builds by itself, without this workspace.
fn package() -> Result<()> {
    // Its files are those of the commit, or of the change that is being checked.
    exec(cargo().args(["package", "--package=span-marker", "--allow-dirty"]))
}

/// A build script that is wrong about what it depends on makes every build start over, and
/// everyone wait. So: twice the same, and the second finds everything fresh.
fn second_check() -> Result<()> {
    let what = ["check", "--workspace", "--all-targets", "--quiet", "--message-format=json"];
    let mut stale = Vec::new();
    for _ in 0..2 {
        stale.clear();
        let succeeded = stream(cargo().args(what), |line| stale.extend(stale_unit(line)))?;
        if !succeeded {
            bail!("cargo check fails");
        }
    }
    if !stale.is_empty() {
        bail!("a second cargo check rebuilds {}", stale.join(", "));
    }
    Ok(())
}

/// The package of an artifact that cargo had to build, from a line of its JSON messages.
fn stale_unit(line: &str) -> Option<String> {
    if !line.starts_with(r#"{"reason":"compiler-artifact""#) || !line.contains(r#""fresh":false"#) {
        return None;
    }
    let id = line.split(r#""package_id":""#).nth(1)?.split('"').next()?;
    let path = id.split('#').next().unwrap_or(id);
    Some(Path::new(path).file_name()?.to_string_lossy().into_owned())
}

/// How long each step took.
struct Times {
    started: Instant,
    steps: Vec<(&'static str, f64)>,
}

impl Times {
    fn new() -> Self {
        Self { started: Instant::now(), steps: Vec::new() }
    }

    /// Runs a step. If it fails, says which, and what the others took.
    fn step<T>(&mut self, name: &'static str, run: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n==== {name}");
        let started = Instant::now();
        let result = run();
        let seconds = started.elapsed().as_secs_f64();
        self.steps.push((name, seconds));
        if result.is_err() {
            println!("\n{}", self.table());
        }
        result.map_err(|error| error.context(format!("ci stops at: {name}")))
    }

    fn table(&self) -> String {
        let mut table = String::new();
        let total = ("total", self.started.elapsed().as_secs_f64());
        for (name, seconds) in self.steps.iter().chain([&total]) {
            // Writing to a string cannot fail.
            writeln!(table, "{name:32} {seconds:8.1} s").unwrap_or_default();
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rebuilt_artifact_is_found_and_a_fresh_one_is_not() {
        let artifact = |fresh: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"path+file:///a/span-marker#0.1.0","target":{{}},"fresh":{fresh}}}"#
            )
        };
        assert_eq!(stale_unit(&artifact(false)).as_deref(), Some("span-marker"));
        assert_eq!(stale_unit(&artifact(true)), None);
        assert_eq!(stale_unit(r#"{"reason":"build-script-executed","fresh":false}"#), None);
    }

    #[test]
    fn a_failure_says_where() {
        let mut times = Times::new();
        let error = times.step("format", || -> Result<()> { bail!("untidy") });
        assert_eq!(format!("{:#}", error.expect_err("it failed")), "ci stops at: format: untidy");
        assert!(times.table().starts_with("format "));
    }
}
