//! One program, stopped now and then: our stacks and gdb's.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use spanprof_tests::require;
use spanprof_tests::spanprof::Spanprof;
use spanprof_tests::wait::until;

const DEADLINE: Duration = Duration::from_secs(60);
/// How often each program is stopped.
const STOPS: u64 = 8;

/// Prints each thread's frames.
const IN_GDB: &str = include_str!("../../fixtures/frames.py");

/// Killed when dropped.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        self.0.wait().unwrap();
    }
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Whether all threads are: each stops when it runs next.
fn is_stopped(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with('T'))
    })
}

/// By thread.
type Stacks = BTreeMap<u64, Vec<u64>>;

fn ours(spanprof: &Spanprof, pid: u32) -> Stacks {
    let pid = pid.to_string();
    let finished = spanprof.run(&["inspect", "--json", "--threads", "16", &pid]).unwrap();
    finished.succeeded().unwrap();
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    let threads = report["threads"].as_array().unwrap().iter();
    let stack = |thread: &Value| {
        let frames = thread["frames"].as_array()?;
        let counters = frames.iter().filter_map(|frame| frame["ip"].as_u64());
        Some((thread["tid"].as_u64()?, counters.collect()))
    };
    threads.filter_map(stack).collect()
}

fn by_gdb(gdb: &Path, script: &Path, pid: u32) -> Stacks {
    let mut command = Command::new(gdb);
    command.args(["-nx", "-batch", "-ex", "set debuginfod enabled off"]);
    command.args(["-ex", "set backtrace past-main on", "-p", &pid.to_string(), "-x"]);
    let output = command.arg(script).output().unwrap();
    // Else a mistake in the script would be a difference.
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("Python Exception"), "{errors}");
    let text = String::from_utf8_lossy(&output.stdout);
    let threads = text.lines().filter_map(|line| line.strip_prefix("THREAD "));
    let stack = |line: &str| {
        let mut words = line.split(' ');
        let thread = words.next()?.parse().ok()?;
        let counters = words.map(|word| u64::from_str_radix(word, 16).unwrap());
        Some((thread, counters.collect()))
    };
    threads.filter_map(stack).collect()
}

/// Stops a program now and then, and compares. The command ends or not: then it is started again.
#[track_caller]
pub(crate) fn check(name: &str, mut command: impl FnMut() -> Command) {
    require!(Root);
    let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
    let gdb = require!(Gdb);
    let script = spanprof.path("frames.py");
    std::fs::write(&script, IN_GDB).unwrap();
    let mut running = Running::start(&mut command());
    let (mut equal, mut all, mut stacks, mut different) = (0, 0, 0, Vec::new());
    let mut missing = 0;
    // Not at its start, and at another place each time.
    let mut next_stop = 20;
    for stop in 0..STOPS {
        let pid = loop {
            let pid = running.0.id();
            let busy = || used_ticks(pid).is_some_and(|ticks| ticks >= next_stop);
            let there = until(DEADLINE, || busy() || is_zombie(pid));
            assert!(there, "{name} does nothing");
            if !running.has_ended() {
                break pid;
            }
            running = Running::start(&mut command());
            next_stop = 20 + 3 * stop;
        };
        next_stop = used_ticks(pid).unwrap_or(next_stop) + 3 + 2 * (stop % 4);
        signal(pid, Signal::STOP);
        if !until(DEADLINE, || is_stopped(pid) || is_zombie(pid)) || is_zombie(pid) {
            continue;
        }
        let (ours, theirs) = (ours(&spanprof, pid), by_gdb(&gdb, &script, pid));
        signal(pid, Signal::CONT);
        missing += theirs.keys().filter(|thread| !ours.contains_key(thread)).count();
        for (thread, ours) in &ours {
            let Some(theirs) = theirs.get(thread) else {
                missing += 1;
                continue;
            };
            stacks += 1;
            all += ours.len().max(theirs.len());
            equal += ours.iter().zip(theirs).filter(|(ours, theirs)| ours == theirs).count();
            if ours != theirs {
                different.push(format!("ours {ours:x?}\ngdb  {theirs:x?}"));
            }
        }
    }
    eprintln!("{name}: {stacks} stacks, {equal} of {all} addresses equal");
    assert!(stacks >= 4 && all >= 20, "{name}: {stacks} stacks, {all} addresses");
    assert_eq!(missing, 0, "{name}: threads that only one of the two has walked");
    assert!(equal * 1000 >= all * 995, "{name}: {equal} of {all}:\n{}", different.join("\n"));
}

/// The CPU time that a process has used, in user mode and in the kernel, in hundredths of a second.
fn used_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks = |field: &str| field.parse::<u64>().ok();
    let mut fields = fields.split(' ').skip(12);
    Some(ticks(fields.next()?)? + ticks(fields.next()?)?)
}

fn is_zombie(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, fields)| fields.trim_start().starts_with(['Z', 'X']))
}
