//! Process events to the process table: processes, mapping snapshots with epochs, ELF files with
//! open descriptors, span slots, services. The only module that knows `/proc`.

mod elf_file;
mod service;

pub use elf_file::{BuildId, ElfFile, ElfId};
pub use service::ServiceIdentity;
