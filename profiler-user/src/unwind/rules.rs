//! One row of call frame information as a rule that the BPF program can follow.

use gimli::{
    CfaRule, EndianSlice, Expression, LittleEndian, Operation, Register, RegisterRule,
    UnwindExpression,
};
use profiler_common::unwind::{
    CFA_AT_FP, CFA_AT_SP, CFA_FP, CFA_PLT, CFA_REGISTER, CFA_SP, Rule, SAVED_LINK, SAVED_PAIR,
    SAVED_RA, SAVED_RA_AT, SAVED_RA_FP, SAVED_RA_FP_LOST, SAVED_RA_IN_REGISTER,
};

use super::cfi::Row;
use super::elf::Machine;

/// DWARF numbers (System V psABI figure 3.36; AADWARF64 4.1).
struct Numbers {
    sp: Register,
    fp: Register,
    ra: Register,
}

const X86_64: Numbers = Numbers { sp: Register(7), fp: Register(6), ra: Register(16) };
const AARCH64: Numbers = Numbers { sp: Register(31), fp: Register(29), ra: Register(30) };

/// The largest DWARF number of a register that is kept of an interrupted thread, on x86-64.
const X86_64_REGISTERS: u16 = 15;

/// Where a rule's expressions are.
#[derive(Clone, Copy)]
pub(super) struct Expressions<'a>(pub(super) &'a [u8]);

/// A row's rule.
pub(super) fn rule(machine: Machine, row: &Row, expressions: Expressions<'_>) -> Rule {
    let numbers = match machine {
        Machine::X86_64 => X86_64,
        Machine::Aarch64 => AARCH64,
    };
    // That it has no rule is the rule where a link register holds it.
    let ra = row.register(numbers.ra);
    if ra == Some(RegisterRule::Undefined) || (ra.is_none() && machine == Machine::X86_64) {
        return Rule::STOP;
    }
    let Some((cfa, cfa_offset)) = cfa(machine, &numbers, row.cfa(), expressions) else {
        return Rule::UNSUPPORTED;
    };
    let fp = row.register(numbers.fp);
    let saved = match machine {
        Machine::X86_64 => saved_x86_64(ra, fp),
        Machine::Aarch64 => saved_aarch64(ra, fp),
    };
    let Some((saved, saved_offset)) = saved else { return Rule::UNSUPPORTED };
    Rule { cfa, saved, saved_offset, cfa_offset }
}

fn saved_x86_64(
    ra: Option<RegisterRule<usize>>,
    fp: Option<RegisterRule<usize>>,
) -> Option<(u8, i16)> {
    match (ra?, fp) {
        (RegisterRule::Offset(-8), None | Some(RegisterRule::SameValue)) => Some((SAVED_RA, 0)),
        (RegisterRule::Offset(-8), Some(RegisterRule::Offset(at))) => {
            Some((SAVED_RA_FP, at.try_into().ok()?))
        }
        (RegisterRule::Offset(-8), Some(_)) => Some((SAVED_RA_FP_LOST, 0)),
        (RegisterRule::Offset(at), None | Some(RegisterRule::SameValue)) => {
            Some((SAVED_RA_AT, at.try_into().ok()?))
        }
        (RegisterRule::Register(number), None | Some(RegisterRule::SameValue)) => {
            let number = (number.0 <= X86_64_REGISTERS).then_some(number.0)?;
            Some((SAVED_RA_IN_REGISTER, number.try_into().ok()?))
        }
        _ => None,
    }
}

fn saved_aarch64(
    ra: Option<RegisterRule<usize>>,
    fp: Option<RegisterRule<usize>>,
) -> Option<(u8, i16)> {
    match (ra, fp) {
        (None | Some(RegisterRule::SameValue), None | Some(RegisterRule::SameValue)) => {
            Some((SAVED_LINK, 0))
        }
        (Some(RegisterRule::Offset(ra)), Some(RegisterRule::Offset(fp)))
            if Some(ra) == fp.checked_add(8) =>
        {
            Some((SAVED_PAIR, fp.try_into().ok()?))
        }
        (Some(RegisterRule::Offset(ra)), None | Some(RegisterRule::SameValue)) => {
            Some((SAVED_RA_AT, ra.try_into().ok()?))
        }
        _ => None,
    }
}

/// The kind of a CFA and its offset.
fn cfa(
    machine: Machine,
    numbers: &Numbers,
    rule: &CfaRule<usize>,
    expressions: Expressions<'_>,
) -> Option<(u8, i32)> {
    match rule {
        CfaRule::RegisterAndOffset { register, offset } => {
            let offset = i32::try_from(*offset).ok()?;
            if *register == numbers.sp {
                Some((CFA_SP, offset))
            } else if *register == numbers.fp {
                Some((CFA_FP, offset))
            } else if machine == Machine::X86_64 && register.0 <= X86_64_REGISTERS {
                // 24 bits for the offset, 8 for the register.
                let shifted = offset.checked_mul(256)?;
                Some((CFA_REGISTER, shifted | i32::from(register.0)))
            } else {
                None
            }
        }
        CfaRule::Expression(expression) => {
            cfa_expression(machine, numbers, expression, expressions)
        }
    }
}

fn cfa_expression(
    machine: Machine,
    numbers: &Numbers,
    expression: &UnwindExpression<usize>,
    Expressions(bytes): Expressions<'_>,
) -> Option<(u8, i32)> {
    let end = expression.offset.checked_add(expression.length)?;
    let bytes = bytes.get(expression.offset..end)?;
    if machine == Machine::X86_64
        && let Some(pushed_from) = linkage_table(bytes)
    {
        return Some((CFA_PLT, pushed_from));
    }
    let expression = Expression(EndianSlice::new(bytes, LittleEndian));
    let encoding = gimli::Encoding { address_size: 8, format: gimli::Format::Dwarf32, version: 4 };
    let mut operations = expression.operations(encoding);
    // *(register + from) + added
    let Operation::RegisterOffset { register, offset: from, .. } = operations.next().ok()?? else {
        return None;
    };
    let Operation::Deref { size: 8, space: false, .. } = operations.next().ok()?? else {
        return None;
    };
    let added = match operations.next().ok()? {
        None => 0,
        Some(Operation::PlusConstant { value }) => i64::try_from(value).ok()?,
        Some(_) => return None,
    };
    if operations.next().ok()?.is_some() {
        return None;
    }
    let kind = if register == numbers.sp {
        CFA_AT_SP
    } else if register == numbers.fp {
        CFA_AT_FP
    } else {
        return None;
    };
    let [f0, f1] = i16::try_from(from).ok()?.to_le_bytes();
    let [a0, a1] = i16::try_from(added).ok()?.to_le_bytes();
    Some((kind, i32::from_le_bytes([f0, f1, a0, a1])))
}

/// What linkers write for a procedure linkage table of 16-byte entries: sp + 8, and 8 more if
/// `(ip & 15) >= n`, from where on an entry has pushed its number.
fn linkage_table(bytes: &[u8]) -> Option<i32> {
    /// `DW_OP_lit0`, to which a literal is added.
    const LIT0: u8 = 0x30;
    // breg7 8; breg16 0; lit15; and; litN; ge; lit3; shl; plus
    let &[0x77, 8, 0x80, 0, 0x3f, 0x1a, literal, 0x2a, 0x33, 0x24, 0x22] = bytes else {
        return None;
    };
    let number = literal.checked_sub(LIT0)?;
    (number < 16).then_some(number.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_linkage_tables_are_known_and_nothing_like_them() {
        let form = |literal| [0x77, 8, 0x80, 0, 0x3f, 0x1a, literal, 0x2a, 0x33, 0x24, 0x22];
        assert_eq!(linkage_table(&form(0x3b)), Some(11));
        assert_eq!(linkage_table(&form(0x3a)), Some(10));
        assert_eq!(linkage_table(&form(0x2f)), None);
        assert_eq!(linkage_table(&form(0x40)), None);
        let mut other = form(0x3b);
        other[1] = 16;
        assert_eq!(linkage_table(&other), None);
        assert_eq!(linkage_table(&form(0x3b)[..10]), None);
    }
}
