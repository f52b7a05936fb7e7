//! Questions to a server: Connect with JSON.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::Server;

/// The profile type of CPU time.
pub const CPU: &str = "process_cpu:cpu:nanoseconds:cpu:nanoseconds";

/// From and until, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRange {
    /// From.
    pub start_unix_ms: i64,
    /// Until.
    pub end_unix_ms: i64,
}

impl TimeRange {
    /// This long ago until a minute from here.
    ///
    /// # Errors
    ///
    /// When the clock is out of range.
    pub fn last(duration: Duration) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let end = now + Duration::from_secs(60);
        Ok(Self {
            start_unix_ms: i64::try_from(now.saturating_sub(duration).as_millis())?,
            end_unix_ms: i64::try_from(end.as_millis())?,
        })
    }
}

/// What a flame graph sums up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpanProfile {
    /// The sum of the values.
    pub total: i64,
    /// The functions in it, without the root that stands for all.
    pub functions: BTreeSet<String>,
}

impl Server {
    /// CPU profile of spans.
    ///
    /// # Errors
    ///
    /// When the server refuses or does not answer as it should.
    pub fn select_merge_span_profile(
        &self,
        selector: &str,
        span_ids: &[&str],
        range: TimeRange,
    ) -> Result<SpanProfile> {
        let mut request = request(selector, range);
        request["spanSelector"] = json!(span_ids);
        flame_graph(&self.query("SelectMergeSpanProfile", &request)?)
    }

    /// CPU profile of everything that matches.
    ///
    /// # Errors
    ///
    /// As [`select_merge_span_profile`](Self::select_merge_span_profile).
    pub fn select_merge_stacktraces(
        &self,
        selector: &str,
        range: TimeRange,
    ) -> Result<SpanProfile> {
        flame_graph(&self.query("SelectMergeStacktraces", &request(selector, range))?)
    }

    /// The names of the series labels.
    ///
    /// # Errors
    ///
    /// As [`select_merge_span_profile`](Self::select_merge_span_profile).
    pub fn label_names(&self, selector: &str, range: TimeRange) -> Result<BTreeSet<String>> {
        let request = json!({
            "matchers": [selector], "start": range.start_unix_ms, "end": range.end_unix_ms,
        });
        let answer = self.query("LabelNames", &request)?;
        let names = answer["names"].as_array().map(Vec::as_slice).unwrap_or_default();
        names.iter().map(text).collect()
    }

    /// The distinct sets of these labels, each as `name=value` in the order of the names asked for.
    ///
    /// # Errors
    ///
    /// As [`select_merge_span_profile`](Self::select_merge_span_profile).
    pub fn series(
        &self,
        selector: &str,
        names: &[&str],
        range: TimeRange,
    ) -> Result<BTreeSet<Vec<String>>> {
        let request = json!({
            "matchers": [selector], "labelNames": names,
            "start": range.start_unix_ms, "end": range.end_unix_ms,
        });
        let answer = self.query("Series", &request)?;
        let sets = answer["labelsSet"].as_array().map(Vec::as_slice).unwrap_or_default();
        let set = |set: &Value| -> Result<Vec<String>> {
            let pairs = set["labels"].as_array().map(Vec::as_slice).unwrap_or_default();
            let mut labels = pairs
                .iter()
                .map(|pair| Ok((text(&pair["name"])?, text(&pair["value"])?)))
                .collect::<Result<Vec<_>>>()?;
            labels.sort_by_key(|(name, _)| names.iter().position(|wanted| wanted == name));
            Ok(labels.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
        };
        sets.iter().map(set).collect()
    }

    /// Calls a method of the querier.
    ///
    /// # Errors
    ///
    /// When the server refuses, or does not answer with JSON.
    pub fn query(&self, method: &str, request: &Value) -> Result<Value> {
        let url = format!("{}/querier.v1.QuerierService/{method}", self.url());
        let response = self
            .http
            .post(url)
            .header("content-type", "application/json")
            .body(request.to_string())
            .send()?;
        let status = response.status();
        let body = response.text()?;
        if !status.is_success() {
            bail!("{method} was answered with {status}: {body}");
        }
        serde_json::from_str(&body).with_context(|| format!("{method} was answered with {body}"))
    }
}

fn request(selector: &str, range: TimeRange) -> Value {
    json!({
        "profileTypeID": CPU,
        "labelSelector": selector,
        "start": range.start_unix_ms,
        "end": range.end_unix_ms,
        // Without it the server leaves small functions out.
        "maxNodes": 100_000,
    })
}

fn flame_graph(answer: &Value) -> Result<SpanProfile> {
    let graph = &answer["flamegraph"];
    // Protobuf's JSON leaves out what is zero or empty, and writes int64 as text.
    let total = match &graph["total"] {
        Value::Null => 0,
        total => text(total)?.parse().context("the total is not a number")?,
    };
    let names = graph["names"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut functions = names.iter().map(text).collect::<Result<BTreeSet<_>>>()?;
    functions.remove("total");
    Ok(SpanProfile { total, functions })
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("{value} is not a string"))
}
