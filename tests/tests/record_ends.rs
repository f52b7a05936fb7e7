//! However a recording ends, there is a whole profile, the books balance, and nothing goes on.

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Stdio};

    use rustix::process::Signal;
    use spanprof_tests::require;
    use spanprof_tests::spanprof::{STATS, Spanprof};
    use spanprof_tests::workload::{Program, cpu_ticks, wait_until};

    const SERVICE: &str = "unknown_service:stacks";
    const OUTPUTS: [&str; 6] = ["-o", "p.json", "-o", "p.pb.gz", "--stats", STATS];

    fn exists(pid: u32) -> bool {
        Path::new("/proc").join(pid.to_string()).exists()
    }

    /// That there is a profile of the workload, nothing but it, and books that balance.
    #[track_caller]
    fn has_a_profile(spanprof: &Spanprof) {
        let files = spanprof.files().unwrap();
        assert_eq!(files, ["p.json", "p.pb.gz", STATS], "no temporary file is left");
        let samples = spanprof.span_table("p.json").unwrap().service(SERVICE).samples;
        assert!(samples > 0);
        assert!(spanprof.books().unwrap().samples("samples_exported") >= samples);
    }

    #[test]
    fn a_signal_ends_the_recording_and_its_command() {
        require!(Root);
        let binary = require!(Spanprof);
        let program = Program::compile("stacks").unwrap();
        for signal in [Signal::INT, Signal::TERM] {
            let spanprof = Spanprof::new(binary.clone()).unwrap();
            // The shell gives its id to the workload.
            let shell = ["--", "sh", "-c", r#"echo $$; exec "$0" chain 0"#, program.arg()];
            let arguments = [&["record", "-F", "997"][..], &OUTPUTS, &shell].concat();
            let mut running = spanprof.start(&arguments).unwrap();
            let command: u32 = running.line().unwrap().parse().unwrap();
            assert_eq!(running.line().unwrap(), "ready");
            // It samples while the workload works.
            let at_work = || Ok(cpu_ticks(command)? >= 5);
            wait_until("the workload has used CPU time", at_work).unwrap();
            running.signal(signal).unwrap();
            let finished = running.finish().unwrap();
            finished.succeeded().unwrap();
            has_a_profile(&spanprof);
            assert!(!exists(command), "{signal:?}: its command goes on");
        }
    }

    #[test]
    fn the_end_of_its_time_ends_its_command() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let program = Program::compile("stacks").unwrap();
        let shell = ["--", "sh", "-c", r#"echo $$; exec "$0" chain 0"#, program.arg()];
        let arguments = [&["record", "-d", "300ms", "-F", "997"][..], &OUTPUTS, &shell].concat();
        let mut running = spanprof.start(&arguments).unwrap();
        let command: u32 = running.line().unwrap().parse().unwrap();
        running.finish().unwrap().succeeded().unwrap();
        has_a_profile(&spanprof);
        assert!(!exists(command), "its command goes on");
    }

    #[test]
    fn the_exit_of_all_processes_ends_it_before_its_time() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let program = Program::compile("stacks").unwrap();
        let workloads = [(); 2].map(|()| program.start(&["chain", "0"]).unwrap());
        let pids = workloads.each_ref().map(|workload| workload.pid().to_string());
        let processes = ["-p", &pids[0], "-p", &pids[1]];
        let arguments = [&["record", "-d", "1h", "-F", "997"][..], &OUTPUTS, &processes].concat();
        let running = spanprof.start(&arguments).unwrap();
        running.wait_until_sampling().unwrap();
        for workload in workloads {
            workload.end().unwrap();
        }
        running.finish().unwrap().succeeded().unwrap();
        has_a_profile(&spanprof);
    }

    #[test]
    fn a_command_that_fails_has_its_profile() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let program = Program::compile("stacks").unwrap();
        let shell = ["--", "sh", "-c", r#""$0" chain 100; exit 7"#, program.arg()];
        let arguments = [&["record", "-F", "997"][..], &OUTPUTS, &shell].concat();
        let finished = spanprof.run(&arguments).unwrap();
        finished.succeeded().unwrap();
        assert!(finished.stderr.contains("the command failed"), "{}", finished.stderr);
        has_a_profile(&spanprof);
    }

    /// Each has its own BPF programs and its own perf events.
    #[test]
    fn two_at_the_same_time_see_the_same() {
        require!(Root);
        let binary = require!(Spanprof);
        let workload = Program::compile("stacks").unwrap().start(&["chain", "0"]).unwrap();
        let pid = workload.pid().to_string();
        let arguments =
            [&["record", "-d", "1h", "-F", "499"][..], &OUTPUTS, &["-p", &pid]].concat();
        let two = [(); 2].map(|()| Spanprof::new(binary.clone()).unwrap());
        let running = two.each_ref().map(|spanprof| spanprof.start(&arguments).unwrap());
        running.iter().for_each(|running| running.wait_until_sampling().unwrap());
        let samples = |spanprof: &Spanprof| {
            has_a_profile(spanprof);
            spanprof.span_table("p.json").unwrap().service(SERVICE).samples
        };
        let until = workload.cpu_ticks().unwrap() + 50;
        wait_until("half a second", || Ok(workload.cpu_ticks()? >= until)).unwrap();
        workload.end().unwrap();
        for running in running {
            running.finish().unwrap().succeeded().unwrap();
        }
        let [one, other] = two.each_ref().map(samples);
        // Half a second together, but for the ways in which clocks count; the one that was first has
        // what came before the other, too.
        assert!(one >= 220 && other >= 220, "{one} and {other}");
    }

    #[test]
    fn nobody_who_reads_the_table_does_not_cost_the_profile() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let program = Program::compile("stacks").unwrap();
        let script = ["--", "sh", "-c", r#"exec "$0" chain 100 > /dev/null"#, program.arg()];
        let arguments = [&["record", "-F", "997"][..], &OUTPUTS, &script].concat();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command: Command = spanprof.command(&arguments);
        let output = command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).output();
        let output = output.unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!stderr.contains("panicked"), "{stderr}");
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("Broken pipe"), "{stderr}");
        has_a_profile(&spanprof);
    }
}
