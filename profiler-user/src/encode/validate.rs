//! Checks that bytes are a profile as [`super`] promises it.

use std::collections::HashSet;

use prost::Message as _;

use super::proto::{Profile, Sample};

/// What a valid profile adds up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals {
    /// How many samples the file has.
    pub entries: usize,
    /// The sum of each sample type's values, with the name of the type.
    pub values: Vec<(String, i64)>,
}

/// What is wrong with a profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// It is no profile at all.
    #[error("not a pprof profile: {0}")]
    Malformed(String),
    /// The first string has to be empty.
    #[error("the first string is not empty")]
    FirstString,
    /// A string is there twice.
    #[error("string {0:?} is there twice")]
    DuplicateString(String),
    /// An id is 0 or given twice.
    #[error("{kind} {id}: an id is not 0, and is given once")]
    Id {
        /// Of what.
        kind: &'static str,
        /// The id.
        id: u64,
    },
    /// Something refers to what is not there.
    #[error("{from} refers to {to} {id}, which is not there")]
    Dangling {
        /// What refers.
        from: &'static str,
        /// To what.
        to: &'static str,
        /// Its id or index.
        id: i128,
    },
    /// A location has no line, or a function no name.
    #[error("{kind} {id} has no name")]
    Nameless {
        /// A location, function or mapping.
        kind: &'static str,
        /// Its id.
        id: u64,
    },
    /// A mapping does not say that its functions are known.
    #[error("mapping {0} has no functions")]
    NoFunctions(u64),
    /// The profile's own fields.
    #[error("{0}")]
    Header(&'static str),
    /// A sample has the wrong number of values, a negative one or only zeroes, or no stack.
    #[error("sample {index}: {reason}")]
    Sample {
        /// Which.
        index: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Checks an uncompressed pprof file, for tests and doubts: the encoder makes only valid ones.
///
/// # Errors
///
/// The first thing that is wrong.
pub fn validate(pprof: &[u8]) -> Result<Totals, Invalid> {
    let profile = Profile::decode(pprof).map_err(|error| Invalid::Malformed(error.to_string()))?;
    check_strings(&profile)?;
    check_header(&profile)?;
    check_tables(&profile)?;
    check_samples(&profile)
}

fn check_strings(profile: &Profile) -> Result<(), Invalid> {
    if profile.string_table.first().is_none_or(|first| !first.is_empty()) {
        return Err(Invalid::FirstString);
    }
    let mut seen = HashSet::new();
    match profile.string_table.iter().find(|string| !seen.insert(string.as_str())) {
        Some(twice) => Err(Invalid::DuplicateString(twice.clone())),
        None => Ok(()),
    }
}

fn check_header(profile: &Profile) -> Result<(), Invalid> {
    let period = profile.period_type.ok_or(Invalid::Header("there is no period type"))?;
    if (
        string(profile, "period type", period.r#type)?,
        string(profile, "period type", period.unit)?,
    ) != ("cpu", "nanoseconds")
    {
        return Err(Invalid::Header("the period is not of cpu/nanoseconds"));
    }
    if profile.sample_type.is_empty() {
        return Err(Invalid::Header("there is no sample type"));
    }
    for sample_type in &profile.sample_type {
        let name = string(profile, "sample type", sample_type.r#type)?;
        if name.is_empty() || name.contains(['-', ':']) {
            return Err(Invalid::Header("a sample type is empty, or has a hyphen or a colon"));
        }
        string(profile, "sample type", sample_type.unit)?;
    }
    if profile.default_sample_type != 0 {
        return Err(Invalid::Header("the default sample type is set"));
    }
    Ok(())
}

fn check_tables(profile: &Profile) -> Result<(), Invalid> {
    let functions = ids("function", profile.function.iter().map(|function| function.id))?;
    for function in &profile.function {
        let name = string(profile, "function", function.name)?;
        string(profile, "function", function.system_name)?;
        string(profile, "function", function.filename)?;
        if name.is_empty() {
            return Err(Invalid::Nameless { kind: "function", id: function.id });
        }
    }
    let mappings = ids("mapping", profile.mapping.iter().map(|mapping| mapping.id))?;
    for mapping in &profile.mapping {
        string(profile, "mapping", mapping.build_id)?;
        if string(profile, "mapping", mapping.filename)?.is_empty() {
            return Err(Invalid::Nameless { kind: "mapping", id: mapping.id });
        }
        if !mapping.has_functions {
            return Err(Invalid::NoFunctions(mapping.id));
        }
    }
    for location in &profile.location {
        if !mappings.contains(&location.mapping_id) {
            return Err(dangling("location", "mapping", location.mapping_id));
        }
        if location.line.is_empty() {
            return Err(Invalid::Nameless { kind: "location", id: location.id });
        }
        let missing = location.line.iter().find(|line| !functions.contains(&line.function_id));
        if let Some(line) = missing {
            return Err(dangling("location", "function", line.function_id));
        }
    }
    Ok(())
}

fn check_samples(profile: &Profile) -> Result<Totals, Invalid> {
    let locations = ids("location", profile.location.iter().map(|location| location.id))?;
    let mut values = Vec::new();
    for sample_type in &profile.sample_type {
        values.push((string(profile, "sample type", sample_type.r#type)?.to_owned(), 0_i64));
    }
    let mut seen = HashSet::new();
    for (index, sample) in profile.sample.iter().enumerate() {
        let invalid = |reason| Invalid::Sample { index, reason };
        if sample.value.len() != values.len() {
            return Err(invalid("it has not one value for each sample type"));
        }
        if sample.value.iter().any(|value| *value < 0) {
            return Err(invalid("a value is negative"));
        }
        if sample.value.iter().all(|value| *value == 0) {
            return Err(invalid("all its values are 0"));
        }
        if let Some(id) = sample.location_id.iter().find(|id| !locations.contains(id)) {
            return Err(dangling("sample", "location", *id));
        }
        check_labels(profile, sample)?;
        if !seen.insert((&sample.location_id, labels(sample))) {
            return Err(invalid("another has the same stack and labels"));
        }
        for ((_, total), value) in values.iter_mut().zip(&sample.value) {
            *total = total.saturating_add(*value);
        }
    }
    Ok(Totals { entries: profile.sample.len(), values })
}

fn check_labels(profile: &Profile, sample: &Sample) -> Result<(), Invalid> {
    for label in &sample.label {
        let key = string(profile, "label", label.key)?;
        let value = string(profile, "label", label.str)?;
        if key.is_empty() || value.is_empty() {
            return Err(Invalid::Header("a label has no name or no text"));
        }
    }
    Ok(())
}

fn labels(sample: &Sample) -> Vec<(i64, i64)> {
    sample.label.iter().map(|label| (label.key, label.str)).collect()
}

fn ids(kind: &'static str, given: impl Iterator<Item = u64>) -> Result<HashSet<u64>, Invalid> {
    let mut ids = HashSet::new();
    for id in given {
        if id == 0 || !ids.insert(id) {
            return Err(Invalid::Id { kind, id });
        }
    }
    Ok(ids)
}

fn string<'p>(profile: &'p Profile, from: &'static str, index: i64) -> Result<&'p str, Invalid> {
    let found = usize::try_from(index).ok().and_then(|index| profile.string_table.get(index));
    found.map(String::as_str).ok_or(Invalid::Dangling { from, to: "string", id: index.into() })
}

fn dangling(from: &'static str, to: &'static str, id: u64) -> Invalid {
    Invalid::Dangling { from, to, id: id.into() }
}
