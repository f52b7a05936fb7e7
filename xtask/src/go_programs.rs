//! The real Pyroscope server, the reader of pprof that is not ours, and a service with Grafana's SDK
//! for Go, for the tests: built from the Go modules `tests/pyroscope` and `tests/grafana-go`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cache::{self, Partial};
use crate::exec::{ask, workspace};
use crate::setup::{shout, step};

const VERSION: &str = "1.12.0";

/// The package of the server, in the module that `go.mod` pins.
const SERVER: &str = "github.com/grafana/pyroscope/cmd/pyroscope";

/// The oldest Go that Grafana's SDK can be built with.
const OLDEST_GO: (u32, u32) = (1, 25);

/// The modules.
const PYROSCOPE: &str = "tests/pyroscope";
const SERVICE: &str = "tests/grafana-go";

/// Where set-up puts the programs: keyed by what they are built from.
pub(crate) struct Binaries {
    /// The Pyroscope server.
    pub(crate) server: PathBuf,
    /// Reads a pprof with Go's own package.
    pub(crate) reader: PathBuf,
    /// A service with Grafana's SDK.
    pub(crate) service: PathBuf,
}

/// Where the programs of this checkout are, or would be.
pub(crate) fn binaries(cache: &Path) -> Result<Binaries> {
    let key = |parts: &[Vec<u8>]| format!("{:016x}", cache::hash(parts))[..12].to_owned();
    let manifest = manifest(&module(PYROSCOPE))?;
    let mut reader = manifest.clone();
    sources(&module(PYROSCOPE).join("pprofread"), &mut reader)?;
    let mut service = self::manifest(&module(SERVICE))?;
    sources(&module(SERVICE), &mut service)?;
    let folder = cache.join(format!("pyroscope-{VERSION}-{}", key(&manifest)));
    Ok(Binaries {
        server: folder.join("pyroscope"),
        reader: folder.join(format!("pprofread-{}", key(&reader))).join("pprofread"),
        service: cache.join(format!("grafana-go-{}", key(&service))).join("grafana-go"),
    })
}

/// What pins a module's dependencies.
fn manifest(module: &Path) -> Result<Vec<Vec<u8>>> {
    ["go.mod", "go.sum"].into_iter().map(|name| read(&module.join(name))).collect()
}

fn sources(folder: &Path, to: &mut Vec<Vec<u8>>) -> Result<()> {
    for file in go_files(folder)? {
        to.push(read(&file)?);
    }
    Ok(())
}

/// Why the tests against Pyroscope cannot run on this machine, if they cannot.
pub(crate) fn obstacle() -> Option<String> {
    let (major, minor) = OLDEST_GO;
    let version = ask(go(&mut Command::new("go")).arg("version"));
    match version.ok().as_deref().map(|text| (text, go_version(text))) {
        Some((_, Some(found))) if found >= OLDEST_GO => None,
        Some((text, _)) => Some(format!("Go {major}.{minor} is needed, here is {}", text.trim())),
        None => Some(format!("Go {major}.{minor} or newer is not installed")),
    }
}

/// Whether set-up has to build one of them.
pub(crate) fn is_missing(cache: &Path) -> Result<bool> {
    let Binaries { server, reader, service } = binaries(cache)?;
    Ok(![server, reader, service].iter().all(|binary| binary.is_file()))
}

/// Builds what is missing. Without Go it says so, and goes on.
pub(crate) fn install(cache: &Path) -> Result<()> {
    let binaries = binaries(cache)?;
    let all = [
        (&binaries.server, PYROSCOPE, SERVER),
        (&binaries.reader, PYROSCOPE, "./pprofread"),
        (&binaries.service, SERVICE, "."),
    ];
    let missing: Vec<_> = all.into_iter().filter(|(binary, ..)| !binary.is_file()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if let Some(obstacle) = obstacle() {
        shout(&format!("{obstacle}: THE TESTS AGAINST PYROSCOPE AND GRAFANA'S SDK WILL NOT RUN."));
        return Ok(());
    }
    // Both caches of Go go with the folder: 3 GB that nothing else needs.
    let partial = Partial::new(cache, "pyroscope")?;
    for (binary, module, package) in missing {
        step(&format!("building {package} of {module} (the server takes about two minutes)"));
        let new = partial.dir("out")?.join("program");
        let mut build = Command::new("go");
        go(&mut build)
            .args(["build", "-o"])
            .arg(&new)
            .arg(package)
            .current_dir(self::module(module))
            .env("GOMODCACHE", partial.dir("modules")?)
            .env("GOCACHE", partial.dir("objects")?)
            .env("GOTMPDIR", partial.dir("tmp")?);
        ask(&mut build)?;
        cache::publish(&new, binary)?;
    }
    Ok(())
}

/// The settings under which a build is what `go.sum` says and nothing else.
fn go(command: &mut Command) -> &mut Command {
    command
        // -modcacherw: Go makes its module cache read-only, and could not be cleaned up after.
        .env("GOFLAGS", "-mod=readonly -modcacherw -buildvcs=false -trimpath")
        .env("GOTOOLCHAIN", "local")
        .env("GOWORK", "off")
        .env("CGO_ENABLED", "0")
        .env_remove("GOOS")
        .env_remove("GOARCH")
}

fn module(path: &str) -> PathBuf {
    workspace().join(path)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn go_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry.context("cannot list the Go files")?.path();
        if path.extension().is_some_and(|extension| extension == "go") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// From `go version go1.26.8 linux/amd64`.
fn go_version(text: &str) -> Option<(u32, u32)> {
    let version = text.split_whitespace().nth(2)?.strip_prefix("go")?;
    let mut numbers = version.split(|next: char| !next.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_tells_its_version() {
        assert_eq!(go_version("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(go_version("go version go1.24rc1 linux/arm64"), Some((1, 24)));
        assert_eq!(go_version("go version devel +abc Mon"), None);
    }
}
