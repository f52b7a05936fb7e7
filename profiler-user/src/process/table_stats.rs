//! What the process table did.

/// What a [`ProcessTable`](super::ProcessTable) did since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct TableStats {
    /// Programs started.
    pub execs: u64,
    /// Processes made.
    pub forks: u64,
    /// Exits reported.
    pub exits: u64,
    /// Reports of code that the kernel side did not know.
    pub unknown_code: u64,
    /// Reports of something that a process mapped in the place of something else.
    pub code_replaced: u64,
    /// Times that reports of mappings were lost.
    pub code_mappings_lost: u64,
    /// Looks for published spans and at exits that were taken.
    pub looks: u64,
    /// Looks that were not taken: too many were waiting.
    pub looks_dropped: u64,
    /// Reads of a process because a sample needed it.
    pub reads_for_samples: u64,
    /// Reads of a process because a sample's record has an attribute that it had not named.
    pub reads_for_attribute_keys: u64,
    /// Such reads that were not done: the process was read in vain shortly before.
    pub reads_backed_off: u64,
    /// Such reads that were not done: there were too many in a second.
    pub reads_over_allowance: u64,
    /// Times that all processes were listed to look at them.
    pub rescans: u64,
    /// Times that they could not be listed.
    pub rescans_failed: u64,
    /// Looks in rescans.
    pub rescanned: u64,
    /// Processes that a rescan found and left: as many are known as are kept.
    pub rescan_table_full: u64,
    /// Times that the mappings of a process were read.
    pub maps_read: u64,
    /// Lines of mappings that made no sense.
    pub maps_malformed_lines: u64,
    /// Times that a process had more mappings than are kept.
    pub maps_truncated: u64,
    /// Processes whose environment could not be read.
    pub environment_unreadable: u64,
    /// Processes whose control groups could not be read.
    pub cgroup_unreadable: u64,
    /// Slots that a process context named.
    pub slots_by_context: u64,
    /// Slots that span-marker's note led to, and no context named.
    pub slots_by_note: u64,
    /// Slots that the dynamic symbols of a program or library named, and nothing else did.
    pub slots_by_dynamic_symbol: u64,
    /// Slots that a process named by span-marker's hook.
    pub slots_by_hook: u64,
    /// How long after its start the first slot of a program was found by its hook. By the hook or by
    /// a look is what the table heard of first; the kernel side hears the hook at once.
    pub slots_by_hook_after: SlotDelays,
    /// How long after its start the first slot of a program was found by looking at it; not of
    /// those that ran before.
    pub slots_by_look_after: SlotDelays,
    /// Slots that only symbols for debugging named.
    pub slots_by_symbol_table: u64,
    /// Slots of programs that Go made: the labels of their goroutines are read.
    pub slots_of_go: u64,
    /// Go programs whose labels are not read: it is not known how their version keeps them.
    pub go_version_unknown: u64,
    /// Go programs whose labels are not read: it is not known where a thread has its goroutine.
    pub go_place_unknown: u64,
    /// Slots that were left out, because the process has more than are looked at: such processes,
    /// at each look.
    pub slots_over_limit: u64,
    /// Variables of libraries that the loader had not placed yet, at each look.
    pub slots_unresolved: u64,
    /// Files whose symbols were not read in a look, because it had read many: the next one does.
    pub span_files_put_off: u64,
    /// Process contexts that changed each time they were read.
    pub context_torn: u64,
    /// Mappings named like a process context that hold none.
    pub context_refused: u64,
    /// Process contexts whose memory could not be read.
    pub context_unreadable: u64,
    /// Perf maps found: files in which a run time names the code that it makes.
    pub perf_maps_found: u64,
    /// Times that the place of a perf map held a FIFO, a device, a folder or a symbolic link.
    pub perf_map_refused_not_regular: u64,
    /// Times that a perf map belonged neither to the process's user nor to root.
    pub perf_map_refused_owner: u64,
    /// Times that a perf map was older than the process.
    pub perf_map_refused_stale: u64,
    /// Times that a perf map was on a file system that may not answer (FUSE, NFS).
    pub perf_map_refused_file_system: u64,
    /// Times that the place of a perf map could not be looked at, or the file not be opened.
    pub perf_map_refused_unreachable: u64,
    /// Reads that failed: the process was gone.
    pub unreadable_gone: u64,
    /// Reads that failed: not permitted.
    pub unreadable_not_permitted: u64,
    /// Reads in vain: the process was in the middle of an exec or of its exit.
    pub unreadable_without_code: u64,
    /// Reads that failed otherwise.
    pub unreadable_failed: u64,
    /// Process ids that stood for another process all of a sudden.
    pub pids_reused: u64,
    /// Processes that were forgotten some time after their exit.
    pub processes_exited: u64,
    /// Processes that were forgotten to keep their number bounded.
    pub processes_evicted: u64,
}

/// How many programs had a slot so long after their start; each is counted once.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SlotDelays {
    /// Within 5 ms.
    pub ms_5: u64,
    /// Within 20 ms.
    pub ms_20: u64,
    /// Within 80 ms.
    pub ms_80: u64,
    /// Within 200 ms.
    pub ms_200: u64,
    /// Within 1 s.
    pub ms_1000: u64,
    /// Later.
    pub later: u64,
}

impl SlotDelays {
    pub(super) fn add(&mut self, delay_ns: u64) {
        let bounds = [
            (5, &mut self.ms_5),
            (20, &mut self.ms_20),
            (80, &mut self.ms_80),
            (200, &mut self.ms_200),
            (1000, &mut self.ms_1000),
        ];
        let within = bounds.into_iter().find(|(ms, _)| delay_ns <= ms * 1_000_000);
        *within.map_or(&mut self.later, |(_, count)| count) += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_in_the_first_bucket_that_it_fits_in() {
        let mut delays = SlotDelays::default();
        for ms in [0, 5, 6, 20, 79, 200, 201, 1000, 1001, u64::MAX / 1_000_000] {
            delays.add(ms * 1_000_000);
        }
        let SlotDelays { ms_5, ms_20, ms_80, ms_200, ms_1000, later } = delays;
        assert_eq!([ms_5, ms_20, ms_80, ms_200, ms_1000, later], [2, 2, 1, 1, 2, 2]);
    }
}
