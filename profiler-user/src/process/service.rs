//! Which service a process belongs to.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::process_context::ProcessContext;
use crate::container::Container;

/// The most bytes of a name; servers take 2048.
const NAME_MAX: usize = 256;

/// What an OpenTelemetry SDK calls a service that was given no name.
const UNKNOWN: &str = "unknown_service";

/// What OpenTelemetry calls the environment that a service is deployed to, and what it did before.
pub(super) const ENVIRONMENT_KEYS: [&str; 2] =
    ["deployment.environment.name", "deployment.environment"];

/// What a service is called. Ordered and hashable: it keys windows and series.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceIdentity {
    /// OpenTelemetry's `service.name`, or `unknown_service:<exe>`. Never empty.
    pub name: String,
    /// OpenTelemetry's `service.namespace`.
    pub namespace: Option<String>,
    /// OpenTelemetry's `deployment.environment.name`, or `deployment.environment`, as it was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// OpenTelemetry's `service.version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where it runs and who named it, if that was to be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Arc<Origin>>,
}

/// Where a service's process runs, and who named the service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// Who named it.
    pub named_by: NamedBy,
    /// The container.
    pub container: Option<Container>,
    /// The systemd unit of a process in no container.
    pub unit: Option<String>,
    /// The path of its executable, as it was when it was run.
    #[serde(default)]
    pub exe: String,
}

/// Who named a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NamedBy {
    /// The process, in its process context (OTEP 4719).
    Context,
    /// The process's environment: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`.
    Environment,
    /// Nobody: it is called after its executable.
    Executable,
}

impl ServiceIdentity {
    /// The kernel's own threads.
    #[must_use]
    pub fn kernel() -> Self {
        Self::named("[kernel]")
    }

    /// Only a name, which is not empty.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), namespace: None, environment: None, version: None, origin: None }
    }

    /// A process that does not say: by the file name of its executable.
    #[must_use]
    pub fn unknown(executable: &str) -> Self {
        let name = match sanitized(executable) {
            Some(executable) => sanitized(&format!("{UNKNOWN}:{executable}")),
            None => None,
        };
        Self::named(name.unwrap_or_else(|| UNKNOWN.into()))
    }

    /// The container that it runs in, if that was read.
    #[must_use]
    pub fn container(&self) -> Option<&Container> {
        self.origin.as_ref()?.container.as_ref()
    }

    /// The labels of its profiles, by name: those that it has.
    pub fn labels(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("service_name", Some(&self.name)),
            ("service_namespace", self.namespace.as_ref()),
            ("service_version", self.version.as_ref()),
            ("deployment_environment", self.environment.as_ref()),
        ]
        .into_iter()
        .filter_map(|(label, value)| Some((label, value?.as_str())))
    }

    /// What the process says of itself.
    pub(super) fn of_context(context: &ProcessContext) -> Option<Self> {
        let attribute = |text: &Option<String>| text.as_deref().and_then(sanitized);
        Some(Self {
            name: said(context.service_name.as_deref()?)?,
            namespace: attribute(&context.service_namespace),
            environment: attribute(&context.deployment_environment),
            version: attribute(&context.service_version),
            origin: None,
        })
    }

    /// What the process was told: `OTEL_SERVICE_NAME`, then `service.name` in
    /// `OTEL_RESOURCE_ATTRIBUTES`, in an environment as `/proc/PID/environ` has it.
    pub(super) fn of_environment(environment: &[u8]) -> Option<Self> {
        let attribute = |key| resource_attribute(environment, key);
        let name = variable(environment, "OTEL_SERVICE_NAME")
            .and_then(|name| said(&without_container_id(&name)));
        let name = name.or_else(|| said(&attribute("service.name")?))?;
        let kept = |key| attribute(key).and_then(|text| sanitized(&text));
        let [environment, former] = ENVIRONMENT_KEYS;
        Some(Self {
            name,
            namespace: kept("service.namespace"),
            environment: kept(environment).or_else(|| kept(former)),
            version: kept("service.version"),
            origin: None,
        })
    }
}

/// A name that means something.
#[must_use]
pub fn said(name: &str) -> Option<String> {
    sanitized(name).filter(|name| !name.starts_with(UNKNOWN))
}

/// Without control characters and blanks around it, bounded; `None` if nothing is left.
fn sanitized(text: &str) -> Option<String> {
    let mut text: String = text.chars().filter(|character| !character.is_control()).collect();
    text.truncate(text.floor_char_boundary(NAME_MAX));
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn variable(environment: &[u8], name: &str) -> Option<String> {
    let value = environment
        .split(|byte| *byte == 0)
        .find_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    (!value.is_empty()).then(|| String::from_utf8_lossy(value).into_owned())
}

/// `key=value,key=value`, the values percent-encoded.
fn resource_attribute(environment: &[u8], key: &str) -> Option<String> {
    let attributes = variable(environment, "OTEL_RESOURCE_ATTRIBUTES")?;
    let mut pairs = attributes.split(',').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim() == key)?;
    Some(percent_decoded(value.trim()))
}

/// A `%` without two hex digits behind it stands for itself.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        let escaped = (*first == b'%').then(|| tail.split_first_chunk::<2>()).flatten();
        let value = escaped.and_then(|([high, low], tail)| {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            Some((u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()?, tail))
        });
        match value {
            Some((byte, tail)) => {
                bytes.push(byte);
                rest = tail;
            }
            None => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// containerd names the service of each shim after its container: one service per container.
fn without_container_id(name: &str) -> String {
    const SHIM: &str = "containerd-shim";
    let id = name.strip_prefix(SHIM).and_then(|rest| rest.strip_prefix('-'));
    match id {
        Some(id) if id.len() >= 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            SHIM.to_owned()
        }
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(environment: &str, expected: Option<(&str, Option<&str>)>) {
        let found = ServiceIdentity::of_environment(environment.as_bytes());
        let found = found.as_ref().map(|it| (it.name.as_str(), it.namespace.as_deref()));
        assert_eq!(found, expected, "{environment:?}");
    }

    #[test]
    fn what_the_environment_says() {
        check("", None);
        check("PATH=/bin\0OTEL_SERVICE_NAME=cart\0", Some(("cart", None)));
        check("XOTEL_SERVICE_NAME=a\0OTEL_SERVICE_NAMES=b\0OTEL_SERVICE_NAME\0", None);
        check("OTEL_SERVICE_NAME=\0OTEL_RESOURCE_ATTRIBUTES=service.name=a\0", Some(("a", None)));
        check(
            "OTEL_RESOURCE_ATTRIBUTES=service.namespace=shop,service.name=a\0OTEL_SERVICE_NAME=b",
            Some(("b", Some("shop"))),
        );
        check(
            "OTEL_RESOURCE_ATTRIBUTES=bad, service.name = caf%C3%A9%2C 1%,x=service.name=z",
            Some(("café, 1%", None)),
        );
        check("OTEL_SERVICE_NAME=unknown_service:java", None);
        check("OTEL_SERVICE_NAME=a\u{1b}[31m\nb\0", Some(("a[31mb", None)));
        check("OTEL_SERVICE_NAME= \t\0", None);
        check("OTEL_SERVICE_NAME=containerd-shim-0123456789ab", Some(("containerd-shim", None)));
        check("OTEL_SERVICE_NAME=containerd-shim-x", Some(("containerd-shim-x", None)));
    }

    #[test]
    fn the_environment_says_which_version_is_deployed_where() {
        let found = |attributes: &str| {
            let environment = format!("OTEL_RESOURCE_ATTRIBUTES=service.name=a,{attributes}");
            let found = ServiceIdentity::of_environment(environment.as_bytes()).unwrap();
            (found.environment, found.version)
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(found(""), (None, None));
        assert_eq!(found("deployment.environment=prod"), (text("prod"), None));
        let both = "deployment.environment=old,deployment.environment.name=new";
        assert_eq!(found(both), (text("new"), None));
        assert_eq!(found("service.version= 1.2%0a "), (None, text("1.2")));
    }

    #[test]
    fn its_labels_are_what_it_says_of_itself() {
        let mut service = ServiceIdentity::named("cart");
        assert!(service.labels().eq([("service_name", "cart")]));
        service.version = Some("1.2".into());
        service.environment = Some("prod".into());
        let labels: Vec<_> = service.labels().collect();
        assert_eq!(
            labels,
            [
                ("service_name", "cart"),
                ("service_version", "1.2"),
                ("deployment_environment", "prod")
            ]
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        let found = ServiceIdentity::of_environment(b"OTEL_SERVICE_NAME=a\xffb\0").unwrap();
        assert_eq!(found.name, "a\u{fffd}b");
    }

    #[test]
    fn a_name_is_bounded_at_a_character() {
        let name = "é".repeat(200);
        let found = ServiceIdentity::unknown(&name);
        assert_eq!(found.name.len(), 256);
        assert!(found.name.starts_with("unknown_service:é"));
        assert_eq!(ServiceIdentity::unknown("\n").name, "unknown_service");
    }

    proptest! {
        #[test]
        fn any_environment(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut environment = b"OTEL_RESOURCE_ATTRIBUTES=service.name=".to_vec();
            environment.extend(bytes);
            if let Some(identity) = ServiceIdentity::of_environment(&environment) {
                prop_assert!(!identity.name.is_empty() && identity.name.len() <= NAME_MAX);
                prop_assert!(!identity.name.chars().any(char::is_control));
            }
        }
    }
}
