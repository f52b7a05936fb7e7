//! `spanprof inspect` says what is true of a process and of a file, and leaves the process alone.

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::fs;
    use std::path::PathBuf;
    use std::process::Command;
    use std::time::Duration;

    use rustix::process::{Pid, Signal, kill_process};
    use serde_json::{Value, json};
    use spanprof_tests::process_context::payload;
    use spanprof_tests::require;
    use spanprof_tests::span_writer::{KEYS, SERVICE, SpanWriter};
    use spanprof_tests::spanprof::Spanprof;
    use spanprof_tests::wait::until;
    use spanprof_tests::workload::{Program, Workload};

    const DEADLINE: Duration = Duration::from_secs(60);

    struct Inspector(Spanprof);

    impl Inspector {
        fn new(binary: PathBuf) -> Self {
            Self(Spanprof::new(binary).unwrap())
        }

        fn of(&self, target: &str) -> Value {
            let finished = self.0.run(&["inspect", "--json", "--threads", "8", target]).unwrap();
            finished.succeeded().unwrap();
            serde_json::from_str(&finished.stdout).unwrap()
        }

        /// Looks until the first thread is where the condition wants it.
        fn until(&self, pid: u32, condition: impl Fn(&Value) -> bool) -> Value {
            let found = RefCell::new(Value::Null);
            let is_there = || {
                found.replace(self.of(&pid.to_string()));
                condition(&found.borrow())
            };
            assert!(until(DEADLINE, is_there), "{:#}", found.borrow());
            found.into_inner()
        }
    }

    fn functions(report: &Value, thread: usize) -> Vec<String> {
        let frames = report["threads"][thread]["frames"].as_array();
        let names = frames.into_iter().flatten().flat_map(|it| it["functions"].as_array());
        names.flatten().filter_map(|name| Some(name.as_str()?.to_owned())).collect()
    }

    fn file<'a>(report: &'a Value, name: &str) -> &'a Value {
        let mut files = report["files"].as_array().unwrap().iter();
        let is = |file: &&Value| file["path"].as_str().unwrap().ends_with(name);
        files.find(is).unwrap_or_else(|| panic!("no {name} in {report:#}"))
    }

    /// The program, until its stdin ends.
    fn start(name: &str, arguments: &[&str]) -> (Program, Workload) {
        let program = Program::compile(name).unwrap();
        let workload = program.start(arguments).unwrap();
        (program, workload)
    }

    fn is_stopped(pid: u32) -> bool {
        fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ")
    }

    fn stop(pid: u32) {
        let raw = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        kill_process(raw, Signal::STOP).unwrap();
        assert!(until(DEADLINE, || is_stopped(pid)), "it is stopped");
    }

    #[test]
    fn the_stack_of_a_thread_is_the_one_that_it_has_and_it_goes_on() {
        require!(Root);
        let inspector = Inspector::new(require!(Spanprof));
        let (_program, workload) = start("stacks", &["chain", "0"]);
        let chain = ["leaf", "third", "second", "first", "main"];
        let report = inspector.until(workload.pid(), |report| {
            functions(report, 0).starts_with(&chain.map(str::to_owned))
        });
        let thread = &report["threads"][0];
        assert_eq!(thread["ends"], "complete", "{report:#}");
        assert_eq!(thread["tid"], workload.pid());
        assert!(
            functions(&report, 0).len() > chain.len(),
            "libc's start is above main: {report:#}"
        );
        for frame in thread["frames"].as_array().unwrap() {
            let caller = frame["caller"].as_str().unwrap();
            assert!(caller.starts_with("by rule: cfa = ") || caller == "the outermost frame");
        }
        let own = file(&report, "/stacks");
        assert_eq!(own["source"], "eh_frame");
        assert!(own["rows"].as_u64().unwrap() > 20 && own["rules"].as_u64().unwrap() > 1);
        assert_eq!(report["span_slots"], json!([]));
        assert_eq!(report["perf_map"]["makes_code"], false);
        // Nobody traces it any more, and it works on.
        let status = fs::read_to_string(format!("/proc/{}/status", workload.pid())).unwrap();
        assert!(status.contains("TracerPid:\t0\n") && !status.contains("State:\tt"), "{status}");
        let before = workload.cpu_ticks().unwrap();
        assert!(until(DEADLINE, || workload.cpu_ticks().unwrap() > before), "it works on");
        workload.end().unwrap();
    }

    #[test]
    fn a_stopped_process_stays_stopped() {
        require!(Root);
        let inspector = Inspector::new(require!(Spanprof));
        let (_program, workload) = start("stacks", &["chain", "0"]);
        stop(workload.pid());
        let report = inspector.of(&workload.pid().to_string());
        assert_eq!(report["threads"][0]["ends"], "complete", "{report:#}");
        assert!(until(DEADLINE, || is_stopped(workload.pid())), "it was let go");
        let raw = Pid::from_raw(i32::try_from(workload.pid()).unwrap()).unwrap();
        kill_process(raw, Signal::CONT).unwrap();
        workload.end().unwrap();
    }

    #[test]
    fn code_made_at_run_time_is_named_in_its_own_namespaces() {
        require!(Root);
        let inspector = Inspector::new(require!(Spanprof));
        for mode in ["named", "container"] {
            let (_program, workload) = start("jit", &[mode, "20000"]);
            let pid = workload.pid();
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
            let pid = children.trim().parse().unwrap_or(pid);
            let report = inspector
                .until(pid, |report| functions(report, 0).starts_with(&["short work".to_owned()]));
            let named = ["short work", "call_generated", "work"].map(str::to_owned);
            assert!(functions(&report, 0).starts_with(&named), "{report:#}");
            assert_eq!(report["threads"][0]["ends"], "complete", "{report:#}");
            assert_eq!(report["perf_map"]["read"]["entries"], 2, "{report:#}");
            let frame = &report["threads"][0]["frames"][0];
            assert_eq!(frame["caller"], "by frame pointer: code made at run time");
            // Its perf map goes with it.
            let map = if mode == "named" { format!("perf-{pid}.map") } else { "perf-1.map".into() };
            fs::remove_file(format!("/proc/{pid}/root/tmp/{map}")).unwrap();
        }
    }

    #[test]
    fn a_span_slot_is_found_as_the_profiler_finds_it() {
        require!(Root);
        let inspector = Inspector::new(require!(Spanprof));
        let writer = SpanWriter::compile().unwrap();
        let workload = writer.start("good").unwrap();
        let process = inspector.of(&workload.pid().to_string());
        assert_eq!(process["span_slots"][0]["found_by"], "dynamic_symbol", "{process:#}");
        assert_eq!(process["service"], SERVICE);
        assert_eq!(process["attribute_keys"], serde_json::json!(KEYS));
        let file = inspector.of(&format!("/proc/{}/exe", workload.pid()));
        assert_eq!(file["span_slot"]["tp_offset"], process["span_slots"][0]["offset"], "{file:#}");
        workload.end().unwrap();

        let hidden = SpanWriter::compile_without_symbol().unwrap();
        hidden.context(&payload(SERVICE, &KEYS, file["span_slot"]["tp_offset"].as_i64())).unwrap();
        let workload = hidden.start("good").unwrap();
        let process = inspector.of(&workload.pid().to_string());
        assert_eq!(process["span_slots"][0]["found_by"], "process_context", "{process:#}");
        workload.end().unwrap();
        assert_eq!(inspector.of("/usr/bin/env")["span_slot"], Value::Null);
    }

    /// The program counters that gdb finds, those of inlined functions once.
    fn by_gdb(gdb: &PathBuf, pid: u32) -> Vec<u64> {
        let mut command = Command::new(gdb);
        command.args(["-nx", "-batch", "-ex", "set debuginfod enabled off"]);
        command.args(["-ex", "set backtrace past-main on", "-ex", "set backtrace past-entry off"]);
        command.args(["-p", &pid.to_string()]);
        for _ in 0..64 {
            command.args(["-ex", "printf \"pc %lx\\n\", $pc", "-ex", "up-silently"]);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let counters = text.lines().filter_map(|line| line.strip_prefix("pc "));
        let mut counters: Vec<u64> =
            counters.map(|hex| u64::from_str_radix(hex, 16).unwrap()).collect();
        counters.dedup();
        counters
    }

    #[test]
    fn a_stack_is_the_one_that_gdb_sees() {
        require!(Root);
        let (inspector, gdb) = (Inspector::new(require!(Spanprof)), require!(Gdb));
        let (_program, workload) = start("stacks", &["recurse", "0"]);
        let pid = workload.pid();
        let raw = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        let mut compared = 0;
        for _ in 0..5 {
            stop(pid);
            let report = inspector.of(&pid.to_string());
            let frames = report["threads"][0]["frames"].as_array().unwrap();
            let mut ours: Vec<u64> = frames.iter().filter_map(|it| it["ip"].as_u64()).collect();
            ours.dedup();
            let theirs = by_gdb(&gdb, pid);
            assert_eq!(ours, theirs, "{report:#}");
            compared += ours.len();
            kill_process(raw, Signal::CONT).unwrap();
        }
        assert!(compared >= 15, "{compared}");
        workload.end().unwrap();
    }

    #[test]
    fn what_cannot_be_inspected_is_said_in_one_line() {
        require!(Root);
        let inspector = Inspector::new(require!(Spanprof));
        let fifo = inspector.0.path("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
        for target in ["4194304", "no-such-file", "fifo", "."] {
            let finished = inspector.0.run(&["inspect", target]).unwrap();
            finished.ended_with(1).unwrap();
            assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
            assert!(finished.stderr.contains(target), "{}", finished.stderr);
        }
        fs::write(inspector.0.path("text"), "no ELF file\n".repeat(100)).unwrap();
        assert_eq!(inspector.of("text")["reason"], "malformed");
        // A kernel thread has neither mappings nor a stack of its own.
        let report = inspector.of("2");
        assert_eq!(report["mappings"].as_array().unwrap().len(), 0, "{report:#}");
        assert!(report["threads"][0]["error"].is_string(), "{report:#}");
    }
}
