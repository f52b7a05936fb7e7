//! Programs in Go for the tests: the real Pyroscope server, the reader of pprof that is not ours, a
//! service with Grafana's SDK and a whole Kubernetes, built from the Go modules `tests/pyroscope`,
//! `tests/grafana-go` and `tests/kubernetes`.

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
const KUBERNETES: &str = "tests/kubernetes";

/// The version of Kubernetes that `tests/kubernetes/go.mod` pins.
const KUBERNETES_VERSION: &str = "1.34.2";

/// Where set-up puts the programs: keyed by what they are built from.
pub(crate) struct Binaries {
    /// The Pyroscope server.
    pub(crate) server: PathBuf,
    /// Reads a pprof with Go's own package.
    pub(crate) reader: PathBuf,
    /// A service with Grafana's SDK.
    pub(crate) service: PathBuf,
    /// etcd and Kubernetes, by the name that it is called by.
    pub(crate) kubernetes: PathBuf,
}

/// Where the programs of this checkout are, or would be.
pub(crate) fn binaries(cache: &Path) -> Result<Binaries> {
    let key = |parts: &[Vec<u8>]| format!("{:016x}", cache::hash(parts))[..12].to_owned();
    let manifest = manifest(&module(PYROSCOPE))?;
    let mut reader = manifest.clone();
    sources(&module(PYROSCOPE).join("pprofread"), &mut reader)?;
    let mut service = self::manifest(&module(SERVICE))?;
    sources(&module(SERVICE), &mut service)?;
    let mut kubernetes = self::manifest(&module(KUBERNETES))?;
    sources(&module(KUBERNETES), &mut kubernetes)?;
    let folder = cache.join(format!("pyroscope-{VERSION}-{}", key(&manifest)));
    Ok(Binaries {
        server: folder.join("pyroscope"),
        reader: folder.join(format!("pprofread-{}", key(&reader))).join("pprofread"),
        service: cache.join(format!("grafana-go-{}", key(&service))).join("grafana-go"),
        kubernetes: cache
            .join(format!("kubernetes-{KUBERNETES_VERSION}-{}", key(&kubernetes)))
            .join("kubernetes"),
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
    let Binaries { server, reader, service, kubernetes } = binaries(cache)?;
    Ok(![server, reader, service, kubernetes].iter().all(|binary| binary.is_file()))
}

/// Builds what is missing. Without Go it says so, and goes on.
pub(crate) fn install(cache: &Path) -> Result<()> {
    let binaries = binaries(cache)?;
    let all = [
        (&binaries.server, PYROSCOPE, SERVER),
        (&binaries.reader, PYROSCOPE, "./pprofread"),
        (&binaries.service, SERVICE, "."),
        (&binaries.kubernetes, KUBERNETES, "."),
    ];
    let missing: Vec<_> = all.into_iter().filter(|(binary, ..)| !binary.is_file()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if let Some(obstacle) = obstacle() {
        shout(&format!(
            "{obstacle}: THE TESTS AGAINST PYROSCOPE, GRAFANA'S SDK AND KUBERNETES WILL NOT RUN."
        ));
        return Ok(());
    }
    // Both caches of Go go with the folder: 3 GB that nothing else needs.
    let partial = Partial::new(cache, "pyroscope")?;
    for (binary, module, package) in missing {
        step(&format!(
            "building {package} of {module} (Pyroscope takes two minutes, Kubernetes four)"
        ));
        let new = partial.dir("out")?.join("program");
        let mut build = Command::new("go");
        go(&mut build)
            .args(["build", "-o"])
            .arg(&new)
            .args((module == KUBERNETES).then(kubernetes_version))
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

/// Without a version, its parts do not speak to each other.
fn kubernetes_version() -> String {
    const PACKAGE: &str = "k8s.io/component-base/version";
    let mut numbers = KUBERNETES_VERSION.split('.');
    let mut next = || numbers.next().unwrap_or_default();
    let (major, minor) = (next(), next());
    format!(
        "-ldflags=-s -w -X {PACKAGE}.gitVersion=v{KUBERNETES_VERSION} -X {PACKAGE}.gitMajor={major} \
         -X {PACKAGE}.gitMinor={minor}"
    )
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
