//! Distinct locations to names: kernel and ELF, by blazesym in a worker process; code made at run
//! time, by the perf map of its process.
//!
//! ```text
//! window ─▶ client ──descriptors, offsets──▶ worker (no privileges) ─▶ blazesym
//!              ▲  └──◀────checked names─────────┘
//!              └─ remembers, restarts the worker, has a stand-in for every name
//! ```

mod client;
mod perf_map;
mod protocol;
mod recorded;
pub mod worker;

use std::{collections::HashMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::attribute::Location;
use crate::process::{BuildId, ElfId};

pub use client::{
    ElfSource, PerfMapStats, SymbolizeStats, Symbolizer, SymbolizerConfig, Unsymbolized,
    WorkerDeath,
};
pub use recorded::RecordedNames;

/// One function at a location; inlined functions make it several.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamedFrame {
    /// The demangled function, or `binary+0xoffset` where there is none. Never empty.
    pub function: Arc<str>,
    /// The source file, where debug information names it.
    pub file: Option<Arc<str>>,
    /// The source line, 0 if unknown.
    pub line: u32,
}

/// What pprof says of a binary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binary {
    /// The path as the process sees it.
    pub path: Arc<str>,
    /// The GNU build ID, where the file has one.
    pub build_id: Option<BuildId>,
}

/// The names of a window's locations.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// The functions at each location, innermost (inlined) first; never empty.
    pub frames: HashMap<Location, Arc<[NamedFrame]>>,
    /// The binaries that the locations name.
    pub binaries: HashMap<ElfId, Binary>,
}
