//! A CPU that goes offline and comes back is sampled again.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use rustix::process::Signal;
    use rustix::time::{ClockId, clock_gettime};
    use spanprof_tests::spanprof::{Running, STATS, Spanprof};
    use spanprof_tests::workload::{Program, Workload, wait_until};
    use spanprof_tests::{recorded_file, require};

    const CPU: u32 = 1;

    /// Which CPUs there are is everybody's: what was taken offline comes back, whatever happens.
    struct Switch(PathBuf);

    impl Switch {
        fn offline(&self) {
            fs::write(&self.0, "0").unwrap();
        }

        fn online(&self) {
            fs::write(&self.0, "1").unwrap();
        }
    }

    impl Drop for Switch {
        fn drop(&mut self) {
            self.online();
        }
    }

    fn boot_ns() -> u64 {
        let now = clock_gettime(ClockId::Boottime);
        u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).unwrap()
    }

    /// A recording of the whole host, with one busy thread a CPU.
    struct Recording {
        spanprof: Spanprof,
        running: Running,
        busy: Vec<Workload>,
    }

    impl Recording {
        fn start(binary: PathBuf) -> Self {
            let program = Program::compile("stacks").unwrap();
            let cpus = std::thread::available_parallelism().unwrap().get();
            let start = |_| program.start(&["chain", "0"]).unwrap();
            let busy: Vec<Workload> = (0..cpus).map(start).collect();
            let spanprof = Spanprof::new(binary).unwrap();
            let arguments = ["-v", "record", "-d", "1h", "-F", "499", "--raw", "a.raw"];
            let running = spanprof.start(&[&arguments[..], &["--stats", STATS]].concat()).unwrap();
            running.wait_until_sampling().unwrap();
            Self { spanprof, running, busy }
        }

        /// Lets half a second of each CPU's time go by, ends it, and counts the samples on the CPU that were
        /// taken after a time.
        fn samples_after(self, boot_ns: u64) -> usize {
            let Self { spanprof, running, busy } = self;
            let used = || busy.iter().map(Workload::cpu_ticks).sum::<anyhow::Result<u64>>();
            let until = used().unwrap() + 50 * busy.len() as u64;
            wait_until("half a second of each CPU", || Ok(used()? >= until)).unwrap();
            running.signal(Signal::INT).unwrap();
            running.finish().unwrap().succeeded().unwrap();
            spanprof.books().unwrap();
            let chunks = recorded_file::chunks_of(&spanprof.bytes("a.raw").unwrap()).unwrap();
            let samples = recorded_file::samples_of(&chunks).unwrap();
            samples.iter().filter(|sample| sample.cpu == CPU && sample.boot_ns > boot_ns).count()
        }
    }

    /// Half a second at 499 Hz is some 250 samples on each CPU.
    const ENOUGH: usize = 50;

    #[test]
    fn a_cpu_that_was_away_for_a_while_is_sampled_again() {
        require!(Root);
        let switch = Switch(require!(CpuHotplug));
        let mut recording = Recording::start(require!(Spanprof));
        switch.offline();
        recording.running.log("the number of sampled CPUs changed").unwrap();
        switch.online();
        let back = recording.running.log("the number of sampled CPUs changed").unwrap();
        let now = boot_ns();
        let samples = recording.samples_after(now);
        assert!(samples >= ENOUGH, "{samples} samples; {back}");
    }

    /// So short that nobody sees it, as when the host is suspended.
    #[test]
    fn a_cpu_that_was_away_for_a_moment_is_sampled_again() {
        require!(Root);
        let switch = Switch(require!(CpuHotplug));
        let mut recording = Recording::start(require!(Spanprof));
        switch.offline();
        switch.online();
        // Or it was seen, by chance: then twice, and the second time it is sampled again.
        let mut said = recording.running.log("sampled").unwrap();
        if said.contains("number of sampled CPUs changed") {
            said = recording.running.log("number of sampled CPUs changed").unwrap();
        }
        let now = boot_ns();
        let samples = recording.samples_after(now);
        assert!(samples >= ENOUGH, "{samples} samples; {said}");
    }
}
