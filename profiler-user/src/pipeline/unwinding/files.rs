//! What is known of each file's table.

use std::{collections::HashMap, sync::Arc, time::Instant};

use profiler_common::unwind::{
    MAPPING_ANONYMOUS, MAPPING_KIND_SHIFT, MAPPING_NO_TABLE, MAPPING_OVER_LIMIT, MAPPING_PENDING,
    MAPPING_TABLE, MAPPING_UNREADABLE, Mapping as Published,
};

use crate::capture::PlacedTable;
use crate::process::{Backing, ElfId, Mapping};
use crate::unwind::TextLayout;

/// A file's table.
#[derive(Debug)]
pub(super) enum Table {
    /// It is to be made, or is being made. Since when it is wanted, if a process runs it now.
    Pending { since: Option<Instant> },
    /// It is in the maps.
    Ready(Ready),
    /// There is none, and why.
    Without { kind: u8, reason: &'static str },
    /// There is no room for it. When that was seen.
    OverLimit { since: Instant },
}

/// A table in the maps.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) placed: PlacedTable,
    pub(super) layout: Arc<TextLayout>,
    pub(super) rows: usize,
    /// When a sample was in it last, or it was made.
    pub(super) used: Instant,
}

/// A mapping as the BPF program is to see it.
pub(super) fn published(tables: &HashMap<ElfId, Table>, mapping: &Mapping) -> Published {
    let Mapping { start, end, file_offset, ref backing } = *mapping;
    let kind_only = |kind: u8| Published {
        begin: start,
        end,
        bias: 0,
        first_page: 0,
        kind_and_pages: u32::from(kind) << MAPPING_KIND_SHIFT,
    };
    let Backing::Elf(id) = backing else { return kind_only(MAPPING_ANONYMOUS) };
    match tables.get(id) {
        Some(Table::Ready(Ready { placed, layout, .. })) => {
            let Some(bias) = layout.bias(start, end, file_offset) else {
                return kind_only(MAPPING_NO_TABLE);
            };
            let kind = u32::from(MAPPING_TABLE) << MAPPING_KIND_SHIFT;
            let first_page = placed.first_page;
            Published { begin: start, end, bias, first_page, kind_and_pages: kind | placed.pages }
        }
        Some(Table::Without { kind, .. }) => kind_only(*kind),
        Some(Table::OverLimit { .. }) => kind_only(MAPPING_OVER_LIMIT),
        Some(Table::Pending { .. }) | None => kind_only(MAPPING_PENDING),
    }
}

/// A file that could not be read.
pub(super) fn unreadable(reason: &'static str) -> Table {
    Table::Without { kind: MAPPING_UNREADABLE, reason }
}

/// A file with more to say of unwinding than one file may.
pub(super) fn too_large(reason: &'static str) -> Table {
    Table::Without { kind: MAPPING_OVER_LIMIT, reason }
}

/// A file that says nothing of unwinding.
pub(super) fn without(reason: &'static str) -> Table {
    Table::Without { kind: MAPPING_NO_TABLE, reason }
}
