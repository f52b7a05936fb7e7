//! The real Pyroscope server, and the reader of pprof that is not ours, for the tests: built from
//! the Go module `tests/pyroscope`.

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

/// The oldest Go that knows the `tool` directive.
const OLDEST_GO: (u32, u32) = (1, 24);

/// Where set-up puts the two programs: keyed by what they are built from.
pub(crate) struct Binaries {
    /// The Pyroscope server.
    pub(crate) server: PathBuf,
    /// Reads a pprof with Go's own package.
    pub(crate) reader: PathBuf,
}

/// Where the programs of this checkout are, or would be.
pub(crate) fn binaries(cache: &Path) -> Result<Binaries> {
    let module = module();
    let manifest = [read(&module.join("go.mod"))?, read(&module.join("go.sum"))?];
    let mut sources = manifest.to_vec();
    for file in go_files(&module.join("pprofread"))? {
        sources.push(read(&file)?);
    }
    let key = |parts: &[Vec<u8>]| format!("{:016x}", cache::hash(parts));
    let folder = cache.join(format!("pyroscope-{VERSION}-{}", &key(&manifest)[..12]));
    Ok(Binaries {
        server: folder.join("pyroscope"),
        reader: folder.join(format!("pprofread-{}", &key(&sources)[..12])).join("pprofread"),
    })
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
    let Binaries { server, reader } = binaries(cache)?;
    Ok(!server.is_file() || !reader.is_file())
}

/// Builds what is missing. Without Go it says so, and goes on.
pub(crate) fn install(cache: &Path) -> Result<()> {
    let binaries = binaries(cache)?;
    let missing: Vec<(&PathBuf, &str)> =
        [(&binaries.server, SERVER), (&binaries.reader, "./pprofread")]
            .into_iter()
            .filter(|(binary, _)| !binary.is_file())
            .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if let Some(obstacle) = obstacle() {
        shout(&format!("{obstacle}: THE TESTS AGAINST A REAL PYROSCOPE WILL NOT RUN."));
        return Ok(());
    }
    // Both caches of Go go with the folder: 3 GB that nothing else needs.
    let partial = Partial::new(cache, "pyroscope")?;
    for (binary, package) in missing {
        step(&format!("building {package} (the server takes about two minutes)"));
        let new = partial.dir("out")?.join("program");
        let mut build = Command::new("go");
        go(&mut build)
            .args(["build", "-o"])
            .arg(&new)
            .arg(package)
            .current_dir(module())
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

fn module() -> PathBuf {
    workspace().join("tests/pyroscope")
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
