//! The client: asks the worker, remembers its answers, replaces it, and always has a name.

mod answer;
mod connection;
mod debug_file;
mod jit;
mod kallsyms;
mod kernel;
mod known_files;
mod name_cache;
mod service;
mod stats;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::jit::JitNames;
use self::name_cache::{CachedNames, NameCache};
use self::service::WorkerService;
use super::{Binary, NamedFrame, Names};
use crate::attribute::{Location, Unresolved};
use crate::decode::Addr;
use crate::process::{ElfFile, ElfId, JitId, PerfMapRegistry};
use crate::symbolize::protocol::printable;

pub use self::stats::{PerfMapStats, SymbolizeStats, Unsymbolized, WorkerDeath};

/// How to symbolize.
#[derive(Clone, Debug)]
pub struct SymbolizerConfig {
    /// The program that runs [`worker::run`](super::worker::run) on its standard input.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// With source lines and inlined functions: ten times the time, more memory.
    pub inlined: bool,
    /// How long one request may take before the worker is killed.
    pub request_deadline: Duration,
    /// How long the names of one window may take before the rest gets stand-ins. At most one
    /// request's deadline longer.
    pub window_budget: Duration,
    /// The worker's ceiling of address space.
    pub worker_memory_bytes: u64,
    /// Folders with separate debug files, in the profiler's own root.
    pub debug_dirs: Vec<PathBuf>,
    /// The kernel's symbols.
    pub kallsyms: PathBuf,
    /// How old the kernel's symbols may be when an address outside the kernel proper is not known:
    /// a module or BPF program loaded since.
    pub kallsyms_age: Duration,
    /// The largest file that is copied for a worker whose user may not open it.
    pub copy_bytes_max: u64,
    /// The most locations that are remembered.
    pub cached_locations: usize,
    /// The most bytes of names that are remembered.
    pub cached_bytes: usize,
}

impl SymbolizerConfig {
    /// The settings of a program that is its own worker by `spanprof symbolize-worker`.
    #[must_use]
    pub fn new(inlined: bool) -> Self {
        Self {
            program: "/proc/self/exe".into(),
            arguments: vec!["symbolize-worker".into()],
            inlined,
            request_deadline: Duration::from_secs(10),
            window_budget: Duration::from_secs(30),
            worker_memory_bytes: 1 << 30,
            debug_dirs: vec!["/usr/lib/debug".into()],
            kallsyms: "/proc/kallsyms".into(),
            kallsyms_age: Duration::from_secs(10),
            copy_bytes_max: 64 << 20,
            cached_locations: 1 << 16,
            cached_bytes: 32 << 20,
        }
    }
}

/// An ELF file, and where its path leads to it.
#[derive(Clone, Debug)]
pub struct ElfSource {
    /// The file.
    pub file: ElfFile,
    /// The root of a process that sees the file by its path (`/proc/PID/root`), if that is not the
    /// profiler's own: there its debug file is looked for.
    pub root: Option<PathBuf>,
}

impl From<ElfFile> for ElfSource {
    fn from(file: ElfFile) -> Self {
        Self { file, root: None }
    }
}

/// Names locations. Blocks; to be used from a thread of its own, which has to live as long as the
/// symbolizer: the kernel kills the worker together with the thread that started it.
#[derive(Debug)]
pub struct Symbolizer {
    service: WorkerService,
    cache: NameCache,
    jit: JitNames,
    stats: SymbolizeStats,
}

impl Symbolizer {
    /// Starts no worker until one is needed.
    #[must_use]
    pub fn new(config: SymbolizerConfig) -> Self {
        let cache = NameCache::new(config.cached_locations, config.cached_bytes);
        Self {
            service: WorkerService::new(config),
            cache,
            jit: JitNames::default(),
            stats: SymbolizeStats::default(),
        }
    }

    /// Names code made at run time by these perf maps; by none, if they are not given.
    #[must_use]
    pub fn with_perf_maps(self, perf_maps: PerfMapRegistry) -> Self {
        Self { jit: JitNames::new(perf_maps), ..self }
    }

    /// Names the distinct locations of a window. `files` gives what is known of an ELF file.
    ///
    /// Every location gets at least one frame. One without a symbol is `binary+0xaddress`, with the
    /// virtual address in the file, as `addr2line` takes it; where the file's segments are not
    /// known (it could never be opened), with the offset in the file. A kernel address without a
    /// symbol is `[kernel]+0xaddress`, or `[kernel]` if the kernel hides its addresses; code made at
    /// run time that its perf map does not name is `[anonymous code]`.
    pub fn names(
        &mut self,
        locations: impl IntoIterator<Item = Location>,
        files: &dyn Fn(ElfId) -> Option<ElfSource>,
    ) -> Names {
        let end = Instant::now() + self.service.config.window_budget;
        let locations: BTreeSet<Location> = locations.into_iter().collect();
        let mut names = Names::default();
        let mut kernel = Vec::new();
        let mut jit_addresses = BTreeMap::<JitId, Vec<u64>>::new();
        let mut elf_offsets = BTreeMap::<ElfId, Vec<u64>>::new();
        let mut sources = BTreeMap::new();
        for location in &locations {
            if let Location::Elf { elf, .. } = *location {
                sources.entry(elf).or_insert_with(|| files(elf));
            }
            if let Some(known) = self.known(location) {
                self.count(&known, true);
                names.frames.insert(*location, known.frames);
                continue;
            }
            match *location {
                Location::Kernel(address) => kernel.push(address.0),
                Location::Elf { elf, file_offset } => {
                    elf_offsets.entry(elf).or_default().push(file_offset);
                }
                Location::Jit { map, address } => {
                    jit_addresses.entry(map).or_default().push(address.0);
                }
                Location::Unresolved(_) => {}
            }
        }
        self.name_jit(jit_addresses, end, &mut names);
        self.service.check_worker();
        self.name_kernel(&kernel, end, &mut names);
        // What has ended a worker comes last, so that it cannot use up the time of the others.
        let mut order: Vec<ElfId> = elf_offsets.keys().copied().collect();
        order.sort_by_key(|elf| (self.service.deaths_of(*elf), *elf));
        for elf in order {
            let offsets = elf_offsets.remove(&elf).unwrap_or_default();
            let source = sources.get(&elf).and_then(Option::as_ref);
            self.name_elf(elf, source, &offsets, end, &mut names);
        }
        names.binaries = sources
            .into_iter()
            .filter_map(|(elf, source)| {
                let ElfFile { path, build_id, .. } = source?.file;
                Some((elf, Binary { path, build_id }))
            })
            .collect();
        names
    }

    /// Reads a perf map as a window with code of it would, and says what was in it.
    pub fn read_perf_map(&mut self, map: JitId) -> PerfMapStats {
        let before = std::mem::take(&mut self.jit.stats);
        let end = Instant::now() + self.service.config.window_budget;
        self.jit.forget(map);
        self.jit.begin_window();
        // Without addresses there are no names.
        drop(self.jit.names(map, &[], end));
        std::mem::replace(&mut self.jit.stats, before)
    }

    /// From now on, how long the names of one window may take.
    pub fn set_window_budget(&mut self, budget: Duration) {
        self.service.config.window_budget = budget;
    }

    /// The counters since the start.
    #[must_use]
    pub fn stats(&self) -> SymbolizeStats {
        let mut stats = self.service.stats.clone();
        stats.requested = self.stats.requested;
        stats.from_cache = self.stats.from_cache;
        stats.symbolized = self.stats.symbolized;
        stats.perf_maps = self.jit.stats.clone();
        stats.unsymbolized.clone_from(&self.stats.unsymbolized);
        stats
    }

    /// The worker's process id, while there is one.
    #[must_use]
    pub fn worker_pid(&self) -> Option<u32> {
        self.service.worker_pid()
    }

    fn known(&mut self, location: &Location) -> Option<CachedNames> {
        if let Location::Unresolved(unresolved) = location {
            let frames = stand_in(unresolved.frame_name().to_owned());
            return Some(CachedNames { frames, unsymbolized: Some(Unsymbolized::NoFile) });
        }
        self.cache.get(location)
    }

    /// These names are not remembered: other code may be at the same address later.
    fn name_jit(&mut self, addresses: BTreeMap<JitId, Vec<u64>>, end: Instant, names: &mut Names) {
        self.jit.begin_window();
        for (map, addresses) in addresses {
            let results = self.jit.names(map, &addresses, end);
            for (address, result) in addresses.into_iter().zip(results) {
                let (function, unsymbolized) = match result {
                    Ok(name) => (name, None),
                    Err(reason) => (Unresolved::Anonymous.frame_name().into(), Some(reason)),
                };
                let frames = [NamedFrame { function, file: None, line: 0 }].into();
                let named = CachedNames { frames, unsymbolized };
                self.count(&named, false);
                names.frames.insert(Location::Jit { map, address: Addr(address) }, named.frames);
            }
        }
    }

    fn name_kernel(&mut self, addresses: &[u64], end: Instant, names: &mut Names) {
        if addresses.is_empty() {
            return;
        }
        if let Some(image) = self.service.refresh_kallsyms(addresses) {
            // Modules may have come and gone at the same addresses.
            self.cache.retain(|location| match location {
                Location::Kernel(address) => image.contains(&address.0),
                _ => true,
            });
        }
        let results = self.service.name_kernel(addresses, end);
        for (address, result) in addresses.iter().zip(results) {
            let named = result.map_err(|reason| {
                let name = match reason {
                    // The profile would tell the addresses that the kernel hides.
                    Unsymbolized::KernelHidden => "[kernel]".to_owned(),
                    _ => format!("[kernel]+{address:#x}"),
                };
                (reason, name)
            });
            self.keep(Location::Kernel(Addr(*address)), named, names);
        }
    }

    fn name_elf(
        &mut self,
        elf: ElfId,
        source: Option<&ElfSource>,
        offsets: &[u64],
        end: Instant,
        names: &mut Names,
    ) {
        let results = self.service.name_elf(elf, source, offsets, end);
        let binary = source.map(|source| source.file.name()).filter(|name| !name.is_empty());
        // The address is not to be cut off.
        let binary = printable(binary.unwrap_or("[unknown]"));
        let binary = &binary[..binary.floor_char_boundary(1024)];
        for (file_offset, result) in offsets.iter().copied().zip(results) {
            let named = result.map_err(|reason| {
                let address = self.service.address_of(elf, file_offset).unwrap_or(file_offset);
                (reason, format!("{binary}+{address:#x}"))
            });
            self.keep(Location::Elf { elf, file_offset }, named, names);
        }
    }

    fn keep(
        &mut self,
        location: Location,
        named: Result<Arc<[NamedFrame]>, (Unsymbolized, String)>,
        names: &mut Names,
    ) {
        let named = match named {
            Ok(frames) => CachedNames { frames, unsymbolized: None },
            Err((reason, name)) => {
                CachedNames { frames: stand_in(name), unsymbolized: Some(reason) }
            }
        };
        self.count(&named, false);
        names.frames.insert(location, Arc::clone(&named.frames));
        if !named.unsymbolized.is_some_and(Unsymbolized::is_for_now) {
            self.cache.insert(location, named);
        }
    }

    fn count(&mut self, named: &CachedNames, is_from_cache: bool) {
        self.stats.requested += 1;
        self.stats.from_cache += u64::from(is_from_cache);
        match named.unsymbolized {
            None => self.stats.symbolized += 1,
            Some(reason) => *self.stats.unsymbolized.entry(reason).or_default() += 1,
        }
    }
}

fn stand_in(name: String) -> Arc<[NamedFrame]> {
    [NamedFrame { function: name.into(), file: None, line: 0 }].into()
}
