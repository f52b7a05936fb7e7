//! What spanprof wrote, as a test reads it: pprof by Go's own package, folded stacks, the span
//! table.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// A pprof file as Go's `github.com/google/pprof/profile` understands it.
#[derive(Clone, Debug, Deserialize)]
pub struct Pprof {
    /// Each with its unit.
    pub sample_types: Vec<ValueType>,
    /// What the period measures.
    pub period_type: Option<ValueType>,
    /// What one sample stands for.
    pub period: i64,
    /// When it began, since the Unix epoch.
    pub time_nanos: i64,
    /// How long it was.
    pub duration_nanos: i64,
    /// The binaries.
    pub mappings: Vec<Mapping>,
    /// The samples.
    #[serde(deserialize_with = "null_is_empty")]
    pub samples: Vec<Sample>,
}

/// A type of value.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ValueType {
    /// Such as `cpu`.
    pub r#type: String,
    /// Such as `nanoseconds`.
    pub unit: String,
}

/// A binary.
#[derive(Clone, Debug, Deserialize)]
pub struct Mapping {
    /// Its path.
    pub file: String,
    /// Its build ID, in hex.
    pub build_id: String,
}

/// One stack with one set of labels.
#[derive(Clone, Debug, Deserialize)]
pub struct Sample {
    /// By sample type.
    pub values: Vec<i64>,
    /// Leaf first.
    #[serde(deserialize_with = "null_is_empty")]
    pub functions: Vec<String>,
    /// By key.
    #[serde(deserialize_with = "null_is_empty")]
    pub labels: BTreeMap<String, Vec<String>>,
}

/// Go writes an empty slice or map as `null`.
fn null_is_empty<'de, T, D>(from: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    Option::deserialize(from).map(Option::unwrap_or_default)
}

impl Pprof {
    /// Reads a file with `reader`, which is `tests/pyroscope/pprofread`.
    ///
    /// # Errors
    ///
    /// Go refuses it.
    pub fn read(reader: &Path, file: &Path) -> Result<Self> {
        let output = Command::new(reader).arg(file).output().context("cannot run the reader")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "Go refuses {}: {errors}", file.display());
        serde_json::from_slice(&output.stdout).context("the reader's output is not understood")
    }

    /// The samples of a service.
    pub fn of_service<'a>(&'a self, service: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.label("service_name") == Some(service))
    }
}

impl Sample {
    /// The value of a label, if it has exactly one.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        match self.labels.get(key)?.as_slice() {
            [value] => Some(value),
            _ => None,
        }
    }

    /// How many samples, by the first sample type.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.values.first().and_then(|&count| count.try_into().ok()).unwrap_or(0)
    }

    /// The functions from the leaf to `root`, which is in it; all if it is not.
    #[must_use]
    pub fn up_to(&self, root: &str) -> Vec<&str> {
        let end = self.functions.iter().position(|function| function == root);
        let to_root = self.functions.iter().take(end.map_or(usize::MAX, |at| at + 1));
        to_root.map(String::as_str).collect()
    }
}

/// A line of folded stacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folded {
    /// The service.
    pub service: String,
    /// The span's name, or `(no span)`, or `(unnamed span)`.
    pub span: String,
    /// Root first.
    pub frames: Vec<String>,
    /// How many samples.
    pub count: u64,
}

impl Folded {
    /// The functions from the leaf to `root`, which is in it; all if it is not.
    #[must_use]
    pub fn up_to(&self, root: &str) -> Vec<&str> {
        let start = self.frames.iter().rposition(|frame| frame == root).unwrap_or(0);
        self.frames.iter().skip(start).rev().map(String::as_str).collect()
    }

    /// Reads all lines.
    ///
    /// # Errors
    ///
    /// One is not `service;span;frame… count`.
    pub fn parse(text: &str) -> Result<Vec<Self>> {
        text.lines().map(|line| Self::line(line).with_context(|| line.to_owned())).collect()
    }

    fn line(line: &str) -> Result<Self> {
        let (stack, count) = line.rsplit_once(' ').context("no count")?;
        let mut frames = stack.split(';').map(str::to_owned);
        let service = frames.next().context("no service")?;
        let span = frames.next().context("no span")?;
        Ok(Self { service, span, frames: frames.collect(), count: count.parse()? })
    }
}

/// The span table, as much of it as tests look at.
#[derive(Clone, Debug, Deserialize)]
pub struct SpanTable {
    /// CPU time that one sample stands for.
    pub period_ns: u64,
    /// All services together.
    pub totals: Totals,
    /// By service.
    pub services: Vec<Service>,
    /// By span.
    pub spans: Vec<Span>,
}

/// Sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Totals {
    /// All samples.
    pub samples: u64,
    /// Their CPU time.
    pub cpu_ns: u64,
    /// Those in spans.
    pub span_samples: u64,
    /// Their CPU time.
    pub span_cpu_ns: u64,
}

/// A service.
#[derive(Clone, Debug, Deserialize)]
pub struct Service {
    /// Its name.
    pub service: String,
    /// What it used.
    #[serde(flatten)]
    pub totals: Totals,
}

/// A span.
#[derive(Clone, Debug, Deserialize)]
pub struct Span {
    /// Its service.
    pub service: String,
    /// Its name, if known.
    pub span_name: Option<String>,
    /// 32 hex digits.
    pub trace_id: String,
    /// 16 hex digits.
    pub span_id: String,
    /// How many samples.
    pub samples: u64,
    /// Their CPU time.
    pub cpu_ns: u64,
}

impl SpanTable {
    /// What a service used; nothing if it is not there.
    #[must_use]
    pub fn service(&self, name: &str) -> Totals {
        let found = self.services.iter().find(|service| service.service == name);
        found.map(|service| service.totals).unwrap_or_default()
    }

    /// CPU time by span name; spans without a name are `""`.
    #[must_use]
    pub fn cpu_by_name(&self) -> BTreeMap<&str, u64> {
        let mut by_name = BTreeMap::new();
        for span in &self.spans {
            *by_name.entry(span.span_name.as_deref().unwrap_or_default()).or_default() +=
                span.cpu_ns;
        }
        by_name
    }
}
