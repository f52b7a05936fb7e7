//! The running task as a step of the walk sees it: its mappings, their rules, its stack.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use profiler_common::unwind::{
    MAPPING_KIND_SHIFT, MAPPING_TABLE, PAGE_SHIFT, PAGES_MAX, RULES_MAX, SEGMENT_WORDS,
};
use profiler_ebpf::bounded::bounded;
use profiler_ebpf::lookup::{MappingSegment, entry, mapping_index, rule_number};
use profiler_ebpf::machine::{Machine, X86_64};
use profiler_ebpf::unwind::{KIND_UNKNOWN_PROCESS, KIND_UNMAPPED, Lookup, Process};

use crate::maps::{ROWS, SCRATCH_WORDS, Scratch, WINDOW_WORDS};
use crate::registers::REGISTERS;
use crate::reuse::Remembered;

/// Bytes of a window.
const WINDOW: u64 = 8 * WINDOW_WORDS as u64;

/// Pointers, which stay the same through the loop.
pub(crate) struct Tables {
    pub(crate) scratch: *mut Scratch,
    pub(crate) remembered: *mut Remembered,
    pub(crate) mappings: *const MappingSegment,
    pub(crate) pages: *const [u64; PAGES_MAX],
    pub(crate) rules: *const [u64; RULES_MAX],
}

/// The running task, as a step sees it.
pub(crate) struct Stack<'a> {
    pub(crate) tables: &'a Tables,
    pub(crate) scratch: &'a mut Scratch,
    pub(crate) mapping: u64,
    pub(crate) window_at: u64,
    pub(crate) window_len: u64,
    pub(crate) next_word: u64,
    pub(crate) by_frame_pointer: u64,
    pub(crate) slice: u64,
    pub(crate) slice_len: u64,
}

impl Process for Stack<'_> {
    const MACHINE: Machine = X86_64;

    #[inline(always)]
    fn look_up(&mut self, pc: u64) -> Lookup {
        let nothing = |kind| Lookup { kind, rule: 0 };
        if self.slice_len == 0 {
            return nothing(KIND_UNKNOWN_PROCESS);
        }
        // SAFETY: a map element, valid for the whole program run.
        let mappings = unsafe { &*self.tables.mappings };
        let first = self.slice + 1;
        self.mapping = mapping_index(mappings, first, self.slice_len, self.mapping, pc);
        let mapping = entry(mappings, first + self.mapping);
        if pc < mapping.begin || pc >= mapping.end {
            return nothing(KIND_UNMAPPED);
        }
        let kind = (mapping.kind_and_pages >> MAPPING_KIND_SHIFT) as u8;
        if kind != MAPPING_TABLE {
            return nothing(kind);
        }
        let at = pc - mapping.bias;
        let page = at >> PAGE_SHIFT;
        if page >= u64::from(mapping.kind_and_pages & ((1 << MAPPING_KIND_SHIFT) - 1)) {
            return Lookup { kind: MAPPING_TABLE, rule: 0 };
        }
        let index = bounded::<PAGES_MAX>(u64::from(mapping.first_page) + page);
        // SAFETY: a map element, valid for the whole program run.
        let page = unsafe { &*self.tables.pages }[index];
        let segment = (page & 0xffff_ffff) >> 14;
        let Some(rows) = ROWS.get_value((segment >> 4) as u32, &((segment & 15) as u32)) else {
            return Lookup { kind: MAPPING_TABLE, rule: 0 };
        };
        let block = page & (SEGMENT_WORDS as u64 - 1);
        let number = rule_number(rows, block, page >> 32, at & 0xffff);
        // SAFETY: a map element, valid for the whole program run.
        let rule = unsafe { &*self.tables.rules }[bounded::<RULES_MAX>(number)];
        Lookup { kind: MAPPING_TABLE, rule }
    }

    #[inline(always)]
    fn word(&mut self, address: u64) -> Option<u64> {
        let offset = address.wrapping_sub(self.window_at);
        if offset < self.window_len && offset & 7 == 0 {
            return Some(self.scratch.window[bounded::<WINDOW_WORDS>(offset >> 3)]);
        }
        crate::sample::read_user(address).ok()
    }

    #[inline(always)]
    fn approach(&mut self, sp: u64, cfa: u64) {
        let last = cfa.wrapping_sub(8);
        if last.wrapping_sub(self.window_at) < self.window_len || cfa.wrapping_sub(sp) > WINDOW / 2
        {
            return;
        }
        self.window_at = sp;
        self.window_len = copy_stack(self.scratch, sp);
    }

    #[inline(always)]
    fn register(&mut self, number: u64) -> u64 {
        self.scratch.registers[bounded::<REGISTERS>(number)]
    }

    #[inline(always)]
    fn frame(&mut self, word: u64) {
        self.scratch.words[bounded::<SCRATCH_WORDS>(self.next_word)] = word;
        self.next_word += 1;
    }

    #[inline(always)]
    fn note_frame_pointer(&mut self, kind: u8) {
        self.by_frame_pointer |= 1 << (kind & 7);
    }
}

/// Copies a window from `from` on and returns how many bytes it has: up to the end of the page
/// where the rest is not there.
#[inline(always)]
pub(crate) fn copy_stack(scratch: &mut Scratch, from: u64) -> u64 {
    const PAGE: u64 = 4096;
    let to = scratch.window.as_mut_ptr().cast::<c_void>();
    // SAFETY: the window has this size, and the helper does not fault on what cannot be read.
    if unsafe { bpf_probe_read_user(to, WINDOW as u32, from as *const c_void) } == 0 {
        return WINDOW;
    }
    let len = PAGE - (from & (PAGE - 1));
    if len < WINDOW {
        // SAFETY: `len` is less than the window's size.
        if unsafe { bpf_probe_read_user(to, len as u32, from as *const c_void) } == 0 {
            return len & !7;
        }
    }
    0
}
