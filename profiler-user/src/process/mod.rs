//! Process events to the process table: processes, mapping snapshots with epochs, ELF files with
//! open descriptors, span slots, services. The only module that knows `/proc`.

#[rustfmt::skip]
#[expect(
    unreachable_pub,
    clippy::enum_variant_names,
    reason = "generated code does not know where it is included"
)]
mod context_proto;
mod elf_file;
mod elf_reader;
mod elf_registry;
mod elf_tls;
#[cfg(test)]
mod fake_proc;
mod go_labels;
mod hook_files;
mod hooked;
mod images;
mod looks;
mod mapped_file;
mod maps;
#[cfg(test)]
mod maps_fuzz_tests;
mod mount_info;
mod open_in_container;
mod perf_map;
mod proc_fs;
mod process_context;
mod reader;
mod recorded;
mod replaced;
mod service;
mod snapshot;
mod span_files;
mod span_slot;
mod table;
mod table_code;
mod table_entry;
mod table_looks;
mod table_stats;
mod tls_slot;
mod use_order;
mod vdso;
mod view;

pub use elf_file::{BuildId, ElfFile, ElfId};
pub use elf_reader::SpanNote;
pub use elf_registry::{ElfLimits, ElfRegistry, ElfStats};
pub use hook_files::HookFact;
pub(crate) use mapped_file::Located;
pub(crate) use open_in_container::open_in_container;
pub use perf_map::{JitId, PerfMapRegistry};
pub use proc_fs::Proc;
pub use recorded::RecordedProcess;
pub use service::{NamedBy, Origin, ServiceIdentity, said};
pub use snapshot::{Backing, Mapping, MappingSnapshot};
pub use span_slot::{FoundSlot, SlotSource, span_note_of_file, span_slot_of_file};
pub use table::{ControlFact, MappingsFact, ProcessTable, TableLimits};
pub use table_stats::{SlotDelays, TableStats};
pub use tls_slot::TlsModel;
pub use view::{Process, Unreadable};

#[cfg(test)]
mod hook_tests;
#[cfg(test)]
mod live_tests;
#[cfg(test)]
mod table_code_tests;
#[cfg(test)]
mod table_tests;
