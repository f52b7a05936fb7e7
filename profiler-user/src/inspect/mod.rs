//! `spanprof inspect`: what the profiler knows of a process or of a file, for bug reports.
//!
//! It looks with the same eyes as the profiler: the process table, the unwind tables, and the BPF
//! program's own step, on the stack of a thread that is stopped for that moment.

mod files;
mod rule_text;
mod stopped;
mod text;
mod walk;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use self::files::{FileReport, FileSlotReport, Files};
use self::stopped::{StopError, StoppedThread};
use self::walk::{WalkReport, walk};
use crate::attribute::{Location, location};
use crate::clock::boot_now;
use crate::config::{InspectConfig, InspectTarget};
use crate::decode::{Frame, Pid};
use crate::process::{
    Backing, FoundSlot, JitId, Proc, Process, ProcessTable, SlotSource, TableLimits, TableStats,
    TlsModel, Unreadable, span_slot_of_file,
};
use crate::symbolize::{Names, PerfMapStats, Symbolizer, SymbolizerConfig};

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The file cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process cannot be read.
    #[error("cannot read process {}: {}", pid.0, reason_text(*reason))]
    Process {
        /// The process.
        pid: Pid,
        /// Why.
        reason: Unreadable,
    },
    /// What was found cannot be printed.
    #[error("cannot print what was found")]
    Print(#[from] io::Error),
}

fn reason_text(reason: Unreadable) -> &'static str {
    match reason {
        Unreadable::Gone => "there is none",
        Unreadable::NotPermitted => "not permitted",
        Unreadable::NotRead => "it runs no code: it is being made or is exiting",
        Unreadable::Failed => "the kernel reports an error",
    }
}

/// What is known of a process.
#[derive(Debug, Serialize)]
struct ProcessReport {
    pid: u32,
    name: String,
    service: String,
    /// In the order in which they are looked at.
    span_slots: Vec<SlotReport>,
    attribute_keys: Vec<String>,
    perf_map: PerfMapReport,
    mappings: Vec<MappingReport>,
    mappings_truncated: bool,
    files: Vec<FileReport>,
    threads: Vec<ThreadReport>,
    threads_left_out: usize,
}

/// A place where the threads of a process publish their spans.
#[derive(Debug, Serialize)]
struct SlotReport {
    found_by: SlotSource,
    tls_model: TlsModel,
    /// From the thread pointer; from the start of the thread's block if there is a module.
    offset: i64,
    /// The number in the thread's dynamic thread vector.
    module: Option<u32>,
    /// The file that defines it, where that is known.
    file: Option<String>,
}

/// What names the code that a process makes.
#[derive(Debug, Default, Serialize)]
struct PerfMapReport {
    makes_code: bool,
    read: Option<PerfMapStats>,
    refused: Option<&'static str>,
}

/// One executable mapping.
#[derive(Debug, Serialize)]
struct MappingReport {
    start: u64,
    end: u64,
    file_offset: u64,
    what: String,
    /// Index in the list of files.
    file: Option<usize>,
}

/// A thread, and its stack.
#[derive(Debug, Serialize)]
struct ThreadReport {
    tid: u32,
    comm: String,
    #[serde(flatten)]
    stack: StackReport,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum StackReport {
    Walked(WalkReport),
    NotStopped { error: String },
}

/// Prints what is known of the process or file that was asked for.
///
/// # Errors
///
/// There is no such process or file, or what was found cannot be printed.
pub fn inspect(config: &InspectConfig, out: &mut dyn Write) -> Result<(), InspectError> {
    match &config.target {
        InspectTarget::File(path) => {
            let report = inspect_file(path)?;
            if config.json { write_json(&report, out)? } else { text::file(&report, out)? }
        }
        InspectTarget::Process(pid) => {
            let report = inspect_process(*pid, config.threads)?;
            if config.json { write_json(&report, out)? } else { text::process(&report, out)? }
        }
    }
    Ok(())
}

fn write_json(report: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, report)?;
    writeln!(out)
}

fn inspect_file(path: &Path) -> Result<FileReport, InspectError> {
    let open = || -> io::Result<File> {
        let status = std::fs::metadata(path)?;
        if !status.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        File::open(path)
    };
    let file = open().map_err(|source| InspectError::Open { path: path.to_owned(), source })?;
    let (mut report, _table) = files::report(&path.display().to_string(), Some(&file));
    let slot = span_slot_of_file(&file);
    report.span_slot = slot.map(|(tp_offset, found_by)| FileSlotReport { tp_offset, found_by });
    Ok(report)
}

fn inspect_process(pid: Pid, threads_max: usize) -> Result<ProcessReport, InspectError> {
    let now = boot_now();
    let mut table = ProcessTable::new(Proc::default(), TableLimits::default(), now);
    table.refresh(pid, now, &[]);
    let process = table.view(pid, now).map(std::sync::Arc::clone);
    let gone = InspectError::Process { pid, reason: Unreadable::Gone };
    let process = process.ok_or(gone)?;
    if let Some(reason) = process.unreadable {
        return Err(InspectError::Process { pid, reason });
    }
    let files = Files::of(&process, table.elfs());
    let (threads, threads_left_out) = stacks(&process, &files, threads_max);
    let mut symbolizer =
        Symbolizer::new(SymbolizerConfig::new(true)).with_perf_maps(table.perf_maps().clone());
    let names = names(&mut symbolizer, &process, &threads, &table);
    let threads = threads
        .into_iter()
        .map(|(tid, comm, walked)| ThreadReport {
            tid,
            comm,
            stack: report(walked, &process, &names),
        })
        .collect();
    Ok(ProcessReport {
        pid: pid.0,
        name: process.name.to_string(),
        service: process.service.name.clone(),
        span_slots: table.slots(pid).iter().map(|slot| slot_report(slot, &files)).collect(),
        attribute_keys: process.attribute_keys.iter().map(ToString::to_string).collect(),
        perf_map: perf_map(&process, table.stats(), &mut symbolizer),
        mappings: mappings(&process, &files),
        mappings_truncated: process.snapshot.truncated(),
        files: files.into_reports(),
        threads,
        threads_left_out,
    })
}

fn slot_report(found: &FoundSlot, files: &Files) -> SlotReport {
    SlotReport {
        found_by: found.source,
        tls_model: found.model,
        offset: found.slot.offset,
        module: (found.slot.module != 0).then_some(found.slot.module),
        file: found.file.map(|elf| files.path(elf).to_owned()),
    }
}

type Walked = Result<WalkReport, StopError>;

/// Stops each thread for as long as its stack is read. The first thread comes first.
fn stacks(
    process: &Process,
    files: &Files,
    threads_max: usize,
) -> (Vec<(u32, String, Walked)>, usize) {
    let proc = Proc::default();
    let pid = process.pid;
    let mut threads = proc.threads(pid);
    threads.sort_unstable_by_key(|tid| (*tid != pid.0, *tid));
    let left_out = threads.len().saturating_sub(threads_max);
    threads.truncate(threads_max);
    let walked = threads.into_iter().map(|tid| {
        let comm = proc.thread_name(pid, tid).unwrap_or_default();
        let walked = StoppedThread::stop(tid).and_then(|thread| {
            let memory = proc.memory(pid).map_err(StopError::Memory)?;
            let registers = thread.registers(&memory)?;
            Ok(walk(&registers, &memory, process, files))
        });
        (tid, comm, walked)
    });
    (walked.collect(), left_out)
}

fn names(
    symbolizer: &mut Symbolizer,
    process: &Process,
    threads: &[(u32, String, Walked)],
    table: &ProcessTable,
) -> Names {
    let walked = threads.iter().filter_map(|(_, _, walked)| walked.as_ref().ok());
    let frames = walked.flat_map(|walked| walked.frames.iter());
    let locations = frames.map(|frame| location(Frame::User(frame.address), process));
    let elfs = table.elfs();
    symbolizer.names(locations, &|elf| elfs.get(elf).map(Into::into))
}

fn report(walked: Walked, process: &Process, names: &Names) -> StackReport {
    match walked {
        Ok(mut walked) => {
            for frame in &mut walked.frames {
                let location = location(Frame::User(frame.address), process);
                frame.functions = functions(location, names);
            }
            StackReport::Walked(walked)
        }
        Err(error) => StackReport::NotStopped { error: error_text(&error) },
    }
}

fn functions(location: Location, names: &Names) -> Vec<String> {
    if let Location::Unresolved(reason) = location {
        return vec![reason.frame_name().to_owned()];
    }
    let frames = names.frames.get(&location);
    frames
        .map(|frames| frames.iter().map(|it| it.function.to_string()).collect())
        .unwrap_or_default()
}

fn error_text(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn perf_map(process: &Process, stats: &TableStats, symbolizer: &mut Symbolizer) -> PerfMapReport {
    let makes_code = process.snapshot.mappings().iter().any(|it| it.backing == Backing::Anonymous);
    let refused = [
        (stats.perf_map_refused_not_regular, "not a regular file"),
        (stats.perf_map_refused_owner, "it belongs neither to the process's user nor to root"),
        (stats.perf_map_refused_stale, "it is older than the process"),
        (stats.perf_map_refused_file_system, "its file system may not answer"),
        (stats.perf_map_refused_unreachable, "it cannot be opened"),
    ];
    let refused = refused.into_iter().find(|(times, _)| *times > 0).map(|(_, reason)| reason);
    let read = process.jit.map(|map: JitId| symbolizer.read_perf_map(map));
    PerfMapReport { makes_code, read, refused }
}

fn mappings(process: &Process, files: &Files) -> Vec<MappingReport> {
    let index: BTreeMap<_, _> = files.ids().enumerate().map(|(at, id)| (id, at)).collect();
    process
        .snapshot
        .mappings()
        .iter()
        .map(|mapping| {
            let (what, file) = match &mapping.backing {
                Backing::Elf(elf) => (files.path(*elf).to_owned(), index.get(elf).copied()),
                Backing::Anonymous => ("[anonymous code]".to_owned(), None),
                Backing::Special(name) => (name.to_string(), None),
            };
            let (start, end) = (mapping.start, mapping.end);
            MappingReport { start, end, file_offset: mapping.file_offset, what, file }
        })
        .collect()
}
