//! A container image as an OCI image layout in a tar (image-spec v1.1): what `ctr images import`,
//! `podman load` and `skopeo copy oci-archive:…` take. Of the same files it is the same bytes.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The version of the image and of everything in the workspace.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the name means to who imports the image: as if it had been pulled.
pub(crate) fn full_name(name: &str) -> String {
    format!("docker.io/library/{name}:{VERSION}")
}

/// A file in an image: its path without the root, what is in it, its mode.
pub(crate) type File = (String, Vec<u8>, u32);

/// Makes the image of this name that runs the first of these files.
pub(crate) fn write(image: &Path, name: &str, layer: &[File]) -> Result<()> {
    let (entry, ..) = layer.first().context("an image of nothing")?;
    let mut blobs: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |kind: &str, content: Vec<u8>| -> Value {
        let digest = hex(&Sha256::digest(&content));
        let size = content.len();
        blobs.push((format!("blobs/sha256/{digest}"), content));
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"),
               "digest": format!("sha256:{digest}"), "size": size})
    };
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let layer = add("layer.v1.tar", tar(layer)?);
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {
            "Entrypoint": [format!("/{entry}")],
            "Labels": {
                "org.opencontainers.image.title": name,
                "org.opencontainers.image.version": VERSION,
                "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = add("config.v1+json", config.to_string().into_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": [layer],
    });
    let mut manifest = add("manifest.v1+json", manifest.to_string().into_bytes());
    manifest["platform"] = json!({"architecture": architecture, "os": "linux"});
    manifest["annotations"] = json!({
        "io.containerd.image.name": full_name(name),
        "org.opencontainers.image.ref.name": VERSION,
    });
    let index = json!({"schemaVersion": 2, "manifests": [manifest]}).to_string().into_bytes();
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec();
    let mut files: Vec<_> =
        blobs.into_iter().map(|(path, content)| (path, content, 0o644)).collect();
    files.push(("index.json".to_owned(), index, 0o644));
    files.push(("oci-layout".to_owned(), layout, 0o644));
    fs::write(image, tar(&files)?).with_context(|| format!("cannot write {}", image.display()))
}

/// Files by path, content and mode, all of one owner and time.
fn tar(files: &[File]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content, mode) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(*mode);
        header.set_size(u64::try_from(content.len())?);
        tar.append_data(&mut header, path, content.as_slice())?;
    }
    Ok(tar.into_inner()?)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read as _;

    #[test]
    fn every_digest_is_that_of_what_it_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let image = folder.path().join("x.tar");
        let layer = [("x".to_owned(), b"program".to_vec(), 0o755)];
        write(&image, "x", &layer).expect("made");
        let bytes = fs::read(&image).expect("read");
        write(&image, "x", &layer).expect("made again");
        assert_eq!(fs::read(&image).expect("read"), bytes, "the same bytes");

        let read = |bytes: &[u8]| -> BTreeMap<String, Vec<u8>> {
            let mut archive = tar::Archive::new(bytes);
            let entries = archive.entries().expect("a tar");
            entries
                .map(|entry| {
                    let mut entry = entry.expect("an entry");
                    let path = entry.path().expect("a path").display().to_string();
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content).expect("content");
                    (path, content)
                })
                .collect()
        };
        let files = read(&bytes);
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().expect("a digest").replace(':', "/");
            let content = files[&format!("blobs/{digest}")].clone();
            assert_eq!(digest, format!("sha256/{}", hex(&Sha256::digest(&content))));
            assert_eq!(descriptor["size"], content.len());
            content
        };
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("JSON");
        let manifest = json(&blob(&json(&files["index.json"])["manifests"][0]));
        let config = json(&blob(&manifest["config"]));
        assert_eq!(config["config"]["Entrypoint"], json!(["/x"]));
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        assert_eq!(read(&layer), BTreeMap::from([("x".to_owned(), b"program".to_vec())]));
    }
}
