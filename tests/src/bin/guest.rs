//! The first and only program of a virtual machine: profiles workloads with known answers on the
//! machine's kernel, and tells on the console whether the answers are those.
//!
//! It is started by `tests/vm.rs`, which puts the files in place.

#![expect(clippy::print_stdout, reason = "the console is all that it has")]

use std::fs;
use std::process::{self, Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{MountFlags, mount};
use rustix::process::Signal;
use rustix::system::{RebootCommand, reboot, uname};
use spanprof_tests::profile::Folded;
use spanprof_tests::span_writer::{CHILD, OUTSIDE, ROOT, SERVICE};
use spanprof_tests::spanprof::{Books, Running, STATS, Spanprof};
use spanprof_tests::virtual_machine::guest::{
    FAILED, HOOKED, PASSED, SPANPROF, SPANS, SPANS_CONTEXT, STARTED, UNWIND, UNWIND_STATIC,
};
use spanprof_tests::workload::{Workload, wait_until};

/// A program at work, by the name that it is profiled under.
struct Case {
    name: &'static str,
    program: &'static str,
    /// The mode of `fixtures/unwind.c`.
    mode: &'static str,
    /// What is on its stack most of the time, leaf first, whatever is between.
    chain: Vec<&'static str>,
}

fn case(mode: &'static str, chain: &[&'static str]) -> Case {
    Case { name: mode, program: UNWIND, mode, chain: chain.to_vec() }
}

/// What the profiler says when the kernel has verified the sampler.
const LOADED: &str = "the sampler is loaded";

/// How much each uses while it is sampled, in hundredths of a second.
const CPU_TICKS: u64 = 300;

/// How many processes of a known binary are started, and how long each works, in milliseconds.
const COPIES: &str = "10";
const COPY_MS: &str = "300";

/// What the log says when their file has got its probe.
const PROBED: &str = "a hook has a probe";

/// A tenth of what a verifier looks at (`BPF_COMPLEXITY_LIMIT_INSNS`), which newer ones use up faster.
const VERIFIED_MAX: u64 = 100_000;

/// Deeper than the frames of a sample.
const TOO_DEEP: &str = "recurse-500";

fn cases() -> Vec<Case> {
    let chain = &["leaf", "third", "second", "first", "main"];
    vec![
        Case { name: "static", program: UNWIND_STATIC, ..case("chain", chain) },
        case("recurse-100", &[&["leaf"][..], &["recurse"; 100], &["main"]].concat()),
        case("alloca", &["leaf", "with_alloca", "main"]),
        case("expression", &["leaf", "aligned_frame", "main"]),
        case("register", &["in_register", "main"]),
        case("signal", &["leaf", "on_signal", "interrupted", "main"]),
        case("read", &["in_kernel", "main"]),
        case("vdso", &["in_vdso", "main"]),
        case("chain", chain),
    ]
}

fn main() -> ExitCode {
    if process::id() != 1 {
        println!("this is the first program of a virtual machine");
        return ExitCode::from(2);
    }
    match run() {
        Ok(()) => println!("{PASSED}"),
        Err(error) => println!("{FAILED}: {error:#}"),
    }
    // QEMU ends where the machine would start anew.
    if let Err(error) = reboot(RebootCommand::Restart) {
        println!("cannot end: {error}");
    }
    ExitCode::FAILURE
}

fn run() -> Result<()> {
    for (kind, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(kind, place, kind, MountFlags::empty(), None).with_context(|| place.to_owned())?;
    }
    println!("{STARTED} {}", uname().release().to_string_lossy());
    let mut spans = Command::new(SPANS);
    let mut at_work = vec![Workload::start(spans.args(["good", "0", SPANS_CONTEXT]))?];
    let too_deep = case(TOO_DEEP, &[]);
    let cases = cases();
    for Case { name, program, mode, .. } in [&too_deep].into_iter().chain(&cases) {
        let named = format!("/tmp/{name}");
        fs::hard_link(program, &named)?;
        at_work.push(Workload::start(Command::new(named).args([mode, "0"]))?);
    }
    let known = Workload::start(Command::new(HOOKED).args(["copies", COPIES, COPY_MS]))?;
    // An emulated CPU takes long enough to verify programs when nothing else runs.
    at_work.iter().try_for_each(|workload| workload.signal(Signal::STOP))?;
    let spanprof = Spanprof::new(SPANPROF.into())?;
    // Emulated, it would take too long to make tables of itself.
    let pids = at_work.iter().chain([&known]);
    let pids = pids.map(|workload| format!("--pid={}", workload.pid()));
    let pids: Vec<String> = pids.collect();
    let options = ["record", "--stats", STATS, "-F", "199", "-d", "5m", "-o", "p.folded"];
    let options = options.into_iter().chain(pids.iter().map(String::as_str));
    let mut recording = spanprof.command(&options.collect::<Vec<_>>());
    recording.env("RUST_LOG", "info,profiler_user::capture=debug");
    let mut recording = Running::start(&mut recording)?;
    // What it said before, if it never does.
    recording.log(LOADED)?;
    recording.wait_until_sampling()?;
    recording.log(PROBED)?;
    known.end()?;
    if let Some(verified) = verified_instructions(recording.pid())? {
        println!("guest: {verified} instructions verified");
        ensure!(verified <= VERIFIED_MAX, "the largest program is near the verifier's limit");
    }
    at_work.iter().try_for_each(|workload| workload.signal(Signal::CONT))?;
    // All have the same share of the CPUs; this one runs in user mode, which is what is told.
    let first = at_work.first().context("nothing is at work")?;
    let enough = first.cpu_ticks()? + CPU_TICKS;
    wait_until("enough samples", || Ok(first.cpu_ticks()? >= enough))?;
    at_work.into_iter().try_for_each(|workload| workload.end().map(drop))?;
    recording.signal(Signal::INT)?;
    recording.finish()?.succeeded()?;
    let books = spanprof.books()?;
    let profile = Profile { stacks: spanprof.folded("p.folded")?, books };
    for case in &cases {
        profile
            .check(case)
            .with_context(|| format!("{}: {:#?}", case.name, profile.of(case.name)))?;
    }
    profile.check_too_deep().context(TOO_DEEP)?;
    profile.check_early()?;
    profile.check_hooked()?;
    profile.check_spans().with_context(|| format!("{SERVICE}: {:#?}", profile.stacks_of(SERVICE)))
}

/// Of the largest of its programs, on Linux 5.16 and newer.
fn verified_instructions(pid: u32) -> Result<Option<u64>> {
    let mut largest = None;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let mut counts = text.lines().filter_map(|line| line.strip_prefix("verified_insns:"));
        let count = counts.next().map(|count| count.trim().parse()).transpose()?;
        largest = largest.max(count);
    }
    Ok(largest)
}

struct Profile {
    stacks: Vec<Folded>,
    books: Books,
}

fn sum<'a>(stacks: impl IntoIterator<Item = &'a Folded>) -> u64 {
    stacks.into_iter().map(|stack| stack.count).sum()
}

fn is_complete(stack: &&Folded) -> bool {
    stack.frames.first().is_some_and(|root| root == "_start")
}

impl Profile {
    fn stacks_of(&self, service: &str) -> Vec<&Folded> {
        self.stacks.iter().filter(|stack| stack.service == service).collect()
    }

    fn of(&self, program: &str) -> Vec<&Folded> {
        self.stacks_of(&format!("unknown_service:{program}"))
    }

    /// Each complete stack has functions of the chain in their order as far as it goes, and most
    /// have all of it.
    fn check(&self, case: &Case) -> Result<()> {
        let stacks = self.of(case.name);
        let total = sum(stacks.iter().copied());
        let complete: Vec<&Folded> = stacks.into_iter().filter(is_complete).collect();
        let mut whole = 0;
        for stack in &complete {
            let known = stack.frames.iter().filter(|frame| case.chain.contains(&&***frame));
            let known: Vec<&str> = known.map(String::as_str).collect();
            let expected: Vec<&str> = case.chain.iter().rev().copied().collect();
            // None of them: before and after `main`.
            ensure!(expected.starts_with(&known), "this is no stack that it has: {stack:?}");
            whole += if known == expected { stack.count } else { 0 };
        }
        let complete = sum(complete);
        println!("guest: {}: {complete} of {total} complete, {whole} with all", case.name);
        ensure!(total >= 20, "{total} samples");
        // How many are early depends on how slow the machine is: see `check_early`.
        ensure!(complete * 4 >= total, "{complete} of {total} are complete");
        ensure!(whole * 2 >= complete, "{whole} of {complete} have all of it");
        Ok(())
    }

    /// It is cut at 128 frames, says so, and is counted.
    fn check_too_deep(&self) -> Result<()> {
        let stacks = self.of(TOO_DEEP);
        let total = sum(stacks.iter().copied());
        let whole = [&["[more frames]"][..], &["recurse"; 127], &["leaf"]].concat();
        let whole = sum(stacks.iter().filter(|stack| stack.frames == whole).copied());
        println!("guest: {TOO_DEEP}: {whole} of {total}");
        ensure!(total >= 20 && whole * 4 >= total, "{whole} of {total}: {stacks:#?}");
        let rooted = |root| sum(self.stacks.iter().filter(|stack| stack.frames[0] == root));
        let (cut, counted) = (rooted("[more frames]"), self.books.kernel("user_stack_truncated"));
        // Counted when it was walked: a slow machine may lose some later, and some are known to be
        // another program's by then.
        let other = self.books.kernel("lost_ring_full") + rooted("[program had changed]");
        let agree = cut <= counted && counted <= cut + other;
        ensure!(agree, "{cut} are cut, {counted} are counted, {other} lost");
        Ok(())
    }

    /// No stack is incomplete but those from before there were tables.
    fn check_early(&self) -> Result<()> {
        let mut all = 0;
        let mut early = 0;
        for case in cases() {
            let stacks = self.of(case.name);
            all += sum(stacks.iter().copied());
            early += sum(stacks.into_iter().filter(|stack| !is_complete(stack)));
        }
        let pending = self.books.kernel("user_table_pending");
        let counted = pending + self.books.kernel("user_stack_unknown_process");
        println!("guest: {early} of {all} not complete, {counted} before there were tables");
        ensure!(early * 1000 <= counted * 1000 + all * 5, "{early} of {all}, {counted} early");
        Ok(())
    }

    /// What only its hook tells is labelled from the start.
    fn check_hooked(&self) -> Result<()> {
        let stacks = self.of("hooked");
        let here = stacks.iter().filter(|stack| stack.frames.iter().any(|it| it == "in_span"));
        let (labelled, not): (Vec<&Folded>, _) =
            here.copied().partition(|stack| stack.span != "(no span)");
        let (labelled, not) = (sum(labelled), sum(not));
        let by = self.books.of_hooks("probed_by");
        println!("guest: hooked by {by}: {labelled} labelled, {not} not");
        let heard = self.books.kernel("hook_taken");
        // Where the machine is slow, a look at a new process can be before it says anything; what it
        // says then is nothing new.
        let copies: u64 = COPIES.parse()?;
        ensure!((copies * 8 / 10..=copies).contains(&heard), "{heard} were heard");
        ensure!(labelled >= 100 && not * 20 <= labelled, "{labelled} labelled, {not} not");
        Ok(())
    }

    /// What runs in a span is labelled with that span, but before the slot is known.
    fn check_spans(&self) -> Result<()> {
        let stacks = self.stacks_of(SERVICE);
        let spans = [CHILD, ROOT].map(|span| (span.function, span.root_name));
        for (function, name) in spans.into_iter().chain([(OUTSIDE, "(no span)")]) {
            let here = stacks.iter().filter(|stack| stack.frames.iter().any(|it| it == function));
            let here: Vec<&Folded> = here.copied().collect();
            let with = |span: &str| sum(here.iter().filter(|stack| stack.span == span).copied());
            let (total, right) = (sum(here.iter().copied()), with(name));
            let none = if function == OUTSIDE { 0 } else { with("(no span)") };
            println!("guest: {function}: {right} of {total} in {name}, {none} in none");
            ensure!(right + none == total, "{function} runs in {name}");
            ensure!(total >= 10 && right * 4 >= total, "{right} of {total}: {function}");
        }
        Ok(())
    }
}
