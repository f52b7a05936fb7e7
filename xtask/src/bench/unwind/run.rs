//! One turn of the agent over a load that is running.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::bench::agent::Running;
use crate::bench::counter;
use crate::bench::sink;
use crate::exec::target_dir;

/// Windows of a second: the first ones are the warm-up.
const WARM_UP: usize = 3;
const MEASURED: usize = 5;
const PATIENCE: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What a sample cost.
#[derive(Clone, Debug)]
pub(super) struct Cost {
    /// Nanoseconds of a run of the program.
    pub(super) ns: f64,
    /// The same, of each second.
    pub(super) seconds: Vec<f64>,
    /// Which part of the samples has a user stack up to the outermost frame.
    pub(super) complete: f64,
    /// The tables at its end.
    pub(super) tables: Tables,
}

/// The unwind tables of what runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tables {
    pub(super) files: u64,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// Rows that were made in a second of the thread that makes them.
    pub(super) rows_per_second: f64,
}

/// Counters at one time.
#[derive(Clone, Copy, Debug)]
struct Counters {
    run_ns: u64,
    runs: u64,
    idle: u64,
    taken: u64,
    complete: u64,
    walked: u64,
}

/// Runs the agent for some seconds.
pub(super) fn run(spanprof: &Path, hz: u32, options: &[&str]) -> Result<Cost> {
    let folder = target_dir().join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let stats = folder.join("unwind.json");
    if stats.exists() {
        fs::remove_file(&stats).with_context(|| format!("cannot remove {}", stats.display()))?;
    }
    let log = fs::File::create(folder.join("unwind.log")).context("cannot make a log")?;
    let mut command = Command::new(spanprof);
    command.args(["run", "--pyroscope-url", &sink::start()?, "-F", &hz.to_string()]);
    command.args(["--window", "1s", "--stats"]).arg(&stats).args(options);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let agent = Running(command.spawn().context("cannot run spanprof")?);
    let mut seen: Vec<Counters> = Vec::new();
    let mut last = String::new();
    let deadline = Instant::now() + PATIENCE;
    while seen.len() < WARM_UP + MEASURED + 1 {
        ensure!(Instant::now() < deadline, "no windows; target/bench/unwind.log says why");
        std::thread::sleep(POLL_INTERVAL);
        // Written as a whole, once a window.
        let Ok(text) = fs::read_to_string(&stats) else { continue };
        if text != last {
            seen.push(Counters::read(&serde_json::from_str(&text).context("counters")?)?);
            last = text;
        }
    }
    drop(agent);
    let steady = seen.get(WARM_UP..).unwrap_or_default();
    let stats: Value = serde_json::from_str(&last).context("counters")?;
    let (first, end) = steady.first().zip(steady.last()).context("no windows")?;
    Ok(Cost {
        ns: end.cost_since(first),
        seconds: steady.windows(2).map(|pair| pair[1].cost_since(&pair[0])).collect(),
        complete: ratio(end.complete - first.complete, end.walked - first.walked),
        tables: Tables::read(&stats)?,
    })
}

/// How many frames the stacks of a program have, on average: a walk that is cut short is cheap.
pub(super) fn depth(spanprof: &Path, program: &str) -> Result<f64> {
    let folded = target_dir().join("bench").join("unwind.folded");
    let status = Command::new(spanprof)
        .args(["record", "-d", "2s", "-F", "997", "-o"])
        .arg(&folded)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cannot run spanprof")?;
    ensure!(status.success(), "spanprof ended with {status}");
    let text = fs::read_to_string(&folded).context("no stacks")?;
    let (mut samples, mut frames) = (0, 0);
    for line in text.lines() {
        let Some((stack, count)) = line.rsplit_once(' ') else { continue };
        let mut parts = stack.split(';');
        let service = parts.next().unwrap_or_default();
        // Behind the service there is the span.
        if service.ends_with(program) {
            let count: u64 = count.parse().context("a count")?;
            samples += count;
            frames += count * parts.skip(1).count() as u64;
        }
    }
    ensure!(samples > 0, "{program} was not sampled");
    Ok(ratio(frames, samples))
}

impl Tables {
    fn read(stats: &Value) -> Result<Self> {
        let number = |key| counter(stats, "unwind", key);
        let ms = stats["unwind"]["build_ms"].as_f64().context("no unwind.build_ms")?;
        #[expect(clippy::cast_precision_loss, reason = "for people, and within 2^53")]
        let rows_built = number("rows_built")? as f64;
        Ok(Self {
            files: number("files_ready")?,
            rows: number("rows")?,
            bytes: number("table_bytes")?,
            rows_per_second: rows_built / ms * 1000.0,
        })
    }
}

impl Counters {
    fn read(stats: &Value) -> Result<Self> {
        let number = |part, key| counter(stats, part, key);
        let kernel = stats["kernel"].as_object().context("the counters have no kernel")?;
        let walked = kernel.iter().filter(|(name, _)| name.starts_with("user_stack_"));
        Ok(Self {
            run_ns: number("sampler", "run_time_ns")?,
            runs: number("sampler", "run_cnt")?,
            idle: number("kernel", "ticks_idle")?,
            taken: number("kernel", "samples_taken")?,
            complete: number("kernel", "user_stack_complete")?
                + number("kernel", "user_stack_zero_frame_pointer")?,
            walked: walked.filter_map(|(_, count)| count.as_u64()).sum(),
        })
    }

    /// Nanoseconds for each sample. A run on an idle CPU is none, and costs next to nothing.
    fn cost_since(&self, earlier: &Self) -> f64 {
        debug_assert!(self.runs - earlier.runs >= self.idle - earlier.idle);
        ratio(self.run_ns - earlier.run_ns, self.taken - earlier.taken)
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people, and within 2^53")]
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}
