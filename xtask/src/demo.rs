//! `cargo xtask demo`: the main job on real input, no server needed.
//!
//! The example service serves its own load; spanprof profiles it by span; what it found is held
//! against the service's own clock.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::exec::{stream, target_dir};
use crate::setup::{Tools, provide};
use crate::test::build_measured;

/// Long enough for an error of a tenth of a percentage point.
const SECONDS: u64 = 20;
const HZ: u32 = 499;
/// How much of the CPU time inside spans must be labelled.
const LABELLED_MIN: f64 = 0.97;
/// And no more than there is, but for the error of the sampling itself.
const LABELLED_MAX: f64 = 1.03;
/// How much, in percent, may be under spans that the service does not know.
const STRANGE_MAX: f64 = 1.0;
/// How far a route's share may be from the service's own, in percentage points.
const SHARE_ERROR_MAX: f64 = 3.0;

/// The routes, and the function that only this route calls.
const ROUTES: [(&str, &str); 3] = [
    ("GET /cart", "price_cart"),
    ("GET /recommend", "rank_products"),
    ("GET /checkout", "sign_order"),
];

/// The command.
pub(crate) fn run() -> Result<()> {
    provide(Tools::Build)?;
    let [spanprof, checkout] = build_measured()?;
    let folder = target_dir().join("demo");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    println!(
        "\nA traced service of three routes, under load for {SECONDS} s, sampled at {HZ} Hz.\n"
    );
    let mut record = Command::new(&spanprof);
    record.args(["record", "-F", &HZ.to_string()]);
    for name in ["profile.pb.gz", "flame.svg", "stacks.folded", "spans.json"] {
        record.arg("-o").arg(folder.join(name));
    }
    record.arg("--stats").arg(folder.join("stats.json"));
    // From its first instruction to its last: what it measured of itself is what was sampled.
    record.arg("--").arg(&checkout).args(["--demo", "--seconds", &SECONDS.to_string()]);
    let mut truth = None;
    let succeeded = stream(&mut record, |line| match serde_json::from_str::<Value>(line) {
        Ok(said) if said.get("truth").is_some() => truth = Some(said["truth"].clone()),
        Ok(_listening) => {}
        Err(_not_json) => println!("{line}"),
    })?;
    ensure!(succeeded, "spanprof failed (it needs root: see `spanprof doctor`)");
    let truth = truth.context("the example service did not say what it measured")?;

    compare(&roots(&truth)?, &Profile::read(&folder)?)?;
    println!("\nWritten to {}:", folder.display());
    println!("  flame.svg      a flame graph by span: open it in a browser");
    println!("  profile.pb.gz  pprof with labels: go tool pprof -tagfocus 'span_name=GET /cart' …");
    println!("  spans.json     every span with its CPU time and its error");
    println!("  stacks.folded  stacks by span, one a line");
    println!("  stats.json     every counter of the pipeline");
    Ok(())
}

/// CPU time inside spans by local root, by the service's own clock.
fn roots(truth: &Value) -> Result<BTreeMap<String, u64>> {
    let roots = truth["roots"].as_array().context("the service's truth has no roots")?;
    let root = |root: &Value| {
        Some((root["root_span_name"].as_str()?.to_owned(), root["cpu_ns"].as_u64()?))
    };
    roots.iter().map(|found| root(found).context("a root of the service's truth")).collect()
}

/// What spanprof says.
struct Profile {
    /// CPU time by local root.
    routes: BTreeMap<String, u64>,
    /// Folded stacks by local root.
    stacks: BTreeMap<String, Vec<String>>,
}

impl Profile {
    fn read(folder: &Path) -> Result<Self> {
        let json = fs::read(folder.join("spans.json")).context("cannot read the span table")?;
        let json: Value = serde_json::from_slice(&json).context("the span table is not JSON")?;
        let mut routes = BTreeMap::new();
        for span in json["spans"].as_array().context("the span table has no spans")? {
            let name = span["span_name"].as_str().unwrap_or("(unnamed)").to_owned();
            *routes.entry(name).or_default() += span["cpu_ns"].as_u64().unwrap_or(0);
        }
        let folded =
            fs::read_to_string(folder.join("stacks.folded")).context("cannot read the stacks")?;
        let mut stacks: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in folded.lines() {
            // service;span;frames… count
            if let Some(span) = line.split(';').nth(1) {
                stacks.entry(span.to_owned()).or_default().push(line.to_owned());
            }
        }
        Ok(Self { routes, stacks })
    }
}

/// Prints both, and fails where they differ by more than they may.
fn compare(truth: &BTreeMap<String, u64>, profile: &Profile) -> Result<()> {
    let inside: u64 = truth.values().sum();
    let labelled: u64 =
        truth.keys().map(|name| profile.routes.get(name).copied().unwrap_or(0)).sum();
    println!(
        "\n{:<18} {:>15} {:>9} {:>15} {:>9}",
        "route", "its own clock", "share", "spanprof", "share"
    );
    let mut wrong = Vec::new();
    for (name, &cpu_ns) in truth {
        let found = profile.routes.get(name).copied().unwrap_or(0);
        let (share, found_share) = (percent(cpu_ns, inside), percent(found, labelled));
        println!(
            "{name:<18} {:>13.3} s {share:>7.1} % {:>13.3} s {found_share:>7.1} %",
            seconds(cpu_ns),
            seconds(found)
        );
        if (share - found_share).abs() > SHARE_ERROR_MAX {
            wrong.push(format!("{name}: {found_share:.1} % instead of {share:.1} %"));
        }
    }
    let part = percent(labelled, inside) / 100.0;
    println!(
        "{:<18} {:>13.3} s {:>9} {:>13.3} s {:>7.1} %  of the CPU time inside spans is labelled",
        "all routes",
        seconds(inside),
        "",
        seconds(labelled),
        100.0 * part
    );
    if !(LABELLED_MIN..=LABELLED_MAX).contains(&part) {
        wrong.push(format!("{:.1} % of the CPU time inside spans is labelled", 100.0 * part));
    }
    let strange: u64 = profile
        .routes
        .iter()
        .filter(|(name, _)| !truth.contains_key(*name))
        .map(|(_, ns)| ns)
        .sum();
    if percent(strange, labelled) > STRANGE_MAX {
        wrong.push(format!("{:.3} s are under spans that the service has not", seconds(strange)));
    }
    for (route, own) in ROUTES {
        let stacks = profile.stacks.get(route).map(Vec::as_slice).unwrap_or_default();
        for (_, function) in ROUTES {
            let found = stacks.iter().any(|stack| stack.contains(function));
            if found != (function == own) {
                let verb = if found { "contains" } else { "lacks" };
                wrong.push(format!("the flame graph of {route} {verb} {function}"));
            }
        }
    }
    ensure!(wrong.is_empty(), "the profile is not what the service measured: {}", wrong.join("; "));
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for people, and within 2^53 ns")]
fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / (whole as f64).max(1.0)
}

fn seconds(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64()
}
