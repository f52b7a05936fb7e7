//! What the worker may not do, and what becomes of it.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use profiler_user::symbolize::{Symbolizer, SymbolizerConfig, Unsymbolized};

use crate::support::{Known, at, compile, config, elf, folder, functions, name, unsymbolized};

pub(crate) const TESTS: &[crate::Test] = &[
    ("the_worker_has_no_privileges", no_privileges),
    ("the_worker_has_no_environment_and_nothing_else_open", no_environment),
    ("a_file_that_only_its_owner_may_read", only_its_owner),
    ("the_worker_ends_with_the_symbolizer", ends_with_the_symbolizer),
    ("a_worker_that_grows_is_replaced", a_worker_that_grows),
    ("a_worker_that_was_killed_is_replaced", a_worker_that_was_killed),
];

fn is_root() -> bool {
    status(std::process::id())["Uid"].starts_with("0\t")
}

fn status(pid: u32) -> HashMap<String, String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let lines = status.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

fn started() -> (Symbolizer, u32) {
    let program = std::env::current_exe().unwrap();
    let mut symbolizer = Symbolizer::new(config(false));
    name(&mut symbolizer, &[elf(1, &program, None)], &[at(1, 0)]);
    let pid = symbolizer.worker_pid().unwrap();
    (symbolizer, pid)
}

fn no_privileges() {
    let (_symbolizer, pid) = started();
    let status = status(pid);
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    assert_eq!(status["NoNewPrivs"], "1");
    assert_eq!(status["Threads"], "1");
    if is_root() {
        assert_eq!(status["CapBnd"], "0000000000000000");
        for ids in ["Uid", "Gid"] {
            assert!(status[ids].split('\t').all(|id| id == "1934622721"), "{}", status[ids]);
        }
        assert_eq!(status["Groups"], "");
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_ascii_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(limit("Max address space"), (1 << 30).to_string());
    assert_eq!(limit("Max core file size"), "0");
    assert_eq!(limit("Max file size"), "0");
}

fn no_environment() {
    let (_symbolizer, pid) = started();
    if is_root() {
        assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
        let mut open: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .map(|entry| fs::read_link(entry.unwrap().path()).unwrap())
            .filter(|path| !path.starts_with("/dev/null"))
            .filter(|path| !path.to_string_lossy().starts_with("socket:"))
            .collect();
        open.dedup();
        assert_eq!(open, [std::env::current_exe().unwrap()]);
    } else {
        // Not dumpable: its own user may not look.
        assert!(fs::read(format!("/proc/{pid}/environ")).is_err());
    }
}

/// The profiler can read it, the worker cannot open it, so it gets a copy.
fn only_its_owner() {
    let folder = folder();
    let program = compile(folder.path(), "program");
    fs::set_permissions(&program, Permissions::from_mode(0o700)).unwrap();
    let known = Known::read(&program);
    let location = at(1, known.offset(known.function("hidden").0));
    for (copy_bytes_max, is_named) in [(1 << 20, true), (100, !is_root())] {
        let setup = SymbolizerConfig { copy_bytes_max, ..config(false) };
        let mut symbolizer = Symbolizer::new(setup);
        let names = name(&mut symbolizer, &[elf(1, &program, None)], &[location]);
        assert_eq!(functions(&names, location) == ["hidden"], is_named);
        let too_large = unsymbolized(&symbolizer, Unsymbolized::TooLargeToCopy);
        assert_eq!(too_large, u64::from(!is_named));
    }
}

fn ends_with_the_symbolizer() {
    let (symbolizer, pid) = started();
    drop(symbolizer);
    let end = Instant::now() + Duration::from_secs(10);
    while Path::new(&format!("/proc/{pid}")).exists() {
        assert!(Instant::now() < end, "the worker outlives the symbolizer");
        std::thread::yield_now();
    }
}

fn a_worker_that_grows() {
    let program = std::env::current_exe().unwrap();
    let known = Known::read(&program);
    let main = known.offset(known.function("main").0);
    // Room for a few mappings of this program, not for twenty.
    let mapped = fs::metadata(&program).unwrap().len();
    let setup = SymbolizerConfig { worker_memory_bytes: 8 * mapped, ..config(false) };
    let mut symbolizer = Symbolizer::new(setup);
    let files: Vec<_> = (0..20).map(|id| elf(id, &program, None)).collect();
    for id in 0..20 {
        let names = name(&mut symbolizer, &files, &[at(id, main)]);
        assert_eq!(functions(&names, at(id, main)), ["main"]);
    }
    let stats = symbolizer.stats();
    assert!(stats.worker_recycles > 0, "{stats:?}");
    assert!(stats.worker_deaths.is_empty(), "{stats:?}");
    assert_eq!(
        stats.worker_starts,
        stats.worker_recycles + u64::from(symbolizer.worker_pid().is_some())
    );
}

fn a_worker_that_was_killed() {
    let (mut symbolizer, pid) = started();
    let raw = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::KILL).unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while !status(pid)["State"].starts_with('Z') {
        assert!(Instant::now() < end, "the worker survives being killed");
        std::thread::yield_now();
    }
    let program = std::env::current_exe().unwrap();
    let main = Known::read(&program).function("main").0;
    let main = at(1, Known::read(&program).offset(main));
    let names = name(&mut symbolizer, &[elf(1, &program, None)], &[main]);
    assert_eq!(functions(&names, main), ["main"]);
    let stats = symbolizer.stats();
    assert_eq!(stats.worker_deaths.values().sum::<u64>(), 1);
    // No file was being read, so none is to blame.
    assert_eq!((stats.files_degraded, stats.files_quarantined), (0, 0));
}
