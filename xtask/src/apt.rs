//! Debian packages without installing them: downloaded as a plain user, unpacked into a folder.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::bpf_toolchain::on_path;
use crate::exec::{ask, exec};

/// A way to ask the machine's package sources.
pub(crate) struct Apt {
    /// The configuration of a private state, where the machine's own package lists do not do.
    private: Option<PathBuf>,
}

/// Whether this machine has apt.
pub(crate) fn is_here() -> bool {
    ["apt-get", "apt-cache", "apt-config", "dpkg-deb"].iter().all(|name| on_path(name).is_some())
}

impl Apt {
    /// The machine's own package lists.
    pub(crate) const fn system() -> Self {
        Self { private: None }
    }

    /// Freshly fetched lists in `folder`, from the sources that the machine itself uses: its
    /// lists are missing or stale, and to change them is the administrator's business.
    pub(crate) fn private(folder: &Path) -> Result<Self> {
        let machine = ask(Command::new("apt-config").arg("dump"))?;
        Self::with_config(folder, &private_config(&machine, folder))
    }

    /// Freshly fetched lists in `folder` of suites of Debian at `site`, whatever the machine has.
    pub(crate) fn of_suites(folder: &Path, site: &str, suites: &[&str]) -> Result<Self> {
        let sources = folder.join("sources.list");
        // Where it is not, the keys that the machine trusts for everything must do.
        let keys = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
        let signed = keys.is_file().then(|| format!("[signed-by={}] ", keys.display()));
        let signed = signed.unwrap_or_default();
        let lines = suites.iter().map(|suite| format!("deb {signed}{site} {suite} main\n"));
        fs::write(&sources, lines.collect::<String>())
            .with_context(|| format!("cannot write {}", sources.display()))?;
        let machine = ask(Command::new("apt-config").arg("dump"))?;
        let mut config = private_config(&machine, folder);
        config.push_str(&format!(
            "Dir::Etc::sourcelist \"{}\";\nDir::Etc::sourceparts \"/dev/null\";\n",
            sources.display()
        ));
        Self::with_config(folder, &config)
    }

    fn with_config(folder: &Path, text: &str) -> Result<Self> {
        for name in ["state/lists/partial", "archives/partial", "parts"] {
            let path = folder.join(name);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let config = folder.join("apt.conf");
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let apt = Self { private: Some(config) };
        exec(apt.command("apt-get").args(["-qq", "update"]))?;
        Ok(apt)
    }

    /// Where the machine takes Debian from.
    pub(crate) fn debian_site(&self) -> Result<String> {
        let sites = ask(self.command("apt-get").args(["indextargets", "--format", "$(SITE)"]))?;
        debian_site(&sites).context("this machine takes its packages from another archive")
    }

    /// The packages whose names start with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = ask(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// The newest version of `package` that starts with `release`.
    pub(crate) fn version(&self, package: &str, release: &str) -> Result<Option<String>> {
        let table = ask(self.command("apt-cache").args(["madison", package]))?;
        Ok(pick_version(&table, release))
    }

    /// The libraries that `package` needs, directly or not, and that are not installed here.
    pub(crate) fn missing_libraries(&self, package: &str) -> Result<Vec<String>> {
        let tree = ask(self.command("apt-cache").args([
            "depends",
            "--recurse",
            "--no-recommends",
            "--no-suggests",
            "--no-conflicts",
            "--no-breaks",
            "--no-replaces",
            "--no-enhances",
            package,
        ]))?;
        let needed = package_names(&tree);
        // It fails if one is not installed, which is what we ask: so no `ask`.
        let output = Command::new("dpkg-query")
            .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
            .args(&needed)
            .output()
            .context("cannot run dpkg-query")?;
        let known = String::from_utf8_lossy(&output.stdout);
        let installed: BTreeSet<&str> =
            known.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
        Ok(needed
            .into_iter()
            .filter(|name| name != package && !installed.contains(&**name))
            .collect())
    }

    /// Downloads packages (`name` or `name=version`) into `folder`. apt checks their hashes
    /// against the signed lists.
    pub(crate) fn download(&self, packages: &[String], folder: &Path) -> Result<()> {
        let mut command = self.command("apt-get");
        // Root's apt downloads as `_apt`, who may not write into our folder.
        command.args(["-qq", "-o", "APT::Sandbox::User=root", "download"]);
        exec(command.args(packages).current_dir(folder))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C");
        if let Some(config) = &self.private {
            command.env("APT_CONFIG", config);
        }
        command
    }
}

/// Unpacks every package in `debs` whose name `wanted` accepts.
pub(crate) fn unpack(debs: &Path, root: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(debs).with_context(|| format!("cannot read {}", debs.display()))? {
        let path = entry.context("cannot read the downloads")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let package = name.split('_').next().unwrap_or_default();
        if path.extension().is_some_and(|extension| extension == "deb") && wanted(package) {
            files.push(path);
        }
    }
    if files.is_empty() {
        bail!("nothing to unpack in {}", debs.display());
    }
    files.sort();
    for file in files {
        ask(Command::new("dpkg-deb").arg("-x").arg(file).arg(root))?;
    }
    Ok(())
}

/// A script in `root/bin` that runs a program of unpacked packages, with the libraries there.
///
/// `command` may name the folder by `$root`: the cache may move.
pub(crate) fn write_wrapper(root: &Path, name: &str, command: &str) -> Result<()> {
    let path = root.join("bin").join(name);
    let script = format!(
        "#!/bin/sh\n\
         root=$(dirname \"$(dirname \"$(readlink -f \"$0\")\")\")\n\
         LD_LIBRARY_PATH={} exec {command} \"$@\"\n",
        libraries_below(Path::new("$root"))
    );
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(root.join("bin"))?;
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Where Debian's packages of this architecture keep libraries, as a search path.
pub(crate) fn libraries_below(root: &Path) -> String {
    let root = root.display();
    let triplet = format!("{}-linux-gnu", env::consts::ARCH);
    format!("{root}/usr/lib/{triplet}:{root}/lib/{triplet}")
}

/// The machine's configuration (its proxies, its sources) with another place for the state, and
/// without the commands that the machine runs after an update.
fn private_config(machine: &str, folder: &Path) -> String {
    let is_hook =
        |line: &str| ["APT::Update::", "DPkg::"].iter().any(|hooks| line.starts_with(hooks));
    let mut config: String =
        machine.lines().filter(|line| !is_hook(line)).flat_map(|line| [line, "\n"]).collect();
    let folder = folder.display();
    // The status of the installed packages stays the machine's. Its files are in the dump.
    config.push_str(&format!(
        "Dir::Etc::main \"/dev/null\";\n\
         Dir::Etc::parts \"{folder}/parts\";\n\
         Dir::State \"{folder}/state\";\n\
         Dir::State::lists \"{folder}/state/lists\";\n\
         Dir::Cache \"{folder}\";\n\
         Dir::Cache::archives \"{folder}/archives\";\n\
         APT::Sandbox::User \"root\";\n"
    ));
    config
}

/// The first that ends as the archive of Debian does, and not as that of its security updates.
fn debian_site(sites: &str) -> Option<String> {
    let mut sites = sites.lines().map(|site| site.trim_end_matches('/'));
    sites.find(|site| site.ends_with("/debian")).map(str::to_owned)
}

/// From `apt-cache madison`: newest first, `package | version | source`.
fn pick_version(table: &str, release: &str) -> Option<String> {
    table
        .lines()
        .filter_map(|line| line.split('|').nth(1))
        .map(str::trim)
        .find(|version| {
            // An epoch, such as LLVM's `1:22.1.8`, is no part of the release.
            let upstream = version.split_once(':').map_or(*version, |(_, rest)| rest);
            upstream
                .strip_prefix(release)
                .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
        })
        .map(str::to_owned)
}

/// From `apt-cache depends --recurse`: names of real packages start a line.
fn package_names(tree: &str) -> Vec<String> {
    let names: BTreeSet<&str> = tree
        .lines()
        .filter(|line| line.starts_with(|first: char| first.is_ascii_alphanumeric()))
        .map(str::trim_end)
        .collect();
    names.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_matched_as_a_whole() {
        let table = " rustc-web | 1.96.0+dfsg1-1~deb12u2 | http://mirror bookworm-security/main\n \
                     rustc-web | 1.85.0+dfsg3-1~deb12u3 | http://mirror bookworm/main\n";
        assert_eq!(pick_version(table, "1.96").as_deref(), Some("1.96.0+dfsg1-1~deb12u2"));
        assert_eq!(pick_version(table, "1.85").as_deref(), Some("1.85.0+dfsg3-1~deb12u3"));
        assert_eq!(pick_version(table, "1.9"), None);
        assert_eq!(pick_version(table, "1.97"), None);
        assert_eq!(pick_version("", "1.96"), None);
    }

    #[test]
    fn an_epoch_is_no_part_of_a_release() {
        let table = "libllvm22 | 1:22.1.8-1~deb12u1 | http://mirror main amd64 Packages";
        assert_eq!(pick_version(table, "22").as_deref(), Some("1:22.1.8-1~deb12u1"));
    }

    #[test]
    fn the_site_of_debian_is_not_that_of_its_security_updates() {
        let sites = "https://other/apt\nhttp://mirror/debian-security\nhttp://mirror/debian/\n";
        assert_eq!(debian_site(sites).as_deref(), Some("http://mirror/debian"));
        assert_eq!(debian_site("http://mirror/ubuntu\n"), None);
    }

    #[test]
    fn package_names_leave_out_relations_and_virtual_packages() {
        let tree = "libllvm22\n  Depends: libc6\n |Depends: debconf\n    libz3\n<virtual>\nlibc6\n";
        assert_eq!(package_names(tree), ["libc6", "libllvm22"]);
    }

    #[test]
    fn the_private_state_keeps_proxies_and_drops_hooks() {
        let machine = "Acquire::http::Proxy \"http://proxy:3128\";\n\
                       APT::Update::Post-Invoke:: \"rm -f /var/cache/apt/*.bin\";\n\
                       DPkg::Post-Invoke:: \"something\";\n\
                       Dir::State::status \"/var/lib/dpkg/status\";\n";
        let config = private_config(machine, Path::new("/cache/apt"));
        assert!(config.contains("Acquire::http::Proxy \"http://proxy:3128\";\n"));
        assert!(config.contains("/var/lib/dpkg/status"));
        assert!(!config.contains("Post-Invoke"));
        assert!(config.contains("Dir::State::lists \"/cache/apt/state/lists\";\n"));
    }
}
