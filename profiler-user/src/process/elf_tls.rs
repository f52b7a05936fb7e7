//! Where the threads of a program keep a thread-local variable that an ELF file defines: which
//! symbol names it, and how the file's own code finds it.
//!
//! Everything is read a bounded part at a time, and the tables are the file's: nothing of them is
//! believed.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use object::elf::{
    DF_1_PIE, DT_FLAGS_1, DT_HASH, DT_JMPREL, DT_PLTRELSZ, DT_RELA, DT_RELASZ, DT_STRTAB,
    DT_SYMTAB, EM_AARCH64, EM_X86_64, ET_EXEC, PT_TLS, Rela64, SHN_UNDEF, SHT_DYNSYM, SHT_SYMTAB,
    STT_TLS, Sym64,
};
use object::{NativeEndian, Pod, U32};

use super::elf_reader::{Dynamic, ElfReader, NATIVE, read_some, read_structs};

/// Chromium exports some 100,000: these are 24 MB of symbols.
const SYMBOLS_MAX: u64 = 1 << 20;
/// Only of files that define a variable: as many as the symbols.
const RELOCATIONS_MAX: u64 = 1 << 20;
/// How many symbols or relocations are read at a time.
const CHUNK: usize = 2048;
/// How many thread-local symbols are compared by name; libraries with many have some hundred.
const TLS_SYMBOLS_MAX: usize = 4096;

type Symbol = Sym64<NativeEndian>;
type Relocation = Rela64<NativeEndian>;

/// A thread-local variable of eight bytes that a file defines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TlsVariable {
    /// Which of the names it has.
    pub(super) name: usize,
    /// It is exported: in `.dynsym`, not only in `.symtab`.
    pub(super) exported: bool,
    /// Its offset in the file's block.
    pub(super) value: u64,
    /// Its distance in bytes from the thread pointer, if the file is the main program.
    pub(super) local_exec: Option<i64>,
    /// Words of the file's data that say where it is once the loader has filled them in: of each
    /// kind the first that is for its symbol, and the first for any place in the file's block.
    pub(super) references: Vec<TlsReference>,
}

/// One or two words that the loader fills in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TlsReference {
    pub(super) kind: ReferenceKind,
    /// The address of the first word, without the load bias.
    pub(super) address: u64,
    /// Of what the words lead to.
    pub(super) target: ReferenceTarget,
}

/// What a relocation names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReferenceTarget {
    /// The variable, by its symbol. It can be that of another file with the same name.
    Symbol,
    /// This place in the file's own block.
    Block(u64),
}

/// What the loader fills in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReferenceKind {
    /// The distance from the thread pointer (initial exec).
    Offset,
    /// The module's number and the offset in its block (general dynamic).
    Module,
    /// A function, and its argument (TLSDESC).
    Descriptor,
}

/// What a file has of the variables, and how much was read to find it.
#[derive(Debug, Default)]
pub(super) struct TlsVariables {
    pub(super) list: Vec<TlsVariable>,
    /// Symbols and relocations read.
    pub(super) cost: u64,
}

impl ElfReader<'_> {
    /// The variables of these names that the file defines; of a name that is in both, what
    /// `.dynsym` says and not what `.symtab` does.
    pub(super) fn tls_variables(&self, names: &[&str]) -> TlsVariables {
        let mut found = TlsVariables::default();
        let Some(block) = self.tls_block() else { return found };
        let dynamic = self.dynamic();
        let exported = self.table_by_sections(SHT_DYNSYM);
        let exported = exported.or_else(|| self.table_by_dynamic(dynamic.as_ref()?));
        // An index in `.dynsym`, or 0.
        let mut indices = Vec::new();
        let tables = [(exported, true), (self.table_by_sections(SHT_SYMTAB), false)];
        for (table, exported) in tables {
            let Some(table) = table else { continue };
            self.scan(&table, names, &mut found.cost, |name, index, value| {
                let inside = value.checked_add(8).is_some_and(|end| end <= block.memsz);
                if inside && !found.list.iter().any(|it| it.name == name) {
                    let local_exec = block.offset(self.header.e_machine.get(NATIVE), value);
                    let references = Vec::new();
                    indices.push(if exported { index } else { 0 });
                    found.list.push(TlsVariable { name, exported, value, local_exec, references });
                }
            });
        }
        if !found.list.is_empty()
            && let Some(dynamic) = dynamic
        {
            self.find_references(&dynamic, &indices, &mut found);
        }
        found
    }

    /// Whether it is a program, and no library, by its own account.
    pub(super) fn is_program(&self) -> bool {
        let flags = || self.dynamic()?.value(DT_FLAGS_1);
        self.header.e_type.get(NATIVE) == ET_EXEC
            || flags().is_some_and(|flags| flags & u64::from(DF_1_PIE) != 0)
    }

    fn tls_block(&self) -> Option<TlsBlock> {
        let tls = self.segments_of(PT_TLS).next()?;
        Some(TlsBlock {
            vaddr: tls.p_vaddr.get(NATIVE),
            memsz: tls.p_memsz.get(NATIVE),
            align: tls.p_align.get(NATIVE),
        })
    }

    /// Tells the thread-local symbols that a table defines by one of the names: which, where in the
    /// table, and the symbol's value.
    fn scan(
        &self,
        table: &SymbolTable,
        names: &[&str],
        cost: &mut u64,
        mut found: impl FnMut(usize, u64, u64),
    ) {
        let mut compared = 0_usize;
        self.each(table.symbols, table.count, cost, |index, symbol: &Symbol| {
            let defined = symbol.st_shndx.get(NATIVE) != SHN_UNDEF;
            if symbol.st_info & 0xf != STT_TLS || !defined {
                return true;
            }
            compared = compared.saturating_add(1);
            let at = table.names.checked_add(symbol.st_name.get(NATIVE).into());
            if let Some(name) = at.and_then(|at| self.name_of(at, names)) {
                found(name, index, symbol.st_value.get(NATIVE));
            }
            compared < TLS_SYMBOLS_MAX
        });
    }

    /// Shows each entry of a table, with its index, for as long as more are wanted.
    fn each<T: Pod + Copy>(
        &self,
        offset: u64,
        count: u64,
        cost: &mut u64,
        mut show: impl FnMut(u64, &T) -> bool,
    ) {
        let size = u64::try_from(size_of::<T>()).unwrap_or(u64::MAX);
        let mut index = 0_u64;
        while index < count {
            let left = usize::try_from(count.saturating_sub(index)).unwrap_or(CHUNK);
            let Some(at) = index.checked_mul(size).and_then(|at| at.checked_add(offset)) else {
                return;
            };
            let Some(chunk) = read_structs::<T>(self.file, at, left.min(CHUNK)) else { return };
            for entry in &chunk {
                *cost = cost.saturating_add(1);
                if !show(index, entry) {
                    return;
                }
                index = index.saturating_add(1);
            }
        }
    }

    fn name_of(&self, at: u64, names: &[&str]) -> Option<usize> {
        let longest = names.iter().map(|name| name.len()).max()?;
        let mut bytes = vec![0; longest.checked_add(1)?];
        let read = read_some(self.file, at, &mut bytes).ok()?;
        let bytes = bytes.get(..read)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        names.iter().position(|name| bytes.get(..end) == Some(name.as_bytes()))
    }

    /// The table of this kind, by the section headers.
    fn table_by_sections(&self, kind: u32) -> Option<SymbolTable> {
        let sections = self.sections()?;
        let symbols = sections.iter().find(|section| section.sh_type.get(NATIVE) == kind)?;
        let names = sections.get(usize::try_from(symbols.sh_link.get(NATIVE)).ok()?)?;
        let size = u64::try_from(size_of::<Symbol>()).ok()?;
        Some(SymbolTable {
            symbols: symbols.sh_offset.get(NATIVE),
            count: symbols.sh_size.get(NATIVE).checked_div(size)?.min(SYMBOLS_MAX),
            names: names.sh_offset.get(NATIVE),
        })
    }

    /// The dynamic section, which does not say how many symbols there are: `DT_HASH` does where
    /// there is one; otherwise the names, which every linker puts behind the symbols, end them.
    fn table_by_dynamic(&self, dynamic: &Dynamic) -> Option<SymbolTable> {
        let offset_of = |tag| self.file_offset(dynamic.value(tag)?);
        let (symbols, names) = (offset_of(DT_SYMTAB)?, offset_of(DT_STRTAB)?);
        let by_hash = offset_of(DT_HASH).and_then(|hash| {
            let counts: Vec<U32<NativeEndian>> = read_structs(self.file, hash, 2)?;
            Some(u64::from(counts.get(1)?.get(NATIVE)))
        });
        let size = u64::try_from(size_of::<Symbol>()).ok()?;
        let by_names = || names.checked_sub(symbols)?.checked_div(size);
        let count = by_hash.or_else(by_names)?.min(SYMBOLS_MAX);
        Some(SymbolTable { symbols, count, names })
    }

    /// Finds the relocations of the variables that were found.
    fn find_references(&self, dynamic: &Dynamic, indices: &[u64], found: &mut TlsVariables) {
        let machine = self.header.e_machine.get(NATIVE);
        let size = u64::try_from(size_of::<Relocation>()).unwrap_or(u64::MAX);
        let TlsVariables { list, cost } = found;
        for (table, len) in [(DT_RELA, DT_RELASZ), (DT_JMPREL, DT_PLTRELSZ)] {
            let at = dynamic.value(table).and_then(|address| self.file_offset(address));
            let (Some(at), Some(len)) = (at, dynamic.value(len)) else { continue };
            let count = len.checked_div(size).unwrap_or_default().min(RELOCATIONS_MAX);
            self.each(at, count, cost, |_, relocation: &Relocation| {
                let info = relocation.r_info.get(NATIVE);
                let Some(kind) = ReferenceKind::of(machine, info & 0xffff_ffff) else {
                    return true;
                };
                let (symbol, addend) = (info >> 32, relocation.r_addend.get(NATIVE));
                let address = relocation.r_offset.get(NATIVE);
                for (variable, index) in list.iter_mut().zip(indices) {
                    let target = match symbol {
                        0 => ReferenceTarget::Block(addend.cast_unsigned()),
                        _ if symbol == *index && addend == 0 => ReferenceTarget::Symbol,
                        _ => continue,
                    };
                    let by_symbol = target == ReferenceTarget::Symbol;
                    let like = |it: &TlsReference| {
                        it.kind == kind && by_symbol == (it.target == ReferenceTarget::Symbol)
                    };
                    if !variable.references.iter().any(like) {
                        variable.references.push(TlsReference { kind, address, target });
                    }
                }
                true
            });
        }
    }
}

impl ReferenceKind {
    /// By the psABI's number of the relocation.
    fn of(machine: u16, relocation: u64) -> Option<Self> {
        match (machine, relocation) {
            // R_X86_64_TPOFF64, R_AARCH64_TLS_TPREL
            (EM_X86_64, 18) | (EM_AARCH64, 1030) => Some(Self::Offset),
            // R_X86_64_DTPMOD64, R_AARCH64_TLS_DTPMOD
            (EM_X86_64, 16) | (EM_AARCH64, 1028) => Some(Self::Module),
            // R_X86_64_TLSDESC, R_AARCH64_TLSDESC
            (EM_X86_64, 36) | (EM_AARCH64, 1031) => Some(Self::Descriptor),
            _ => None,
        }
    }
}

/// Where symbols are in the file.
struct SymbolTable {
    symbols: u64,
    count: u64,
    names: u64,
}

/// `PT_TLS`: the main executable's block of every thread.
struct TlsBlock {
    vaddr: u64,
    memsz: u64,
    align: u64,
}

impl TlsBlock {
    fn offset(&self, machine: u16, value: u64) -> Option<i64> {
        match machine {
            EM_X86_64 => self.offset_below_thread_pointer(value),
            EM_AARCH64 => self.offset_above_thread_pointer(value),
            _ => None,
        }
    }

    /// "Variant II" (`x86_64`): the block ends at the thread pointer, and starts where its address
    /// is the segment's, modulo the alignment. glibc's `_dl_determine_tlsoffset`, lld's
    /// `getTlsTpOffset`.
    fn offset_below_thread_pointer(&self, value: u64) -> Option<i64> {
        let mask = self.mask()?;
        let gap = 0_u64.wrapping_sub(self.vaddr).wrapping_sub(self.memsz) & mask;
        value.wrapping_sub(self.memsz).wrapping_sub(gap).cast_signed().into()
    }

    /// "Variant I" (`aarch64`): the block starts behind the 16 bytes at the thread pointer.
    fn offset_above_thread_pointer(&self, value: u64) -> Option<i64> {
        let gap = self.vaddr.wrapping_sub(16) & self.mask()?;
        value.wrapping_add(16).wrapping_add(gap).cast_signed().into()
    }

    fn mask(&self) -> Option<u64> {
        let align = self.align.max(1);
        align.is_power_of_two().then(|| align.wrapping_sub(1))
    }
}

#[cfg(test)]
#[path = "elf_tls_tests.rs"]
mod tests;
