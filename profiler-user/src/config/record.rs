//! What the commands need that look at something once: `record`, `replay`, `inspect`.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{ConfigError, frequency, span_policy};
use crate::attribute::SpanPolicy;
use crate::capture::{HookProbe, Sampler, StackReuse};
use crate::cli;
use crate::decode::Pid;

/// How long `record` samples when nothing says when to stop.
const RECORD_DURATION: Duration = Duration::from_secs(10);

/// A file to write, and what to write there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The file.
    pub path: PathBuf,
    /// What it gets.
    pub kind: OutputKind,
}

/// What a file gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// A gzipped pprof.
    Pprof,
    /// A flame graph.
    Svg,
    /// Folded stacks.
    Folded,
    /// The span table.
    Json,
}

/// `spanprof record`.
#[derive(Clone, Debug)]
pub struct RecordConfig {
    /// When to stop; `None`: when the command ends.
    pub duration: Option<Duration>,
    /// Samples per second and CPU.
    pub hz: u32,
    /// The processes to sample, if not all.
    pub pids: Vec<Pid>,
    /// The command to run and sample, if there is one.
    pub command: Vec<OsString>,
    /// What to write.
    pub outputs: OutputsConfig,
    /// Where to store what came from the kernel.
    pub raw: Option<PathBuf>,
    /// Inlined functions are frames of their own.
    pub inline: bool,
    /// BPF-side diagnostics.
    pub bpf_log: bool,
    /// How to walk stacks; `None`: as this kernel can.
    pub sampler: Option<Sampler>,
    /// Whether a thread's last stack is reused.
    pub reuse: StackReuse,
    /// What the maps of unwinding may take together, in bytes.
    pub unwind_memory_max: u64,
    /// How calls of span-marker's hook are noticed; `None`: as this kernel can.
    pub hook_probe: Option<HookProbe>,
}

/// What `record` and `replay` write.
#[derive(Clone, Debug)]
pub struct OutputsConfig {
    /// The files.
    pub files: Vec<Output>,
    /// Where the counters go.
    pub stats: Option<PathBuf>,
    /// Which span a sample is charged to.
    pub spans: SpanPolicy,
}

impl RecordConfig {
    /// Checks what was typed.
    ///
    /// # Errors
    ///
    /// What was asked for cannot be.
    pub fn new(typed: cli::Record) -> Result<Self, ConfigError> {
        let cli::Record { duration, pid, sampling, outputs, raw, no_inline, exec } = typed;
        let pids: Vec<Pid> = pid.into_iter().map(Pid).collect();
        for &pid in &pids {
            if !Path::new("/proc").join(pid.0.to_string()).exists() {
                return Err(ConfigError::NoSuchProcess { pid });
            }
        }
        let until_the_end = duration.is_none() && !exec.is_empty();
        Ok(Self {
            duration: if until_the_end { None } else { Some(duration.unwrap_or(RECORD_DURATION)) },
            hz: frequency(sampling.hz)?,
            pids,
            command: exec,
            outputs: OutputsConfig::new(outputs)?,
            raw,
            inline: !no_inline,
            bpf_log: sampling.bpf_log,
            sampler: sampling.bpf_sampler.map(Sampler::from),
            reuse: sampling.stack_reuse.into(),
            unwind_memory_max: u64::from(sampling.max_unwind_mib) << 20,
            hook_probe: sampling.hook_probe.map(HookProbe::from),
        })
    }
}

/// What `spanprof inspect` looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InspectTarget {
    /// A process.
    Process(Pid),
    /// A file.
    File(PathBuf),
}

/// `spanprof inspect`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectConfig {
    /// What to look at.
    pub target: InspectTarget,
    /// The most threads whose stacks are walked.
    pub threads: usize,
    /// JSON, not text.
    pub json: bool,
}

impl From<cli::Inspect> for InspectConfig {
    /// A number is a process; a file of such a name can be given with a folder.
    fn from(typed: cli::Inspect) -> Self {
        let cli::Inspect { target, threads, json } = typed;
        let pid = target.to_str().and_then(|text| text.parse().ok()).map(Pid);
        let target = pid.map_or(InspectTarget::File(target), InspectTarget::Process);
        Self { target, threads, json }
    }
}

impl OutputsConfig {
    /// Checks what was typed.
    ///
    /// # Errors
    ///
    /// A file's ending does not say what to write, or an attribute cannot be a label.
    pub fn new(typed: cli::Outputs) -> Result<Self, ConfigError> {
        let cli::Outputs { spans, output, stats } = typed;
        let files = output.into_iter().map(Output::new).collect::<Result<_, _>>()?;
        Ok(Self { files, stats, spans: span_policy(spans)? })
    }
}

impl Output {
    pub(super) fn new(path: PathBuf) -> Result<Self, ConfigError> {
        let name = path.to_string_lossy();
        let endings = [
            (".pb.gz", OutputKind::Pprof),
            (".svg", OutputKind::Svg),
            (".folded", OutputKind::Folded),
            (".json", OutputKind::Json),
        ];
        match endings.into_iter().find(|(ending, _)| name.ends_with(ending)) {
            Some((_, kind)) => Ok(Self { path, kind }),
            None => Err(ConfigError::Extension { path }),
        }
    }
}
