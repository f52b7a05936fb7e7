//! Reads a process: what it is, what it has mapped, where its threads keep their spans.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    io,
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use super::maps::{ContextMapping, EntryName, Maps};
use super::proc_fs::{Proc, ProcessDir, ProcessStat};
use super::process_context::{ContextError, ProcessContext};
use super::span_files::{SpanFileFinder, SpanFiles};
use super::span_slot::{FoundSlots, find_slots};
use super::{
    Backing, ElfId, ElfRegistry, Mapping, MappingSnapshot, NamedBy, Origin, PerfMapRegistry,
    Process, ServiceIdentity, TableStats, Unreadable,
};
use crate::container::Cgroup;
use crate::decode::{BootTime, FileNumber, Pid};

/// What the last read of a process found, to find out cheaply whether anything changed.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) start_time: u64,
    /// Just before the mappings were read last, whether or not they had changed.
    pub(super) maps_read_at: BootTime,
    kernel_thread: bool,
    mapped_bytes: u64,
    maps_hash: u64,
    /// How many bytes of text the mappings are.
    pub(super) maps_len: usize,
    contexts: Vec<ContextMapping>,
    context: Option<Arc<ProcessContext>>,
    span_files: Option<SpanFiles>,
    identity: Identity,
}

/// What does not change until the next `exec`.
#[derive(Clone, Debug)]
struct Identity {
    name: Arc<str>,
    main_elf: Option<ElfId>,
    told: Option<Arc<ServiceIdentity>>,
    /// The path of its executable, and what its control groups say, if that is to be read.
    origin: Option<(String, Cgroup)>,
}

/// What a read found.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) process: Arc<Process>,
    pub(super) facts: Facts,
    pub(super) slots: FoundSlots,
}

/// What reading the mappings gave.
struct ReadMappings {
    read_at: BootTime,
    snapshot: Arc<MappingSnapshot>,
    contexts: Vec<ContextMapping>,
    maps_hash: u64,
    maps_len: usize,
}

/// When the mappings are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadMaps {
    Always,
    /// Only if the process has more or less memory mapped than before.
    IfResized,
    /// And also what names the process: it may run another program than when it was read.
    Anew,
}

/// Reads processes.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) proc: Proc,
    pub(super) elfs: ElfRegistry,
    pub(super) perf_maps: PerfMapRegistry,
    span_files: SpanFileFinder,
    /// Processes are told apart by where they run.
    reads_origins: bool,
    hasher: RandomState,
    text: Vec<u8>,
    /// How many bytes of mappings were read so far.
    pub(super) text_read: usize,
    kernel: Arc<ServiceIdentity>,
}

impl Reader {
    pub(super) fn new(proc: Proc, elfs: ElfRegistry, reads_origins: bool) -> Self {
        Self {
            proc,
            elfs,
            perf_maps: PerfMapRegistry::default(),
            span_files: SpanFileFinder::default(),
            reads_origins,
            // Keyed at random: nobody can make two texts that look the same.
            hasher: RandomState::new(),
            text: Vec::new(),
            text_read: 0,
            kernel: Arc::new(ServiceIdentity::kernel()),
        }
    }

    /// Whether a process is still there, in some thread; by its start time if that is known.
    pub(super) fn is_there(&self, pid: Pid, start_time: Option<u64>) -> bool {
        self.proc.process(pid).and_then(|process| process.stat()).is_ok_and(|stat| {
            !stat.is_gone() && start_time.is_none_or(|time| time == stat.start_time)
        })
    }

    pub(super) fn is_kernel_thread(&self, pid: Pid) -> bool {
        let stat = self.proc.process(pid).and_then(|process| process.stat());
        stat.is_ok_and(|stat| stat.is_kernel_thread())
    }

    /// Reads a process, from `now` on; `known` is what the last read of the same program found.
    pub(super) fn read(
        &mut self,
        pid: Pid,
        now: BootTime,
        known: Option<(&Arc<Process>, &Facts)>,
        read_maps: ReadMaps,
        stats: &mut TableStats,
    ) -> Result<Looked, Unreadable> {
        let reason = |error: io::Error| unreadable(&error);
        let dir = self.proc.process(pid).map_err(reason)?;
        let stat = dir.stat().map_err(reason)?;
        if stat.is_gone() {
            return Err(Unreadable::Gone);
        }
        let known = known.filter(|(_, facts)| facts.start_time == stat.start_time);
        if stat.is_kernel_thread() {
            return Ok(self.kernel_thread(pid, &stat));
        }
        let ReadMappings { read_at, snapshot, contexts, maps_hash, maps_len } =
            self.snapshot(&dir, now, &stat, known, read_maps, stats).map_err(reason)?;
        if snapshot.mappings().iter().all(is_vsyscall) {
            // No process runs without code: this one is in the middle of an exec or of its exit.
            return Err(Unreadable::NotRead);
        }
        let identity = match known.filter(|_| read_maps != ReadMaps::Anew) {
            Some((_, facts)) => facts.identity.clone(),
            None => self.identity(&dir, &stat, stats),
        };
        let known_context = known.and_then(|(_, facts)| facts.context.as_ref());
        let context = read_context(&dir, &contexts, known_context, stats);
        let known_files = known.and_then(|(_, facts)| facts.span_files.as_ref());
        let span_files =
            self.span_files.files(&snapshot, identity.main_elf, &self.elfs, known_files, stats);
        let slots = find_slots(context.as_deref(), &span_files, &dir, stats);
        // A run time begins to write when it makes code, so that each look may find a file.
        let makes_code = snapshot.mappings().iter().any(|it| it.backing == Backing::Anonymous);
        let known_jit = known.and_then(|(process, _)| process.jit);
        let jit = if makes_code {
            self.perf_maps.find(&dir, stat.start_time, known_jit, stats)
        } else {
            known_jit
        };
        let process = Process {
            pid,
            start_time: stat.start_time,
            name: Arc::clone(&identity.name),
            service: service(context.as_deref(), &identity),
            main_elf: identity.main_elf,
            snapshot,
            jit,
            attribute_keys: context
                .as_ref()
                .map_or_else(|| Arc::new([]) as Arc<[_]>, |it| Arc::clone(&it.attribute_keys)),
            unreadable: None,
        };
        let process = match known {
            Some((known, _)) if known.says_the_same(&process) => Arc::clone(known),
            _ => Arc::new(process),
        };
        let facts = Facts {
            start_time: stat.start_time,
            maps_read_at: read_at,
            kernel_thread: false,
            mapped_bytes: stat.mapped_bytes,
            maps_hash,
            maps_len,
            contexts,
            context,
            span_files: Some(span_files),
            identity,
        };
        Ok(Looked { process, facts, slots })
    }

    fn kernel_thread(&self, pid: Pid, stat: &ProcessStat) -> Looked {
        let name: Arc<str> = stat.comm.as_str().into();
        let process = Process {
            start_time: stat.start_time,
            name: Arc::clone(&name),
            service: Arc::clone(&self.kernel),
            ..Process::not_read(pid, None)
        };
        let facts = Facts {
            start_time: stat.start_time,
            maps_read_at: BootTime(0),
            kernel_thread: true,
            mapped_bytes: 0,
            maps_hash: 0,
            maps_len: 0,
            contexts: Vec::new(),
            context: None,
            span_files: None,
            identity: Identity { name, main_elf: None, told: None, origin: None },
        };
        Looked { process: Arc::new(process), facts, slots: FoundSlots::default() }
    }

    fn snapshot(
        &mut self,
        dir: &ProcessDir,
        now: BootTime,
        stat: &ProcessStat,
        known: Option<(&Arc<Process>, &Facts)>,
        read_maps: ReadMaps,
        stats: &mut TableStats,
    ) -> io::Result<ReadMappings> {
        let unchanged = |(process, facts): (&Arc<Process>, &Facts), read_at| ReadMappings {
            read_at,
            snapshot: Arc::clone(&process.snapshot),
            contexts: facts.contexts.clone(),
            maps_hash: facts.maps_hash,
            maps_len: facts.maps_len,
        };
        if let Some(known) = known
            && read_maps == ReadMaps::IfResized
            && known.1.mapped_bytes == stat.mapped_bytes
        {
            return Ok(unchanged(known, known.1.maps_read_at));
        }
        stats.maps_read += 1;
        let text_truncated = dir.maps(&mut self.text)?;
        if self.text.is_empty() {
            // The process has given up its memory: it is about to be gone.
            return Err(io::ErrorKind::NotFound.into());
        }
        let (maps_hash, maps_len) = (self.hasher.hash_one(&self.text), self.text.len());
        self.text_read = self.text_read.saturating_add(maps_len);
        if let Some(known) = known.filter(|(_, facts)| facts.maps_hash == maps_hash) {
            return Ok(unchanged(known, now));
        }
        let maps = Maps::parse(&self.text);
        stats.maps_malformed_lines += maps.malformed_lines;
        let truncated = maps.truncated || text_truncated;
        stats.maps_truncated += u64::from(truncated);
        // A file can be mapped ten thousands of times.
        let mut files: HashMap<_, Backing> = HashMap::new();
        let mappings = maps.executable.iter().map(|entry| {
            let find = || self.elfs.backing(dir, entry);
            let backing = match &entry.name {
                EntryName::File(path) => {
                    let file = files.entry((entry.device, entry.inode, path));
                    file.or_insert_with(find).clone()
                }
                EntryName::Anonymous | EntryName::Special(_) => find(),
            };
            let (start, end, file_offset) = (entry.start, entry.end, entry.file_offset);
            let file = FileNumber { device: entry.device, inode: entry.inode };
            (Mapping { start, end, file_offset, backing }, file)
        });
        let snapshot = MappingSnapshot::read(now, mappings.collect(), truncated);
        // A process with very much text is rare: its buffer is not kept.
        self.text.clear();
        self.text.shrink_to(1 << 20);
        Ok(ReadMappings {
            read_at: now,
            snapshot: Arc::new(snapshot),
            contexts: maps.contexts,
            maps_hash,
            maps_len,
        })
    }

    fn identity(&self, dir: &ProcessDir, stat: &ProcessStat, stats: &mut TableStats) -> Identity {
        let path = dir.executable_path().unwrap_or_default();
        let path = path.strip_suffix(b" (deleted)").unwrap_or(&path);
        let file_name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let name = if file_name.is_empty() {
            stat.comm.as_str().into()
        } else {
            String::from_utf8_lossy(file_name)
        };
        let environment = dir.environment().unwrap_or_else(|_| {
            stats.environment_unreadable += 1;
            Vec::new()
        });
        Identity {
            name: name.into(),
            main_elf: self.elfs.main_executable(dir, path),
            told: ServiceIdentity::of_environment(&environment).map(Arc::new),
            origin: self.reads_origins.then(|| {
                let text = dir.cgroup().unwrap_or_else(|_| {
                    stats.cgroup_unreadable += 1;
                    Vec::new()
                });
                (String::from_utf8_lossy(path).into_owned(), Cgroup::parse(&text))
            }),
        }
    }
}

impl Facts {
    pub(super) fn is_kernel_thread(&self) -> bool {
        self.kernel_thread
    }
}

/// The kernel shows it for every process, whatever is mapped.
fn is_vsyscall(mapping: &Mapping) -> bool {
    matches!(&mapping.backing, Backing::Special(name) if name.as_ref() == "[vsyscall]")
}

fn service(context: Option<&ProcessContext>, identity: &Identity) -> Arc<ServiceIdentity> {
    let said = context.and_then(ServiceIdentity::of_context);
    let (named_by, service) = match (said, &identity.told) {
        (Some(said), _) => (NamedBy::Context, Arc::new(said)),
        (None, Some(told)) => (NamedBy::Environment, Arc::clone(told)),
        (None, None) => (NamedBy::Executable, Arc::new(ServiceIdentity::unknown(&identity.name))),
    };
    let Some((exe, Cgroup { container, unit })) = &identity.origin else { return service };
    let (container, unit, exe) = (container.clone(), unit.clone(), exe.clone());
    let origin = Origin { named_by, container, unit, exe };
    Arc::new(ServiceIdentity { origin: Some(Arc::new(origin)), ..Arc::unwrap_or_clone(service) })
}

/// The first mapping that holds a context counts. One that was being written each time it was
/// read is still what it was.
fn read_context(
    dir: &ProcessDir,
    mappings: &[ContextMapping],
    known: Option<&Arc<ProcessContext>>,
    stats: &mut TableStats,
) -> Option<Arc<ProcessContext>> {
    let memory = if mappings.is_empty() { return None } else { dir.memory() };
    let Ok(memory) = memory else {
        stats.context_unreadable += 1;
        return None;
    };
    for mapping in mappings {
        let read = |address, bytes: &mut [u8]| memory.read_exact_at(bytes, address);
        match ProcessContext::read(*mapping, known, read) {
            Ok(context) => return Some(context),
            Err(ContextError::Torn) => {
                stats.context_torn += 1;
                if let Some(known) = known {
                    return Some(Arc::clone(known));
                }
            }
            Err(ContextError::Unreadable(_)) => stats.context_unreadable += 1,
            Err(
                ContextError::Executable
                | ContextError::NoSignature
                | ContextError::Version(_)
                | ContextError::PayloadSize(_)
                | ContextError::Malformed(_),
            ) => stats.context_refused += 1,
        }
    }
    None
}

fn unreadable(error: &io::Error) -> Unreadable {
    /// A process that exits while one of its files is open.
    const NO_SUCH_PROCESS: i32 = libc::ESRCH;
    match error.kind() {
        io::ErrorKind::NotFound => Unreadable::Gone,
        io::ErrorKind::PermissionDenied => Unreadable::NotPermitted,
        _ if error.raw_os_error() == Some(NO_SUCH_PROCESS) => Unreadable::Gone,
        _ => Unreadable::Failed,
    }
}
