//! `cargo xtask bench service`: how many requests the example service answers with and without
//! spans that are published, and with and without the profiler.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::agent::{Agent, USUAL_HZ};
use super::machine_line;
use crate::build::release_binary;
use crate::exec::ask;
use crate::setup::{Tools, provide};
use crate::test::build_measured;

/// Each way once in each round, one after the other: what changes slowly changes all of them.
const ROUNDS: usize = 12;
const SECONDS: u64 = 6;

/// What is there besides the service and its load.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    Marker,
    MarkerAndProfiler,
}

const WAYS: [Way; 3] = [Way::Plain, Way::Marker, Way::MarkerAndProfiler];

/// The command.
pub(crate) fn command() -> Result<()> {
    provide(Tools::Build)?;
    let spanprof = release_binary()?;
    let [_, checkout] = build_measured()?;
    let load_before = super::load_average();
    let mut rounds = Vec::new();
    for number in 1..=ROUNDS {
        eprintln!("     round {number} of {ROUNDS}");
        // Forwards, then backwards: none is always the first.
        let mut ways = WAYS;
        if number % 2 == 0 {
            ways.reverse();
        }
        let mut round = [0.0; WAYS.len()];
        for way in ways {
            round[way as usize] = requests(&checkout, &spanprof, way)?;
        }
        rounds.push(round);
    }
    println!("\n{}; load average before: {load_before}.", machine_line()?);
    println!(
        "The service's requests a second; each difference is the mean of {ROUNDS} pairs ± its standard error.\n"
    );
    println!("| with | requests a second | difference |\n| --- | ---: | ---: |");
    for (name, way) in [
        ("neither span-marker nor the profiler", Way::Plain),
        ("span-marker", Way::Marker),
        ("span-marker and the profiler at 97 Hz", Way::MarkerAndProfiler),
    ] {
        let per_second: Vec<f64> = rounds.iter().map(|round| round[way as usize]).collect();
        let (mean, _) = mean_and_error(&per_second)?;
        let difference = if way == Way::Plain {
            String::new()
        } else {
            let ratio =
                |round: &[f64; 3]| 100.0 * (round[way as usize] / round[Way::Plain as usize] - 1.0);
            let (mean, error) = mean_and_error(&rounds.iter().map(ratio).collect::<Vec<_>>())?;
            format!("{mean:+.2} ± {error:.2} %")
        };
        println!("| {name} | {mean:.0} | {difference} |");
    }
    Ok(())
}

/// Requests a second that the service answered.
#[expect(clippy::cast_precision_loss, reason = "within 2^53")]
fn requests(checkout: &Path, spanprof: &Path, way: Way) -> Result<f64> {
    let profiler = match way {
        Way::MarkerAndProfiler => Some(Agent::start(spanprof, USUAL_HZ)?),
        Way::Plain | Way::Marker => None,
    };
    let mut service = Command::new(checkout);
    service.args(["--demo", "--seconds", &SECONDS.to_string()]);
    if way == Way::Plain {
        service.arg("--no-marker");
    }
    let said = ask(&mut service)?;
    drop(profiler);
    let last = said.lines().last().context("the service says nothing")?;
    let said: Value = serde_json::from_str(last).context("the service's report is not JSON")?;
    let by_route = said["load"]["requests"].as_object().context("no requests")?;
    let answered: u64 = by_route.values().filter_map(Value::as_u64).sum();
    ensure!(said["load"]["failed"] == 0, "requests failed: {}", said["load"]);
    Ok(answered as f64 / SECONDS as f64)
}

/// And its standard error.
#[expect(clippy::cast_precision_loss, reason = "a few rounds")]
fn mean_and_error(values: &[f64]) -> Result<(f64, f64)> {
    ensure!(values.len() > 1, "one value has no error");
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    Ok((mean, (variance / count).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_that_of_the_mean() {
        let (mean, error) = mean_and_error(&[1.0, 3.0, 5.0, 7.0]).expect("four values");
        assert!(
            (mean - 4.0).abs() < 1e-12 && (error - (20.0_f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12
        );
        assert!(mean_and_error(&[1.0]).is_err());
    }
}
