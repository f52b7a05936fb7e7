//! `spanprof replay`: a recorded file through the rest of the pipeline. Needs no privileges and
//! reads no clock: the same file gives the same bytes.

use std::{
    fs::File,
    io::{self, BufReader, Write},
    path::PathBuf,
};

use super::books::Books;
use super::counted::{aggregate, count_span};
use super::coverage::Coverage;
use super::outputs;
use crate::aggregate::Aggregator;
use crate::attribute::attribute;
use crate::capture::counters::CounterTotals;
use crate::config::OutputsConfig;
use crate::decode;
use crate::export::file::FileError;
use crate::recording::{End, ReadError, Reader, Recorded};
use crate::stats::{Count, Stats};
use crate::symbolize::Names;

/// Why a file cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It has no end, or no names.
    #[error("the recorded file is not complete")]
    Incomplete,
    /// An output cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The table cannot be printed.
    #[error("cannot print the table")]
    Print(#[from] io::Error),
}

/// Replays, and writes what was found.
///
/// # Errors
///
/// The file is damaged, or an output cannot be written.
pub fn replay(
    path: PathBuf,
    config: &OutputsConfig,
    table: &mut dyn Write,
) -> Result<(), ReplayError> {
    outputs::check(config)?;
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(source) => return Err(ReplayError::Open { path, source }),
    };
    let mut reader = Reader::new(BufReader::new(file))?;
    let stats = Stats::default();
    let mut aggregator = Aggregator::default();
    let mut end: Option<End> = None;
    let mut names: Option<Names> = None;
    while let Some(recorded) = reader.read_next()? {
        match recorded {
            Recorded::Sample { record, process } => {
                stats.add(Count::SamplesDrained, 1);
                match decode::sample(record) {
                    Ok(sample) => {
                        count_span(&sample, &stats);
                        let attributed = attribute(&sample, process, &config.spans);
                        aggregate(attributed, &mut aggregator, &stats);
                    }
                    Err(_malformed) => stats.add(Count::LostMalformed, 1),
                }
            }
            Recorded::End(found) => end = Some(found),
            Recorded::Names(found) => names = Some(found.into()),
        }
    }
    let (Some(end), Some(names)) = (end, names) else { return Err(ReplayError::Incomplete) };
    let End { start_unix_ns, duration_ns, period_ns, host, counters, lost_attribute_queue_full } =
        end;
    stats.add(Count::SamplesDrained, lost_attribute_queue_full);
    stats.add(Count::LostAttributeQueueFull, lost_attribute_queue_full);
    let window = aggregator.take(start_unix_ns, duration_ns, period_ns);
    let no_value = outputs::without_value(&window);
    stats.add(Count::LostZeroValue, no_value);
    stats.add(Count::SamplesEncoded, window.samples() - no_value);
    outputs::write_files(&config.files, &window, &names, &host)?;
    stats.add(Count::SamplesExported, window.samples() - no_value);
    let books = Books::new(CounterTotals::from_recorded(&counters), &stats, 0)
        .with("services", &Coverage::of(&window));
    outputs::write_stats(config, &books)?;
    outputs::print_table(&window, table)?;
    writeln!(table, "{books}")?;
    Ok(())
}
