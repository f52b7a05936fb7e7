//! Containers of Docker and Podman by their names, as the engines' own files say.
//!
//! No socket is asked: whoever may ask an engine may do everything on the host. The files are the
//! host's, and `root`'s alone; a container has no say in them but by the name that it was given. What
//! a container can choose is an id in the path of its control group, of which the outermost counts;
//! and a user's own containers are none of `root`'s.

mod files;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::container::Container;
use crate::file::read_bounded;

/// Where they are unless an engine was told another place.
const DOCKER: &str = "var/lib/docker/containers";
const PODMAN: &str = "var/lib/containers/storage/overlay-containers";
/// Podman's lists: of containers that stay, and of those that a restart of the host may lose.
const PODMAN_LISTS: [&str; 2] = ["containers.json", "volatile-containers.json"];
/// The most bytes of a file of Docker's, which is of one container, and of one of Podman's lists.
const DOCKER_BYTES: u64 = 1 << 20;
const PODMAN_BYTES: u64 = 16 << 20;
/// The most ids that are remembered.
const KNOWN_MAX: usize = 4096;
/// After how long it is asked again: a container can be given another name.
const AGAIN: Duration = Duration::from_secs(60);

/// A container of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineContainer {
    /// Its name.
    pub name: String,
    /// Its id, whole.
    pub id: String,
    /// Labels. Podman keeps none where they can be read.
    pub labels: BTreeMap<String, String>,
}

impl EngineContainer {
    /// What its service is called: by Docker Swarm, by Compose, or as the container.
    #[must_use]
    pub fn service(&self) -> &str {
        let keys = ["com.docker.swarm.service.name", "com.docker.compose.service"];
        let label = keys.iter().find_map(|key| self.labels.get(*key));
        label.filter(|name| !name.is_empty()).unwrap_or(&self.name)
    }
}

/// The engines' containers, as they were asked for.
#[derive(Debug)]
pub struct Engines {
    root: PathBuf,
    /// By id, when it was asked for, and what was found.
    known: HashMap<String, (Instant, Option<Arc<EngineContainer>>)>,
    lists: [List; PODMAN_LISTS.len()],
}

/// A list of Podman's, and which state of its file that is.
#[derive(Debug, Default)]
struct List {
    /// Device, inode, size and time of the last change.
    state: Option<[u64; 5]>,
    containers: HashMap<String, Arc<EngineContainer>>,
}

impl Engines {
    /// Those of the host whose root this is.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self { root: root.to_owned(), known: HashMap::new(), lists: Default::default() }
    }

    /// The container, if it is one of an engine: the outermost id that is known.
    #[must_use]
    pub fn find(&mut self, container: &Container, now: Instant) -> Option<Arc<EngineContainer>> {
        // A pod's container has the name that Kubernetes gave to an engine, which says nothing.
        if container.pod_uid.is_some() || container.of_user {
            return None;
        }
        container.ids.iter().find_map(|id| self.of_id(id, now))
    }

    fn of_id(&mut self, id: &str, now: Instant) -> Option<Arc<EngineContainer>> {
        if let Some((asked, found)) = self.known.get(id)
            && now.saturating_duration_since(*asked) < AGAIN
        {
            return found.clone();
        }
        // It becomes part of a path.
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let found = self.docker(id).or_else(|| self.podman(id));
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert(id.to_owned(), (now, found.clone()));
        found
    }

    fn docker(&self, id: &str) -> Option<Arc<EngineContainer>> {
        let path = self.root.join(DOCKER).join(id).join("config.v2.json");
        files::docker(id, &read(&path, DOCKER_BYTES)?).map(Arc::new)
    }

    fn podman(&mut self, id: &str) -> Option<Arc<EngineContainer>> {
        let folder = self.root.join(PODMAN);
        for (list, name) in self.lists.iter_mut().zip(PODMAN_LISTS) {
            list.refresh(&folder.join(name));
        }
        self.lists.iter().find_map(|list| list.containers.get(id).cloned())
    }
}

impl List {
    /// Reads it again if it is another one by now.
    fn refresh(&mut self, path: &Path) {
        let state = std::fs::metadata(path).ok().map(|it| {
            let changed = [it.ctime(), it.ctime_nsec()].map(i64::cast_unsigned);
            [it.dev(), it.ino(), it.size(), changed[0], changed[1]]
        });
        if state == self.state {
            return;
        }
        self.state = state;
        let bytes = state.and_then(|_| read(path, PODMAN_BYTES)).unwrap_or_default();
        self.containers = files::podman(&bytes);
    }
}

/// A file that should be readable if it is there. Without it, a container has its id for a name.
fn read(path: &Path, max_bytes: u64) -> Option<Vec<u8>> {
    match read_bounded(path, max_bytes) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::debug!(%error, path = %path.display(), "no name of a container");
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const WEB: &str = r#"{"ID":"aa","Name":"/web","Config":{"Image":"nginx","Labels":{}}}"#;

    fn container(ids: &[&str]) -> Container {
        Container { ids: ids.iter().map(|&id| id.to_owned()).collect(), ..Container::default() }
    }

    struct Host {
        folder: tempfile::TempDir,
        engines: Engines,
        now: Instant,
    }

    impl Host {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let engines = Engines::below(folder.path());
            Self { folder, engines, now: Instant::now() }
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn name(&mut self, ids: &[&str]) -> Option<String> {
            self.engines.find(&container(ids), self.now).map(|found| found.name.clone())
        }
    }

    #[test]
    fn a_container_of_docker_is_found_and_found_again_under_another_name() {
        let mut host = Host::new();
        assert_eq!(host.name(&["aa"]), None);
        host.write("var/lib/docker/containers/aa/config.v2.json", WEB);
        assert_eq!(host.name(&["aa"]), None, "it was asked for a moment ago");
        host.now += AGAIN;
        assert_eq!(host.name(&["aa"]).as_deref(), Some("web"));
        let renamed = WEB.replace("/web", "/shop");
        host.write("var/lib/docker/containers/aa/config.v2.json", &renamed);
        assert_eq!(host.name(&["aa"]).as_deref(), Some("web"));
        host.now += AGAIN;
        assert_eq!(host.name(&["aa"]).as_deref(), Some("shop"));
    }

    #[test]
    fn a_container_of_podman_is_found_in_either_list() {
        let mut host = Host::new();
        let path = |list: &str| format!("{PODMAN}/{list}");
        host.write(&path("containers.json"), r#"[{"id":"aa","names":["web"]}]"#);
        assert_eq!(host.name(&["aa"]).as_deref(), Some("web"));
        host.write(&path("volatile-containers.json"), r#"[{"id":"bb","names":["job"]}]"#);
        assert_eq!(host.name(&["bb"]).as_deref(), Some("job"));
        host.write(&path("containers.json"), r#"[{"id":"cc","names":["new"]},{"id":"dd"}]"#);
        assert_eq!(host.name(&["cc"]).as_deref(), Some("new"));
        assert_eq!(host.name(&["dd"]), None);
        fs::remove_file(host.folder.path().join(path("containers.json"))).unwrap();
        host.now += AGAIN;
        assert_eq!(host.name(&["cc"]), None);
    }

    #[test]
    fn the_outermost_id_that_is_known_counts_and_neither_pods_nor_users_are_an_engines() {
        let mut host = Host::new();
        host.write("var/lib/docker/containers/aa/config.v2.json", WEB);
        host.write("var/lib/docker/containers/bb/config.v2.json", &WEB.replace("/web", "/inner"));
        assert_eq!(host.name(&["aa", "bb"]).as_deref(), Some("web"));
        assert_eq!(host.name(&["cc", "bb"]).as_deref(), Some("inner"));
        let pod = Container { pod_uid: Some("u".into()), ..container(&["aa"]) };
        assert_eq!(host.engines.find(&pod, host.now), None);
        let made_up = Container { of_user: true, ..container(&["aa"]) };
        assert_eq!(host.engines.find(&made_up, host.now), None);
    }

    #[test]
    fn what_is_no_id_is_no_path_and_what_is_no_file_is_not_read() {
        let mut host = Host::new();
        host.write("var/lib/docker/config.v2.json", WEB);
        assert_eq!(host.name(&[".."]), None);
        assert_eq!(host.name(&[""]), None);
        let folder = host.folder.path().join(DOCKER).join("ee");
        fs::create_dir_all(&folder).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.join("config.v2.json"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert_eq!(host.name(&["ee"]), None);
        let huge = " ".repeat(usize::try_from(DOCKER_BYTES).unwrap()) + WEB;
        host.write("var/lib/docker/containers/ff/config.v2.json", &huge);
        assert_eq!(host.name(&["ff"]), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut host = Host::new();
        for number in 0..=KNOWN_MAX {
            assert_eq!(host.name(&[&format!("{number:x}")]), None);
        }
        assert!(host.engines.known.len() <= KNOWN_MAX);
    }
}
