//! What the loader filled in for a thread-local variable, to where each thread has it. Pure: the
//! process's memory is a function.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::io;

use profiler_common::span::{GLIBC_DTV_ENTRY_SHIFT, MUSL_DTV_ENTRY_SHIFT, SpanSlot};
use serde::Serialize;
use zerocopy::{FromBytes, IntoBytes};

use super::elf_tls::{ReferenceKind, ReferenceTarget, TlsReference, TlsVariable};

/// The farthest from the thread pointer, and the largest offset in a block, that is believed.
const DISTANCE_MAX: u64 = 1 << 31;

/// The most modules that are believed: a library each.
const MODULES_MAX: u64 = 1 << 20;

/// An `aarch64` descriptor's argument below this is a distance: no program has memory there
/// (`vm.mmap_min_addr`).
const ADDRESS_MIN: u64 = 64 << 10;

/// How a thread finds its copy of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TlsModel {
    /// At a distance from the thread pointer that the process published.
    Published,
    /// At one that follows from the program's headers.
    LocalExec,
    /// At one that the loader filled in.
    InitialExec,
    /// By module and offset, through the thread's dynamic thread vector.
    GeneralDynamic,
    /// By a TLS descriptor: at a distance from the thread pointer.
    StaticDescriptor,
    /// By a TLS descriptor: by module and offset.
    DynamicDescriptor,
}

/// Fills a buffer from an address of a process.
pub(super) type ReadMemory<'a> = &'a dyn Fn(u64, &mut [u8]) -> io::Result<()>;

/// What a process's threads look like: its processor and its C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ThreadLayout {
    /// The thread's variables are below its thread pointer (`x86_64`), not above (`aarch64`).
    below: bool,
    musl: bool,
}

impl ThreadLayout {
    /// Of processes of this machine.
    pub(super) fn native(musl: bool) -> Self {
        Self { below: cfg!(target_arch = "x86_64"), musl }
    }

    /// Where a variable is, by one of its references; `None`: the loader has not filled it in, or
    /// with something that makes no sense.
    pub(super) fn resolve(
        self,
        variable: &TlsVariable,
        reference: TlsReference,
        bias: u64,
        format: u8,
        memory: ReadMemory<'_>,
    ) -> Option<(SpanSlot, TlsModel)> {
        let at = bias.wrapping_add(reference.address);
        let (mut slot, model) = match reference.kind {
            ReferenceKind::Offset => {
                let offset = self.distance(read::<u64>(memory, at)?)?;
                (at_distance(offset, format), TlsModel::InitialExec)
            }
            ReferenceKind::Module => {
                let [module, offset] = read(memory, at)?;
                let offset = match reference.target {
                    ReferenceTarget::Symbol => offset,
                    // The second word need not be filled in.
                    ReferenceTarget::Block(place) => place,
                };
                (self.in_module(module, offset, format)?, TlsModel::GeneralDynamic)
            }
            ReferenceKind::Descriptor => {
                let [function, argument] = read::<[u64; 2]>(memory, at)?;
                if function == 0 {
                    return None;
                }
                let place = match reference.target {
                    ReferenceTarget::Symbol => variable.value,
                    ReferenceTarget::Block(place) => place,
                };
                self.described(place, argument, format, memory)?
            }
        };
        if let ReferenceTarget::Block(place) = reference.target {
            let farther = variable.value.wrapping_sub(place).cast_signed();
            slot.offset = slot.offset.checked_add(farther)?;
        }
        Some((slot, model))
    }

    /// By a descriptor's argument: a distance, or the address of module and offset.
    fn described(
        self,
        place: u64,
        argument: u64,
        format: u8,
        memory: ReadMemory<'_>,
    ) -> Option<(SpanSlot, TlsModel)> {
        let distance = self.distance(argument);
        let is_static = || Some((at_distance(distance?, format), TlsModel::StaticDescriptor));
        if (self.below && distance.is_some()) || argument < ADDRESS_MIN {
            return is_static();
        }
        let words: Option<[u64; 2]> = read(memory, argument);
        let dynamic = words.and_then(|[module, offset]| {
            // A number can be a distance and an address: then the address must lead to this
            // very place in a block.
            let certain = distance.is_none() || offset == place;
            let slot = self.in_module(module, offset, format).filter(|_| certain)?;
            Some((slot, TlsModel::DynamicDescriptor))
        });
        dynamic.or_else(is_static)
    }

    /// A distance from the thread pointer, if it can be one: two words are at the thread pointer.
    fn distance(self, word: u64) -> Option<i64> {
        let distance = word.cast_signed();
        let right_side = if self.below { distance <= -8 } else { distance >= 16 };
        (right_side && distance.unsigned_abs() <= DISTANCE_MAX).then_some(distance)
    }

    fn in_module(self, module: u64, offset: u64, format: u8) -> Option<SpanSlot> {
        if module == 0 || module > MODULES_MAX || offset > DISTANCE_MAX {
            return None;
        }
        // glibc: `tcbhead_t`; musl: `struct pthread`.
        let dtv_offset = match (self.below, self.musl) {
            (true, _) => 8,
            (false, false) => 0,
            (false, true) => -8,
        };
        Some(SpanSlot {
            offset: i64::try_from(offset).ok()?,
            module: u32::try_from(module).ok()?,
            dtv_offset,
            dtv_entry_shift: if self.musl { MUSL_DTV_ENTRY_SHIFT } else { GLIBC_DTV_ENTRY_SHIFT },
            format,
            ..SpanSlot::EMPTY
        })
    }
}

/// A variable at a distance from the thread pointer.
pub(super) fn at_distance(offset: i64, format: u8) -> SpanSlot {
    SpanSlot { offset, format, ..SpanSlot::EMPTY }
}

/// Reads a value of the process; `None` if it has no such memory.
pub(super) fn read<T: FromBytes + IntoBytes>(memory: ReadMemory<'_>, address: u64) -> Option<T> {
    let mut value = T::new_zeroed();
    memory(address, value.as_mut_bytes()).ok()?;
    Some(value)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::ReferenceTarget::{Block, Symbol};
    use super::*;

    const GOT: u64 = 0x7000_0000_1000;
    const RECORD: u8 = 1;
    const X86: ThreadLayout = ThreadLayout { below: true, musl: false };
    const ARM: ThreadLayout = ThreadLayout { below: false, musl: false };

    fn variable(value: u64) -> TlsVariable {
        TlsVariable { name: 0, exported: true, value, local_exec: None, references: Vec::new() }
    }

    /// Where the variable with the offset 0x20 is, whose reference the loader filled in like this.
    fn found(
        layout: ThreadLayout,
        kind: ReferenceKind,
        target: ReferenceTarget,
        words: &[(u64, u64)],
    ) -> Option<(i64, u32, TlsModel)> {
        let words: BTreeMap<u64, u64> = words.iter().copied().collect();
        let memory = |address: u64, bytes: &mut [u8]| {
            for (at, word) in (address..).step_by(8).zip(bytes.chunks_mut(8)) {
                let value = words.get(&at).ok_or(io::ErrorKind::NotFound)?;
                word.copy_from_slice(&value.to_ne_bytes());
            }
            Ok(())
        };
        let reference = TlsReference { kind, address: 0x1000, target };
        let found = layout.resolve(&variable(0x20), reference, GOT - 0x1000, RECORD, &memory);
        found.map(|(slot, model)| {
            assert_eq!(slot.format, RECORD);
            (slot.offset, slot.module, model)
        })
    }

    fn words(first: u64, second: u64) -> [(u64, u64); 2] {
        [(GOT, first), (GOT + 8, second)]
    }

    #[test]
    fn a_word_is_a_distance_from_the_thread_pointer() {
        let offset = |layout, word| found(layout, ReferenceKind::Offset, Symbol, &[(GOT, word)]);
        let minus = |distance: i64| distance.cast_unsigned();
        assert_eq!(offset(X86, minus(-72)), Some((-72, 0, TlsModel::InitialExec)));
        assert_eq!(offset(ARM, 16), Some((16, 0, TlsModel::InitialExec)));
        // Not filled in, or not by a loader.
        for word in [0, 8, 72, minus(-4), minus(-(1 << 32)), u64::MAX / 2] {
            assert_eq!(offset(X86, word), None, "{word:#x}");
        }
        assert_eq!(offset(ARM, minus(-72)), None);
        assert_eq!(found(X86, ReferenceKind::Offset, Symbol, &[]), None, "not mapped");
        let beside = found(X86, ReferenceKind::Offset, Block(0x18), &[(GOT, minus(-80))]);
        assert_eq!(beside, Some((-72, 0, TlsModel::InitialExec)));
    }

    #[test]
    fn two_words_are_module_and_offset() {
        let module = |target, words: [_; 2]| found(X86, ReferenceKind::Module, target, &words);
        let is = |offset, module| Some((offset, module, TlsModel::GeneralDynamic));
        assert_eq!(module(Symbol, words(3, 0x48)), is(0x48, 3));
        assert_eq!(module(Block(0), words(3, 0)), is(0x20, 3), "the second may be unused");
        assert_eq!(module(Symbol, words(0, 0x48)), None, "not filled in");
        assert_eq!(module(Symbol, words(1 << 40, 0x48)), None);
        assert_eq!(module(Symbol, words(3, u64::MAX)), None);
    }

    #[test]
    fn a_descriptor_says_either() {
        let says = |layout, words: &[_]| found(layout, ReferenceKind::Descriptor, Symbol, words);
        let at = 0x7000_0000_2000;
        let argument = |argument, module, offset| {
            let [first, second] = words(0x7000_0000_3000, argument);
            [first, second, (argument, module), (argument + 8, offset)]
        };
        let minus = |distance: i64| distance.cast_unsigned();
        assert_eq!(says(X86, &words(1, minus(-200))), Some((-200, 0, TlsModel::StaticDescriptor)));
        let dynamic = Some((0x48, 5, TlsModel::DynamicDescriptor));
        assert_eq!(says(X86, &argument(at, 5, 0x48)), dynamic);
        assert_eq!(says(X86, &argument(at, at, 7)), None, "a lazy one points to its relocation");
        assert_eq!(says(X86, &words(1, 0)), None, "an undefined weak variable");
        assert_eq!(says(X86, &words(0, minus(-200))), None, "not filled in");
        assert_eq!(says(ARM, &words(1, 0x40)), Some((0x40, 0, TlsModel::StaticDescriptor)));
        assert_eq!(says(ARM, &argument(at, 5, 0x48)), dynamic);
        // A heap below 2 GiB, and a block as large.
        let low = 0x40_0000;
        let own = Some((0x20, 5, TlsModel::DynamicDescriptor));
        assert_eq!(says(ARM, &argument(low, 5, 0x20)), own);
        let is_static = Some((0x40_0000, 0, TlsModel::StaticDescriptor));
        assert_eq!(says(ARM, &argument(low, 5, 0x48)), is_static);
        assert_eq!(says(ARM, &words(1, low)), is_static);
        let base = found(X86, ReferenceKind::Descriptor, Block(0), &argument(at, 5, 0));
        assert_eq!(base, Some((0x20, 5, TlsModel::DynamicDescriptor)));
    }

    #[test]
    fn each_c_library_keeps_its_vector_elsewhere() {
        let of = |below, musl| {
            let slot = ThreadLayout { below, musl }.in_module(1, 8, RECORD).unwrap();
            (slot.dtv_offset, slot.dtv_entry_shift)
        };
        assert_eq!([of(true, false), of(true, true)], [(8, 4), (8, 3)]);
        assert_eq!([of(false, false), of(false, true)], [(0, 4), (-8, 3)]);
    }
}
