use std::fs;
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode};

use super::*;
use crate::decode::Pid;
use crate::process::fake_proc::FakeProc;

/// A process that knows itself as 7, made by this user.
struct Fixture {
    proc: FakeProc,
    registry: PerfMapRegistry,
    stats: TableStats,
}

const PID: u32 = 70;

impl Fixture {
    fn new() -> Self {
        let fixture = Self {
            proc: FakeProc::new(),
            registry: PerfMapRegistry::default(),
            stats: TableStats::default(),
        };
        fixture.proc.add(PID, 1, "");
        fixture.set_uid(rustix::process::geteuid().as_raw());
        // Only the text of the mounts is looked up in: by the mount that the file really is on.
        fs::copy("/proc/self/mountinfo", fixture.proc.path(PID, "mountinfo")).unwrap();
        fs::create_dir(fixture.proc.path(PID, "root/tmp")).unwrap();
        fixture
    }

    fn set_uid(&self, uid: u32) {
        let status = format!("Name:\ta\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nNSpid:\t{PID}\t7\n");
        fs::write(self.proc.path(PID, "status"), status).unwrap();
    }

    fn place(&self) -> PathBuf {
        self.proc.path(PID, "root/tmp/perf-7.map")
    }

    fn find(&mut self, known: Option<JitId>) -> Option<JitId> {
        self.find_made_at(0, known)
    }

    fn find_made_at(&mut self, start_time: u64, known: Option<JitId>) -> Option<JitId> {
        let process = self.proc.proc().process(Pid(PID)).unwrap();
        self.registry.find(&process, start_time, known, &mut self.stats)
    }

    fn refused(mut self) -> TableStats {
        assert_eq!(self.find(None), None);
        self.stats
    }
}

#[test]
fn a_perf_map_is_found_under_the_process_own_id_and_root() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.find(None), None);
    assert_eq!(fixture.stats, TableStats::default(), "no file is no complaint");
    fs::write(fixture.place(), "1000 10 f\n").unwrap();
    let found = fixture.find(None);
    assert!(found.is_some());
    assert_eq!(fixture.find(found), found);
    assert_eq!(fixture.stats.perf_maps_found, 1);
    let file = fixture.registry.get(found.unwrap()).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 10);
}

#[test]
fn a_file_that_is_removed_still_names_and_one_that_replaces_it_is_another() {
    let mut fixture = Fixture::new();
    fs::write(fixture.place(), "1000 10 f\n").unwrap();
    let first = fixture.find(None);
    // The name stays taken while the file is open, so that the inode is another.
    fs::remove_file(fixture.place()).unwrap();
    assert_eq!(fixture.find(first), first);
    fs::write(fixture.place(), "1000 10 g\n").unwrap();
    let second = fixture.find(first);
    assert!(second.is_some() && second != first);
    assert!(fixture.registry.get(first.unwrap()).is_some());
}

#[test]
fn what_is_no_file_is_refused_and_nothing_waits() {
    let fixture = Fixture::new();
    rustix::fs::mknodat(CWD, fixture.place(), FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert_eq!(fixture.refused().perf_map_refused_not_regular, 1);

    let fixture = Fixture::new();
    fs::create_dir(fixture.place()).unwrap();
    assert_eq!(fixture.refused().perf_map_refused_not_regular, 1);

    let fixture = Fixture::new();
    symlink("/etc/shadow", fixture.place()).unwrap();
    assert_eq!(fixture.refused().perf_map_refused_not_regular, 1);
}

#[test]
fn no_link_leads_out_of_the_process_root() {
    let fixture = Fixture::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("perf-7.map"), "1000 10 f\n").unwrap();
    fs::remove_dir(fixture.proc.path(PID, "root/tmp")).unwrap();
    symlink(outside.path(), fixture.proc.path(PID, "root/tmp")).unwrap();
    // Within the root, that link leads to itself.
    assert_eq!(fixture.refused().perf_map_refused_unreachable, 1);
}

#[test]
fn a_folder_may_be_a_link_within_the_root() {
    let mut fixture = Fixture::new();
    fs::remove_dir(fixture.proc.path(PID, "root/tmp")).unwrap();
    fs::create_dir_all(fixture.proc.path(PID, "root/var/tmp")).unwrap();
    symlink("/var/tmp", fixture.proc.path(PID, "root/tmp")).unwrap();
    fs::write(fixture.proc.path(PID, "root/var/tmp/perf-7.map"), "1000 10 f\n").unwrap();
    assert!(fixture.find(None).is_some());
}

#[test]
fn another_users_file_is_refused() {
    let fixture = Fixture::new();
    let owned_by_root = rustix::process::geteuid().is_root();
    fs::write(fixture.place(), "1000 10 f\n").unwrap();
    if owned_by_root {
        // Root's files are taken: give it to somebody else.
        std::os::unix::fs::chown(fixture.place(), Some(12_345), None).unwrap();
    } else {
        fixture.set_uid(12_345);
    }
    assert_eq!(fixture.refused().perf_map_refused_owner, 1);
}

#[test]
fn a_file_older_than_the_process_is_another_process() {
    let mut fixture = Fixture::new();
    fs::write(fixture.place(), "1000 10 f\n").unwrap();
    let in_a_minute = boot_now().0 / 10_000_000 + 6000;
    assert_eq!(fixture.find_made_at(in_a_minute, None), None);
    assert_eq!(fixture.stats.perf_map_refused_stale, 1);
}

#[test]
fn a_file_system_that_may_not_answer_is_not_asked() {
    let fixture = Fixture::new();
    fs::write(fixture.place(), "1000 10 f\n").unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap().replace(" - ", " - fuse.");
    fs::write(fixture.proc.path(PID, "mountinfo"), mounts).unwrap();
    assert_eq!(fixture.refused().perf_map_refused_file_system, 1);
    assert!(may_not_answer("fuse.sshfs") && may_not_answer("nfs4") && may_not_answer("9p"));
    assert!(!may_not_answer("overlay") && !may_not_answer("tmpfs") && !may_not_answer("ext4"));
}

#[test]
fn a_bounded_number_is_open() {
    let mut fixture = Fixture::new();
    let mut first = None;
    for _ in 0..=OPEN_MAX {
        drop(fs::remove_file(fixture.place()));
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).open(fixture.place()).unwrap();
        let found = fixture.find(None).unwrap();
        first.get_or_insert(found);
        assert!(fixture.registry.get(found).is_some());
    }
    assert!(fixture.registry.get(first.unwrap()).is_none());
    assert_eq!(fixture.registry.lock().by_id.len(), OPEN_MAX);
}
