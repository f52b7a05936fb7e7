//! The two record layouts of `profiler-common`, read from bytes.

mod labels;

use std::sync::Arc;

use profiler_common::{
    process::{
        EVENT_EXEC, EVENT_EXIT, EVENT_FORK, EVENT_SPAN_SLOT, EVENT_UNKNOWN_CODE, ProcessEventRecord,
    },
    sample::{
        FLAG_FRAME_POINTER_SHIFT, FLAG_IN_KERNEL, FLAG_USER_LEAF_RETURNS, FRAME_INTERRUPTED,
        KIND_CPU, SPAN_INVALID, SPAN_NO_SLOT, SPAN_NONE, SPAN_READ, SPAN_UNREADABLE, SampleHeader,
        USER_STACK_BAD_STEP, USER_STACK_COMPAT, USER_STACK_COMPLETE, USER_STACK_KERNEL_THREAD,
        USER_STACK_NO_FRAME_POINTER, USER_STACK_NO_REGISTERS, USER_STACK_STALE,
        USER_STACK_TRUNCATED, USER_STACK_UNKNOWN_PROCESS, USER_STACK_UNMAPPED,
        USER_STACK_UNREADABLE, USER_STACK_UNSUPPORTED_RULE, USER_STACK_ZERO_FRAME_POINTER,
    },
    span::{SpanHeader, VALID_FROM_LABELS},
};
use zerocopy::FromBytes as _;

use super::{
    Addr, BootTime, CodeAddress, Frame, NoSpan, Pid, ProcessEvent, ProcessEventKind, Sample,
    SampleKind, SpanId, SpanRecord, Tid, TraceId, UserStack,
};

/// What is wrong with a record. None of these can come from the BPF program that this binary
/// carries; a recorded file can hold anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends before what it announces.
    #[error("the record is shorter than it says")]
    Short,
    /// A number stands for nothing that is known.
    #[error("the record's `{field}` is {value}, which means nothing")]
    Unknown {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u32,
    },
}

/// Parses a process event.
///
/// # Errors
///
/// The record is malformed.
pub fn process_event(bytes: &[u8]) -> Result<ProcessEvent, DecodeError> {
    let (record, _) =
        ProcessEventRecord::read_from_prefix(bytes).map_err(|_size| DecodeError::Short)?;
    let kind = match record.kind {
        EVENT_EXEC => ProcessEventKind::Exec,
        EVENT_FORK => ProcessEventKind::Fork { parent: Pid(record.parent_tgid) },
        EVENT_EXIT => ProcessEventKind::Exit,
        EVENT_UNKNOWN_CODE => ProcessEventKind::UnknownCode { address: Addr(record.address) },
        EVENT_SPAN_SLOT => ProcessEventKind::SpanSlot { tp_offset: record.address.cast_signed() },
        value => return Err(DecodeError::Unknown { field: "kind", value }),
    };
    Ok(ProcessEvent { at: BootTime(record.boot_ns), pid: Pid(record.tgid), kind })
}

/// Parses a sample.
///
/// # Errors
///
/// The record is malformed.
pub fn sample(bytes: &[u8]) -> Result<Sample, DecodeError> {
    let (header, rest) =
        SampleHeader::read_from_prefix(bytes).map_err(|_size| DecodeError::Short)?;
    let (kernel, rest) = words(rest, header.kernel_frame_count)?;
    let (user, rest) = words(rest, header.user_frame_count)?;
    let span = rest.get(..usize::from(header.span_len)).ok_or(DecodeError::Short)?;

    let in_kernel = header.flags & FLAG_IN_KERNEL != 0;
    let leaf_returns = header.flags & FLAG_USER_LEAF_RETURNS != 0;
    let mut frames = Vec::with_capacity(kernel.len().saturating_add(user.len()));
    frames.extend(code_addresses(kernel, !in_kernel, false).map(Frame::Kernel));
    frames.extend(code_addresses(user, leaf_returns, true).map(Frame::User));

    Ok(Sample {
        kind: match header.kind {
            KIND_CPU => SampleKind::Cpu,
            value => return Err(DecodeError::Unknown { field: "kind", value: value.into() }),
        },
        value: header.value,
        at: BootTime(header.boot_ns),
        pid: Pid(header.tgid),
        tid: Tid(header.tid),
        comm: comm(&header.comm),
        cpu: header.cpu,
        cgroup_id: header.cgroup_id,
        frames,
        user_stack: user_stack(header.user_stack)?,
        by_frame_pointer: (header.flags >> FLAG_FRAME_POINTER_SHIFT) as u8,
        epoch: header.epoch,
        span: match header.span {
            SPAN_READ => span_record(span)?,
            SPAN_NO_SLOT => Err(NoSpan::NoSlot),
            SPAN_NONE => Err(NoSpan::NoneActive),
            SPAN_INVALID => Err(NoSpan::Invalid),
            SPAN_UNREADABLE => Err(NoSpan::Unreadable),
            value => return Err(DecodeError::Unknown { field: "span", value: value.into() }),
        },
    })
}

fn user_stack(value: u8) -> Result<UserStack, DecodeError> {
    Ok(match value {
        USER_STACK_COMPLETE => UserStack::Complete,
        USER_STACK_KERNEL_THREAD => UserStack::KernelThread,
        USER_STACK_COMPAT => UserStack::Compat,
        USER_STACK_NO_REGISTERS => UserStack::NoRegisters,
        USER_STACK_TRUNCATED => UserStack::Truncated,
        USER_STACK_UNKNOWN_PROCESS => UserStack::UnknownProcess,
        USER_STACK_UNMAPPED => UserStack::Unmapped,
        USER_STACK_NO_FRAME_POINTER => UserStack::NoFramePointer,
        USER_STACK_UNREADABLE => UserStack::Unreadable,
        USER_STACK_UNSUPPORTED_RULE => UserStack::UnsupportedRule,
        USER_STACK_BAD_STEP => UserStack::BadStep,
        USER_STACK_ZERO_FRAME_POINTER => UserStack::ZeroFramePointer,
        USER_STACK_STALE => UserStack::Stale,
        value => return Err(DecodeError::Unknown { field: "user_stack", value: value.into() }),
    })
}

/// The record of a sample whose user stack turned out to be stale.
#[must_use]
pub fn stale(record: &[u8]) -> Vec<u8> {
    let mut record = record.to_vec();
    if let Ok((header, _)) = SampleHeader::mut_from_prefix(&mut record) {
        header.user_stack = USER_STACK_STALE;
    }
    record
}

/// Splits `count` words off.
fn words(bytes: &[u8], count: u16) -> Result<(&[[u8; 8]], &[u8]), DecodeError> {
    let len = usize::from(count).saturating_mul(8);
    let (words, rest) = bytes.split_at_checked(len).ok_or(DecodeError::Short)?;
    let (words, _) = words.as_chunks();
    Ok((words, rest))
}

/// All but the first are return addresses, or say that they are not; the first is one if the thread
/// was not interrupted there.
///
/// Where a signal's handler returns to is below what the signal interrupted. It is no return
/// address either: the kernel put it there, and no call is before it.
fn code_addresses(
    words: &[[u8; 8]],
    first_returns: bool,
    is_user: bool,
) -> impl Iterator<Item = CodeAddress> {
    let is_interrupted = move |word: u64| is_user && word & FRAME_INTERRUPTED != 0;
    let mut words = words.iter().map(|word| u64::from_ne_bytes(*word)).peekable();
    let mut is_first = true;
    std::iter::from_fn(move || {
        let word = words.next()?;
        let interrupted = is_interrupted(word);
        let at = Addr(if interrupted { word & !FRAME_INTERRUPTED } else { word });
        let returns = if std::mem::replace(&mut is_first, false) {
            first_returns
        } else {
            !interrupted && !words.peek().copied().is_some_and(is_interrupted)
        };
        Some(if returns { CodeAddress::Return(at) } else { CodeAddress::Instruction(at) })
    })
}

/// The header's ids and flags, then attributes up to the first that is not whole.
fn span_record(bytes: &[u8]) -> Result<Result<SpanRecord, NoSpan>, DecodeError> {
    let (header, rest) = SpanHeader::read_from_prefix(bytes).map_err(|_size| DecodeError::Short)?;
    if header.valid == VALID_FROM_LABELS {
        return labels::span(bytes);
    }
    // "trace_id and span_id are set together or not at all" (OTEP 4947).
    if header.span_id == [0; 8] || header.trace_id == [0; 16] {
        return Ok(Err(NoSpan::ZeroIds));
    }
    let claimed = usize::from(u16::from_ne_bytes(header.attributes_len));
    let mut rest = rest.get(..claimed).unwrap_or(rest);
    let mut attributes: Vec<(u8, Arc<str>)> = Vec::new();
    while let [key, len, tail @ ..] = rest {
        let Some((value, tail)) = tail.split_at_checked(usize::from(*len)) else { break };
        rest = tail;
        let value = Arc::from(String::from_utf8_lossy(value));
        // Of a key that is there twice the last counts (OTEP 4947).
        match attributes.iter_mut().find(|(known, _)| known == key) {
            Some((_, known)) => *known = value,
            None => attributes.push((*key, value)),
        }
    }
    Ok(Ok(SpanRecord {
        trace_id: TraceId(header.trace_id),
        span_id: SpanId(header.span_id),
        label_name: None,
        trace_flags: header.trace_flags,
        attributes,
    }))
}

fn comm(bytes: &[u8]) -> Arc<str> {
    let name = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    Arc::from(String::from_utf8_lossy(name))
}

#[cfg(test)]
mod tests;
