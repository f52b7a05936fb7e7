//! The caller of a frame by gimli, as the DWARF standard says, and the comparison.

use std::{fs, path::Path};

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EndianSlice, EvaluationResult, Expression,
    LittleEndian, Location, Register, RegisterRule, UnwindContext, UnwindExpression,
    UnwindSection as _, UnwindTableRow, Value,
};
use object::{Object as _, ObjectSection as _, ObjectSegment as _, SegmentFlags, elf::PF_X};
use profiler_common::sample::{
    USER_STACK_BAD_STEP, USER_STACK_NO_FRAME_POINTER, USER_STACK_UNSUPPORTED_RULE,
};
use profiler_common::unwind::{CFA_FRAME_POINTER, CFA_OTHER_STACK, CFA_SIGNAL, CFA_STOP, Rule};
use profiler_user::unwind::{Limits, UnwindTable, build};

use crate::kinds::{Kind, Tally};
use crate::ours::{Caller, Found, follow, register, word};

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// A function: its range, and what its rows lead to at some addresses.
struct Function {
    begin: u64,
    end: u64,
    rows: u64,
    wanted: Vec<(u64, Found)>,
    damaged: bool,
}

impl Function {
    /// A row: at its first two bytes and at its last.
    fn add(&mut self, begin: u64, end: u64, wanted: impl Fn(u64) -> Found) {
        self.rows += 1;
        let second = Some(begin + 1).filter(|at| *at < end);
        let last = Some(end - 1).filter(|at| *at > begin + 1);
        for at in [Some(begin), second, last].into_iter().flatten() {
            self.wanted.push((at, wanted(at)));
        }
    }
}

/// Compares a file's table with its `.eh_frame`.
pub(crate) fn compare(path: &Path) -> Tally {
    let mut tally = Tally::default();
    let refused = |mut tally: Tally, reason: String| {
        *tally.refused.entry(reason).or_default() += 1;
        tally
    };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) => return refused(tally, error.kind().to_string()),
    };
    let table = match build(&file, &Limits::default()) {
        Ok(table) => table,
        Err(error) => return refused(tally, error.reason().to_owned()),
    };
    let bytes = fs::read(path).unwrap();
    let elf = object::File::parse(&*bytes).unwrap();
    if elf.architecture() != object::Architecture::X86_64 {
        return refused(tally, "not x86-64".to_owned());
    }
    tally.files = 1;
    let Some(section) = elf.section_by_name(".eh_frame") else {
        return refused(tally, "no .eh_frame".to_owned());
    };
    let data = section.uncompressed_data().unwrap();
    let functions = functions(&elf, &data, section.address());
    let text: Vec<(u64, u64)> = elf
        .segments()
        .filter(|segment| {
            matches!(segment.flags(), SegmentFlags::Elf { p_flags } if p_flags & PF_X != 0)
        })
        .map(|segment| (segment.address(), segment.address() + segment.file_range().1))
        .collect();
    let is_text = |at: u64| text.iter().any(|(begin, end)| (*begin..*end).contains(&at));
    let mut covered = 0;
    for (index, function) in functions.iter().enumerate() {
        let next = functions.get(index + 1).map_or(u64::MAX, |next| next.begin);
        let overlaps = covered > function.begin || function.end > next;
        covered = covered.max(function.end);
        tally.rows += function.rows;
        for &(at, wanted) in function.wanted.iter().filter(|(at, _)| is_text(*at)) {
            let found = follow(table.lookup(at), at);
            let named = name(function, overlaps, table.lookup(at), found, wanted);
            note(&mut tally, path, at, &table, found, wanted, named);
        }
        if !overlaps {
            gap(&mut tally, path, &table, function.end, next, &is_text);
        }
    }
    tally
}

/// Both ends of what is between two functions, where no rule is to be.
fn gap(
    tally: &mut Tally,
    path: &Path,
    table: &UnwindTable,
    begin: u64,
    next: u64,
    is_text: &impl Fn(u64) -> bool,
) {
    for at in [begin, begin + 1, next.wrapping_sub(1)] {
        if at < begin || at >= next || !is_text(at) {
            continue;
        }
        let rule = table.lookup(at);
        let known = [CFA_SIGNAL, CFA_STOP, CFA_FRAME_POINTER, CFA_OTHER_STACK].contains(&rule.cfa);
        let named = if next - begin <= 15 {
            Some(Kind::Padding)
        } else if rule != Rule::NONE && known {
            Some(Kind::KnownCode)
        } else {
            None
        };
        let wanted = Found::End(USER_STACK_NO_FRAME_POINTER);
        let found = if rule == Rule::NONE { wanted } else { follow(rule, at) };
        note(tally, path, at, table, found, wanted, named);
    }
}

fn note(
    tally: &mut Tally,
    path: &Path,
    at: u64,
    table: &UnwindTable,
    found: Found,
    wanted: Found,
    named: Option<Kind>,
) {
    tally.compared += 1;
    if found == wanted {
        return;
    }
    if let Some(kind) = named {
        *tally.named.entry(kind).or_default() += 1;
    } else if tally.different.len() < 20 {
        let (path, rule) = (path.display(), table.lookup(at));
        tally.different.push(format!("{path} {at:#x}: {rule:?} {found:x?}, not {wanted:x?}"));
    }
}

/// The reason of a difference, if there is one that is no mistake.
fn name(
    function: &Function,
    overlaps: bool,
    rule: Rule,
    found: Found,
    wanted: Found,
) -> Option<Kind> {
    if overlaps {
        return Some(Kind::Overlap);
    }
    if function.damaged {
        return Some(Kind::Damaged);
    }
    match (found, wanted) {
        (Found::End(USER_STACK_UNSUPPORTED_RULE), _) if rule == Rule::UNSUPPORTED => {
            Some(Kind::Unsupported)
        }
        (Found::End(USER_STACK_BAD_STEP), Found::Caller(caller))
            if caller.sp <= crate::ours::SP || caller.sp & 7 != 0 =>
        {
            Some(Kind::NotAbove)
        }
        (Found::Caller(found), Found::Caller(wanted))
            if found.fp.is_none() && (found.ip, found.sp) == (wanted.ip, wanted.sp) =>
        {
            Some(Kind::FramePointerElsewhere)
        }
        _ => None,
    }
}

fn functions(elf: &object::File<'_>, data: &[u8], address: u64) -> Vec<Function> {
    let frame = EhFrame::new(data, LittleEndian);
    let at = |name| elf.section_by_name(name).map_or(0, |section| section.address());
    let bases =
        BaseAddresses::default().set_eh_frame(address).set_text(at(".text")).set_got(at(".got"));
    let mut functions: Vec<Function> = Vec::new();
    let mut context = UnwindContext::new();
    let mut entries = frame.entries(&bases);
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let Ok(fde) = partial.parse(EhFrame::cie_from_offset) else { continue };
        if fde.initial_address() == 0 || fde.len() == 0 {
            continue;
        }
        let (begin, end) = (fde.initial_address(), fde.end_address());
        let mut function = Function { begin, end, rows: 0, wanted: Vec::new(), damaged: false };
        if fde.is_signal_trampoline() {
            function.add(begin, end, |at| follow(Rule::plain(CFA_SIGNAL), at));
        } else if let Ok(mut table) = fde.rows(&frame, &bases, &mut context) {
            loop {
                match table.next_row() {
                    Ok(Some(row)) if row.start_address() < row.end_address() => {
                        let (from, to) = (row.start_address(), row.end_address());
                        function.add(from, to, |at| evaluate(row, at, data));
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => {
                        function.damaged = true;
                        break;
                    }
                }
            }
        } else {
            function.damaged = true;
        }
        functions.push(function);
    }
    functions.sort_by_key(|function| function.begin);
    // Of two that begin at one address the first counts.
    functions.dedup_by_key(|function| function.begin);
    functions
}

fn evaluate(row: &UnwindTableRow<usize>, pc: u64, data: &[u8]) -> Found {
    if matches!(row.register(Register(16)), None | Some(RegisterRule::Undefined)) {
        return Found::Outermost;
    }
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register: number, offset } => {
            register(u64::from(number.0)).wrapping_add_signed(*offset)
        }
        CfaRule::Expression(expression) => run(expression, None, pc, data),
    };
    let restore = |number: u16| match row.register(Register(number)) {
        None | Some(RegisterRule::SameValue | RegisterRule::Undefined) => {
            register(u64::from(number))
        }
        Some(RegisterRule::Offset(offset)) => word(cfa.wrapping_add_signed(offset)),
        Some(RegisterRule::ValOffset(offset)) => cfa.wrapping_add_signed(offset),
        Some(RegisterRule::Register(other)) => register(u64::from(other.0)),
        Some(RegisterRule::Expression(expression)) => word(run(&expression, Some(cfa), pc, data)),
        Some(RegisterRule::ValExpression(expression)) => run(&expression, Some(cfa), pc, data),
        Some(other) => panic!("{other:?}"),
    };
    Found::Caller(Caller { ip: restore(16), sp: cfa, fp: Some(restore(6)) })
}

/// Runs an expression over the made-up registers and memory.
fn run(expression: &UnwindExpression<usize>, initial: Option<u64>, pc: u64, data: &[u8]) -> u64 {
    let bytes = &data[expression.offset..expression.offset + expression.length];
    let expression: Expression<Bytes<'_>> = Expression(EndianSlice::new(bytes, LittleEndian));
    let encoding = gimli::Encoding { address_size: 8, format: gimli::Format::Dwarf32, version: 4 };
    let mut evaluation = expression.evaluation(encoding);
    if let Some(initial) = initial {
        evaluation.set_initial_value(initial);
    }
    let mut state = evaluation.evaluate().unwrap();
    loop {
        state = match state {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register: number, .. } => {
                let value = if number == Register(16) { pc } else { register(number.0.into()) };
                evaluation.resume_with_register(Value::Generic(value)).unwrap()
            }
            EvaluationResult::RequiresMemory { address, .. } => {
                evaluation.resume_with_memory(Value::Generic(word(address))).unwrap()
            }
            other => panic!("{other:?}"),
        };
    }
    match evaluation.as_result()[0].location {
        Location::Address { address } => address,
        other => panic!("{other:?}"),
    }
}
