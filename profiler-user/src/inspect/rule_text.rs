//! Unwind rules as a person reads them.

use profiler_common::unwind::{
    CFA_AT_FP, CFA_AT_SP, CFA_FP, CFA_FRAME_POINTER, CFA_NONE, CFA_OTHER_STACK, CFA_PLT,
    CFA_REGISTER, CFA_SIGNAL, CFA_SP, CFA_STOP, MAPPING_ANONYMOUS, MAPPING_NO_TABLE,
    MAPPING_OVER_LIMIT, MAPPING_PENDING, MAPPING_TABLE, MAPPING_UNREADABLE, Rule, SAVED_LINK,
    SAVED_PAIR, SAVED_RA, SAVED_RA_AT, SAVED_RA_FP, SAVED_RA_IN_REGISTER,
};
use profiler_ebpf::unwind::{KIND_UNMAPPED, Lookup};

/// How the caller of a frame is looked for.
pub(super) fn how(found: Lookup) -> String {
    match found.kind {
        MAPPING_TABLE => of_rule(Rule::from_bits(found.rule)),
        MAPPING_NO_TABLE => "by frame pointer: the file has no unwind information".to_owned(),
        MAPPING_PENDING => "by frame pointer: the file's table is not ready".to_owned(),
        MAPPING_OVER_LIMIT => "by frame pointer: the file's table has no room".to_owned(),
        MAPPING_ANONYMOUS => "by frame pointer: code made at run time".to_owned(),
        MAPPING_UNREADABLE => "by frame pointer: the file cannot be read".to_owned(),
        KIND_UNMAPPED => "not looked for: in no mapping".to_owned(),
        _ => "by frame pointer: nothing is known of the process".to_owned(),
    }
}

fn of_rule(rule: Rule) -> String {
    let offset = rule.cfa_offset;
    let [low, high] = [offset & 0xffff, offset >> 16].map(low_half);
    let cfa = match rule.cfa {
        CFA_NONE => return "by frame pointer: no rule for this address".to_owned(),
        CFA_FRAME_POINTER => return "by frame pointer: code that keeps it (Go)".to_owned(),
        CFA_OTHER_STACK => return "by frame pointer, to another stack (Go)".to_owned(),
        CFA_STOP => return "the outermost frame".to_owned(),
        CFA_SIGNAL => return "by the signal frame at sp".to_owned(),
        CFA_SP => format!("sp{offset:+}"),
        CFA_FP => format!("fp{offset:+}"),
        CFA_PLT => format!("sp+8, +8 from byte {offset} of 16 on"),
        CFA_AT_SP => format!("*(sp{low:+}){high:+}"),
        CFA_AT_FP => format!("*(fp{low:+}){high:+}"),
        CFA_REGISTER => format!("register {}{:+}", offset & 0xff, offset >> 8),
        _ => return "unsupported rule".to_owned(),
    };
    let at = rule.saved_offset;
    let saved = match rule.saved {
        SAVED_RA => "ra at cfa-8".to_owned(),
        SAVED_RA_FP => format!("ra at cfa-8, fp at cfa{at:+}"),
        SAVED_RA_IN_REGISTER => format!("ra in register {at}"),
        SAVED_LINK => "ra in the link register".to_owned(),
        SAVED_PAIR => format!("fp at cfa{at:+}, ra 8 above"),
        SAVED_RA_AT => format!("ra at cfa{at:+}"),
        _ => "ra at cfa-8, fp lost".to_owned(),
    };
    format!("by rule: cfa = {cfa}, {saved}")
}

/// The low 16 bits, signed.
fn low_half(bits: i32) -> i16 {
    let [low, high, ..] = bits.to_le_bytes();
    i16::from_le_bytes([low, high])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rule: Rule, expected: &str) {
        assert_eq!(how(Lookup { kind: MAPPING_TABLE, rule: rule.to_bits() }), expected);
    }

    #[test]
    fn rules_read_as_equations() {
        let rule =
            |cfa, cfa_offset, saved, saved_offset| Rule { cfa, saved, saved_offset, cfa_offset };
        check(rule(CFA_SP, 16, SAVED_RA, 0), "by rule: cfa = sp+16, ra at cfa-8");
        check(
            rule(CFA_FP, 16, SAVED_RA_FP, -16),
            "by rule: cfa = fp+16, ra at cfa-8, fp at cfa-16",
        );
        let at_sp = (-8 << 16) | 24;
        check(rule(CFA_AT_SP, at_sp, SAVED_RA, 0), "by rule: cfa = *(sp+24)-8, ra at cfa-8");
        check(
            rule(CFA_REGISTER, (8 << 8) | 10, SAVED_RA, 0),
            "by rule: cfa = register 10+8, ra at cfa-8",
        );
        check(Rule::plain(CFA_OTHER_STACK), "by frame pointer, to another stack (Go)");
        check(Rule::STOP, "the outermost frame");
        check(Rule::UNSUPPORTED, "unsupported rule");
        let jit = Lookup { kind: MAPPING_ANONYMOUS, rule: 0 };
        assert_eq!(how(jit), "by frame pointer: code made at run time");
    }
}
