//! Programs whose mappings and files are made to harm: they lose their own stacks, for a reason that
//! is counted. Whatever runs beside them is profiled as if they were not there.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use rustix::thread::CapabilitySet;
    use spanprof_tests::made_elf::{self, Frames};
    use spanprof_tests::require;
    use spanprof_tests::spanprof::{Books, Finished, STATS, Spanprof};
    use spanprof_tests::workload::Program;

    const GOOD: &str = "unknown_service:unwind";
    /// How much CPU time the good program uses, and the hostile ones.
    const CPU_MS: &str = "1500";
    /// About one a millisecond.
    const HZ: &str = "997";

    /// A hostile program, and a folder for its files.
    struct Hostile {
        spanprof: Spanprof,
        program: Program,
        good: Program,
    }

    impl Hostile {
        fn new(flags: &[&str]) -> Option<Self> {
            require!(Root, None);
            Some(Self {
                spanprof: Spanprof::new(require!(Spanprof, None)).unwrap(),
                program: Program::compile_with("hostile", flags).unwrap(),
                good: Program::compile_with("unwind", &["-fomit-frame-pointer"]).unwrap(),
            })
        }

        /// Profiles hostile processes and a good one beside them. All of them end; nothing is lost,
        /// and the good one's stacks are whole.
        fn beside(&self, hostile: &[String], without: CapabilitySet) -> (Finished, Books) {
            let program = self.program.arg();
            let hostile_ones = hostile.iter().map(|arguments| format!("{program} {arguments} & "));
            let good = format!("{} chain {CPU_MS} & wait", self.good.arg());
            let script = hostile_ones.chain([good]).collect::<String>();
            let options = ["record", "--stats", STATS, "-F", HZ, "-o", "p.folded"];
            let arguments = [&options[..], &["--", "sh", "-c", &script]].concat();
            let finished = self.spanprof.run_without(without, &arguments).unwrap();
            finished.succeeded().unwrap();
            let ended = finished.stdout.lines().filter(|line| *line == "ended").count();
            assert_eq!(ended, hostile.len(), "{finished:?}");

            let books = self.spanprof.books().unwrap();
            assert_eq!(books.kernel("lost_ring_full"), 0);
            assert_eq!(books.samples("lost_attribute_queue_full"), 0);
            let (mut whole, mut all) = (0, 0);
            for stack in self.spanprof.folded("p.folded").unwrap() {
                if stack.service == GOOD {
                    let is_whole = stack.frames.first().is_some_and(|root| root == "_start");
                    all += stack.count;
                    whole += if is_whole { stack.count } else { 0 };
                }
            }
            let early =
                books.kernel("user_table_pending") + books.kernel("user_stack_unknown_process");
            assert!(all > 1000, "{all} samples of the good program");
            assert!((whole + early) * 1000 >= all * 995, "{whole} of {all}, {early} early");
            // How long tables take depends on what else the machine does.
            assert!(whole * 10 >= all * 5, "{whole} of {all}: {books:?}");
            (finished, books)
        }

        /// As a mode of the hostile program, for some time.
        fn mode(mode: &str, files: &[PathBuf]) -> String {
            let files = files.iter().map(|file| format!(" {}", file.display()));
            format!("{mode} {CPU_MS}{}", files.collect::<String>())
        }

        fn all_beside(&self, hostile: &[String]) -> (Finished, Books) {
            self.beside(hostile, CapabilitySet::empty())
        }

        /// A file that can be mapped and run, under a name of so many bytes.
        fn copy(&self, name_len: usize) -> PathBuf {
            let to = self.spanprof.path(&"x".repeat(name_len));
            fs::copy(self.program.path(), &to).unwrap();
            to
        }
    }

    #[test]
    fn as_many_mappings_as_there_can_be() {
        let Some(hostile) = Hostile::new(&[]) else { return };
        let file = hostile.copy(120);
        let (finished, books) = hostile.all_beside(&[Hostile::mode("mappings", &[file])]);
        let count = finished.stdout.lines().find_map(|line| line.strip_suffix(" mappings"));
        let count: u64 = count.unwrap().parse().unwrap();
        assert!(count > 60_000, "{count} mappings");
        assert!(books.unwind("mappings_cut") > count - 4096, "{books:?}");
        assert_eq!(books.process("maps_truncated"), 0);
    }

    #[test]
    fn many_mappings_that_are_others_all_the_time() {
        let Some(hostile) = Hostile::new(&[]) else { return };
        let mode = Hostile::mode("mappings-change", &[hostile.copy(100)]);
        let (_, books) = hostile.all_beside(&[mode.clone(), mode]);
        assert!(books.unwind("mappings_cut") > 0, "{books:?}");
        assert!(books.process("reads_backed_off") > 100, "{books:?}");
    }

    #[test]
    fn a_storm_of_programs() {
        const ROUNDS: u64 = 300;
        let Some(hostile) = Hostile::new(&["-static"]) else { return };
        let storm = format!("storm {ROUNDS} {}", hostile.program.arg());
        let (_, books) = hostile.all_beside(&[storm.clone(), storm]);
        // Each round is a program that runs itself nine times more.
        let known = books.process("execs") + books.kernel("process_event_lost_ring_full");
        assert!(known >= 2 * 10 * ROUNDS, "{books:?}");
    }

    #[test]
    fn a_file_that_changes_while_it_is_read() {
        let Some(hostile) = Hostile::new(&[]) else { return };
        let (_, books) = hostile.all_beside(&[Hostile::mode("changes", &[hostile.copy(10)])]);
        assert!(books.process("reads_for_samples") > 10, "{books:?}");
        let reasons = ["malformed", "unreadable", "no_unwind_information"];
        let without: u64 = reasons.iter().map(|reason| books.files_without(reason)).sum();
        assert!(without > 0, "{books:?}");
    }

    #[test]
    fn files_that_lie_about_unwinding() {
        let Some(hostile) = Hostile::new(&[]) else { return };
        let of = |frames: Frames, text_len: u64, name: &str| {
            let to = hostile.spanprof.path(name);
            made_elf::write(&to, text_len, &frames).unwrap();
            to
        };
        let frames = || Frames::new().unwrap();
        // Each byte of text has a CFA of its own.
        let offsets = |count: u16| -> Vec<u8> {
            let step = |at: u16| {
                let [low, high] = at.to_le_bytes();
                [0x41, 0x0e, 0x80 | low, 0x80 | high << 1 | low >> 7, high >> 6]
            };
            (8..8 + count).flat_map(step).collect()
        };
        let most = (2 << 30) - 0x2000;
        let files = [
            // Rows that are copied over and over.
            of(frames().function(0x1000, &[0x0a, 0x0b].repeat(1 << 20)).unwrap(), 0x1000, "work"),
            of(frames().function(4 << 30, &[]).unwrap(), 4 << 30, "text"),
            of(frames().function(0x3000, &offsets(9000)).unwrap(), 0x3000, "rules"),
            // Its common entry is itself; the next one's is before the section.
            of(frames().function_of(4, 0x1000, &[]).unwrap(), 0x1000, "self"),
            of(frames().function_of(u32::MAX, 0x1000, &[]).unwrap(), 0x1000, "before"),
            // What can be said, and takes a quarter of all pages.
            of(frames().function(most, &[]).unwrap(), most, "hole"),
        ];
        let (_, books) = hostile.all_beside(&[Hostile::mode("run", &files)]);
        assert_eq!(books.files_without("too_large"), 2, "{books:?}");
        assert_eq!(books.files_without("over_share"), 1, "{books:?}");
        assert_eq!(books.files_without("no_unwind_information"), 2, "{books:?}");
        assert!(books.kernel("user_table_over_limit") > 100, "{books:?}");
        assert_eq!(books.unwind("evictions"), 0);
        assert!(books.unwind("map_bytes") < 64 << 20, "{}", books.unwind("map_bytes"));
    }

    #[test]
    fn a_file_that_is_something_else_by_now() {
        let Some(hostile) = Hostile::new(&[]) else { return };
        // With the kernel's link to what is mapped, and by what has its name.
        let lost = CapabilitySet::CHECKPOINT_RESTORE | CapabilitySet::SYS_ADMIN;
        for (without, not_open) in [(CapabilitySet::empty(), 0), (lost, 2)] {
            let files = ["fifo", "device"].map(|name| hostile.spanprof.path(name));
            for file in &files {
                drop(fs::remove_file(file));
                let frames = Frames::new().unwrap().function(0x1000, &[]).unwrap();
                made_elf::write(file, 0x1000, &frames).unwrap();
            }
            let (_, books) = hostile.beside(&[Hostile::mode("replaced", &files)], without);
            assert!(books.files_without("not_open") >= not_open, "{books:?}");
        }
    }
}
