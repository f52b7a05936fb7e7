use std::{fs, os::unix::fs::FileExt as _, os::unix::fs::symlink, path::PathBuf};

use super::super::Proc;
use super::super::fake_proc::{FakeProc, maps_line, write_elf};
use super::super::maps::Maps;
use super::*;
use crate::decode::Pid;

const PID: u32 = 7;

/// A fake process, whose root is a folder, and a folder outside of it.
struct Rooted {
    fake: FakeProc,
    outside: tempfile::TempDir,
}

impl Rooted {
    fn new() -> Self {
        let fake = FakeProc::new();
        fake.add(PID, 1, "");
        Self { fake, outside: tempfile::TempDir::new().unwrap() }
    }

    fn inside(&self, name: &str) -> PathBuf {
        self.fake.path(PID, "root").join(name)
    }

    fn backing(&self, registry: &ElfRegistry, line: &str) -> Backing {
        let maps = Maps::parse(line.as_bytes());
        let process = self.fake.proc().process(Pid(PID)).unwrap();
        registry.backing(&process, &maps.executable[0])
    }
}

fn registry(files: usize, open_files: usize) -> ElfRegistry {
    ElfRegistry::new(ElfLimits { files, open_files, ..ElfLimits::default() })
}

#[track_caller]
fn elf(registry: &ElfRegistry, backing: &Backing) -> ElfFile {
    let Backing::Elf(id) = backing else { panic!("{backing:?}") };
    registry.get(*id).unwrap()
}

#[test]
fn knows_the_files_of_this_process() {
    let registry = registry(100, 100);
    let process = Proc::default().process(Pid(std::process::id())).unwrap();
    let mut text = Vec::new();
    process.maps(&mut text).unwrap();
    let maps = Maps::parse(&text);
    let mut names = Vec::new();
    for entry in &maps.executable {
        if let Backing::Elf(id) = registry.backing(&process, entry) {
            let file = registry.get(id).unwrap();
            assert!(is_elf(file.file.as_ref().unwrap()).unwrap(), "{file:?}");
            names.push(file.name().to_owned());
        }
    }
    let me = std::env::current_exe().unwrap();
    let my_name = me.file_name().unwrap().to_str().unwrap();
    assert!(names.iter().any(|name| name == my_name), "{names:?}");
    assert!(names.iter().any(|name| name.starts_with("libc.so")), "{names:?}");
    assert!(names.iter().any(|name| name == "[vdso]"), "{names:?}");

    let main = registry.main_executable(&process, me.as_os_str().as_bytes()).unwrap();
    assert_eq!(registry.get(main).unwrap().name(), my_name);
    let discovered = registry.stats().discovered;
    for entry in &maps.executable {
        registry.backing(&process, entry);
    }
    assert_eq!(registry.stats().discovered, discovered, "a file has one id");
}

#[test]
fn opens_by_path_in_the_root_of_the_process() {
    let rooted = Rooted::new();
    let registry = registry(10, 10);
    write_elf(&rooted.inside("lib.so"));
    symlink("/lib.so", rooted.inside("link.so")).unwrap();
    let line = maps_line(0x1000, &rooted.inside("lib.so"), "/link.so");
    let file = elf(&registry, &rooted.backing(&registry, &line));
    let mut magic = [0; 4];
    file.file.unwrap().read_exact_at(&mut magic, 0).unwrap();
    assert_eq!(&magic, b"\x7fELF");
    // 08:01 of the text is hardly the device of the folder.
    let stats = registry.stats();
    assert_eq!((stats.opened_by_path, stats.device_differs), (1, 1));
}

#[test]
fn nothing_leads_out_of_the_root() {
    let rooted = Rooted::new();
    let registry = registry(20, 20);
    let secret = rooted.outside.path().join("secret.so");
    write_elf(&secret);
    symlink(&secret, rooted.inside("absolute.so")).unwrap();
    let up = format!("{}{}", "../".repeat(40), secret.display());
    symlink(&up, rooted.inside("relative.so")).unwrap();
    symlink("loop.so", rooted.inside("loop.so")).unwrap();
    symlink("/nowhere", rooted.inside("dangling.so")).unwrap();
    symlink(rooted.outside.path(), rooted.inside("folder")).unwrap();
    let paths = [
        "/absolute.so",
        "/relative.so",
        "/loop.so",
        "/dangling.so",
        "/folder/secret.so",
        &format!("/{up}"),
        "/proc/self/root/etc/passwd",
    ];
    for path in paths {
        let backing = rooted.backing(&registry, &maps_line(0x1000, &secret, path));
        let file = elf(&registry, &backing);
        assert!(file.file.is_none(), "{path}");
        assert_eq!(&*file.path, path);
    }
    let stats = registry.stats();
    assert_eq!(stats.unreachable, u64::try_from(paths.len()).unwrap());
    assert_eq!(stats.opened, 0);
}

/// `/proc/PID/root` can be the host's own: a link of the kernel's in it is not followed either.
#[test]
fn no_magic_link_is_followed() {
    let fake = FakeProc::new();
    fs::create_dir_all(fake.path(PID, "")).unwrap();
    symlink("/", fake.path(PID, "root")).unwrap();
    let process = fake.proc().process(Pid(PID)).unwrap();
    let path = format!("/proc/{}/exe", std::process::id());
    let me = std::env::current_exe().unwrap();
    let entry =
        |path: &str| Maps::parse(maps_line(0x1000, &me, path).as_bytes()).executable[0].clone();
    let registry = registry(10, 10);
    let by_link = registry.backing(&process, &entry(&path));
    assert!(elf(&registry, &by_link).file.is_none());
    let by_name = registry.backing(&process, &entry(me.to_str().unwrap()));
    assert!(elf(&registry, &by_name).file.is_some());
}

#[test]
fn another_file_of_the_name_is_not_taken_for_it() {
    let rooted = Rooted::new();
    let registry = registry(10, 10);
    write_elf(&rooted.inside("lib.so"));
    let line = maps_line(0x1000, &rooted.inside("lib.so"), "/lib.so");
    write_elf(&rooted.inside("new.so"));
    fs::rename(rooted.inside("new.so"), rooted.inside("lib.so")).unwrap();
    assert!(elf(&registry, &rooted.backing(&registry, &line)).file.is_none());
    assert_eq!(registry.stats().other_file, 1);
}

#[test]
fn a_fifo_a_socket_a_folder_and_a_text_are_no_elf_files() {
    let rooted = Rooted::new();
    let registry = registry(10, 10);
    let fifo = rooted.inside("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(rooted.inside("socket")).unwrap();
    fs::create_dir(rooted.inside("folder")).unwrap();
    fs::write(rooted.inside("text"), "ELF").unwrap();
    for name in ["fifo", "socket", "folder", "text"] {
        let line = maps_line(0x1000, &rooted.inside(name), &format!("/{name}"));
        assert_eq!(rooted.backing(&registry, &line), Backing::Anonymous, "{name}");
    }
    let stats = registry.stats();
    assert_eq!((stats.not_regular, stats.opened), (3, 1));
    // The text is not opened each time.
    let line = maps_line(0x1000, &rooted.inside("text"), "/text");
    assert_eq!(rooted.backing(&registry, &line), Backing::Anonymous);
    assert_eq!(registry.stats().opened, 1);
}

#[test]
fn a_file_that_was_changed_is_another_file() {
    let rooted = Rooted::new();
    let registry = registry(10, 10);
    let path = rooted.inside("lib.so");
    write_elf(&path);
    let line = maps_line(0x1000, &path, "/lib.so");
    let first = rooted.backing(&registry, &line);
    fs::write(&path, b"\x7fELF, and more").unwrap();
    let second = rooted.backing(&registry, &line);
    assert_ne!(first, second);
}

#[test]
fn open_files_and_files_are_bounded() {
    let rooted = Rooted::new();
    let registry = registry(3, 2);
    let lines = ["a", "b", "c", "d"].map(|name| {
        write_elf(&rooted.inside(name));
        maps_line(0x1000, &rooted.inside(name), &format!("/{name}"))
    });
    let [a, b, c] = [0, 1, 2].map(|index: usize| rooted.backing(&registry, &lines[index]));
    let is_open = |backing: &Backing| elf(&registry, backing).file.is_some();
    assert_eq!([&a, &b, &c].map(is_open), [false, true, true]);

    // Who holds it can still read it.
    let held = elf(&registry, &b).file.unwrap();
    assert_eq!(rooted.backing(&registry, &lines[0]), a, "opened again under its id");
    assert_eq!([&a, &b, &c].map(is_open), [true, true, false]);
    rooted.backing(&registry, &lines[2]);
    rooted.backing(&registry, &lines[0]);
    assert!(!is_open(&b));
    assert!(is_elf(&held).unwrap());

    // `b` was asked for last, `c` before `a`.
    let d = rooted.backing(&registry, &lines[3]);
    let Backing::Elf(id_c) = c else { panic!("{c:?}") };
    assert!(registry.get(id_c).is_none());
    assert_ne!(rooted.backing(&registry, &lines[2]), c, "an id is never used again");
    assert!(is_open(&d));
    assert_eq!(registry.stats().forgotten, 2);
}

#[test]
fn a_long_path_keeps_its_end() {
    let path = format!("/{}/é/lib.so", "é".repeat(2000));
    let shown = display_path(path.as_bytes());
    assert!(shown.len() <= PATH_MAX && shown.ends_with("/é/lib.so"));
    assert_eq!(&*display_path(b"/a\xff"), "/a\u{fffd}");
}
