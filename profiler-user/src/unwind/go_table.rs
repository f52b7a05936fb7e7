//! The table in which a Go program's runtime looks its functions up (`runtime/symtab.go`: `pcHeader`,
//! `functab`, `_func`). It is in every Go program, also in one that is stripped.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use super::elf::Elf;

const SECTION: &str = ".gopclntab";
/// Since Go 1.26: `runtime.firstmoduledata`, and where in it the text's address is.
const MODULE: &str = ".go.module";
const MODULE_TEXT: u64 = 176;

/// `runtime.pcHeader.magic` since Go 1.20 and 1.18, which have the layout that is read here.
const MAGICS: [u32; 2] = [0xffff_fff1, 0xffff_fff0];
/// Large programs (Kubernetes) have some 100,000.
const FUNCTIONS_MAX: u64 = 4 << 20;
/// Of a function whose end is not known.
const LEN_MIN: u32 = 16;

/// The table.
pub(super) struct LineTable {
    bytes: Vec<u8>,
    /// The address that functions' offsets are counted from.
    text: u64,
    count: u64,
    /// Where in the bytes these parts begin.
    names: u64,
    pc_values: u64,
    functions: u64,
    /// The least length of an instruction.
    quantum: u32,
}

/// A function; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) begin: u64,
    pub(super) end: u64,
    /// Where its description is.
    at: u64,
}

/// From an address on, up to another, the stack pointer is so much lower than at the function's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Depth {
    pub(super) begin: u64,
    pub(super) end: u64,
    pub(super) bytes: i32,
}

pub(super) fn is_go(elf: &Elf<'_>) -> bool {
    elf.has_section(SECTION) || elf.has_section(".go.buildinfo")
}

impl LineTable {
    /// `None` if there is none, or of another version, or damaged.
    pub(super) fn read(elf: &Elf<'_>) -> Option<Self> {
        let section = elf.section(SECTION).ok()??;
        let mut table = Self {
            bytes: section.bytes,
            text: 0,
            count: 0,
            names: 0,
            pc_values: 0,
            functions: 0,
            quantum: 0,
        };
        let [quantum, pointer_size] = *table.at(6)?;
        if !MAGICS.contains(&table.u32(0)?) || pointer_size != 8 || quantum == 0 {
            return None;
        }
        table.quantum = quantum.into();
        table.count = Some(table.u64(8)?).filter(|count| *count <= FUNCTIONS_MAX)?;
        table.text = match table.u64(24)? {
            0 => {
                module_text(elf, section.address).or_else(|| Some(elf.section_range(".text")?.0))?
            }
            text => text,
        };
        [table.names, table.pc_values, table.functions] =
            [table.u64(32)?, table.u64(56)?, table.u64(64)?];
        Some(table)
    }

    /// Its functions, in ascending order.
    pub(super) fn functions(&self) -> impl Iterator<Item = Function> {
        let mut behind = 0;
        (0..self.count).map_while(|index| self.function(index)).filter(move |function| {
            // The table is sorted, unless someone means harm.
            let follows = function.begin >= behind && function.begin < function.end;
            behind = if follows { function.end } else { behind };
            follows
        })
    }

    fn function(&self, index: u64) -> Option<Function> {
        let entry = |index: u64| {
            let entry = self.functions.checked_add(index.checked_mul(8)?)?;
            Some((self.u32(entry)?, self.u32(entry.checked_add(4)?)?))
        };
        let (begin, at) = entry(index)?;
        let end = entry(index.saturating_add(1)).map_or(begin.saturating_add(LEN_MIN), |it| it.0);
        let [begin, end] = [begin, end].map(|offset| self.text.saturating_add(offset.into()));
        Some(Function { begin, end, at: self.functions.checked_add(at.into())? })
    }

    /// The bytes that begin with a function's name and a zero.
    pub(super) fn name(&self, function: Function) -> Option<&[u8]> {
        let name = self.u32(function.at.checked_add(4)?)?;
        self.bytes.get(usize::try_from(self.names.checked_add(name.into())?).ok()?..)
    }

    /// How deep a function's stack is, by address (`runtime/symtab.go`: `step`).
    pub(super) fn depths(&self, function: Function) -> impl Iterator<Item = Depth> {
        let values = function.at.checked_add(16).and_then(|at| self.u32(at));
        let values = values.and_then(|offset| self.pc_values.checked_add(offset.into()));
        // 0 is that there are none.
        let mut at = values.filter(|at| *at != self.pc_values);
        let (mut pc, mut bytes) = (function.begin, -1_i32);
        std::iter::from_fn(move || {
            let (change, behind) = self.varint(at.take()?)?;
            if pc >= function.end || (change == 0 && pc != function.begin) {
                return None;
            }
            let (len, behind) = self.varint(behind)?;
            at = Some(behind);
            let half = (change >> 1).cast_signed();
            bytes = bytes.wrapping_add(if change & 1 == 0 { half } else { !half });
            let begin = pc;
            // Without a step it would be endless.
            pc = pc.checked_add(u64::from(len).checked_mul(self.quantum.into())?)?;
            (pc > begin).then_some(Depth { begin, end: pc.min(function.end), bytes })
        })
    }

    /// A number of up to 32 bits, seven a byte, and where it ends.
    fn varint(&self, mut at: u64) -> Option<(u32, u64)> {
        let mut number = 0;
        for shift in (0..32).step_by(7) {
            let [byte] = *self.at(at)?;
            at = at.saturating_add(1);
            number |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some((number, at));
            }
        }
        None
    }

    fn u32(&self, offset: u64) -> Option<u32> {
        Some(u32::from_le_bytes(*self.at(offset)?))
    }

    fn u64(&self, offset: u64) -> Option<u64> {
        Some(u64::from_le_bytes(*self.at(offset)?))
    }

    fn at<const LEN: usize>(&self, offset: u64) -> Option<&[u8; LEN]> {
        self.bytes.get(usize::try_from(offset).ok()?..)?.first_chunk()
    }
}

/// The address of the text, as the runtime will know it. With C code in the program, the section
/// `.text` begins before.
fn module_text(elf: &Elf<'_>, line_table: u64) -> Option<u64> {
    let module = elf.section(MODULE).ok()??.bytes;
    let word = |at: u64| {
        let word = module.get(usize::try_from(at).ok()?..)?.first_chunk()?;
        Some(u64::from_le_bytes(*word))
    };
    // It begins with a pointer to the line table.
    (word(0)? == line_table).then_some(())?;
    word(MODULE_TEXT)
}
