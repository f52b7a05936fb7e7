//! Which service this process is.

/// The resource attributes that name a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) service_name: Option<String>,
    pub(crate) service_namespace: Option<String>,
}

impl Identity {
    pub(crate) const NONE: Self = Self { service_name: None, service_namespace: None };

    /// What `self` does not name, `other` may.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            service_name: self.service_name.or(other.service_name),
            service_namespace: self.service_namespace.or(other.service_namespace),
        }
    }

    /// `OTEL_SERVICE_NAME`, then `OTEL_RESOURCE_ATTRIBUTES`.
    pub(crate) fn from_env() -> Self {
        let var = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let attributes = var("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
        let service = Self { service_name: var("OTEL_SERVICE_NAME"), service_namespace: None };
        service.or(Self::from_attributes(&attributes))
    }

    /// `key=value,key=value`, with keys and values percent-encoded (W3C baggage). A key that comes
    /// twice has its last value.
    fn from_attributes(attributes: &str) -> Self {
        let mut identity = Self::NONE;
        for (key, value) in attributes.split(',').filter_map(|pair| pair.split_once('=')) {
            let value = percent_decoded(value.trim());
            if value.is_empty() {
                continue;
            }
            match percent_decoded(key.trim()).as_str() {
                "service.name" => identity.service_name = Some(value),
                "service.namespace" => identity.service_namespace = Some(value),
                _ => {}
            }
        }
        identity
    }
}

/// A `%` without two hexadecimal digits stands for itself; what is not UTF-8 is replaced.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digit = |at: usize| tail.get(at).and_then(|&byte| char::from(byte).to_digit(16));
        let decoded = (*first == b'%').then(|| digit(0).zip(digit(1))).flatten();
        match decoded.and_then(|(high, low)| u8::try_from(high * 16 + low).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(attributes: &str, name: Option<&str>, namespace: Option<&str>) {
        let identity = Identity::from_attributes(attributes);
        assert_eq!(identity.service_name.as_deref(), name);
        assert_eq!(identity.service_namespace.as_deref(), namespace);
    }

    #[test]
    fn resource_attributes_name_the_service() {
        check("", None, None);
        check("service.name=cart", Some("cart"), None);
        check("a=b, service.name = cart ,service.namespace=shop", Some("cart"), Some("shop"));
        check("service.name=a,service.name=b", Some("b"), None);
        check("service.name=,service.namespace", None, None);
    }

    #[test]
    fn resource_attributes_are_percent_decoded() {
        check("service.name=my%20cart%2C%3d", Some("my cart,="), None);
        check("service%2Ename=caf%C3%A9", Some("café"), None);
        check("service.name=100%,service.namespace=%zz%4", Some("100%"), Some("%zz%4"));
        check("service.name=%ff", Some("\u{fffd}"), None);
    }

    #[test]
    fn the_first_to_name_it_wins() {
        let named = |name: &str| Identity { service_name: Some(name.into()), ..Identity::NONE };
        assert_eq!(named("a").or(named("b")), named("a"));
        assert_eq!(Identity::NONE.or(named("b")), named("b"));
    }
}
