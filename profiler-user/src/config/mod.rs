//! What the program needs: checked, resolved, immutable.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::ValueEnum as _;

use crate::attribute::{ChosenAttribute, SpanPolicy, SpanScope, Unsampled};
use crate::capture::{CaptureConfig, HookProbe, Sampler, StackReuse};
use crate::cli;
use crate::decode::Pid;
use crate::export::pyroscope::PyroscopeConfig;
use crate::pods::is_in_cluster;
use crate::relabel::{self, Rule, RuleError};
use crate::serve::Listen;

mod record;
mod servers;

pub use record::{InspectConfig, InspectTarget, Output, OutputKind, OutputsConfig, RecordConfig};
pub use servers::{Endpoint, EndpointError};
use servers::{Server, endpoints};

/// Above this a sampler burns more than it finds.
const HZ_MAX: u32 = 10_000;
/// Grafana looks 30 s around a span, and the server keeps one time a profile.
const WINDOW_MAX: Duration = Duration::from_secs(30);
/// Shorter windows cost more requests than they are worth.
const WINDOW_MIN: Duration = Duration::from_secs(1);

/// How many attributes of spans can be labels.
const SPAN_ATTRIBUTES_MAX: usize = 8;
/// The labels that profiles and samples have anyway.
const OWN_LABELS: [&str; 8] = [
    "deployment_environment",
    "host",
    "service_name",
    "service_namespace",
    "service_version",
    "span_id",
    "span_name",
    "trace_id",
];

/// What was asked for that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Nothing, or more than makes sense.
    #[error("-F {hz}: the frequency must be 1 to {HZ_MAX} Hz")]
    Frequency {
        /// What was asked for.
        hz: u32,
    },
    /// Too short or too long.
    #[error("--window {}: it must be {WINDOW_MIN:?} to {WINDOW_MAX:?}", humantime::format_duration(*window))]
    Window {
        /// What was asked for.
        window: Duration,
    },
    /// Nothing to write there.
    #[error("{}: its ending must be .pb.gz, .svg, .folded or .json", path.display())]
    Extension {
        /// The file.
        path: PathBuf,
    },
    /// It has no label of its own.
    #[error("--span-attribute {key:?}: there is a label {label:?} already, or it cannot be one")]
    SpanAttribute {
        /// What was typed.
        key: String,
        /// The label that it would have.
        label: String,
    },
    /// Each is a label of every series, of which a server takes 30.
    #[error("--span-attribute: no more than {SPAN_ATTRIBUTES_MAX} attributes can be labels")]
    SpanAttributes,
    /// Not a header. What was typed is not repeated: it may be a secret.
    #[error("--header must be NAME: VALUE")]
    Header,
    /// Half of what a way to say who we are needs, or two ways.
    #[error(
        "--basic-auth-user goes with --basic-auth-password-file, and without --bearer-token-file"
    )]
    Auth,
    /// Not one of the three.
    #[error("--trace-id: it must be auto, on or off")]
    TraceId,
    /// The servers beside the first.
    #[error("endpoints: {0}")]
    Endpoints(#[from] EndpointError),
    /// The host's name is not the node's, in a pod least of all.
    #[error("--kubernetes on: the node's name is missing (--node-name, spec.nodeName of the pod)")]
    NodeName,
    /// Nowhere to push to.
    #[error(
        "there is no server: --pyroscope-url, SPANPROF_PYROSCOPE_URL or pyroscope_url in a file"
    )]
    NoServer,
    /// `--keep` or `--drop`.
    #[error("--keep, --drop: {0}")]
    Filter(#[source] RuleError),
    /// The rules of relabelling.
    #[error("relabel_configs: {0}")]
    Relabel(#[source] RuleError),
    /// No such process.
    #[error("there is no process {}", pid.0)]
    NoSuchProcess {
        /// The process.
        pid: Pid,
    },
}

/// `spanprof run`.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// What to sample.
    pub capture: CaptureConfig,
    /// Which span a sample is charged to.
    pub spans: SpanPolicy,
    /// The most values of a span attribute of a service, before `other`.
    pub span_attribute_values: usize,
    /// How much time one profile covers.
    pub window: Duration,
    /// Inlined functions are frames of their own.
    pub inline: bool,
    /// Profiles have their span's name as a label: the most names of a service, before `other`.
    pub span_names: Option<usize>,
    /// The `host` label.
    pub host: String,
    /// The `node` label, and whose pods to ask for; unset outside of clusters.
    pub node: Option<String>,
    /// Which series are wanted, and their labels.
    pub rules: Arc<[Rule]>,
    /// Where it tells of itself.
    pub listen: Listen,
    /// Where its own traces and metrics go, if anywhere.
    pub otlp: Option<String>,
    /// Where profiles go.
    pub pyroscope: PyroscopeConfig,
    /// And where else.
    pub endpoints: Vec<Endpoint>,
    /// Where the counters go.
    pub stats: Option<PathBuf>,
}

impl RunConfig {
    /// Checks what was typed.
    ///
    /// # Errors
    ///
    /// What was asked for cannot be.
    pub fn new(typed: cli::Run, host: String) -> Result<Self, ConfigError> {
        let hz = frequency(typed.sampling.hz)?;
        let window = window(typed.window)?;
        let url = typed.pyroscope_url.filter(|url| !url.is_empty()).ok_or(ConfigError::NoServer)?;
        let trace_id = typed.trace_id.to_possible_value();
        let pyroscope = Server {
            name: String::new(),
            pyroscope_url: url,
            tenant: typed.tenant,
            basic_auth_user: typed.basic_auth_user,
            basic_auth_password_file: typed.basic_auth_password_file,
            bearer_token_file: typed.bearer_token_file,
            header: typed.header,
            tls_ca_file: typed.tls_ca_file,
            queue_mib: Some(typed.queue_mib),
            trace_id: trace_id.map(|value| value.get_name().to_owned()),
        };
        let endpoints = endpoints(typed.endpoints.as_deref().unwrap_or("[]"))?;
        Ok(Self {
            capture: CaptureConfig {
                hz,
                targets: None,
                bpf_log: typed.sampling.bpf_log,
                sampler: typed.sampling.bpf_sampler.map(Sampler::from),
                reuse: typed.sampling.stack_reuse.into(),
                unwind_memory_max: u64::from(typed.sampling.max_unwind_mib) << 20,
                hook_probe: typed.sampling.hook_probe.map(HookProbe::from),
                least_privilege: true,
            },
            spans: span_policy(typed.spans)?,
            span_attribute_values: typed.span_attribute_max,
            window,
            inline: typed.inline,
            span_names: typed.span_name.then_some(typed.span_name_max),
            host: typed.host.unwrap_or(host),
            listen: typed.listen.map_or(Listen::Default, Listen::from),
            node: node(typed.kubernetes, typed.node_name)?,
            rules: rules(&typed.keep, &typed.drop, typed.relabel_configs.as_deref())?,
            otlp: otlp(typed.otlp_endpoint),
            pyroscope: pyroscope.config()?,
            endpoints,
            stats: typed.stats,
        })
    }
}

/// Filters first, so that rules cannot rename what they look at.
fn rules(
    keep: &[String],
    drop: &[String],
    written: Option<&str>,
) -> Result<Arc<[Rule]>, ConfigError> {
    let filters = relabel::filters(keep, drop).map_err(ConfigError::Filter)?;
    let written = relabel::read(written.unwrap_or("[]")).map_err(ConfigError::Relabel)?;
    Ok(filters.into_iter().chain(written).collect())
}

/// As every program with an OpenTelemetry SDK has it.
fn otlp(typed: Option<String>) -> Option<String> {
    let of_all = || std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok();
    typed.or_else(of_all).filter(|url| !url.is_empty())
}

/// The name of this node, where pods are to be asked for.
fn node(kubernetes: cli::Kubernetes, name: Option<String>) -> Result<Option<String>, ConfigError> {
    let in_cluster = match kubernetes {
        cli::Kubernetes::Auto => is_in_cluster(),
        cli::Kubernetes::On => true,
        cli::Kubernetes::Off => false,
    };
    let name = name.filter(|name| !name.is_empty() && in_cluster);
    if name.is_none() && kubernetes == cli::Kubernetes::On {
        return Err(ConfigError::NodeName);
    }
    Ok(name)
}

impl From<cli::BpfSampler> for Sampler {
    fn from(typed: cli::BpfSampler) -> Self {
        match typed {
            cli::BpfSampler::Loop => Self::Loop,
            cli::BpfSampler::Bounded => Self::Bounded,
            cli::BpfSampler::Floor => Self::Floor,
        }
    }
}

impl From<cli::HookProbe> for HookProbe {
    fn from(typed: cli::HookProbe) -> Self {
        match typed {
            cli::HookProbe::Multi => Self::Multi,
            cli::HookProbe::Perf => Self::Perf,
            cli::HookProbe::Off => Self::Off,
        }
    }
}

impl From<cli::StackReuse> for StackReuse {
    fn from(typed: cli::StackReuse) -> Self {
        match typed {
            cli::StackReuse::Off => Self::Off,
            cli::StackReuse::On => Self::On,
            cli::StackReuse::Check => Self::Check,
        }
    }
}

impl From<cli::SpanScope> for SpanScope {
    fn from(typed: cli::SpanScope) -> Self {
        match typed {
            cli::SpanScope::LocalRoot => Self::LocalRoot,
            cli::SpanScope::Active => Self::Active,
        }
    }
}

fn span_policy(typed: cli::Spans) -> Result<SpanPolicy, ConfigError> {
    let unsampled = match typed.unsampled_spans {
        cli::Unsampled::Keep => Unsampled::Keep,
        cli::Unsampled::Skip => Unsampled::Skip,
    };
    let mut attributes: Vec<ChosenAttribute> = Vec::new();
    for key in typed.attributes {
        let label = label_of(&key);
        let taken = label.starts_with("__")
            || OWN_LABELS.contains(&label.as_str())
            || attributes.iter().any(|chosen| *chosen.label == *label);
        if key.is_empty() || taken {
            return Err(ConfigError::SpanAttribute { key, label });
        }
        if attributes.len() == SPAN_ATTRIBUTES_MAX {
            return Err(ConfigError::SpanAttributes);
        }
        attributes.push(ChosenAttribute { key, label: label.into() });
    }
    Ok(SpanPolicy { scope: typed.span_scope.into(), unsampled, attributes: attributes.into() })
}

/// The label of an attribute: Pyroscope shows names of letters, digits and `_` only.
fn label_of(key: &str) -> String {
    let digit_first = key.starts_with(|character: char| character.is_ascii_digit());
    format!("{}{}", if digit_first { "_" } else { "" }, relabel::sanitized(key))
}

/// A frequency that can be sampled at.
///
/// # Errors
///
/// It cannot.
pub fn frequency(hz: u32) -> Result<u32, ConfigError> {
    if (1..=HZ_MAX).contains(&hz) { Ok(hz) } else { Err(ConfigError::Frequency { hz }) }
}

/// A window that Grafana can show.
///
/// # Errors
///
/// It cannot.
pub fn window(window: Duration) -> Result<Duration, ConfigError> {
    if (WINDOW_MIN..=WINDOW_MAX).contains(&window) {
        Ok(window)
    } else {
        Err(ConfigError::Window { window })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_process_and_all_else_a_file() {
        let target = |typed: &str| {
            let typed = cli::Inspect { target: typed.into(), threads: 1, json: false };
            InspectConfig::from(typed).target
        };
        assert_eq!(target("12"), InspectTarget::Process(Pid(12)));
        assert_eq!(target("./12"), InspectTarget::File("./12".into()));
        assert_eq!(target("/bin/sh"), InspectTarget::File("/bin/sh".into()));
    }

    #[test]
    fn attributes_of_spans_are_labels_of_their_own() {
        let policy = |keys: &[&str]| {
            span_policy(cli::Spans {
                span_scope: cli::SpanScope::Active,
                unsampled_spans: cli::Unsampled::Skip,
                attributes: keys.iter().map(|&key| key.to_owned()).collect(),
            })
        };
        let found = policy(&["http.route", "rpc/method", "2xx"]).unwrap();
        let labels: Vec<&str> = found.attributes.iter().map(|chosen| &*chosen.label).collect();
        assert_eq!(labels, ["http_route", "rpc_method", "_2xx"]);
        assert_eq!((found.scope, found.unsampled), (SpanScope::Active, Unsampled::Skip));
        for refused in [&["span.id"][..], &["http.route", "http_route"], &[""], &["__name__"]] {
            assert!(matches!(policy(refused), Err(ConfigError::SpanAttribute { .. })));
        }
        assert!(matches!(
            policy(&["a", "b", "c", "d", "e", "f", "g", "h", "i"]),
            Err(ConfigError::SpanAttributes)
        ));
    }

    #[test]
    fn a_frequency_has_bounds() {
        assert!(frequency(0).is_err());
        assert!(frequency(1).is_ok());
        assert!(frequency(10_000).is_ok());
        let error = frequency(100_000).unwrap_err().to_string();
        assert_eq!(error, "-F 100000: the frequency must be 1 to 10000 Hz");
    }

    #[test]
    fn a_window_has_bounds() {
        assert!(window(Duration::from_millis(999)).is_err());
        assert!(window(Duration::from_secs(30)).is_ok());
        let error = window(Duration::from_secs(31)).unwrap_err().to_string();
        assert_eq!(error, "--window 31s: it must be 1s to 30s");
    }

    #[test]
    fn the_ending_says_what_to_write() {
        let kind = |name: &str| Output::new(PathBuf::from(name)).map(|output| output.kind).ok();
        assert_eq!(kind("a.pb.gz"), Some(OutputKind::Pprof));
        assert_eq!(kind("/x/a.svg"), Some(OutputKind::Svg));
        assert_eq!(kind("a.folded"), Some(OutputKind::Folded));
        assert_eq!(kind("a.json"), Some(OutputKind::Json));
        assert_eq!(kind("a.gz"), None);
        assert_eq!(kind("a"), None);
    }
}
