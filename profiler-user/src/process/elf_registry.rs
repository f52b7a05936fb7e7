//! The ELF files that processes have mapped: one id each, open from their discovery on.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::OsStr,
    fs::File,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::elf_reader::{ElfReader, is_elf};
use super::hook_files::{HookFact, HookFiles};
use super::mapped_file::{
    FileIdentity, Located, NotOpened, is_regular, locate_by_link, locate_by_path, map_files_link,
};
use super::maps::{EntryName, MapsEntry};
use super::proc_fs::ProcessDir;
use super::use_order::{Stamp, UseOrder};
use super::{Backing, BuildId, ElfFile, ElfId, vdso};

/// How much of a path is kept, its end.
const PATH_MAX: usize = 1024;

/// How many files that are not ELF are remembered as such.
const NOT_ELF_MAX: usize = 4096;

/// What bounds an [`ElfRegistry`].
#[derive(Clone, Copy, Debug)]
pub struct ElfLimits {
    /// How many files are known at a time; the one used longest ago is forgotten.
    pub files: usize,
    /// How many of them are open at a time, never more than half of the descriptors that the
    /// process may have; the one used longest ago is closed.
    pub open_files: usize,
    /// How many files' hooks have a probe at a time; the one used longest ago loses it.
    pub hooks: usize,
}

impl Default for ElfLimits {
    fn default() -> Self {
        Self { files: 32_768, open_files: 4096, hooks: 1024 }
    }
}

/// What an [`ElfRegistry`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ElfStats {
    /// Files that got an id.
    pub discovered: u64,
    /// Times that a file was opened.
    pub opened: u64,
    /// Files that were opened by path, because the kernel's link was not permitted.
    pub opened_by_path: u64,
    /// Mappings whose file could not be reached.
    pub unreachable: u64,
    /// Mappings whose path leads to another file.
    pub other_file: u64,
    /// Mappings of devices, pipes and the like.
    pub not_regular: u64,
    /// Mappings whose file is on another device than `maps` says (btrfs, overlayfs).
    pub device_differs: u64,
    /// Files that were closed to keep the number of descriptors bounded.
    pub closed: u64,
    /// Files that were forgotten to keep their number bounded.
    pub forgotten: u64,
}

/// All ELF files that are known. A handle: clones share the files.
#[derive(Clone, Debug)]
pub struct ElfRegistry {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    limits: ElfLimits,
    next_id: u32,
    by_key: HashMap<Key, ElfId>,
    entries: HashMap<ElfId, Entry>,
    by_use: UseOrder<ElfId>,
    open_by_use: UseOrder<ElfId>,
    hooks: HookFiles,
    not_elf: HashSet<FileIdentity>,
    stats: ElfStats,
}

#[derive(Debug)]
struct Entry {
    elf: ElfFile,
    key: Key,
    used: Stamp,
    /// Its place among the open files.
    open: Option<Stamp>,
    /// Its place among the files whose hook has a probe.
    hook: Option<Stamp>,
}

/// What makes two files the same one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Opened(FileIdentity),
    /// Only what `maps` says is known.
    Named {
        device: (u32, u32),
        inode: u64,
        path: Arc<str>,
    },
    Vdso,
}

/// What a file turned out to be.
enum Found {
    Elf(ElfId),
    NotElf,
}

impl ElfRegistry {
    /// An empty registry. Raises the process's limit of open files as far as it may.
    #[must_use]
    pub fn new(mut limits: ElfLimits) -> Self {
        limits.open_files = limits.open_files.min(raise_open_files_limit() / 2).max(1);
        limits.files = limits.files.max(1);
        Self { inner: Arc::new(Mutex::new(Inner::new(limits))) }
    }

    /// The file that an id stands for; `None` if it was forgotten.
    #[must_use]
    pub fn get(&self, id: ElfId) -> Option<ElfFile> {
        let mut inner = self.lock();
        inner.touch(id);
        inner.entries.get(&id).map(|entry| entry.elf.clone())
    }

    /// Whether it is known, without using it.
    #[must_use]
    pub fn knows(&self, id: ElfId) -> bool {
        self.lock().entries.contains_key(&id)
    }

    /// What it did since it was made.
    #[must_use]
    pub fn stats(&self) -> ElfStats {
        self.lock().stats.clone()
    }

    /// The files whose hook is to have a probe, or not any more, since the last call.
    #[must_use]
    pub fn take_hooks(&self) -> BTreeMap<ElfId, HookFact> {
        self.lock().hooks.take()
    }

    /// What is behind an executable mapping; opens its file if it was not seen before.
    pub(super) fn backing(&self, process: &ProcessDir, entry: &MapsEntry) -> Backing {
        match &entry.name {
            EntryName::Anonymous => Backing::Anonymous,
            EntryName::Special(name) if name.as_ref() == vdso::NAME => {
                let id = self.vdso(entry.end.wrapping_sub(entry.start));
                id.map_or_else(|| Backing::Special(name.clone()), Backing::Elf)
            }
            EntryName::Special(name) => Backing::Special(name.clone()),
            EntryName::File(path) => match self.mapped_file(process, entry, path) {
                Some(Found::Elf(id)) => Backing::Elf(id),
                Some(Found::NotElf) | None => Backing::Anonymous,
            },
        }
    }

    /// The main executable of a process.
    pub(super) fn main_executable(&self, process: &ProcessDir, path: &[u8]) -> Option<ElfId> {
        let found = self.by_link(process, "exe", path, |_| true)?.ok()?;
        match found {
            Found::Elf(id) => Some(id),
            Found::NotElf => None,
        }
    }

    fn mapped_file(&self, process: &ProcessDir, entry: &MapsEntry, path: &[u8]) -> Option<Found> {
        let link = map_files_link(entry);
        let same = |identity: &FileIdentity| identity.inode == entry.inode;
        let not_opened = match self.by_link(process, &link, path, same) {
            Some(Ok(found)) => return Some(found),
            Some(Err(NotOpened::NotRegular)) => NotOpened::NotRegular,
            Some(Err(_)) | None => match self.by_path(process, entry, path) {
                Ok(found) => return Some(found),
                Err(not_opened) => not_opened,
            },
        };
        let mut inner = self.lock();
        match not_opened {
            NotOpened::NotRegular => {
                inner.stats.not_regular += 1;
                return Some(Found::NotElf);
            }
            NotOpened::OtherFile => inner.stats.other_file += 1,
            NotOpened::Unreachable => inner.stats.unreachable += 1,
        }
        let path = display_path(path);
        let key = Key::Named { device: entry.device, inode: entry.inode, path: Arc::clone(&path) };
        inner.find_or_add(key, path, None, None).map(Found::Elf)
    }

    /// `None`: the link is not there or not permitted.
    fn by_link(
        &self,
        process: &ProcessDir,
        link: &str,
        path: &[u8],
        expected: impl Fn(&FileIdentity) -> bool,
    ) -> Option<Result<Found, NotOpened>> {
        let status = process.identify(link).ok()?;
        if !is_regular(&status) {
            return Some(Err(NotOpened::NotRegular));
        }
        let identity = FileIdentity::new(&status);
        if !expected(&identity) {
            return Some(Err(NotOpened::OtherFile));
        }
        if let Some(found) = self.known(&identity) {
            return Some(Ok(found));
        }
        let located = locate_by_link(process, link).ok()?;
        if !expected(&located.identity) {
            return Some(Err(NotOpened::OtherFile));
        }
        Some(self.open(&located, path))
    }

    fn by_path(
        &self,
        process: &ProcessDir,
        entry: &MapsEntry,
        path: &[u8],
    ) -> Result<Found, NotOpened> {
        let Ok(located) = locate_by_path(process, Path::new(OsStr::from_bytes(path))) else {
            return Err(NotOpened::Unreachable);
        };
        if !located.is_file_of(entry) {
            return Err(NotOpened::OtherFile);
        }
        if located.identity.device != entry.device {
            self.lock().stats.device_differs += 1;
        }
        if let Some(found) = self.known(&located.identity) {
            return Ok(found);
        }
        let found = self.open(&located, path)?;
        self.lock().stats.opened_by_path += 1;
        Ok(found)
    }

    /// A file that was seen before and, if it is an ELF file, is still open.
    fn known(&self, identity: &FileIdentity) -> Option<Found> {
        let mut inner = self.lock();
        if inner.not_elf.contains(identity) {
            return Some(Found::NotElf);
        }
        let id = *inner.by_key.get(&Key::Opened(*identity))?;
        inner.touch(id);
        inner.entries.get(&id)?.open.map(|_| Found::Elf(id))
    }

    fn open(&self, located: &Located, path: &[u8]) -> Result<Found, NotOpened> {
        let file = located.open()?;
        let elf = is_elf(&file).unwrap_or(false);
        let reader = ElfReader::open(&file);
        let build_id = reader.as_ref().and_then(ElfReader::build_id);
        let hook = reader.as_ref().and_then(ElfReader::span_note).map(|note| note.hook_offset);
        let mut inner = self.lock();
        inner.stats.opened += 1;
        if !elf {
            if inner.not_elf.len() >= NOT_ELF_MAX {
                inner.not_elf.clear();
            }
            inner.not_elf.insert(located.identity);
            return Ok(Found::NotElf);
        }
        let key = Key::Opened(located.identity);
        let id = inner.find_or_add(key, display_path(path), Some(file), build_id);
        let id = id.ok_or(NotOpened::Unreachable)?;
        if let Some(offset) = hook {
            inner.add_hook(id, offset);
        }
        Ok(Found::Elf(id))
    }

    /// The vDSO, if that of the process has the size of ours: the kernel has one for each kind of
    /// program, and a process of another kind (32-bit) another one.
    fn vdso(&self, size: u64) -> Option<ElfId> {
        let known = self.lock().by_key.get(&Key::Vdso).copied();
        if let Some(id) = known {
            let file = self.get(id)?.file?;
            return (file.metadata().ok()?.len() == size).then_some(id);
        }
        let file = vdso::copy().ok()?;
        if file.metadata().ok()?.len() != size {
            return None;
        }
        let build_id = ElfReader::open(&file).and_then(|reader| reader.build_id());
        self.lock().find_or_add(Key::Vdso, vdso::NAME.into(), Some(file), build_id)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds the lock, and the tables would still be usable.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn new(limits: ElfLimits) -> Self {
        Self {
            limits,
            next_id: 1,
            by_key: HashMap::new(),
            entries: HashMap::new(),
            by_use: UseOrder::default(),
            open_by_use: UseOrder::default(),
            hooks: HookFiles::default(),
            not_elf: HashSet::new(),
            stats: ElfStats::default(),
        }
    }

    /// The id of a file; `None` when all 2^32 ids were given out.
    fn find_or_add(
        &mut self,
        key: Key,
        path: Arc<str>,
        file: Option<File>,
        build_id: Option<BuildId>,
    ) -> Option<ElfId> {
        let file = file.map(Arc::new);
        if let Some(id) = self.by_key.get(&key).copied() {
            if let Some(entry) = self.entries.get_mut(&id)
                && entry.elf.file.is_none()
                && file.is_some()
            {
                entry.elf.file = file;
                entry.open = Some(self.open_by_use.insert(id));
            }
            self.touch(id);
            self.close_oldest();
            return Some(id);
        }
        let id = ElfId(self.next_id);
        self.next_id = self.next_id.checked_add(1)?;
        self.add_as(id, key, ElfFile { id, path, file, build_id });
        self.stats.discovered += 1;
        Some(id)
    }

    fn add_as(&mut self, id: ElfId, key: Key, elf: ElfFile) {
        while self.entries.len() >= self.limits.files {
            let Some(oldest) = self.by_use.oldest() else { break };
            self.forget(oldest);
        }
        let open = elf.file.is_some().then(|| self.open_by_use.insert(id));
        let used = self.by_use.insert(id);
        self.by_key.insert(key.clone(), id);
        self.entries.insert(id, Entry { elf, key, used, open, hook: None });
        self.close_oldest();
    }

    fn forget(&mut self, id: ElfId) {
        let Some(entry) = self.entries.remove(&id) else { return };
        self.by_use.remove(entry.used);
        if let Some(stamp) = entry.open {
            self.open_by_use.remove(stamp);
        }
        if let Some(stamp) = entry.hook {
            self.hooks.forget(id, stamp, false);
        }
        self.by_key.remove(&entry.key);
        self.stats.forgotten += 1;
    }

    fn touch(&mut self, id: ElfId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        self.by_use.touch(&mut entry.used);
        if let Some(stamp) = &mut entry.open {
            self.open_by_use.touch(stamp);
        }
        if let Some(stamp) = &mut entry.hook {
            self.hooks.touch(stamp);
        }
    }

    /// A file that was just opened has a hook. One that has lost its probe gets it again when it is
    /// opened again.
    fn add_hook(&mut self, id: ElfId, offset: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(file) = entry.elf.file.as_ref().filter(|_| entry.hook.is_none()) else { return };
        entry.hook = Some(self.hooks.add(&entry.elf, file, offset));
        while let Some(oldest) = self.hooks.over(self.limits.hooks) {
            let Some(entry) = self.entries.get_mut(&oldest) else { break };
            let Some(stamp) = entry.hook.take() else { break };
            self.hooks.forget(oldest, stamp, true);
        }
    }

    fn close_oldest(&mut self) {
        while self.open_by_use.len() > self.limits.open_files {
            let Some(oldest) = self.open_by_use.oldest() else { break };
            let Some(entry) = self.entries.get_mut(&oldest) else { break };
            let Some(stamp) = entry.open.take() else { break };
            self.open_by_use.remove(stamp);
            entry.elf.file = None;
            self.stats.closed += 1;
        }
    }
}

/// How a person reads a path; of one that is too long, its end.
fn display_path(path: &[u8]) -> Arc<str> {
    let text = String::from_utf8_lossy(path);
    let mut start = text.len().saturating_sub(PATH_MAX);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text.get(start..).unwrap_or_default().into()
}

fn raise_open_files_limit() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let limit = if raised.is_ok() { maximum } else { current };
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

#[cfg(test)]
#[path = "elf_registry_tests.rs"]
mod tests;
