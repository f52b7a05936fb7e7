//! What makes and runs some programs that the tests profile: musl's compiler and its loader, the
//! linker mold, runc, QEMU, and what a node of Kubernetes runs beside it.
//!
//! On Debian and its relatives the packages are unpacked into the cache, each in a folder of its
//! version. Elsewhere, the tests take what is on `PATH`, or tell that they did not run.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow};

use crate::apt::{self, Apt};
use crate::bpf_toolchain::on_path;
use crate::cache::{self, Partial};
use crate::setup::{shout, step};

/// A tool of one program.
pub(crate) struct Tool {
    /// What it is called in the cache, and by whoever reads of it.
    pub(crate) name: &'static str,
    program: &'static str,
    /// The first one has the program.
    packages: &'static [&'static str],
    /// Where the packages have it.
    unpacked: &'static str,
    /// What it is always called with; `$root` is the folder of the unpacked packages.
    arguments: &'static str,
    /// How a test learns where it is: see `spanprof_tests::require`.
    pub(crate) variable: &'static str,
}

/// All of them.
pub(crate) const TOOLS: [Tool; 7] = [
    Tool {
        name: "musl",
        program: "musl-gcc",
        packages: &["musl-tools", "musl-dev"],
        unpacked: "usr/bin/musl-gcc",
        arguments: "",
        variable: "SPANPROF_MUSL_GCC",
    },
    Tool {
        // The C library is its own loader.
        name: "musl-loader",
        program: "ld-musl",
        packages: &["musl"],
        unpacked: "lib/x86_64-linux-musl/libc.so",
        arguments: "",
        variable: "SPANPROF_MUSL_LOADER",
    },
    Tool {
        name: "mold",
        // As gcc calls it.
        program: "ld.mold",
        packages: &["mold"],
        unpacked: "usr/bin/mold",
        arguments: "",
        variable: "SPANPROF_MOLD",
    },
    Tool {
        name: "runc",
        program: "runc",
        packages: &["runc"],
        unpacked: "usr/sbin/runc",
        arguments: "",
        variable: "SPANPROF_RUNC",
    },
    Tool {
        name: "containerd",
        program: "containerd",
        packages: &["containerd"],
        unpacked: "usr/bin/containerd",
        arguments: "",
        variable: "SPANPROF_CONTAINERD",
    },
    Tool {
        name: "cni",
        // Beside it are the others.
        program: "cni-bridge",
        packages: &["containernetworking-plugins"],
        unpacked: "usr/lib/cni/bridge",
        arguments: "",
        variable: "SPANPROF_CNI",
    },
    Tool {
        name: "qemu",
        program: "qemu-system-x86_64",
        packages: &["qemu-system-x86"],
        unpacked: "usr/bin/qemu-system-x86_64",
        arguments: "-L \"$root/usr/share/qemu\" -L \"$root/usr/share/seabios\"",
        variable: "SPANPROF_QEMU",
    },
];

impl Tool {
    /// Where it is: on `PATH`, or the newest in the cache.
    pub(crate) fn find(&self, cache: &Path) -> Option<PathBuf> {
        on_path(self.program).or_else(|| self.newest_of(cache))
    }

    fn newest_of(&self, cache: &Path) -> Option<PathBuf> {
        let folders = fs::read_dir(cache).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let is_ours = |folder: &PathBuf| {
            let name = folder.file_name().and_then(OsStr::to_str);
            name.and_then(|name| name.strip_prefix(self.name)).is_some_and(|n| n.starts_with('-'))
        };
        let binaries = folders.filter(is_ours).map(|folder| folder.join("bin").join(self.program));
        binaries.filter(|binary| binary.is_file()).max()
    }

    /// Downloads, unpacks, and gives it its name in the cache.
    fn install(&self, cache: &Path, apt: &Apt, partial: &Partial) -> Result<()> {
        let debs = partial.dir(&format!("{}-debs", self.name))?;
        let mut packages: Vec<String> = self.packages.iter().map(|name| (*name).into()).collect();
        if let [alone] = self.packages {
            packages.extend(apt.missing_libraries(alone)?);
        }
        apt.download(&packages, &debs)?;
        let version = downloaded_version(&debs, self.packages[0])?;
        let root = partial.dir(self.name)?;
        apt::unpack(&debs, &root, |_package| true)?;
        self.write_wrapper(&root)?;
        cache::publish(&root, &cache.join(format!("{}-{version}", self.name)))
    }

    /// A program that finds everything beside itself, wherever the cache is.
    fn write_wrapper(&self, root: &Path) -> Result<()> {
        let command = if self.name == "musl" {
            let specs = format!("usr/lib/{}-linux-musl/musl-gcc.specs", env::consts::ARCH);
            let path = root.join(&specs);
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            fs::write(&path, movable(&text))
                .with_context(|| format!("cannot write {}", path.display()))?;
            format!("env \"{MUSL_ROOT}=$root\" \"${{REALGCC:-gcc}}\" -specs \"$root/{specs}\"")
        } else if self.name == "musl-loader" {
            // A program names it as its interpreter, which can be no script.
            fs::create_dir_all(root.join("bin"))?;
            let link = Path::new("..").join(self.unpacked);
            return Ok(symlink(link, root.join("bin").join(self.program))?);
        } else {
            format!("\"$root/{}\" {}", self.unpacked, self.arguments)
        };
        apt::write_wrapper(root, self.program, &command)
    }
}

/// Whether set-up has something to fetch.
pub(crate) fn is_missing(cache: &Path) -> bool {
    apt::is_here() && TOOLS.iter().any(|tool| tool.find(cache).is_none())
}

/// Fetches what is missing. Where it is not to be had, it says so, and goes on.
pub(crate) fn install(cache: &Path) -> Result<()> {
    if !is_missing(cache) {
        return Ok(());
    }
    let partial = Partial::new(cache, "fixtures")?;
    let missing = || TOOLS.iter().filter(|tool| tool.find(cache).is_none());
    step(&format!("fetching {}", missing().map(|tool| tool.name).collect::<Vec<_>>().join(", ")));
    if missing().all(|tool| tool.install(cache, &Apt::system(), &partial).is_ok()) {
        return Ok(());
    }
    // A fresh machine has no package lists, and an old one has lists of what is gone.
    step("fetching current package lists, for these downloads only");
    let fresh = partial.dir("apt").and_then(|folder| Apt::private(&folder));
    for tool in missing() {
        let installed = match &fresh {
            Ok(apt) => tool.install(cache, apt, &partial),
            Err(error) => Err(anyhow!("{error:#}")),
        };
        if let Err(error) = installed {
            shout(&format!("{error:#}: THE TESTS THAT NEED {} WILL NOT RUN.", tool.program));
        }
    }
    Ok(())
}

/// Where the tools are, unless the user named others.
pub(crate) fn tell(command: &mut Command, cache: &Path) {
    for tool in &TOOLS {
        if let (None, Some(path)) = (env::var_os(tool.variable), tool.find(cache)) {
            command.env(tool.variable, path);
        }
    }
}

/// The variable of the compiler's own that paths in [`movable`] specs begin with.
const MUSL_ROOT: &str = "MUSL_ROOT";

/// gcc's specs with what follows from a variable in place of paths below `/usr`.
fn movable(specs: &str) -> String {
    let mut moved = String::new();
    let mut rest = specs;
    while let Some((before, from)) = rest.split_once("/usr/") {
        let end = from.find(|next: char| next.is_whitespace() || next == '}');
        let (path, after) = from.split_at(end.unwrap_or(from.len()));
        moved.push_str(&format!("{before}%:getenv({MUSL_ROOT} /usr/{path})"));
        rest = after;
    }
    moved + rest
}

/// From a file's name: `mold_1.10.1+dfsg-1_amd64.deb`.
fn downloaded_version(debs: &Path, package: &str) -> Result<String> {
    let entries = fs::read_dir(debs).with_context(|| format!("cannot read {}", debs.display()))?;
    let versions = entries.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let (version, _architecture) =
            name.strip_prefix(package)?.strip_prefix('_')?.split_once('_')?;
        Some(version.to_owned())
    });
    versions.max().with_context(|| format!("{package} was not downloaded"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_specs_follow_the_folder() {
        let specs = "-isystem /usr/include/x %(old)\n%{!shared: /usr/lib/a.o} crt.o%s -L/usr/lib\n";
        let expected = "-isystem %:getenv(MUSL_ROOT /usr/include/x) %(old)\n\
                        %{!shared: %:getenv(MUSL_ROOT /usr/lib/a.o)} crt.o%s \
                        -L%:getenv(MUSL_ROOT /usr/lib)\n";
        assert_eq!(movable(specs), expected);
        assert_eq!(movable("%s"), "%s");
    }

    #[test]
    fn the_newest_version_in_the_cache_is_taken() {
        let cache = env::temp_dir().join(format!("spanprof-xtask-tools-{}", std::process::id()));
        let tool = Tool {
            name: "tool",
            program: "no-such-program",
            packages: &["tool"],
            unpacked: "usr/bin/tool",
            arguments: "",
            variable: "X",
        };
        assert_eq!(tool.find(&cache), None);
        for folder in ["tool-1.0/bin", "tool-1.2/bin", "tool-1.3", "toolbox-9/bin"] {
            fs::create_dir_all(cache.join(folder)).expect("made");
        }
        for version in ["tool-1.0", "tool-1.2", "toolbox-9"] {
            fs::write(cache.join(version).join("bin/no-such-program"), "").expect("written");
        }
        assert_eq!(tool.find(&cache), Some(cache.join("tool-1.2/bin/no-such-program")));
        fs::write(cache.join("tool_1.4-2_amd64.deb"), "").expect("written");
        assert_eq!(downloaded_version(&cache, "tool").expect("there"), "1.4-2");
        assert!(downloaded_version(&cache, "other").is_err());
        fs::remove_dir_all(&cache).expect("clean up");
    }
}
