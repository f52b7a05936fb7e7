//! What to put into a profile, and how large it may be.

/// Which values each sample has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleTypes {
    /// `cpu/nanoseconds`: to Pyroscope every sample type is a series of its own.
    Cpu,
    /// `samples/count`, then `cpu/nanoseconds`.
    SamplesAndCpu,
}

/// How large one profile may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most samples; 0 is taken as 1.
    pub max_samples: usize,
    /// The most bytes, not compressed.
    pub max_bytes: usize,
}

impl Limits {
    /// As large as it gets.
    pub const NONE: Self = Self { max_samples: usize::MAX, max_bytes: usize::MAX };

    /// Well below what a Pyroscope server takes by default: 16,000 samples in a profile, and a
    /// burst of 2 MiB, above which a profile never passes, however often it is sent.
    pub const PYROSCOPE: Self = Self { max_samples: 12_000, max_bytes: 1 << 20 };
}

/// What to put into a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Which values each sample has.
    pub sample_types: SampleTypes,
    /// Label samples with what names their service: `service_name`, `service_namespace`,
    /// `service_version`, `deployment_environment`.
    pub service: bool,
    /// Label samples with `span_id`, 16 hex digits.
    pub span_id: bool,
    /// Label samples with `span_name`. In Pyroscope every name becomes a series.
    pub span_name: bool,
    /// Label samples with the attributes of their span that were chosen. In Pyroscope every set of
    /// values becomes a series.
    pub span_attributes: bool,
    /// Label samples with `trace_id`, 32 hex digits. In Pyroscope before 2.1 every trace becomes a
    /// series.
    pub trace_id: bool,
    /// Write no function, file or binary whose name begins or ends with `.go`.
    ///
    /// Pyroscope takes such a string for the sign of a profile by Go's own profiler, and then
    /// completes stacks that it believes to be cut. Files are left out, other names get a `_`.
    /// Labels stay as they are: they have to be found again.
    pub avoid_go_names: bool,
    /// Where to split.
    pub limits: Limits,
}

impl EncodeOptions {
    /// One service's profile for a Pyroscope server.
    #[must_use]
    pub fn pyroscope(trace_id: bool) -> Self {
        Self {
            sample_types: SampleTypes::Cpu,
            service: false,
            span_id: true,
            span_name: false,
            span_attributes: true,
            trace_id,
            avoid_go_names: true,
            limits: Limits::PYROSCOPE,
        }
    }

    /// A file for people and tools: everything in it.
    #[must_use]
    pub fn file() -> Self {
        Self {
            sample_types: SampleTypes::SamplesAndCpu,
            service: true,
            span_id: true,
            span_name: true,
            span_attributes: true,
            trace_id: true,
            avoid_go_names: false,
            limits: Limits::NONE,
        }
    }
}
