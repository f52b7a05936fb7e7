//! What a test needs from the machine, and what becomes of it where that is missing.
//!
//! A test says so in its first lines:
//!
//! ```no_run
//! # use spanprof_tests::require;
//! # fn counts_add_up() {
//! require!(Root);
//! let server = require!(Pyroscope);
//! # }
//! ```
//!
//! Where it is missing, the test prints why, appends `<test name>: <reason>` to the file that
//! `SPANPROF_SKIP_LOG` names, and returns. `cargo xtask test` lists these lines at its end, and
//! counts none of them as passed. With `SPANPROF_TESTS=all` the test fails instead.

use std::env;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::PathBuf;

/// Why a test cannot run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing(String);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Goes on only where the machine has what the test needs, and gives it to the test.
///
/// | name | gives |
/// | --- | --- |
/// | `Root` | nothing: may load BPF programs and open perf events of all processes |
/// | `Spanprof` | the path of the agent |
/// | `Checkout` | the path of the example service |
/// | `Pyroscope` | the path of a Pyroscope server |
/// | `Go` | the path of the reader of pprof that is built on Go's own package |
/// | `Kubernetes` | the path of etcd and Kubernetes, one program by several names |
/// | `GoToolchain` | the path of `go` |
/// | `Node` | the path of Node.js |
/// | `Python`, `Perl` | the path of `python3`, of `perl` |
/// | `Setpriv` | the path of `setpriv`, of util-linux |
/// | `Gdb` | the path of the GNU debugger |
/// | `Musl` | the path of `musl-gcc` |
/// | `Gold` | the path of the linker gold, as `ld.gold` |
/// | `MuslLoader` | musl's `libc.so`, which is its loader too |
/// | `MuslRust` | the compiler, and the source of the library, that make programs for musl |
/// | `Mold` | the path of the linker mold, as `ld.mold` |
/// | `Runc` | the path of `runc` |
/// | `Containerd` | the path of `containerd` |
/// | `Cni` | the path of CNI's plugin `bridge`, as `cni-bridge` |
/// | `Deb` | the path of the Debian package |
/// | `DpkgDeb` | the path of dpkg-deb |
/// | `SystemdAnalyze` | the path of systemd-analyze |
/// | `ManifestTools` | the path of kubernetes-validate, beside Helm and checkov as Python packages |
/// | `Image` | the path of the agent's container image |
/// | `CpuHotplug` | the file that takes CPU 1 offline and back |
/// | `Qemu` | the path of `qemu-system-x86_64` |
/// | `Kernel("6.1")` | the path of the image of this kernel |
///
/// A test that returns a value names it: `require!(Root, Ok(()))`.
#[macro_export]
macro_rules! require {
    ($what:ident $(($which:literal))?) => {
        $crate::require!($what $(($which))?, ())
    };
    ($what:ident $(($which:literal))?, $value:expr) => {
        match $crate::require_one!($what $(($which))?) {
            Ok(found) => found,
            Err(missing) => {
                fn here() {}
                $crate::require::skip(::std::any::type_name_of_val(&here), &missing);
                return $value;
            }
        }
    };
}

/// The table behind [`require!`].
#[doc(hidden)]
#[macro_export]
macro_rules! require_one {
    (Root) => {
        $crate::require::root()
    };
    (Spanprof) => {
        $crate::require::file("SPANPROF_BIN", "run the tests by `cargo xtask test`")
    };
    (Checkout) => {
        $crate::require::file("SPANPROF_CHECKOUT_BIN", "run the tests by `cargo xtask test`")
    };
    (Pyroscope) => {
        $crate::require::file(
            "SPANPROF_PYROSCOPE",
            "no Pyroscope server: `cargo xtask setup` builds it where Go 1.25 or newer is",
        )
    };
    (Go) => {
        $crate::require::file(
            "SPANPROF_PPROF_READER",
            "no reader of pprof: `cargo xtask setup` builds it where Go 1.25 or newer is",
        )
    };
    (GrafanaGo) => {
        $crate::require::file(
            "SPANPROF_GRAFANA_GO",
            "no service with Grafana's SDK: `cargo xtask setup` builds it where Go 1.25 or newer is",
        )
    };
    (Kubernetes) => {
        $crate::require::file(
            "SPANPROF_KUBERNETES_BIN",
            "no Kubernetes: `cargo xtask setup` builds it where Go 1.25 or newer is",
        )
    };
    (GoToolchain) => {
        $crate::require::program("go")
    };
    (Node) => {
        $crate::require::program("node")
    };
    (Setpriv) => {
        $crate::require::program("setpriv")
    };
    (Gdb) => {
        $crate::require::program("gdb")
    };
    (Python) => {
        $crate::require::program("python3")
    };
    (Perl) => {
        $crate::require::program("perl")
    };
    (Musl) => {
        $crate::require::tool("musl-gcc", "SPANPROF_MUSL_GCC")
    };
    (Gold) => {
        $crate::require::program("ld.gold")
    };
    (MuslLoader) => {
        $crate::require::tool("ld-musl", "SPANPROF_MUSL_LOADER")
    };
    (MuslRust) => {
        $crate::require::musl_rust()
    };
    (Mold) => {
        $crate::require::tool("ld.mold", "SPANPROF_MOLD")
    };
    (Runc) => {
        $crate::require::tool("runc", "SPANPROF_RUNC")
    };
    (Containerd) => {
        $crate::require::tool("containerd", "SPANPROF_CONTAINERD")
    };
    (Cni) => {
        $crate::require::tool("cni-bridge", "SPANPROF_CNI")
    };
    (Image) => {
        $crate::require::file("SPANPROF_IMAGE", "run the tests by `cargo xtask test`")
    };
    (ManifestTools) => {
        $crate::require::file(
            "SPANPROF_MANIFEST_TOOLS",
            "no Helm and checkov: `cargo xtask setup` fetches them where Python's pip is",
        )
    };
    (Deb) => {
        $crate::require::file("SPANPROF_DEB", "run the tests by `cargo xtask test`")
    };
    (DpkgDeb) => {
        $crate::require::program("dpkg-deb")
    };
    (SystemdAnalyze) => {
        $crate::require::program("systemd-analyze")
    };
    (Qemu) => {
        $crate::require::tool("qemu-system-x86_64", "SPANPROF_QEMU")
    };
    (Kernel($version:literal)) => {
        $crate::require::kernel($version)
    };
    (CpuHotplug) => {
        $crate::require::cpu_hotplug()
    };
}

/// A program in the folders of `PATH`.
///
/// # Errors
///
/// There is none of that name.
pub fn program(name: &str) -> Result<PathBuf, Missing> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join(name)).find(|it| it.is_file());
    found.ok_or_else(|| Missing(format!("there is no `{name}`")))
}

/// The program that a variable names, or else one in the folders of `PATH`.
///
/// # Errors
///
/// There is none.
pub fn tool(name: &str, variable: &str) -> Result<PathBuf, Missing> {
    if env::var_os(variable).is_none()
        && let Ok(found) = program(name)
    {
        return Ok(found);
    }
    file(variable, &format!("there is no `{name}`: `cargo xtask setup` fetches Debian's"))
}

/// A compiler, and the folder of the standard library's source that belongs to it.
///
/// # Errors
///
/// One of them is missing.
pub fn musl_rust() -> Result<(PathBuf, PathBuf), Missing> {
    let remedy = "no Rust for musl: `cargo xtask setup` fetches Debian's";
    let library = file("SPANPROF_RUST_LIBRARY", remedy)?;
    Ok((file("SPANPROF_MUSL_RUSTC", remedy)?, library.with_file_name("")))
}

/// The file that takes CPU 1 offline and back.
///
/// # Errors
///
/// There is no such CPU, it is offline, or it cannot be taken offline.
pub fn cpu_hotplug() -> Result<PathBuf, Missing> {
    let path = PathBuf::from("/sys/devices/system/cpu/cpu1/online");
    let missing = |why: &str| Missing(format!("{}: {why}", path.display()));
    match fs::read_to_string(&path) {
        Ok(state) if state.trim() == "1" => {}
        Ok(_) => return Err(missing("the CPU is offline")),
        Err(error) => return Err(missing(&error.to_string())),
    }
    match OpenOptions::new().write(true).open(&path) {
        Ok(_) => Ok(path),
        Err(error) => Err(missing(&error.to_string())),
    }
}

/// What loading a BPF program and sampling every process takes, as bits of a capability set.
const CAPABILITIES: [(&str, u32, u32); 3] = [
    // Each with the older capability that includes it.
    ("CAP_BPF", 39, 21),
    ("CAP_PERFMON", 38, 21),
    ("CAP_SYS_PTRACE", 19, 19),
];

/// Whether this process may load BPF programs and watch every process.
///
/// # Errors
/// Names each capability that is missing.
pub fn root() -> Result<(), Missing> {
    let status = fs::read_to_string("/proc/self/status")
        .map_err(|error| Missing(format!("cannot read /proc/self/status: {error}")))?;
    missing_capabilities(&status)
}

fn missing_capabilities(status: &str) -> Result<(), Missing> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .ok_or_else(|| Missing("/proc/self/status tells no capabilities".to_owned()))?;
    let has = |bit: u32| effective & (1 << bit) != 0;
    let missing: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(_, bit, older)| !has(*bit) && !has(*older))
        .map(|(name, ..)| *name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Missing(format!("not privileged, run as root: {} missing", missing.join(", "))))
}

/// The file that a variable names.
///
/// # Errors
/// If the variable is not set, with `remedy` as the reason, or if it names no file.
pub fn file(variable: &str, remedy: &str) -> Result<PathBuf, Missing> {
    named_file(variable, env::var_os(variable), remedy)
}

fn named_file(variable: &str, value: Option<OsString>, remedy: &str) -> Result<PathBuf, Missing> {
    let path = value
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .ok_or_else(|| Missing(format!("{remedy} ({variable} is not set)")))?;
    if path.is_file() {
        Ok(path)
    } else {
        Err(Missing(format!("{variable}: no file {}", path.display())))
    }
}

/// The image of a kernel that set-up fetched.
///
/// # Errors
/// If the variable `SPANPROF_KERNELS` is not set, or the folder that it names has none.
pub fn kernel(version: &str) -> Result<PathBuf, Missing> {
    let folder = env::var_os("SPANPROF_KERNELS").map(PathBuf::from).unwrap_or_default();
    let image = folder.join(version);
    if folder.is_absolute() && image.is_file() {
        return Ok(image);
    }
    Err(Missing(format!("no image of Linux {version}: run the tests by `cargo xtask test`")))
}

/// Called by [`require!`] from inside a test, with the name of a function in it.
///
/// # Panics
/// With `SPANPROF_TESTS=all`; and if the log cannot be written, because then nobody would hear
/// that the test did not run.
#[track_caller]
pub fn skip(here: &str, missing: &Missing) {
    let test = test_name(here);
    let all = env::var_os("SPANPROF_TESTS").is_some_and(|value| value == "all");
    let log = env::var_os("SPANPROF_SKIP_LOG").map(PathBuf::from);
    if let Err(failure) = skip_or_fail(&test, missing, all, log) {
        fail(&failure);
    }
}

#[track_caller]
#[expect(clippy::panic, reason = "this is how a test fails")]
fn fail(failure: &str) -> ! {
    panic!("{failure}")
}

#[expect(clippy::print_stderr, reason = "a test says why it does not run")]
fn skip_or_fail(
    test: &str,
    missing: &Missing,
    all: bool,
    log: Option<PathBuf>,
) -> Result<(), String> {
    if all {
        return Err(format!("{test} must run, as SPANPROF_TESTS=all says, and cannot: {missing}"));
    }
    eprintln!("NOT RUN: {test}: {missing}");
    let Some(log) = log else { return Ok(()) };
    append(&log, &format!("{test}: {missing}\n"))
        .map_err(|error| format!("cannot write {}: {error}", log.display()))
}

/// One write, so that the lines of tests that run side by side do not mix.
fn append(log: &PathBuf, line: &str) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).open(log)?.write_all(line.as_bytes())
}

/// From `spans::hops::{{closure}}::here` to `spans::hops`.
fn test_name(here: &str) -> String {
    let parts = here.split("::").filter(|part| *part != "here" && !part.starts_with("{{"));
    parts.collect::<Vec<_>>().join("::")
}

#[cfg(test)]
mod tests {
    use std::process::{self, Command};

    use super::*;

    fn status(capabilities: &str) -> String {
        format!("Name:\tx\nCapEff:\t{capabilities}\nCapBnd:\t000001ffffffffff\n")
    }

    #[test]
    fn capabilities_are_named_when_missing() {
        assert_eq!(missing_capabilities(&status("000001ffffffffff")), Ok(()));
        let none = missing_capabilities(&status("0000000000000000")).expect_err("none at all");
        for name in ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"] {
            assert!(none.to_string().contains(name), "{none}");
        }
        // CAP_SYS_ADMIN (21) includes the two newer ones.
        let admin = missing_capabilities(&status("0000000000200000")).expect_err("no ptrace");
        assert!(admin.to_string().ends_with("root: CAP_SYS_PTRACE missing"), "{admin}");
        assert!(missing_capabilities("").is_err());
    }

    #[test]
    fn a_variable_names_a_file_or_the_reason_is_told() {
        let here = env::current_exe().expect("it runs");
        let named =
            |value: Option<&str>| named_file("X_BIN", value.map(OsString::from), "build it");
        assert_eq!(named(here.to_str()), Ok(here.clone()));
        assert_eq!(named(None), Err(Missing("build it (X_BIN is not set)".to_owned())));
        assert_eq!(named(Some("")), Err(Missing("build it (X_BIN is not set)".to_owned())));
        assert_eq!(named(Some("/no/such")), Err(Missing("X_BIN: no file /no/such".to_owned())));
    }

    #[test]
    fn a_skipped_test_is_in_the_log_and_fails_where_all_must_run() {
        let log = env::temp_dir().join(format!("spanprof-skips-{}", process::id()));
        let missing = Missing("no server".to_owned());
        for test in ["a::b", "a::c"] {
            skip_or_fail(test, &missing, false, Some(log.clone())).expect("logged");
        }
        let lines = fs::read_to_string(&log).expect("written");
        assert_eq!(lines, "a::b: no server\na::c: no server\n");
        fs::remove_file(&log).expect("clean up");
        let failure = skip_or_fail("a::b", &missing, true, None).expect_err("must run");
        assert!(failure.contains("a::b") && failure.contains("no server"), "{failure}");
        let nowhere = Some(PathBuf::from("/no/such/folder/log"));
        assert!(skip_or_fail("a::b", &missing, false, nowhere).is_err());
    }

    #[test]
    fn a_test_is_named_after_its_function() {
        fn inner() -> String {
            fn here() {}
            test_name(std::any::type_name_of_val(&here))
        }
        assert!(inner().ends_with("require::tests::a_test_is_named_after_its_function::inner"));
        assert_eq!(test_name("spans::hops::{{closure}}::here"), "spans::hops");
    }

    /// Set for the process in which [`subject`] is under test.
    const SUBJECT: &str = "SPANPROF_REQUIRE_SUBJECT";

    #[test]
    fn subject() {
        if env::var_os(SUBJECT).is_none() {
            return;
        }
        require!(Spanprof);
        panic!("the test went on");
    }

    fn run_subject(configure: impl FnOnce(&mut Command)) -> bool {
        let mut command = Command::new(env::current_exe().expect("it runs"));
        command.args(["--exact", "require::tests::subject"]).env(SUBJECT, "1");
        for name in ["SPANPROF_BIN", "SPANPROF_TESTS", "SPANPROF_SKIP_LOG"] {
            command.env_remove(name);
        }
        configure(&mut command);
        command.output().expect("the test binary runs").status.success()
    }

    #[test]
    fn the_macro_returns_early_or_fails_or_goes_on() {
        let log = env::temp_dir().join(format!("spanprof-subject-{}", process::id()));
        assert!(run_subject(|command| {
            command.env("SPANPROF_SKIP_LOG", &log);
        }));
        let line = fs::read_to_string(&log).expect("written");
        assert!(line.contains("require::tests::subject: "), "{line}");
        assert!(line.contains("SPANPROF_BIN is not set"), "{line}");
        fs::remove_file(&log).expect("clean up");

        assert!(!run_subject(|command| {
            command.env("SPANPROF_TESTS", "all");
        }));
        let here = env::current_exe().expect("it runs");
        assert!(!run_subject(|command| {
            command.env("SPANPROF_BIN", &here);
        }));
    }
}
