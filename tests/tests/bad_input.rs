//! What cannot be done is said in one line that a person understands, and leaves nothing behind.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use rustix::thread::CapabilitySet;
    use spanprof_tests::require;
    use spanprof_tests::spanprof::{Books, Finished, Running, STATS, Spanprof};
    use spanprof_tests::workload::Program;

    const CANNOT: i32 = 2;
    const FAILED: i32 = 1;

    /// One line of complaint, no output, no file.
    #[track_caller]
    fn refused(spanprof: &Spanprof, arguments: &[&str], code: i32, complaint: &str) {
        let finished = spanprof.run(arguments).unwrap();
        finished.ended_with(code).unwrap();
        assert!(finished.stderr.contains(complaint), "{arguments:?}: {}", finished.stderr);
        assert_eq!(finished.stdout, "", "{arguments:?}");
        assert_eq!(spanprof.files().unwrap(), [""; 0], "{arguments:?}");
        if !finished.stderr.contains("For more information, try '--help'") {
            assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
            assert!(finished.stderr.starts_with("spanprof: "), "{}", finished.stderr);
        }
    }

    #[test]
    fn arguments_that_cannot_be_meant_are_refused() {
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        for (arguments, complaint) in [
            (&["-F", "0"][..], "-F 0: the frequency must be 1 to 10000 Hz"),
            (&["-F", "100000"], "-F 100000: the frequency must be 1 to 10000 Hz"),
            (&["-d", "0s"], "longer than nothing"),
            (&["-d", "soon"], "--duration"),
            (&["-o", "profile.txt"], "profile.txt: its ending must be .pb.gz, .svg"),
            (&["-p", "4294967295"], "there is no process 4294967295"),
            (&["-p", "1", "--", "true"], "cannot be used with"),
        ] {
            let arguments = [&["record", "-o", "p.json"][..], arguments].concat();
            refused(&spanprof, &arguments, CANNOT, complaint);
        }
        refused(&spanprof, &["record", "--no-such-option"], CANNOT, "--no-such-option");
        refused(&spanprof, &["replay", "no-such-file", "-o", "x"], CANNOT, "x: its ending");
    }

    #[test]
    fn a_process_that_has_exited_is_no_process() {
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id().to_string();
        child.wait().unwrap();
        let complaint = format!("there is no process {pid}");
        refused(&spanprof, &["record", "-p", &pid, "-o", "p.json"], CANNOT, &complaint);
    }

    #[test]
    fn a_command_that_is_not_there_is_an_error() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let arguments = ["record", "--raw", "a.raw", "-o", "p.svg", "--", "/no/such/program", "x"];
        refused(&spanprof, &arguments, FAILED, "cannot run `/no/such/program`: No such file");
        let not_executable = ["record", "-o", "p.svg", "--", "/etc/passwd"];
        refused(&spanprof, &not_executable, FAILED, "cannot run `/etc/passwd`: Permission denied");
    }

    #[test]
    fn an_output_that_cannot_be_written_is_known_before_anything_is_run() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let ran = spanprof.path("ran");
        for option in [["-o", "/proc/p.svg"], ["--raw", "/proc/a"], ["--stats", "/proc/s"]] {
            let command = ["--", "touch", ran.to_str().unwrap()];
            let arguments = [&["record"][..], &option, &command].concat();
            refused(&spanprof, &arguments, FAILED, "cannot create a file in /proc");
        }
        let nowhere = ["record", "-o", "p.json", "-o", "no/such/folder/p.svg", "--", "true"];
        refused(&spanprof, &nowhere, FAILED, "cannot create a file in no/such/folder");
        fs::create_dir(spanprof.path("folder.svg")).unwrap();
        let finished = spanprof.run(&["record", "-o", "folder.svg", "--", "true"]).unwrap();
        finished.ended_with(FAILED).unwrap();
        assert!(finished.stderr.contains("is not a regular file"), "{}", finished.stderr);
    }

    /// Runs spanprof with what it writes to `full` on a disk of so many KiB, which nobody else
    /// sees; gives what is left there.
    fn on_a_full_disk(
        spanprof: &Spanprof,
        kib: u32,
        arguments: &[&str],
    ) -> (Finished, Vec<String>) {
        let script = format!(
            "mount -t tmpfs -o size={kib}k none full && echo earlier > full/kept.svg && \"$@\"
             code=$?; echo left; ls -A full; exit $code"
        );
        fs::create_dir_all(spanprof.path("full")).unwrap();
        let inner = spanprof.command(arguments);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, "sh"]).arg(inner.get_program());
        command.args(inner.get_args()).current_dir(spanprof.path(""));
        let finished = Running::start(&mut command).unwrap().finish().unwrap();
        let left = finished.stdout.lines().skip_while(|line| *line != "left").skip(1);
        let left = left.map(str::to_owned).collect();
        (finished, left)
    }

    #[test]
    fn a_disk_that_gets_full_keeps_what_was_there_and_nothing_half_written() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let program = Program::compile("stacks").unwrap();
        let command = ["--", program.arg(), "chain", "300"];
        for output in [["-o", "full/new.svg"], ["-o", "full/kept.svg"], ["--raw", "full/a.raw"]] {
            let fixed = ["record", "-F", "4999", "--stats", STATS];
            let arguments = [&fixed[..], &output, &command].concat();
            let (finished, left) = on_a_full_disk(&spanprof, 8, &arguments);
            finished.ended_with(FAILED).unwrap();
            let last = finished.stderr.lines().last().unwrap_or_default();
            assert!(last.starts_with("spanprof: cannot write"), "{output:?}: {}", finished.stderr);
            assert!(last.contains("No space left on device"), "{output:?}: {last}");
            assert_eq!(left, ["kept.svg"], "{output:?}");
            // What was sampled and could not be written is lost, and counted.
            let books = Books::parse(&spanprof.bytes(STATS).unwrap()).unwrap();
            assert_eq!(books.samples("samples_exported"), 0);
            assert_eq!(books.samples("lost_export_rejected"), books.kernel("samples_taken"));
            assert!(books.kernel("samples_taken") > 1000);
        }
        // The same with room for it, so that the failure was the disk's.
        let arguments = [&["record", "-o", "full/new.svg"][..], &command].concat();
        let (finished, left) = on_a_full_disk(&spanprof, 1024, &arguments);
        finished.succeeded().unwrap();
        assert_eq!(left, ["kept.svg", "new.svg"]);
    }

    #[test]
    fn without_privileges_each_missing_one_is_a_line_with_its_cost() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let record = ["record", "-o", "p.json", "--raw", "a.raw", "--", "touch", "ran"];
        let finished = spanprof.run_without(CapabilitySet::all(), &record).unwrap();
        finished.ended_with(CANNOT).unwrap();
        let lines: Vec<&str> = finished.stderr.lines().collect();
        let expected = [
            ("CAP_BPF", "BPF programs cannot be loaded"),
            ("CAP_PERFMON", "other processes cannot be sampled"),
            ("CAP_SYS_PTRACE", "no function names, no spans"),
            ("CAP_DAC_READ_SEARCH", "frames to addresses"),
            ("CAP_CHECKPOINT_RESTORE", "their frames have no names"),
            ("CAP_SYSLOG", "kernel frames have no names"),
        ];
        for (capability, cost) in expected {
            let about =
                |line: &&&str| line.contains(&format!("spanprof: capability {capability}:"));
            let found: Vec<_> = lines.iter().filter(about).collect();
            assert!(matches!(found[..], [line] if line.contains(cost)), "{}", finished.stderr);
        }
        assert_eq!(spanprof.files().unwrap(), [""; 0], "nothing is written, nothing is run");

        // One is missing: one line. CAP_SYS_ADMIN includes it.
        let lost = CapabilitySet::PERFMON | CapabilitySet::SYS_ADMIN;
        let finished = spanprof.run_without(lost, &record).unwrap();
        finished.ended_with(CANNOT).unwrap();
        assert!(
            finished.stderr.contains("spanprof: capability CAP_PERFMON:"),
            "{}",
            finished.stderr
        );
        assert!(!finished.stderr.contains("CAP_BPF"), "{}", finished.stderr);
    }

    #[test]
    fn a_privilege_that_only_makes_it_worse_costs_what_is_said() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let program = Program::compile("stacks").unwrap();
        let options = ["record", "-F", "997", "-o", "p.folded", "--stats", STATS];
        let arguments = [&options[..], &["--", program.arg(), "read", "200"]].concat();
        let finished = spanprof.run_without(CapabilitySet::SYSLOG, &arguments).unwrap();
        finished.succeeded().unwrap();
        assert!(finished.stderr.contains("CAP_SYSLOG: kernel frames have no names"));
        spanprof.books().unwrap();
        let folded = spanprof.folded("p.folded").unwrap();
        let in_fill = folded.iter().filter(|stack| stack.frames.iter().any(|it| it == "fill"));
        let leaves: Vec<_> = in_fill.filter_map(|stack| stack.frames.last()).collect();
        assert!(leaves.iter().any(|leaf| leaf.starts_with("[kernel]")), "{leaves:?}");
    }

    #[test]
    fn the_doctor_says_the_same_before_it_hurts() {
        require!(Root);
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        let well = spanprof.run(&["doctor"]).unwrap();
        well.succeeded().unwrap();
        assert!(!well.stdout.contains("MISSING"), "{}", well.stdout);
        for what in [
            "kernel ",
            "capability CAP_BPF",
            "kernel.perf_event_paranoid",
            "kernel BTF",
            "sampling, tried",
            "other processes, tried: ",
            "kernel addresses, tried",
        ] {
            assert!(well.stdout.contains(&format!("ok       {what}")), "{}", well.stdout);
        }
        let ill = spanprof.run_without(CapabilitySet::all(), &["doctor"]).unwrap();
        ill.ended_with(CANNOT).unwrap();
        let line = "MISSING  capability CAP_BPF: BPF programs cannot be loaded";
        assert!(ill.stdout.contains(line), "{}", ill.stdout);
        assert!(!ill.stdout.contains("tried"), "{}", ill.stdout);

        let ill = spanprof.run_without(CapabilitySet::SYSLOG, &["doctor"]).unwrap();
        ill.succeeded().unwrap();
        let line = "worse    kernel addresses, tried: kernel frames have no names";
        assert!(ill.stdout.contains(line), "{}", ill.stdout);

        // Every capability, and still it cannot be done.
        let binary = spanprof.command(&["doctor"]);
        let mut few_descriptors = Command::new("sh");
        few_descriptors
            .args(["-c", "ulimit -n 12 && exec \"$0\" doctor"])
            .arg(binary.get_program());
        let ill = few_descriptors.output().unwrap();
        let said = String::from_utf8_lossy(&ill.stdout);
        assert_eq!(ill.status.code(), Some(CANNOT), "{said}");
        assert!(said.contains("MISSING  sampling, tried: "), "{said}");
        assert!(said.contains("Too many open files"), "{said}");
    }
}
