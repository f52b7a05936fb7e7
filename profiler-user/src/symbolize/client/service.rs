//! Keeps a worker running, and asks it about files.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, MemfdFlags, StatxFlags, memfd_create, statx};

use super::answer::{LocationNames, check_named, check_opened};
use super::connection::Worker;
use super::debug_file::candidates;
use super::kallsyms::Kallsyms;
use super::known_files::KnownFiles;
use super::stats::{SymbolizeStats, Unsymbolized, WorkerDeath};
use super::{ElfSource, SymbolizerConfig};
use crate::process::ElfId;
use crate::symbolize::NamedFrame;
use crate::symbolize::protocol::{
    Answer, LOCATIONS_MAX, Nameless, Opened, Refusal, Request, Segment,
};

/// Deaths without an answer in between after which starting another worker has to wait.
const DEATHS_IN_A_ROW_MAX: u32 = 4;

/// The first and the longest wait.
const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The functions at a location, or why there are none.
pub(super) type Located = Result<Arc<[NamedFrame]>, Unsymbolized>;

/// Why there is no answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ask {
    /// There will be none.
    Refused(Unsymbolized),
    /// The worker has died of it.
    Died,
}

/// The worker and what it was told.
#[derive(Debug)]
pub(super) struct WorkerService {
    pub(super) config: SymbolizerConfig,
    /// Of the worker only; what was named is counted elsewhere.
    pub(super) stats: SymbolizeStats,
    pub(super) kallsyms: Option<Kallsyms>,
    pub(super) is_kallsyms_sent: bool,
    worker: Option<Worker>,
    files: KnownFiles,
    deaths_in_a_row: u32,
    not_before: Option<Instant>,
}

impl WorkerService {
    pub(super) fn new(config: SymbolizerConfig) -> Self {
        Self {
            config,
            stats: SymbolizeStats::default(),
            kallsyms: None,
            is_kallsyms_sent: false,
            worker: None,
            files: KnownFiles::default(),
            deaths_in_a_row: 0,
            not_before: None,
        }
    }

    pub(super) fn worker_pid(&self) -> Option<u32> {
        self.worker.as_ref().map(Worker::pid)
    }

    pub(super) fn deaths_of(&self, elf: ElfId) -> u8 {
        self.files.get(elf).map_or(0, |file| file.deaths)
    }

    pub(super) fn address_of(&self, elf: ElfId, file_offset: u64) -> Option<u64> {
        Segment::address_of(&self.files.get(elf)?.segments, file_offset)
    }

    /// Notices a worker that has ended while nothing was asked of it: no file is to blame.
    pub(super) fn check_worker(&mut self) {
        if let Some(death) = self.worker.as_mut().and_then(Worker::ended) {
            self.worker_died(death);
        }
    }

    pub(super) fn name_elf(
        &mut self,
        elf: ElfId,
        source: Option<&ElfSource>,
        offsets: &[u64],
        end: Instant,
    ) -> Vec<Located> {
        let mut located = Vec::with_capacity(offsets.len());
        for chunk in offsets.chunks(LOCATIONS_MAX) {
            match self.name_chunk(elf, source, chunk, end) {
                Ok(names) => located.extend(names.into_iter().map(|names| Ok(names?))),
                Err(reason) => located.extend(chunk.iter().map(|_| Err(reason))),
            }
        }
        located
    }

    /// Asks again for what had no place in the answer, as long as each answer brings some.
    fn name_chunk(
        &mut self,
        elf: ElfId,
        source: Option<&ElfSource>,
        offsets: &[u64],
        end: Instant,
    ) -> Result<Vec<LocationNames>, Unsymbolized> {
        let mut names = self.ask_until_it_lives(elf, source, offsets, end)?;
        loop {
            let left: Vec<usize> = (0..names.len())
                .filter(|i| names.get(*i) == Some(&Err(Nameless::AnswerFull)))
                .collect();
            if left.is_empty() {
                return Ok(names);
            }
            let again: Vec<u64> = left.iter().filter_map(|i| offsets.get(*i).copied()).collect();
            let Ok(more) = self.ask_until_it_lives(elf, source, &again, end) else {
                return Ok(names);
            };
            let mut progress = false;
            for (i, more) in left.into_iter().zip(more) {
                progress |= more != Err(Nameless::AnswerFull);
                names[i] = more;
            }
            if !progress {
                return Ok(names);
            }
        }
    }

    fn ask_until_it_lives(
        &mut self,
        elf: ElfId,
        source: Option<&ElfSource>,
        offsets: &[u64],
        end: Instant,
    ) -> Result<Vec<LocationNames>, Unsymbolized> {
        loop {
            let file = self.files.touch(elf);
            if let Some(reason) = file.excluded() {
                return Err(reason);
            }
            if Instant::now() >= end {
                return Err(Unsymbolized::OutOfTime);
            }
            match self.ask_elf(elf, source, offsets) {
                Ok(names) => return Ok(names),
                Err(Ask::Refused(reason)) => return Err(reason),
                Err(Ask::Died) => {
                    let file = self.files.touch(elf);
                    file.deaths += 1;
                    match file.excluded() {
                        Some(_) => self.stats.files_quarantined += 1,
                        None => self.stats.files_degraded += u64::from(self.config.inlined),
                    }
                }
            }
        }
    }

    fn ask_elf(
        &mut self,
        elf: ElfId,
        source: Option<&ElfSource>,
        offsets: &[u64],
    ) -> Result<Vec<LocationNames>, Ask> {
        self.start_worker()?;
        if !self.files.touch(elf).is_open {
            self.open(elf, source)?;
        }
        // Lines are ten times the work: a file that it was too much for keeps its functions.
        let inlined = self.config.inlined && self.deaths_of(elf) == 0;
        let request = Request::Elf { file: elf.0, inlined, offsets: offsets.to_vec() };
        self.call_for_names(&request, offsets.len())
    }

    /// Opens a file in the worker, and the file with its symbols if it has none itself.
    fn open(&mut self, elf: ElfId, source: Option<&ElfSource>) -> Result<(), Ask> {
        let unavailable = Ask::Refused(Unsymbolized::FileUnavailable);
        let source = source.ok_or(unavailable)?;
        let file = source.file.file.as_ref().ok_or(unavailable)?;
        if !is_regular(file) {
            return Err(self.refuse(elf, Unsymbolized::NotElf));
        }
        if let Some(oldest) = self.files.to_close() {
            // Not this file's fault, if the worker dies now.
            match self.call(&Request::Close { file: oldest.0 }, None) {
                Ok(Answer::Done) => self.files.touch(oldest).is_open = false,
                Ok(_) | Err(_) => return Err(Ask::Refused(Unsymbolized::WorkerUnavailable)),
            }
        }
        let request = Request::Open { file: elf.0 };
        let mut answer = self.call(&request, Some(file.as_fd()))?;
        if matches!(answer, Answer::Refused(Refusal::NotPermitted)) {
            let copy = copy_in_memory(file, self.config.copy_bytes_max);
            let copy = copy.ok_or_else(|| self.refuse(elf, Unsymbolized::TooLargeToCopy))?;
            answer = self.call(&request, Some(copy.as_fd()))?;
        }
        let opened = match answer {
            Answer::Opened(opened) => check_opened(opened),
            Answer::Refused(_) => return Err(self.refuse(elf, Unsymbolized::NotElf)),
            _ => None,
        };
        let opened = opened.ok_or_else(|| self.protocol_death())?;
        let known = self.files.touch(elf);
        known.is_open = true;
        known.segments = opened.segments.clone().into();
        self.use_debug_file(elf, source, &opened)
    }

    fn use_debug_file(
        &mut self,
        elf: ElfId,
        source: &ElfSource,
        opened: &Opened,
    ) -> Result<(), Ask> {
        let suffices = if self.config.inlined { opened.has_lines } else { opened.has_symbols };
        if suffices {
            return Ok(());
        }
        let ElfSource { file, root } = source;
        let candidates = candidates(
            &file.path,
            file.build_id.as_ref(),
            opened.debug_link.as_ref(),
            root.as_deref(),
            &self.config.debug_dirs,
        );
        for candidate in candidates.collect::<Vec<_>>() {
            let request = Request::Debug { file: elf.0, crc: candidate.crc };
            match self.call(&request, Some(candidate.file.as_fd()))? {
                Answer::Done => {
                    self.stats.debug_files += 1;
                    return Ok(());
                }
                Answer::Refused(_) => {}
                _ => return Err(self.protocol_death()),
            }
        }
        Ok(())
    }

    fn refuse(&mut self, elf: ElfId, reason: Unsymbolized) -> Ask {
        self.files.touch(elf).refused = Some(reason);
        Ask::Refused(reason)
    }

    /// Makes sure that there is a worker.
    pub(super) fn start_worker(&mut self) -> Result<(), Ask> {
        if self.worker.is_some() {
            return Ok(());
        }
        if self.not_before.is_some_and(|time| Instant::now() < time) {
            return Err(Ask::Refused(Unsymbolized::WorkerUnavailable));
        }
        self.stats.worker_starts += 1;
        match Worker::start(&self.config) {
            Ok(worker) => self.worker = Some(worker),
            Err(death) => {
                // It will not work the next moment either.
                self.deaths_in_a_row = self.deaths_in_a_row.max(DEATHS_IN_A_ROW_MAX);
                self.worker_died(death);
                return Err(Ask::Refused(Unsymbolized::WorkerUnavailable));
            }
        }
        Ok(())
    }

    pub(super) fn call(
        &mut self,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Answer, Ask> {
        let unavailable = Ask::Refused(Unsymbolized::WorkerUnavailable);
        let worker = self.worker.as_mut().ok_or(unavailable)?;
        worker.call(request, descriptor).map_err(|death| {
            self.worker_died(death);
            Ask::Died
        })
    }

    pub(super) fn call_for_names(
        &mut self,
        request: &Request,
        count: usize,
    ) -> Result<Vec<LocationNames>, Ask> {
        let Answer::Named(named) = self.call(request, None)? else {
            return Err(self.protocol_death());
        };
        let memory_bytes = named.memory_bytes;
        let names = check_named(named, count).ok_or_else(|| self.protocol_death())?;
        self.deaths_in_a_row = 0;
        if memory_bytes > self.config.worker_memory_bytes / 4 * 3 {
            // Better between two requests than in the next file.
            self.stats.worker_recycles += 1;
            self.end_worker();
        }
        Ok(names)
    }

    /// It answered what is no answer.
    pub(super) fn protocol_death(&mut self) -> Ask {
        self.worker_died(WorkerDeath::Protocol);
        Ask::Died
    }

    fn worker_died(&mut self, death: WorkerDeath) {
        tracing::warn!(reason = death.name(), "the symbolizing worker has died");
        *self.stats.worker_deaths.entry(death).or_default() += 1;
        self.deaths_in_a_row = self.deaths_in_a_row.saturating_add(1);
        if let Some(over) = self.deaths_in_a_row.checked_sub(DEATHS_IN_A_ROW_MAX) {
            let wait = WAIT_MIN.saturating_mul(2_u32.saturating_pow(over)).min(WAIT_MAX);
            self.not_before = Some(Instant::now() + wait);
        }
        self.end_worker();
    }

    fn end_worker(&mut self) {
        self.worker = None;
        self.is_kallsyms_sent = false;
        self.files.all_closed();
    }
}

/// Whether reading it ends. Asks the file system nothing: one in user space might not answer.
fn is_regular(file: &File) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    statx(file, "", flags, StatxFlags::TYPE).is_ok_and(|status| {
        FileType::from_raw_mode(status.stx_mode.into()) == FileType::RegularFile
    })
}

/// A copy that anyone with its descriptor can open.
fn copy_in_memory(file: &File, bytes_max: u64) -> Option<File> {
    if file.metadata().ok()?.len() > bytes_max {
        return None;
    }
    let copy = File::from(memfd_create("spanprof-elf", MemfdFlags::CLOEXEC).ok()?);
    let mut block = vec![0; 1 << 18];
    let mut offset = 0;
    while offset <= bytes_max {
        // By position: others read from the same descriptor.
        let len = file.read_at(&mut block, offset).ok()?;
        if len == 0 {
            return Some(copy);
        }
        copy.write_all_at(&block[..len], offset).ok()?;
        offset += u64::try_from(len).ok()?;
    }
    None
}
