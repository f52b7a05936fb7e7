//! Symbolizing against real files, a real worker, and workers that are not.
//!
//! The worker must be a process with one thread, so this test is one program in three roles: the
//! tests, the worker, and the workers that misbehave.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::exit,
    reason = "a test with its own harness, for which clippy does not know that it is one"
)]

mod confinement;
mod fake_worker;
mod hostile;
mod kernel;
mod measure;
mod naming;
mod separate_debug_file;
mod support;

use std::os::fd::AsFd as _;
use std::panic::catch_unwind;
use std::process::exit;
use std::time::Instant;

type Test = (&'static str, fn());

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("symbolize-worker") => {
            let socket = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
            profiler_user::symbolize::worker::run(socket).unwrap();
        }
        Some("fake-worker") => fake_worker::run(&arguments[1]),
        Some("measure") => measure::run(&arguments[1..]),
        _ => run_tests(&arguments),
    }
}

fn run_tests(arguments: &[String]) {
    let filters: Vec<_> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
    let all = [confinement::TESTS, hostile::TESTS, kernel::TESTS, naming::TESTS];
    let all = all.into_iter().chain([separate_debug_file::TESTS]).flatten();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|word| name.contains(*word));
    let mut failed = Vec::new();
    let mut passed = 0;
    for (name, test) in all.filter(|(name, _)| chosen(name)) {
        let start = Instant::now();
        let result = catch_unwind(test);
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {word} ({:.1?})", start.elapsed());
        match result {
            Ok(()) => passed += 1,
            Err(_) => failed.push(*name),
        }
    }
    println!("{passed} passed, {} failed: {failed:?}", failed.len());
    if !failed.is_empty() {
        exit(1);
    }
}
