//! What the agent costs a node of sixty pods that keep all its CPUs busy, by its control group's own
//! accounting. `cargo xtask bench pods` builds and starts it.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that prints what it found"
)]

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use spanprof_tests::agent::Process;
use spanprof_tests::api_server::{ApiServer, NODE};
use spanprof_tests::control_group::{Accounted, ControlGroup};
use spanprof_tests::relay::{Act, Outcome, Relay, STORED};

const PODS: usize = 60;
/// Until every table is made, every name is known and the first windows are delivered.
const WARM_UP: Duration = Duration::from_secs(60);
/// How often memory is read.
const STEP: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let program = |name: &str| -> Result<PathBuf> {
        Ok(env::var_os(name).with_context(|| format!("{name} is not set"))?.into())
    };
    let spanprof = program("SPANPROF_BIN")?;
    let checkout = program("SPANPROF_CHECKOUT_BIN")?;
    let seconds: u64 = env::args().nth(1).context("for how many seconds?")?.parse()?;
    let api = ApiServer::start(&program("SPANPROF_KUBERNETES_BIN")?)?;
    api.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}))?;
    eprintln!("bench: starting {PODS} pods");
    // Once they run, everything else is slow; and they run until the end.
    let groups = (0..PODS).map(|number| group(&api, number)).collect::<Result<Vec<_>>>()?;
    let pods = groups.into_iter().enumerate().map(|(number, group)| run(group, &checkout, number));
    let pods = pods.collect::<Result<Vec<_>>>()?;

    let relay = Relay::alone(Act::Answer(STORED))?;
    relay.keep_connections();
    let accounted = Accounted::create()?;
    let mut command = accounted.command();
    command.arg(api.in_cluster(&spanprof)?).args(["run", "--pyroscope-url", &relay.url()]);
    command.args(["--listen", "off", "--kubernetes", "on", "--node-name", NODE]);
    let agent = Process::start(&mut command)?;
    eprintln!("bench: {} s of warm-up, {seconds} s", WARM_UP.as_secs());
    sleep(WARM_UP);
    let (began, cpu_before) = (Instant::now(), accounted.cpu_ns()?);
    let samples_before = relay.samples(Outcome::Stored)?;
    let mut most = 0;
    while began.elapsed() < Duration::from_secs(seconds) {
        sleep(STEP);
        most = most.max(accounted.memory()?);
    }
    let (cpu, took) = (accounted.cpu_ns()? - cpu_before, began.elapsed());
    let samples = relay.samples(Outcome::Stored)? - samples_before;
    let pushed = relay.pushes()?;
    let named = pushed.iter().filter(|(push, _)| push.label("pod").is_some()).count();
    agent.terminate()?;
    drop(pods);

    ensure!(samples > 0 && named > 0, "nothing arrived");
    let share = Duration::from_nanos(cpu).as_secs_f64() / took.as_secs_f64();
    let per_sample = Duration::from_nanos(cpu / samples);
    println!("agent, CPU: {:.2} % of a core, {per_sample:?} a sample", share * 100.0);
    println!("agent, memory and BPF maps, most: {} MiB", most >> 20);
    println!("{samples} samples in {took:.0?}, {PODS} pods");
    Ok(())
}

/// The control group of a pod that the API server knows.
fn group(api: &ApiServer, number: usize) -> Result<ControlGroup> {
    let id = format!("{number:064x}");
    let name = format!("pod-{number}");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"nodeName": NODE, "containers": [{"name": "main", "image": "i"}]},
    });
    ControlGroup::of(&api.run_pod(&pod, &id)?, &id)
}

/// What is in it: a third of them a shell, a third Python, a third the example service.
fn run(group: ControlGroup, checkout: &Path, number: usize) -> Result<(ControlGroup, Process)> {
    let mut command: Command = group.command();
    match number % 3 {
        0 => command.args(["sh", "-c", "while :; do :; done"]),
        1 => command.args([
            "python3",
            "-c",
            "while True: sum(map(str.__len__, map(str, range(99))))",
        ]),
        _ => command.arg(checkout).args(["--demo", "--seconds", "100000", "--concurrency", "1"]),
    };
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Ok((group, Process::start(&mut command)?))
}
