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
    /// Slots that a process context named.
    pub slots_by_context: u64,
    /// Slots that span-marker's note led to, and no context named.
    pub slots_by_note: u64,
    /// Slots that the dynamic symbols of a program or library named, and nothing else did.
    pub slots_by_dynamic_symbol: u64,
    /// Processes that run a Go program with a layout that is known: their goroutines' labels are read.
    pub slots_of_go: u64,
    /// Go programs whose labels are not read: it is not known how their version keeps them.
    pub go_version_unknown: u64,
    /// Go programs whose labels are not read: it is not known where a thread has its goroutine.
    pub go_place_unknown: u64,
    /// Slots that only symbols for debugging named.
    pub slots_by_symbol_table: u64,
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
