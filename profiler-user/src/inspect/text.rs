//! What was found, for a terminal.

use std::io::{self, Write};

use super::files::{FileReport, FileSlotReport, UnwindReport};
use super::{PerfMapReport, ProcessReport, StackReport, ThreadReport};
use crate::symbolize::PerfMapStats;

/// A file.
pub(super) fn file(report: &FileReport, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", clean(&report.path))?;
    unwind(report, "  ", out)?;
    match &report.span_slot {
        Some(FileSlotReport { tp_offset, found_by }) => {
            let found_by = json_text(found_by)?;
            writeln!(out, "  span slot: as a program, thread pointer {tp_offset:+} ({found_by})")
        }
        None => writeln!(out, "  span slot: none (no symbol otel_thread_ctx_v1)"),
    }
}

/// A process.
pub(super) fn process(report: &ProcessReport, out: &mut dyn Write) -> io::Result<()> {
    let (name, service) = (clean(&report.name), clean(&report.service));
    writeln!(out, "process {}: {name}, service {service}", report.pid)?;
    if report.span_slots.is_empty() {
        writeln!(out, "span slot: none: no process context, no note, no symbol")?;
    }
    for slot in &report.span_slots {
        let from = slot.module.map_or_else(
            || "thread pointer".to_owned(),
            |module| format!("block of TLS module {module}"),
        );
        let (found_by, model) = (json_text(&slot.found_by)?, json_text(&slot.tls_model)?);
        let file = slot.file.as_deref().map(|file| format!(" in {}", clean(file)));
        let file = file.unwrap_or_default();
        writeln!(out, "span slot: {from} {:+} ({found_by}{file}, {model})", slot.offset)?;
    }
    if !report.attribute_keys.is_empty() {
        writeln!(out, "attribute keys: {}", clean(&report.attribute_keys.join(", ")))?;
    }
    perf_map(&report.perf_map, out)?;
    writeln!(out, "\nexecutable mappings")?;
    for mapping in &report.mappings {
        let (start, end, offset) = (mapping.start, mapping.end, mapping.file_offset);
        writeln!(out, "  {start:x}-{end:x} {offset:8x} {}", clean(&mapping.what))?;
    }
    if report.mappings_truncated {
        writeln!(out, "  more than are kept")?;
    }
    writeln!(out, "\nfiles")?;
    for file in &report.files {
        let build_id = file.build_id.as_deref().unwrap_or("none");
        writeln!(out, "  {}, build ID {build_id}", clean(&file.path))?;
        unwind(file, "    ", out)?;
    }
    for thread in &report.threads {
        stack(thread, out)?;
    }
    if report.threads_left_out > 0 {
        writeln!(out, "\n{} more threads (--threads N)", report.threads_left_out)?;
    }
    Ok(())
}

fn unwind(report: &FileReport, indent: &str, out: &mut dyn Write) -> io::Result<()> {
    let build_us = report.build_us;
    match &report.unwind {
        UnwindReport::Table { source, rows, rules, pages, bytes, stats } => {
            let source = json_text(source)?;
            writeln!(
                out,
                "{indent}unwind: {source}, {rows} rows, {rules} rules, {pages} pages, \
                 {bytes} bytes, made in {build_us} µs",
            )?;
            writeln!(
                out,
                "{indent}of {} functions, {} left out; {} rows that cannot be followed{}{}",
                stats.fdes,
                stats.fdes_skipped,
                stats.unsupported,
                if stats.damaged { "; damaged" } else { "" },
                if stats.go { "; a Go program" } else { "" },
            )
        }
        UnwindReport::None { reason, error } => {
            let error = clean(error);
            writeln!(out, "{indent}unwind: by frame pointer: {reason} ({error}, {build_us} µs)")
        }
    }
}

fn perf_map(report: &PerfMapReport, out: &mut dyn Write) -> io::Result<()> {
    match (report.makes_code, &report.read, report.refused) {
        (_, Some(read), _) => {
            let PerfMapStats { bytes, entries, malformed_lines, entries_over_limit, .. } = read;
            writeln!(
                out,
                "perf map: {bytes} bytes, {entries} entries, {malformed_lines} malformed, \
                 {entries_over_limit} over the limit",
            )
        }
        (_, None, Some(reason)) => writeln!(out, "perf map: refused: {reason}"),
        (true, None, None) => {
            writeln!(out, "perf map: none, although there is code that was made at run time")
        }
        (false, None, None) => writeln!(out, "perf map: not looked for: all code is in files"),
    }
}

fn stack(thread: &ThreadReport, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\nthread {} ({})", thread.tid, clean(&thread.comm))?;
    match &thread.stack {
        StackReport::NotStopped { error } => writeln!(out, "  no stack: {error}"),
        StackReport::Walked(walked) => {
            for (index, frame) in walked.frames.iter().enumerate() {
                let functions = frame.functions.join(" < ");
                let (functions, binary) = (clean(&functions), clean(&frame.binary));
                writeln!(out, "  #{index:<3} {:016x} {functions} {binary}", frame.ip)?;
                writeln!(out, "       sp {:x}; caller {}", frame.sp, frame.caller)?;
            }
            writeln!(out, "  ends: {}", walked.ends)
        }
    }
}

/// What the report in JSON calls it.
fn json_text(value: &impl serde::Serialize) -> io::Result<String> {
    Ok(serde_json::to_value(value)?.as_str().unwrap_or_default().to_owned())
}

/// Text of the process's choice does not control the terminal.
fn clean(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}
