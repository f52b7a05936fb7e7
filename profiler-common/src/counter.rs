//! What the BPF programs count: indices of the per-CPU `COUNTERS` map.

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident = $index:literal => $text:literal,)*) => {
        $($(#[doc = $doc])* pub const $name: u32 = $index;)*

        /// Every counter's name in reports and metrics, by index.
        pub const NAMES: [&str; COUNTERS_LEN as usize] = {
            let mut names = [""; COUNTERS_LEN as usize];
            $(names[$index] = $text;)*
            names
        };
    };
}

/// How many counters there are.
pub const COUNTERS_LEN: u32 = 35;

counters! {
    /// Timer ticks on a task that is to be sampled. Each becomes a record or a `LOST_*`.
    SAMPLES_TAKEN = 0 => "samples_taken",
    /// Timer ticks on the idle task: no sample.
    TICKS_IDLE = 1 => "ticks_idle",
    /// Timer ticks on a process that was not asked for: no sample.
    TICKS_FILTERED = 2 => "ticks_filtered",
    /// A sample is lost: the ring was full.
    LOST_RING_FULL = 3 => "lost_ring_full",
    /// A sample is lost: there was no memory to build it in, or no program to end it. Never seen.
    LOST_NO_SCRATCH = 4 => "lost_no_scratch",
    /// A process event is lost: its ring was full.
    EVENT_LOST_RING_FULL = 5 => "process_event_lost_ring_full",
    /// A sample in the kernel without its kernel stack.
    KERNEL_STACK_FAILED = 6 => "kernel_stack_failed",
    /// A sample without user frames: in the kernel, and the user registers were not found.
    USER_REGISTERS_MISSING = 7 => "user_registers_missing",
    /// A sample without user frames: a 32-bit task.
    USER_COMPAT_TASK = 8 => "user_compat_task",
    /// A sample whose user stack was cut at the most frames a record has.
    USER_STACK_TRUNCATED = 9 => "user_stack_truncated",
    /// A sample with a span record.
    SPAN_READ = 10 => "span_read",
    /// A sample of a thread that says it works on no span.
    SPAN_NONE = 11 => "span_none",
    /// A sample of a process that is not known to publish spans.
    SPAN_NO_SLOT = 12 => "span_no_slot",
    /// The thread pointer cannot be read, or its place in the kernel's task is not known.
    SPAN_NO_THREAD_POINTER = 13 => "span_no_thread_pointer",
    /// The slot cannot be read.
    SPAN_SLOT_UNREADABLE = 14 => "span_slot_unreadable",
    /// The record cannot be read.
    SPAN_RECORD_UNREADABLE = 15 => "span_record_unreadable",
    /// The record says that it is not valid.
    SPAN_INVALID = 16 => "span_invalid",
    /// The record's attributes cannot be read, or are more than are read; the ids are.
    SPAN_ATTRIBUTES_CUT = 17 => "span_attributes_cut",
    /// A child of a chosen process is not sampled: as many are as the map holds.
    TARGETS_FULL = 18 => "targets_full",
    /// A sample whose user stack was walked up to the outermost frame.
    USER_STACK_COMPLETE = 19 => "user_stack_complete",
    /// A sample of a process whose mappings are not known: the stack was walked by frame pointer.
    USER_STACK_UNKNOWN_PROCESS = 20 => "user_stack_unknown_process",
    /// A sample whose user stack ends in no mapping that is known.
    USER_STACK_UNMAPPED = 21 => "user_stack_unmapped",
    /// A sample whose user stack ends in code without unwind information, at a frame pointer that
    /// leads nowhere.
    USER_STACK_NO_FRAME_POINTER = 22 => "user_stack_no_frame_pointer",
    /// A sample whose user stack ends where memory cannot be read.
    USER_STACK_UNREADABLE = 23 => "user_stack_unreadable",
    /// A sample whose user stack ends at an unwind rule that cannot be followed.
    USER_STACK_UNSUPPORTED_RULE = 24 => "user_stack_unsupported_rule",
    /// A sample whose user stack ends at a caller that would be further down.
    USER_STACK_BAD_STEP = 25 => "user_stack_bad_step",
    /// A sample with a frame found by frame pointer in a file whose table was not ready.
    USER_TABLE_PENDING = 26 => "user_table_pending",
    /// A sample with a frame found by frame pointer in a file whose table had no room.
    USER_TABLE_OVER_LIMIT = 27 => "user_table_over_limit",
    /// A sample whose user stack ends in code without unwind information, at a frame pointer of
    /// zero.
    USER_STACK_ZERO_FRAME_POINTER = 28 => "user_stack_zero_frame_pointer",
    /// When reuse is checked: a stack that is the same without it.
    REUSE_SAME = 29 => "reuse_same",
    /// When reuse is checked: a stack that is another without it. Never to be seen.
    REUSE_DIFFERENT = 30 => "reuse_different",
    /// A sample without a span of a thread with more labels than are looked at. It is one of
    /// `SPAN_NONE`.
    SPAN_LABELS_CUT = 31 => "span_labels_cut",
    /// A program said by span-marker's hook where its threads keep their span.
    HOOK_TAKEN = 32 => "hook_taken",
    /// A call of a hook with a place that cannot be.
    HOOK_REFUSED = 33 => "hook_refused",
    /// A call of a hook in vain: there is no room for another process, or for another place of one.
    HOOK_NO_ROOM = 34 => "hook_no_room",
}
