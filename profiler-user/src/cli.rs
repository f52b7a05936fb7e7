//! What the user typed: strings and numbers, nothing resolved. `config` makes sense of it.
#![expect(clippy::doc_markdown, reason = "these comments are help texts, read on a terminal")]

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::builder::BoolishValueParser as Boolish;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// The default sampling frequency: a prime, so that it keeps out of step with timers of the host.
pub const DEFAULT_HZ: u32 = 97;

/// Continuous profiling that answers "which request burnt this CPU?".
#[derive(Debug, Parser)]
#[command(name = "spanprof", version, max_term_width = 100)]
pub struct Cli {
    /// Say more: -v for debug messages, -vv for all. RUST_LOG, where it is set, decides instead
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Profile this host, some processes or one command for a while, and write what was found
    #[command(after_help = RECORD_EXAMPLES)]
    Record(Record),
    /// Profile this host until told to stop, and push to Grafana Pyroscope
    #[command(after_help = RUN_EXAMPLES)]
    Run(Box<Run>),
    /// Check what `run` would do with these options, or print them as a file of options
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make the same outputs from a file of `record --raw`: needs no privileges
    Replay(Replay),
    /// Say what is known of a process or a file: mappings, unwind tables, span slot, names of code
    /// made at run time, and the stack of a thread now, frame by frame. For bug reports
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(Inspect),
    /// Say what this kernel and these privileges allow, by trying, and what each missing thing costs
    Doctor,
    /// Print what makes a shell complete the commands and options of spanprof
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder
    Man {
        /// The folder
        folder: PathBuf,
    },
    /// Turn addresses into names for the process that started this one
    #[command(hide = true)]
    SymbolizeWorker,
}

/// `spanprof config`.
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say what is wrong with the options of `run`, its file and its variables included
    Check(Box<Run>),
    /// Print every option of `run` as it would be in force, and where it is from; secrets are hidden
    Print(Box<Run>),
}

const RECORD_EXAMPLES: &str = "\
Examples:
  spanprof record                          the whole host for 10 s, a table on the terminal
  spanprof record -d 30s -o cpu.pb.gz -o cpu.svg
  spanprof record -p 1234 -F 499 -o spans.json
  spanprof record -o flame.svg -- ./my-service --port 8080";

const RUN_EXAMPLES: &str = "\
Examples:
  spanprof run --pyroscope-url http://pyroscope:4040
  spanprof run --pyroscope-url https://profiles.example.com --tenant team-a \\
      --bearer-token-file /run/secrets/token";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  spanprof completions bash > /etc/bash_completion.d/spanprof
  spanprof completions fish > ~/.config/fish/completions/spanprof.fish";

const INSPECT_EXAMPLES: &str = "\
Examples:
  spanprof inspect 1234                    a process and the stack of its first thread
  spanprof inspect --threads 100 --json 1234
  spanprof inspect /usr/lib/libssl.so.3    the unwind table of a file
  spanprof inspect ./1234                  a file whose name is a number";

/// Options of everything that samples.
#[derive(Args, Clone, Debug)]
pub struct Sampling {
    /// Samples per second and CPU, 1 to 10000
    #[arg(short = 'F', long = "frequency", value_name = "HZ", default_value_t = DEFAULT_HZ)]
    #[arg(env = "SPANPROF_FREQUENCY")]
    pub hz: u32,
    /// Show the diagnostics of the BPF programs in the log
    #[arg(long, env = "SPANPROF_BPF_LOG", value_parser = Boolish::new())]
    pub bpf_log: bool,
    /// The most memory that unwind tables may take, in MiB. Files that there is no room for are
    /// walked by frame pointer
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 256,
        env = "SPANPROF_MAX_UNWIND_MIB",
        value_parser = clap::value_parser!(u32).range(8..=512)
    )]
    pub max_unwind_mib: u32,
    /// The BPF program that samples, where it is not to be the one that this kernel can run
    #[arg(long, hide = true, value_enum)]
    pub bpf_sampler: Option<BpfSampler>,
    /// Reuse the stack that a thread had at its last sample as far as it is the same
    #[arg(long, hide = true, value_enum, default_value_t)]
    pub stack_reuse: StackReuse,
    /// How calls of span-marker's hook are noticed, where it is not to be as this kernel can
    #[arg(long, hide = true, value_enum)]
    pub hook_probe: Option<HookProbe>,
}

/// Which span of a trace a sample is charged to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SpanScope {
    /// The first span of this process in the trace: the request that it serves
    #[default]
    LocalRoot,
    /// The innermost span that is being worked on
    Active,
}

/// Whether stacks are reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum StackReuse {
    /// Walk each stack from its leaf to its root
    Off,
    /// Reuse what is the same
    #[default]
    On,
    /// Reuse, walk again without, and count what differs
    Check,
}

/// A program that samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BpfSampler {
    /// Walks stacks with `bpf_loop` (Linux 5.17)
    Loop,
    /// Walks stacks as on older kernels
    Bounded,
    /// Walks no stacks, to measure what the others cost: its frames are meaningless
    Floor,
}

/// A way to notice that a program calls span-marker's hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HookProbe {
    /// A `uprobe_multi` link (Linux 6.6)
    Multi,
    /// A perf event
    Perf,
    /// None
    Off,
}

/// What becomes of samples in spans that their trace does not keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Unsampled {
    /// They are charged to the span
    #[default]
    Keep,
    /// They are charged to no span: there is no trace that leads to it
    Skip,
}

/// Options of everything that attributes samples.
#[derive(Args, Clone, Debug)]
pub struct Spans {
    /// Charge samples to the local root span or to the active span
    #[arg(long, value_enum, default_value_t, env = "SPANPROF_SPAN_SCOPE")]
    pub span_scope: SpanScope,
    /// What becomes of samples in spans that are not sampled (W3C trace flags)
    #[arg(long, value_enum, default_value_t, env = "SPANPROF_UNSAMPLED_SPANS")]
    pub unsampled_spans: Unsampled,
    /// Label samples with this attribute of the active span, as http_route for http.route, where
    /// the process publishes it. May be given up to 8 times; in the variable, commas are between
    #[arg(long = "span-attribute", value_name = "KEY", value_delimiter = ',')]
    #[arg(env = "SPANPROF_SPAN_ATTRIBUTE")]
    pub attributes: Vec<String>,
}

/// Options of everything that writes files.
#[derive(Args, Clone, Debug)]
pub struct Outputs {
    /// Which spans.
    #[command(flatten)]
    pub spans: Spans,
    /// Write this file; its ending says what: .pb.gz (pprof), .svg (flame graph), .folded, .json
    /// (span table). May be given more than once
    #[arg(short, long = "output", value_name = "FILE")]
    pub output: Vec<PathBuf>,
    /// Write every counter of the pipeline to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,
}

/// `spanprof record`.
#[derive(Args, Clone, Debug)]
pub struct Record {
    /// How long: 30s, 2m, 1h. If not given, 10s; with a command, until it ends. A command that goes
    /// on after that is told to end (SIGTERM)
    #[arg(short, long, value_name = "DURATION", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Sample only this process and its descendants. May be given more than once
    #[arg(short, long = "pid", value_name = "PID", conflicts_with = "exec")]
    pub pid: Vec<u32>,
    /// How to sample.
    #[command(flatten)]
    pub sampling: Sampling,
    /// What to write.
    #[command(flatten)]
    pub outputs: Outputs,
    /// Store what came from the kernel, with what is needed to make sense of it elsewhere
    #[arg(long, value_name = "FILE")]
    pub raw: Option<PathBuf>,
    /// Show a function that was inlined as part of its caller
    #[arg(long)]
    pub no_inline: bool,
    /// Run this command and sample it and its descendants only
    #[arg(last = true, value_name = "COMMAND")]
    pub exec: Vec<OsString>,
}

/// `spanprof replay`.
#[derive(Args, Clone, Debug)]
pub struct Replay {
    /// A file of `spanprof record --raw`
    pub file: PathBuf,
    /// What to write.
    #[command(flatten)]
    pub outputs: Outputs,
}

/// `spanprof inspect`.
#[derive(Args, Clone, Debug)]
pub struct Inspect {
    /// A process, by its id, or a file
    #[arg(value_name = "PID|FILE")]
    pub target: PathBuf,
    /// The most threads whose stacks are walked; each is stopped for some milliseconds
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threads: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Whether to send trace ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TraceIdLabel {
    /// If the server is Pyroscope 2.1 or newer: older ones make a series of every trace
    #[default]
    Auto,
    /// Always
    On,
    /// Never
    Off,
}

/// Whether this is a node of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Kubernetes {
    /// If KUBERNETES_SERVICE_HOST is set, as it is in every pod
    #[default]
    Auto,
    /// Yes
    On,
    /// No
    Off,
}

/// `spanprof run`.
#[derive(Args, Clone, Debug)]
pub struct Run {
    /// Take options from this YAML file too: keys are the options' names with _ for -. What is typed
    /// goes before variables, and these before the file. Read again on SIGHUP
    #[arg(long, value_name = "FILE", env = "SPANPROF_CONFIG")]
    pub config: Option<PathBuf>,
    /// How to sample.
    #[command(flatten)]
    pub sampling: Sampling,
    /// Which spans.
    #[command(flatten)]
    pub spans: Spans,
    /// The most values of a span attribute that a service has labels of; the others share `other`:
    /// in Pyroscope, every set of values is a series
    #[arg(long, value_name = "N", default_value_t = 100, env = "SPANPROF_SPAN_ATTRIBUTE_MAX")]
    pub span_attribute_max: usize,
    /// The server: http:// or https://, host, port, and its path prefix if it has one
    #[arg(long, value_name = "URL", env = "SPANPROF_PYROSCOPE_URL")]
    pub pyroscope_url: Option<String>,
    /// Drop all series but those whose NAME (namespace, pod, container, service or exe) matches this
    /// regular expression, anchored at both ends. May be given more than once: all have to match; in
    /// the variable, each is a line
    #[arg(long, value_name = "NAME=REGEX", value_delimiter = '\n', env = "SPANPROF_KEEP")]
    pub keep: Vec<String>,
    /// Drop series whose NAME matches, as --keep. May be given more than once: one has to match
    #[arg(long, value_name = "NAME=REGEX", value_delimiter = '\n', env = "SPANPROF_DROP")]
    pub drop: Vec<String>,
    /// Rules of relabelling as in Prometheus and Alloy (relabel_configs), as YAML: a list of rules
    #[arg(long, value_name = "YAML", env = "SPANPROF_RELABEL_CONFIGS")]
    pub relabel_configs: Option<String>,
    /// More servers beside the first, as a list of YAML: each with a name, pyroscope_url, and what the
    /// first can have (tenant, basic_auth_user, basic_auth_password_file, bearer_token_file, header,
    /// tls_ca_file, queue_mib, trace_id). Each has a queue of its own
    #[arg(long, value_name = "YAML", env = "SPANPROF_ENDPOINTS", hide_env_values = true)]
    pub endpoints: Option<String>,
    /// How much time one profile covers, 1s to 30s: Grafana looks 30 s around a span
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    #[arg(env = "SPANPROF_WINDOW")]
    pub window: Duration,
    /// Show inlined functions as frames of their own: more exact, and more memory and CPU
    #[arg(long, env = "SPANPROF_INLINE", value_parser = Boolish::new())]
    pub inline: bool,
    /// Label samples with their trace id
    #[arg(long, value_enum, default_value_t, env = "SPANPROF_TRACE_ID")]
    pub trace_id: TraceIdLabel,
    /// Label profiles with the span's name: one series per name and service
    #[arg(long, env = "SPANPROF_SPAN_NAME", value_parser = Boolish::new())]
    pub span_name: bool,
    /// The most span names of a service, with --span-name; the others share `other`
    #[arg(long, value_name = "N", default_value_t = 100)]
    #[arg(env = "SPANPROF_SPAN_NAME_MAX")]
    pub span_name_max: usize,
    /// The `host` label; the host's name if not given
    #[arg(long, value_name = "NAME", env = "SPANPROF_HOST")]
    pub host: Option<String>,
    /// Where to serve /metrics, /healthz and /readyz: address and port, or "off". By default
    /// 127.0.0.1:7072, if that is free
    #[arg(long, value_name = "ADDRESS", env = "SPANPROF_LISTEN")]
    pub listen: Option<String>,
    /// Where the agent's own traces and metrics go, by OTLP over HTTP: the URL before /v1/traces. If it
    /// is not set, the variable OTEL_EXPORTER_OTLP_ENDPOINT counts
    #[arg(long, value_name = "URL", env = "SPANPROF_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Whether to ask the API server of the cluster for the pods of this node
    #[arg(long, value_enum, default_value_t, env = "SPANPROF_KUBERNETES")]
    pub kubernetes: Kubernetes,
    /// The name of this node in the cluster (spec.nodeName); required to ask for its pods
    #[arg(long, value_name = "NAME", env = "SPANPROF_NODE_NAME")]
    pub node_name: Option<String>,
    /// The X-Scope-OrgID of a server with tenants
    #[arg(long, value_name = "TENANT", env = "SPANPROF_TENANT")]
    pub tenant: Option<String>,
    /// The user of HTTP basic authentication
    #[arg(long, value_name = "USER", requires = "basic_auth_password_file")]
    #[arg(env = "SPANPROF_BASIC_AUTH_USER")]
    pub basic_auth_user: Option<String>,
    /// A file with the password of HTTP basic authentication
    #[arg(long, value_name = "FILE", requires = "basic_auth_user")]
    #[arg(env = "SPANPROF_BASIC_AUTH_PASSWORD_FILE")]
    pub basic_auth_password_file: Option<PathBuf>,
    /// A file with a bearer token
    #[arg(long, value_name = "FILE", conflicts_with = "basic_auth_user")]
    #[arg(env = "SPANPROF_BEARER_TOKEN_FILE")]
    pub bearer_token_file: Option<PathBuf>,
    /// Another header of every request. No place for a secret: the list of processes shows it. May
    /// be given more than once; in the variable, each is a line
    #[arg(long, value_name = "NAME: VALUE", value_delimiter = '\n')]
    #[arg(env = "SPANPROF_HEADER", hide_env_values = true)]
    pub header: Vec<String>,
    /// Trust the certificate authorities in this PEM file instead of the public ones
    #[arg(long, value_name = "FILE", env = "SPANPROF_TLS_CA_FILE")]
    pub tls_ca_file: Option<PathBuf>,
    /// Profiles that wait for the server, in MiB; the oldest go first
    #[arg(long, value_name = "MIB", default_value_t = 64, env = "SPANPROF_QUEUE_MIB")]
    pub queue_mib: usize,
    /// Write every counter of the pipeline to this file after each window, as JSON
    #[arg(long, value_name = "FILE", env = "SPANPROF_STATS")]
    pub stats: Option<PathBuf>,
}

/// `10s`, `1m30s`, `250ms`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration.is_zero() { Err("it must be longer than nothing".to_owned()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    /// What is said in the ConfigMap is what is said on the command line.
    #[test]
    fn every_option_of_run_has_a_variable_of_its_name() {
        let mut cli = Cli::command();
        let run = cli.find_subcommand_mut("run").unwrap();
        for option in run.get_arguments().filter(|option| !option.is_hide_set()) {
            let Some(long) = option.get_long().filter(|long| *long != "help") else { continue };
            let name = format!("SPANPROF_{}", long.replace('-', "_").to_uppercase());
            let variable = option.get_env().and_then(|variable| variable.to_str());
            assert_eq!(variable, Some(name.as_str()), "--{long}");
        }
    }

    #[track_caller]
    fn refused(line: &str, because: &str) {
        let error = Cli::try_parse_from(line.split(' ')).unwrap_err().to_string();
        assert!(error.contains(because), "{error}");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        refused("spanprof record -d 0s", "longer than nothing");
        refused("spanprof record -d soon", "-d");
        refused("spanprof record -p 1 -- true", "cannot be used with");
        refused("spanprof record -F many", "HZ");
    }

    #[test]
    fn a_command_keeps_its_own_options() {
        let line = "spanprof record -o a.svg -- prog -d -o x";
        let Command::Record(record) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
            panic!("not record");
        };
        assert_eq!(record.exec, ["prog", "-d", "-o", "x"]);
        assert_eq!(record.outputs.output, [PathBuf::from("a.svg")]);
    }
}
