//! Which service a process belongs to.

/// What a service is called. Ordered and hashable: it keys windows and series.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceIdentity {
    /// OpenTelemetry's `service.name`, or `unknown_service:<exe>`. Never empty.
    pub name: String,
    /// OpenTelemetry's `service.namespace`.
    pub namespace: Option<String>,
}
