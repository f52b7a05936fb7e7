//! The messages of `push.v1.PusherService/Push`.

/// A request: profiles to store.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PushRequest {
    /// One here: a batch is stored in part when a part of it fails.
    #[prost(message, repeated, tag = "1")]
    pub(crate) series: Vec<RawProfileSeries>,
}

/// A series and profiles of it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RawProfileSeries {
    /// The labels.
    #[prost(message, repeated, tag = "1")]
    pub(crate) labels: Vec<LabelPair>,
    /// The profiles.
    #[prost(message, repeated, tag = "2")]
    pub(crate) samples: Vec<RawSample>,
}

/// A profile.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RawSample {
    /// pprof, plain or gzip.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) raw_profile: bytes::Bytes,
    /// A UUID, for the server's log.
    #[prost(string, tag = "2")]
    pub(crate) id: String,
}

/// A label.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LabelPair {
    /// Its name.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub(crate) value: String,
}
