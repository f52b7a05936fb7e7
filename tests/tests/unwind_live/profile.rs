//! A program under the profiler, and each of its samples with the names and the end of its stack.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use profiler_common::unwind::MAPPING_PENDING;
use profiler_user::attribute::{Location, SpanScope, attribute};
use profiler_user::decode::{self, UserStack};
use profiler_user::recording::{Reader, Recorded};
use profiler_user::symbolize::Names;
use rustix::process::Signal;
use spanprof_tests::require;
use spanprof_tests::spanprof::{Books, STATS, Spanprof};
use spanprof_tests::workload::{Program, cpu_ticks_in_all, wait_until};

/// Overrides what the other workloads are compiled with.
pub(crate) const NO_FRAME_POINTERS: &str = "-fomit-frame-pointer";

const RAW: &str = "p.raw";
/// Fewer say nothing of 99.5 in 100.
const LEAST: usize = 500;
/// How much CPU time a program is profiled for, in hundredths of a second: not how long, so that
/// there are as many samples where much else runs. Again and longer, where tables take so long.
const TICKS: [u64; 3] = [150, 500, 1500];

/// One sample.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Walk {
    pub(crate) tid: u32,
    /// Leaf first.
    pub(crate) kernel: Vec<String>,
    /// The process's functions, leaf first. Why it ends early is the last.
    pub(crate) user: Vec<String>,
    /// Where in its file the first of them was.
    pub(crate) leaf: Option<u64>,
    pub(crate) complete: bool,
    pub(crate) truncated: bool,
    /// The process ran something else by then: there is only the first frame.
    stale: bool,
    /// The process was not known.
    unknown: bool,
    /// Bits of `MAPPING_*`: where callers were looked for by frame pointer.
    pub(crate) by_frame_pointer: u8,
}

impl Walk {
    pub(crate) fn user(&self) -> Vec<&str> {
        self.user.iter().map(String::as_str).collect()
    }

    /// Up to the outermost frame, and nothing was guessed.
    pub(crate) fn is_by_rule(&self) -> bool {
        self.complete && self.by_frame_pointer == 0
    }

    /// A caller was looked for by frame pointer because a table was not there yet.
    fn is_pending(&self) -> bool {
        self.by_frame_pointer & (1 << MAPPING_PENDING) != 0
    }
}

/// What became of some CPU time.
pub(crate) struct Profile {
    /// All but the early ones.
    pub(crate) walks: Vec<Walk>,
    /// Of how many processes the mappings were published.
    pub(crate) processes: u64,
}

impl Profile {
    /// Samples a process and its children.
    pub(crate) fn of(spanprof: PathBuf, pid: u32, more: &[&str]) -> Self {
        for ticks in TICKS {
            let (mut walks, books) = record(spanprof.clone(), pid, ticks, more);
            let all = walks.len();
            walks.retain(|walk| !walk.unknown && !walk.is_pending());
            let early = all - walks.len();
            println!("{} samples, and {early} early", walks.len());
            if walks.len() >= LEAST {
                return Self { walks, processes: books.unwind("processes") };
            }
        }
        panic!("the tables of the program's files are never ready");
    }

    pub(crate) fn count(&self, condition: impl Fn(&Walk) -> bool) -> usize {
        self.walks.iter().filter(|walk| condition(walk)).count()
    }

    /// Of all samples, 99.5 in 100 fulfil a condition.
    #[track_caller]
    pub(crate) fn all(&self, condition: impl Fn(&Walk) -> bool) {
        let total = self.walks.len();
        let mut wrong: BTreeMap<&Walk, usize> = BTreeMap::new();
        for walk in self.walks.iter().filter(|walk| !condition(walk)) {
            *wrong.entry(walk).or_default() += 1;
        }
        let right = total - wrong.values().sum::<usize>();
        println!("{right} of {total} are right");
        assert!(right * 1000 >= total * 995, "{right} of {total}: {wrong:#?}");
    }

    /// So many samples in a hundred fulfil a condition, at least: the program does what it is for.
    #[track_caller]
    pub(crate) fn least(&self, percent: usize, condition: impl Fn(&Walk) -> bool) {
        let (found, total) = (self.count(condition), self.walks.len());
        println!("{found} of {total}, {percent} % wanted");
        assert!(found * 100 >= total * percent, "{found} of {total}: {:#?}", self.walks.first());
    }
}

/// Samples a process and its children, until it has used so much CPU time.
fn record(spanprof: PathBuf, pid: u32, ticks: u64, more: &[&str]) -> (Vec<Walk>, Books) {
    let spanprof = Spanprof::new(spanprof).unwrap();
    let target = pid.to_string();
    let options = ["record", "-F", "997", "-d", "60s", "-p", &target];
    let outputs = ["--raw", RAW, "--stats", STATS];
    let running = spanprof.start(&[&options[..], &outputs, more].concat()).unwrap();
    running.wait_until_sampling().unwrap();
    let used = || cpu_ticks_in_all(pid);
    let enough = used().unwrap() + ticks;
    wait_until("the program has used CPU time", || Ok(used()? >= enough)).unwrap();
    running.signal(Signal::INT).unwrap();
    running.finish().unwrap().succeeded().unwrap();
    let walks = walks_of(&spanprof.path(RAW));
    let books = spanprof.books().unwrap();
    check_marks(&walks, &books);
    (walks, books)
}

/// The samples of a recorded file.
fn walks_of(raw: &Path) -> Vec<Walk> {
    let mut reader = Reader::new(std::fs::File::open(raw).unwrap()).unwrap();
    let mut taken = Vec::new();
    let mut names = None;
    while let Some(recorded) = reader.read_next().unwrap() {
        match recorded {
            Recorded::Sample { record, process } => {
                let sample = decode::sample(record).unwrap();
                let stack = attribute(&sample, process, &SpanScope::Active.into()).stack;
                taken.push((sample, stack));
            }
            Recorded::End(_) => {}
            Recorded::Names(found) => names = Some(Names::from(found)),
        }
    }
    let names = names.expect("a recorded file has names");
    let functions = |locations: &[&Location]| -> Vec<String> {
        let frames = locations.iter().flat_map(|location| match location {
            Location::Unresolved(reason) => vec![reason.frame_name().to_owned()],
            _ => names.frames[location].iter().map(|frame| frame.function.to_string()).collect(),
        });
        frames.collect()
    };
    let walk = |(sample, stack): (decode::Sample, Box<[Location]>)| {
        let is_kernel = |location: &&Location| matches!(location, Location::Kernel(_));
        let (kernel, user): (Vec<_>, Vec<_>) = stack.iter().partition(is_kernel);
        Walk {
            tid: sample.tid.0,
            kernel: functions(&kernel),
            user: functions(&user),
            leaf: user.first().and_then(|leaf| match leaf {
                Location::Elf { file_offset, .. } => Some(*file_offset),
                _ => None,
            }),
            complete: sample.user_stack == UserStack::Complete,
            truncated: sample.user_stack == UserStack::Truncated,
            stale: sample.user_stack == UserStack::Stale,
            unknown: sample.user_stack == UserStack::UnknownProcess,
            by_frame_pointer: sample.by_frame_pointer,
        }
    };
    taken.into_iter().map(walk).collect()
}

/// The kernel counted what the samples say. That one is stale it does not know.
fn check_marks(walks: &[Walk], books: &Books) {
    type Mark = fn(&Walk) -> bool;
    let count = |marked: Mark| walks.iter().filter(|walk| marked(walk)).count() as u64;
    let stale = count(|walk| walk.stale);
    assert_eq!(stale, books.samples("user_stack_stale"));
    let marks: [(&str, Mark); 4] = [
        ("user_table_pending", Walk::is_pending),
        ("user_stack_unknown_process", |walk| walk.unknown),
        ("user_stack_truncated", |walk| walk.truncated),
        ("user_stack_complete", |walk| walk.complete),
    ];
    for (counter, marked) in marks {
        let (marked, counted) = (count(marked), books.kernel(counter));
        let or_stale = marked..=marked + stale;
        assert!(or_stale.contains(&counted), "{counter}: {counted}, not {or_stale:?}");
    }
}

/// A profile of `tests/fixtures/unwind.c`.
pub(crate) fn profile_of(mode: &str, flags: &[&str], more: &[&str]) -> Option<Profile> {
    require!(Root, None);
    let spanprof = require!(Spanprof, None);
    let program = Program::compile_with("unwind", &[&[NO_FRAME_POINTERS], flags].concat());
    Some(profile_while(&program.unwrap(), &[mode, "0"], spanprof, more))
}

/// A profile of a program that works until it is told to end.
pub(crate) fn profile_while(
    program: &Program,
    arguments: &[&str],
    spanprof: PathBuf,
    more: &[&str],
) -> Profile {
    let workload = program.start(arguments).unwrap();
    let profile = Profile::of(spanprof, workload.pid(), more);
    workload.end().unwrap();
    profile
}
