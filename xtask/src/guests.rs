//! Other kernels than this machine's, for QEMU to boot: Debian's, unpacked into the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::apt::{self, Apt};
use crate::cache::{self, Partial};
use crate::setup::{shout, step};

/// A kernel of Debian.
pub(crate) struct Kernel {
    /// By which people know it.
    pub(crate) name: &'static str,
    suite: &'static str,
    /// The package that has the image.
    package: &'static str,
    version: &'static str,
    /// How the names of its successors in the suite begin: a suite moves on, and keeps one.
    series: &'static str,
}

/// The oldest that spanprof runs on, the oldest with `bpf_loop` that is maintained, and two whose
/// verifiers differ from theirs.
pub(crate) const KERNELS: [Kernel; 4] = [
    Kernel {
        name: "5.10",
        suite: "bullseye",
        package: "linux-image-5.10.0-32-cloud-amd64",
        version: "5.10.223-1",
        series: "linux-image-5.10.",
    },
    Kernel {
        name: "6.1",
        suite: "bookworm",
        package: "linux-image-6.1.0-50-cloud-amd64",
        version: "6.1.176-1",
        series: "linux-image-6.1.",
    },
    Kernel {
        name: "6.12",
        suite: "trixie",
        package: "linux-image-6.12.117+deb13-cloud-amd64",
        version: "6.12.117-1",
        series: "linux-image-6.12.",
    },
    Kernel {
        name: "7",
        suite: "sid",
        // Its `linux-image` is empty.
        package: "linux-binary-7.2.13+deb14-cloud-amd64",
        version: "7.2.13-1",
        series: "linux-binary-7.",
    },
];

/// How the names of images for virtual machines end: with drivers for nothing else, they are small.
const FLAVOUR: &str = "-cloud-amd64";

/// Why this machine cannot have them, if it cannot.
pub(crate) fn obstacle() -> Option<&'static str> {
    if !cfg!(target_arch = "x86_64") {
        return Some("the kernels are for x86-64");
    }
    (!apt::is_here()).then_some("the kernels come from Debian's archive, and there is no apt here")
}

/// The folder of the kernels, each a file of its name: keyed by what is asked for.
pub(crate) fn dir(cache: &Path) -> PathBuf {
    let pins = KERNELS.map(|kernel| format!("{}={}", kernel.package, kernel.version).into_bytes());
    cache.join(format!("kernels-{:016x}", cache::hash(&pins)))
}

/// Whether set-up has something to do.
pub(crate) fn is_missing(cache: &Path) -> bool {
    obstacle().is_none() && !are_there(cache)
}

/// Whether all of them are in the cache.
pub(crate) fn are_there(cache: &Path) -> bool {
    let kernels = dir(cache);
    KERNELS.iter().all(|kernel| kernels.join(kernel.name).is_file())
}

/// Where the tests find them, unless the user named others.
pub(crate) fn tell(command: &mut Command, cache: &Path) {
    if std::env::var_os("SPANPROF_KERNELS").is_none() {
        command.env("SPANPROF_KERNELS", dir(cache));
    }
}

/// Downloads and unpacks what is missing. Where it cannot be had it says so, and goes on.
pub(crate) fn install(cache: &Path) -> Result<()> {
    if let Some(obstacle) = obstacle() {
        shout(&format!("{obstacle}: THE TESTS ON OTHER KERNELS WILL NOT RUN."));
        return Ok(());
    }
    if !is_missing(cache) {
        return Ok(());
    }
    let partial = Partial::new(cache, "kernels")?;
    step("fetching current package lists, for these downloads only");
    let apt = Apt::private(&partial.dir("apt")?)?;
    let suites: Vec<&str> = KERNELS.iter().map(|kernel| kernel.suite).collect();
    let apt = Apt::of_suites(&partial.dir("suites")?, &apt.debian_site()?, &suites)?;
    for kernel in &KERNELS {
        let image = dir(cache).join(kernel.name);
        if !image.is_file() {
            install_kernel(&partial, &apt, kernel, &image)?;
        }
    }
    Ok(())
}

fn install_kernel(partial: &Partial, apt: &Apt, kernel: &Kernel, image: &Path) -> Result<()> {
    let mut package = format!("{}={}", kernel.package, kernel.version);
    if apt.version(kernel.package, kernel.version)?.is_none() {
        let offered = apt.names(kernel.series)?;
        let newest = offered
            .into_iter()
            .filter(|name| name.ends_with(FLAVOUR))
            .max_by_key(|name| numbers(name.strip_prefix(kernel.series).unwrap_or_default()));
        let newest = newest.with_context(|| format!("no kernel {} is offered", kernel.name))?;
        step(&format!("{} has no {package} any more: taking {newest}", kernel.suite));
        package = newest;
    }
    step(&format!("downloading {package}"));
    let debs = partial.dir(&format!("{}-debs", kernel.name))?;
    apt.download(&[package], &debs)?;
    let root = partial.dir(&format!("{}-root", kernel.name))?;
    apt::unpack(&debs, &root, |_| true)?;
    cache::publish(&vmlinuz(&root)?, image)
}

/// The image in an unpacked package: in `boot`, or, since Linux 6.13 or so, beside its modules.
fn vmlinuz(root: &Path) -> Result<PathBuf> {
    let named = |folder: PathBuf, start: &str| -> Option<PathBuf> {
        let mut entries = fs::read_dir(folder).ok()?.filter_map(Result::ok);
        entries.find(|it| it.file_name().to_string_lossy().starts_with(start)).map(|it| it.path())
    };
    let beside_modules = || named(root.join("usr/lib/modules"), "").map(|it| it.join("vmlinuz"));
    match named(root.join("boot"), "vmlinuz-").or_else(beside_modules) {
        Some(image) if image.is_file() => Ok(image),
        _ => bail!("the package has no kernel image"),
    }
}

/// The numbers in a name, to be compared as such.
fn numbers(name: &str) -> Vec<u64> {
    let parts = name.split(|next: char| !next.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_by_their_numbers() {
        assert!(numbers("1.0-9-cloud-amd64") < numbers("1.0-50-cloud-amd64"));
        assert_eq!(numbers("2.13+deb14-cloud-amd64"), [2, 13, 14, 64]);
    }

    #[test]
    fn the_image_is_found_in_either_place() {
        let root = tempfile::tempdir().expect("a folder");
        assert!(vmlinuz(root.path()).is_err());
        let modules = root.path().join("usr/lib/modules/7.2");
        fs::create_dir_all(&modules).expect("made");
        fs::write(modules.join("vmlinuz"), "").expect("written");
        assert_eq!(vmlinuz(root.path()).expect("found"), modules.join("vmlinuz"));
        fs::create_dir_all(root.path().join("boot")).expect("made");
        fs::write(root.path().join("boot/vmlinuz-6.1"), "").expect("written");
        assert_eq!(vmlinuz(root.path()).expect("found"), root.path().join("boot/vmlinuz-6.1"));
    }
}
