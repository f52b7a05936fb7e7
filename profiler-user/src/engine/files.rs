//! The files of engines: Docker's `config.v2.json` of a container, the lists of containers of Podman's
//! storage library (`containers/storage`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Deserialize;

use super::EngineContainer;
use crate::pods::kept;

/// The most containers of a list.
const LIST_MAX: usize = 16 << 10;
/// The most bytes of a name.
const NAME_MAX: usize = 512;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Docker {
    name: String,
    #[serde(default)]
    config: DockerConfig,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DockerConfig {
    labels: Option<BTreeMap<String, String>>,
}

/// What a file of Docker's says of a container; `None` if it is none.
pub(super) fn docker(id: &str, bytes: &[u8]) -> Option<EngineContainer> {
    let Docker { name, config } = serde_json::from_slice(bytes).ok()?;
    Some(EngineContainer {
        // A slash is before it, from times when a container had a name for each link to it.
        name: named(name.strip_prefix('/').unwrap_or(&name))?,
        id: id.to_owned(),
        labels: kept(config.labels.as_ref()),
    })
}

#[derive(Deserialize)]
struct Stored {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
}

/// The containers of a list of Podman's that have a name, by id; none if it is no list.
pub(super) fn podman(bytes: &[u8]) -> HashMap<String, Arc<EngineContainer>> {
    let list: Vec<Stored> = serde_json::from_slice(bytes).unwrap_or_default();
    let container = |Stored { id, names }: Stored| {
        let name = names.iter().flatten().find_map(|name| named(name))?;
        Some((id.clone(), Arc::new(EngineContainer { name, id, labels: BTreeMap::new() })))
    };
    list.into_iter().take(LIST_MAX).filter_map(container).collect()
}

/// A text that can be a name.
fn named(text: &str) -> Option<String> {
    let fits = !text.is_empty() && text.len() <= NAME_MAX && !text.contains(char::is_control);
    fits.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_of_docker() {
        let file = r#"{"StreamConfig":{},"State":{"Running":true},"ID":"aa","Name":"/shop-web-1",
            "Config":{"Hostname":"x","Image":"nginx:1.27","Labels":{
                "com.docker.compose.project":"shop","com.docker.compose.service":"web"}},
            "HasBeenStartedBefore":true}"#;
        let found = docker("aa", file.as_bytes()).unwrap();
        assert_eq!((&*found.name, &*found.id), ("shop-web-1", "aa"));
        assert_eq!((found.service(), found.labels.len()), ("web", 2));
        let swarm = file.replace("compose.project\":\"shop", "swarm.service.name\":\"shop_web");
        assert_eq!(docker("aa", swarm.as_bytes()).unwrap().service(), "shop_web");
        let bare = docker("aa", br#"{"Name":"/a","Config":{"Labels":null}}"#).unwrap();
        assert_eq!(bare.service(), "a");
    }

    #[test]
    fn what_is_no_container_of_docker() {
        for text in
            ["", "{}", "[]", r#"{"Name":""}"#, r#"{"Name":"/"}"#, "{\"Name\":\"/a\\u0007\"}"]
        {
            assert_eq!(docker("aa", text.as_bytes()), None, "{text}");
        }
        assert_eq!(docker("aa", b"{\"Name\":\"/\xff\"}"), None);
        let long = format!(r#"{{"Name":"/{}"}}"#, "a".repeat(NAME_MAX + 1));
        assert_eq!(docker("aa", long.as_bytes()), None);
    }

    #[test]
    fn a_list_of_podman() {
        let list = r#"[
            {"id":"aa","names":["web"],"image":"i","layer":"l","created":"2026-01-01T00:00:00Z",
             "metadata":"{\"image-name\":\"docker.io/library/nginx:1.27\",\"name\":\"web\"}"},
            {"id":"bb","names":null},
            {"id":"cc","names":["job"],"metadata":"no JSON"}
        ]"#;
        let found = podman(list.as_bytes());
        assert_eq!(found.len(), 2);
        let web = &found["aa"];
        assert_eq!((&*web.name, web.service(), &*found["cc"].name), ("web", "web", "job"));
        assert!(podman(b"{}").is_empty() && podman(b"").is_empty());
    }
}
