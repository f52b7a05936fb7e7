//! What a push request holds, read by the field numbers of the two formats alone: nothing here
//! knows the exporter or the encoder.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;

use anyhow::{Context as _, Result, ensure};
use prost::Message;

/// No profile that a test sees is larger.
const MAX_PROFILE_BYTES: u64 = 64 << 20;

/// One profile on its way to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The labels of its series.
    pub labels: BTreeMap<String, String>,
    /// When its window began.
    pub time_nanos: i64,
    /// How long it was.
    pub duration_nanos: i64,
    /// How much CPU time one sample stands for.
    pub period: i64,
    /// CPU time in nanoseconds by `span_id`; what has none is under the empty text.
    pub spans: BTreeMap<String, i64>,
    /// The names of all labels that samples have.
    pub sample_labels: BTreeSet<String>,
}

impl Pushed {
    /// All of its CPU time, in nanoseconds.
    #[must_use]
    pub fn total(&self) -> i64 {
        self.spans.values().sum()
    }

    /// How many samples of the timer it stands for.
    ///
    /// # Errors
    ///
    /// Its CPU time is no whole number of periods.
    pub fn samples(&self) -> Result<u64> {
        let total = self.total();
        ensure!(self.period > 0 && total % self.period == 0, "{total} ns by {} ns", self.period);
        Ok(u64::try_from(total / self.period)?)
    }

    /// One of the series' labels.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }

    /// The profiles of a request; one without any is a probe.
    ///
    /// # Errors
    ///
    /// It is no such request.
    pub fn read_request(body: &[u8]) -> Result<Vec<Self>> {
        let request = PushRequest::decode(body).context("not a push request")?;
        let mut profiles = Vec::new();
        for Series { labels, samples } in request.series {
            let labels: BTreeMap<_, _> =
                labels.into_iter().map(|LabelPair { name, value }| (name, value)).collect();
            for sample in samples {
                profiles.push(Self::read(labels.clone(), &sample.raw_profile)?);
            }
        }
        Ok(profiles)
    }

    fn read(labels: BTreeMap<String, String>, gzipped: &[u8]) -> Result<Self> {
        let mut pprof = Vec::new();
        flate2::read::GzDecoder::new(gzipped)
            .take(MAX_PROFILE_BYTES)
            .read_to_end(&mut pprof)
            .context("a profile is not gzip")?;
        let profile = Profile::decode(pprof.as_slice()).context("a profile is not pprof")?;
        let text = |index: i64| -> Result<&str> {
            let found = usize::try_from(index).ok().and_then(|at| profile.string_table.get(at));
            Ok(found.context("a string is not in the profile's table")?)
        };
        let mut spans: BTreeMap<String, i64> = BTreeMap::new();
        let mut sample_labels = BTreeSet::new();
        for sample in &profile.sample {
            let [value] = *sample.value else {
                anyhow::bail!("{} values for a sample", sample.value.len());
            };
            let mut span_id = "";
            for label in &sample.label {
                let key = text(label.key)?;
                sample_labels.insert(key.to_owned());
                if key == "span_id" {
                    span_id = text(label.str)?;
                }
            }
            *spans.entry(span_id.to_owned()).or_default() += value;
        }
        Ok(Self {
            labels,
            time_nanos: profile.time_nanos,
            duration_nanos: profile.duration_nanos,
            period: profile.period,
            spans,
            sample_labels,
        })
    }
}

#[derive(Clone, PartialEq, Message)]
struct PushRequest {
    #[prost(message, repeated, tag = "1")]
    series: Vec<Series>,
}

#[derive(Clone, PartialEq, Message)]
struct Series {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<LabelPair>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<RawSample>,
}

#[derive(Clone, PartialEq, Message)]
struct LabelPair {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct RawSample {
    #[prost(bytes = "vec", tag = "1")]
    raw_profile: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(int64, tag = "12")]
    period: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    str: i64,
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).expect("memory takes it");
        gzip.finish().expect("memory takes it")
    }

    fn request(profile: &Profile) -> Vec<u8> {
        let labels = vec![LabelPair { name: "service_name".into(), value: "shop".into() }];
        let samples = vec![RawSample { raw_profile: gzip(&profile.encode_to_vec()) }];
        PushRequest { series: vec![Series { labels, samples }] }.encode_to_vec()
    }

    #[test]
    fn time_is_summed_by_span() {
        let span = |str| Label { key: 1, str };
        let sample = |value, label| Sample { value: vec![value], label };
        let mut profile = Profile {
            sample: vec![
                sample(10, vec![span(2)]),
                sample(20, vec![span(3)]),
                sample(30, vec![span(2)]),
                sample(40, Vec::new()),
            ],
            string_table: ["", "span_id", "aa", "bb"].map(str::to_owned).to_vec(),
            time_nanos: 7,
            duration_nanos: 8,
            period: 10,
        };
        let read = Pushed::read_request(&request(&profile)).expect("it is one");
        let [pushed] = read.as_slice() else { panic!("{read:?}") };
        let spans: Vec<_> = pushed.spans.iter().map(|(id, ns)| (id.as_str(), *ns)).collect();
        assert_eq!(spans, [("", 40), ("aa", 40), ("bb", 20)]);
        assert_eq!((pushed.time_nanos, pushed.samples().expect("whole periods")), (7, 10));
        assert_eq!(pushed.label("service_name"), Some("shop"));

        profile.period = 30;
        let read = Pushed::read_request(&request(&profile)).expect("it is one");
        assert!(read[0].samples().is_err());
        profile.string_table.pop();
        assert!(Pushed::read_request(&request(&profile)).is_err());
        assert_eq!(Pushed::read_request(&[]).expect("a probe"), []);
    }
}
