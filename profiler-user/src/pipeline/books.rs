//! The books: what was sampled is what was exported and what was lost, stage by stage.

use std::{borrow::Cow, fmt, io::Write};

use profiler_common::counter;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::capture::counters::CounterTotals;
use crate::stats::{Count, Stats};

/// Every number of a run at one moment.
#[derive(Clone, Debug, Default)]
pub struct Books {
    kernel: CounterTotals,
    counts: Vec<(Count, u64)>,
    /// Samples that wait in the export queue.
    queued: u64,
    /// Of the servers beside the first.
    endpoints: Vec<EndpointBooks>,
    /// Counters that are not part of the books: processes, symbolizing.
    others: Vec<(&'static str, Value)>,
}

/// What a server's own books are of: what it was given, then all that can become of it.
const LAST_STAGE: [Count; 7] = [
    Count::SamplesEncoded,
    Count::SamplesExported,
    Count::LostExportQueueFull,
    Count::LostExportRejected,
    Count::LostExportGaveUp,
    Count::LostExportShutdown,
    Count::UncertainExport,
];

/// A server beside the first.
#[derive(Clone, Debug)]
struct EndpointBooks {
    name: String,
    /// Those of [`LAST_STAGE`].
    counts: Vec<(Count, u64)>,
    queued: u64,
}

/// Two sides that should be the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Balance {
    /// What they are.
    pub stage: Cow<'static, str>,
    /// What went in.
    pub samples_in: u64,
    /// What came out or was lost.
    pub samples_out: u64,
}

impl Books {
    /// Reads all counters.
    #[must_use]
    pub fn new(kernel: CounterTotals, stats: &Stats, queued: u64) -> Self {
        let counts = Count::ALL.iter().map(|&count| (count, stats.get(count))).collect();
        Self { kernel, counts, queued, endpoints: Vec::new(), others: Vec::new() }
    }

    /// Adds a server beside the first, which has a queue of its own.
    #[must_use]
    pub fn with_endpoint(mut self, name: &str, stats: &Stats, queued: u64) -> Self {
        let counts = LAST_STAGE.iter().map(|&count| (count, stats.get(count))).collect();
        self.endpoints.push(EndpointBooks { name: name.to_owned(), counts, queued });
        self
    }

    /// Adds counters of another part of the program.
    #[must_use]
    pub fn with(mut self, part: &'static str, counters: &impl Serialize) -> Self {
        // Numbers by name: there is nothing in them that JSON cannot say.
        self.others.push((part, serde_json::to_value(counters).unwrap_or_default()));
        self
    }

    /// Stage by stage, what went in and what came out. Equal once the pipeline has stopped; while
    /// it runs, what is under way is in neither.
    #[must_use]
    pub fn balances(&self) -> Vec<Balance> {
        let sum = |counts: &[Count]| counts.iter().map(|&count| self.get(count)).sum::<u64>();
        let balance = |stage: &'static str, samples_in, samples_out| Balance {
            stage: stage.into(),
            samples_in,
            samples_out,
        };
        let mut balances = vec![
            balance(
                "kernel",
                self.kernel.get(counter::SAMPLES_TAKEN),
                self.kernel.get(counter::LOST_RING_FULL)
                    + self.kernel.get(counter::LOST_NO_SCRATCH)
                    + self.get(Count::SamplesDrained),
            ),
            balance(
                "attribute",
                self.get(Count::SamplesDrained),
                sum(&[
                    Count::LostAttributeQueueFull,
                    Count::LostMalformed,
                    Count::LostWindowFull,
                    Count::SamplesAggregated,
                ]),
            ),
            balance(
                "encode",
                self.get(Count::SamplesAggregated),
                sum(&[
                    Count::LostWindowQueueFull,
                    Count::LostDroppedByRule,
                    Count::LostZeroValue,
                    Count::SamplesEncoded,
                ]),
            ),
            balance("export", self.get(Count::SamplesEncoded), self.queued + sum(&LAST_STAGE[1..])),
        ];
        balances.extend(self.endpoints.iter().map(EndpointBooks::balance));
        balances
    }

    /// Samples that were taken and did not come out, whatever the reason.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.losses().map(|(_, samples)| samples).sum()
    }

    /// The losses that happened, by reason.
    pub fn losses(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let kernel = self.kernel.iter().filter(|(name, _)| name.starts_with("lost_"));
        let user = self.counts.iter().map(|(count, samples)| (count.name(), *samples));
        kernel.chain(user.filter(|(name, _)| name.starts_with("lost_"))).filter(|&(_, n)| n > 0)
    }

    /// One of user space's counters.
    #[must_use]
    pub fn get(&self, count: Count) -> u64 {
        self.counts.iter().find(|(of, _)| *of == count).map_or(0, |&(_, samples)| samples)
    }

    /// One of the kernel's counters.
    #[must_use]
    pub fn kernel(&self, index: u32) -> u64 {
        self.kernel.get(index)
    }

    /// Writes everything as JSON.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn write_json(&self, out: &mut dyn Write) -> std::io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, &self.to_json())?;
        writeln!(out)
    }

    /// Everything as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let object = |pairs: &mut dyn Iterator<Item = (&'static str, u64)>| {
            Value::Object(pairs.map(|(name, n)| (name.to_owned(), n.into())).collect())
        };
        let mut all = Map::new();
        all.insert("kernel".to_owned(), object(&mut self.kernel.iter()));
        let mut counts = self.counts.iter().map(|(count, n)| (count.name(), *n));
        all.insert("samples".to_owned(), object(&mut counts));
        all.insert("queued".to_owned(), self.queued.into());
        if !self.endpoints.is_empty() {
            let of = |EndpointBooks { name, counts, queued }: &EndpointBooks| {
                let counts = counts.iter().map(|(count, n)| (count.name(), *n));
                (name.clone(), object(&mut counts.chain([("queued_samples", *queued)])))
            };
            let endpoints = self.endpoints.iter().map(of);
            all.insert("endpoints".to_owned(), Value::Object(endpoints.collect()));
        }
        for (part, counters) in &self.others {
            all.insert((*part).to_owned(), counters.clone());
        }
        // Numbers by name, again.
        let balances = serde_json::to_value(self.balances()).unwrap_or_default();
        all.insert("balances".to_owned(), balances);
        Value::Object(all)
    }
}

impl EndpointBooks {
    fn balance(&self) -> Balance {
        let sum = |counts: &[(Count, u64)]| counts.iter().map(|(_, samples)| samples).sum::<u64>();
        let (encoded, ends) = self.counts.split_at(1);
        Balance {
            stage: format!("export to {}", self.name).into(),
            samples_in: sum(encoded),
            samples_out: sum(ends) + self.queued,
        }
    }
}

impl fmt::Display for Books {
    /// One line: `1,234 samples taken = 1,230 exported + 4 lost (lost_ring_full 4)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let taken = self.kernel.get(counter::SAMPLES_TAKEN);
        let exported = self.get(Count::SamplesExported);
        write!(f, "{taken} samples taken = {exported} exported + {} lost", self.lost())?;
        let mut separator = " (";
        for (reason, samples) in self.losses() {
            write!(f, "{separator}{reason} {samples}")?;
            separator = ", ";
        }
        if separator == ", " {
            f.write_str(")")?;
        }
        let uncertain = self.get(Count::UncertainExport);
        if uncertain > 0 {
            write!(f, " + {uncertain} uncertain")?;
        }
        if self.queued > 0 {
            write!(f, " + {} queued", self.queued)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn books() -> Books {
        let stats = Stats::default();
        stats.add(Count::SamplesDrained, 10);
        stats.add(Count::LostMalformed, 1);
        stats.add(Count::SamplesAggregated, 9);
        stats.add(Count::SamplesEncoded, 9);
        stats.add(Count::SamplesExported, 5);
        stats.add(Count::UncertainExport, 2);
        stats.add(Count::LostExportRejected, 1);
        let mut kernel = [0; counter::COUNTERS_LEN as usize];
        kernel[counter::SAMPLES_TAKEN as usize] = 12;
        kernel[counter::LOST_RING_FULL as usize] = 2;
        Books::new(CounterTotals::from_recorded(&kernel), &stats, 1)
    }

    #[test]
    fn every_stage_balances() {
        for Balance { stage, samples_in, samples_out } in books().balances() {
            assert_eq!(samples_in, samples_out, "{stage}");
        }
    }

    #[test]
    fn each_server_has_books_of_its_own() {
        let stats = Stats::default();
        stats.add(Count::SamplesEncoded, 9);
        stats.add(Count::SamplesExported, 6);
        stats.add(Count::LostExportGaveUp, 2);
        let books = books().with_endpoint("archive", &stats, 1);
        let balances = books.balances();
        let [.., archive] = &*balances else { panic!("{balances:?}") };
        assert_eq!((&*archive.stage, archive.samples_in), ("export to archive", 9));
        assert!(balances.iter().all(|balance| balance.samples_in == balance.samples_out));
        let json = books.to_json();
        let archive = &json["endpoints"]["archive"];
        assert_eq!(
            (&archive["samples_exported"], &archive["queued_samples"]),
            (&6.into(), &1.into())
        );
        assert_eq!(books.lost(), 4, "it is not counted twice");
    }

    #[test]
    fn the_line_names_every_loss() {
        assert_eq!(
            books().to_string(),
            "12 samples taken = 5 exported + 4 lost (lost_ring_full 2, lost_malformed 1, \
             lost_export_rejected 1) + 2 uncertain + 1 queued"
        );
    }

    #[test]
    fn the_json_has_every_counter() {
        let mut json = Vec::new();
        books().with("process", &BTreeMap::from([("looked", 3)])).write_json(&mut json).unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["kernel"]["samples_taken"], 12);
        assert_eq!(json["samples"]["lost_malformed"], 1);
        assert_eq!(json["process"]["looked"], 3);
        assert_eq!(json["queued"], 1);
        assert_eq!(json["balances"][0]["stage"], "kernel");
    }
}
