//! The files for containers next to this example fit together, and fit what span-marker publishes.

#![cfg(test)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_yaml_ng::Value;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn yaml(path: &str) -> Value {
    let text = std::fs::read_to_string(examples().join(path)).unwrap();
    serde_yaml_ng::from_str(&text).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value:?}"))
}

/// `(address, port outside, port inside)` of what a service publishes.
fn ports(service: &Value) -> Vec<(String, u16, u16)> {
    let ports = service["ports"].as_sequence().unwrap();
    let parse = |port: &Value| {
        let [address, outside, inside]: [&str; 3] =
            text(port).split(':').collect::<Vec<_>>().try_into().unwrap();
        (address.to_owned(), outside.parse().unwrap(), inside.parse().unwrap())
    };
    ports.iter().map(parse).collect()
}

fn data_source(kind: &str) -> Value {
    let file = yaml("grafana/provisioning/datasources/datasources.yaml");
    assert_eq!(file["apiVersion"], Value::from(1));
    let sources = file["datasources"].as_sequence().unwrap();
    sources.iter().find(|source| text(&source["type"]) == kind).unwrap().clone()
}

#[test]
fn every_mounted_file_exists() {
    let compose = yaml("compose.yaml");
    let mut mounted = BTreeSet::new();
    for (_, service) in compose["services"].as_mapping().unwrap() {
        for volume in service["volumes"].as_sequence().into_iter().flatten() {
            let [from, to, mode]: [&str; 3] =
                text(volume).split(':').collect::<Vec<_>>().try_into().unwrap();
            assert!(examples().join(from).exists(), "{from}");
            assert_eq!(mode, "ro");
            mounted.insert(to.to_owned());
        }
    }
    assert!(mounted.contains("/etc/grafana/provisioning"));
    let config = text(&compose["services"]["tempo"]["command"][0]);
    let config = config.strip_prefix("-config.file=").unwrap();
    assert!(mounted.contains(config));
}

#[test]
fn every_image_has_a_version_and_every_port_is_on_loopback() {
    let compose = yaml("compose.yaml");
    for (name, service) in compose["services"].as_mapping().unwrap() {
        let (_, version) = text(&service["image"]).split_once(':').unwrap();
        assert!(version.starts_with(|first: char| first.is_ascii_digit()), "{name:?}");
        for (address, outside, inside) in ports(service) {
            assert_eq!(address, "127.0.0.1", "{name:?}");
            assert_eq!(outside, inside, "{name:?}");
        }
    }
}

#[test]
fn the_data_sources_are_the_services_of_the_compose_file() {
    let compose = yaml("compose.yaml");
    let url = |kind| {
        let source = data_source(kind);
        let url = text(&source["url"]).strip_prefix("http://").unwrap().to_owned();
        let (host, port) = url.split_once(':').unwrap();
        (host.to_owned(), port.parse::<u16>().unwrap())
    };
    let (pyroscope, port) = url("grafana-pyroscope-datasource");
    assert!(ports(&compose["services"][&*pyroscope]).iter().any(|(_, _, inside)| *inside == port));
    let (tempo, port) = url("tempo");
    assert!(compose["services"].get(&*tempo).is_some());
    let config = yaml("tempo.yaml");
    assert_eq!(config["server"]["http_listen_port"], Value::from(port));
    let otlp = text(&config["distributor"]["receivers"]["otlp"]["protocols"]["http"]["endpoint"]);
    let otlp: u16 = otlp.rsplit(':').next().unwrap().parse().unwrap();
    assert_eq!(ports(&compose["services"][&*tempo]), [("127.0.0.1".to_owned(), otlp, otlp)]);
}

#[test]
fn a_span_opens_onto_its_profile() {
    let to_profiles = &data_source("tempo")["jsonData"]["tracesToProfiles"];
    let profiles = data_source("grafana-pyroscope-datasource");
    assert_eq!(to_profiles["datasourceUid"], profiles["uid"]);
    assert_eq!(text(&to_profiles["profileTypeId"]), "process_cpu:cpu:nanoseconds:cpu:nanoseconds");
    assert_eq!(to_profiles["customQuery"], Value::from(false));
    let tags = to_profiles["tags"].as_sequence().unwrap();
    let tags: Vec<_> = tags.iter().map(|tag| (text(&tag["key"]), text(&tag["value"]))).collect();
    assert_eq!(tags, [("service.name", "service_name")]);
}
