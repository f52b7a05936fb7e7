//! A file of options: YAML, one key for each.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use clap::Arg;
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;
use serde_saphyr::Spanned;

use super::{is_switch, key};
use crate::yaml;

/// The largest file, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// How alike a key has to be to be meant.
const ALIKE: f64 = 0.75;
/// Options whose value is YAML itself.
const STRUCTURED: [&str; 2] = ["endpoints", "relabel_configs"];

/// What is wrong with a file of options.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no YAML, or no map.
    #[error("{}: {what}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// A key that is no option.
    #[error("{}:{line}: there is no option {key:?}{}", path.display(), suggestion(meant.as_deref()))]
    Key {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// The key.
        key: String,
        /// What may have been meant.
        meant: Option<String>,
    },
    /// A value that cannot be.
    #[error("{}:{line}: {what}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// What is wrong.
        what: String,
    },
}

fn suggestion(meant: Option<&str>) -> String {
    meant.map_or_else(String::new, |meant| format!("; did you mean {meant:?}?"))
}

/// What a file says of an option.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) option: Arg,
    pub(super) line: u64,
    /// For a switch: `true` or `false`.
    values: Vec<String>,
}

impl Entry {
    /// As it would be typed.
    pub(super) fn arguments(&self) -> impl Iterator<Item = OsString> {
        let name = self.option.get_long().unwrap_or_default();
        self.values.iter().filter_map(move |value| {
            match (is_switch(&self.option), value.as_str()) {
                (true, "true") => Some(format!("--{name}").into()),
                (true, _) => None,
                (false, value) => Some(format!("--{name}={value}").into()),
            }
        })
    }
}

/// Keys and values in the order of the file, with their lines.
struct Entries(Vec<(Spanned<String>, Spanned<Value>)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Entries;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of options")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
            fn visit_unit<E>(self) -> Result<Entries, E> {
                Ok(Entries(Vec::new()))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// Reads a file.
pub(super) fn read(path: &Path, options: &[Arg]) -> Result<Vec<Entry>, FileError> {
    let cannot = |source| FileError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(cannot)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > FILE_MAX {
        return Err(cannot(io::ErrorKind::FileTooLarge.into()));
    }
    let Entries(entries) =
        yaml::read(&text).map_err(|what| FileError::Yaml { path: path.to_owned(), what })?;
    entries.into_iter().map(|(name, value)| entry(path, options, name, value)).collect()
}

fn entry(
    path: &Path,
    options: &[Arg],
    name: Spanned<String>,
    value: Spanned<Value>,
) -> Result<Entry, FileError> {
    let (line, name) = (name.referenced.line(), name.value);
    let Some(option) = options.iter().find(|option| key(option) == name) else {
        let by_likeness = |candidate: &Arg| {
            let likeness = strsim::jaro_winkler(&key(candidate), &name);
            (likeness >= ALIKE).then(|| (likeness, key(candidate)))
        };
        let meant = options.iter().filter_map(by_likeness).max_by(|a, b| a.0.total_cmp(&b.0));
        let meant = meant.map(|(_, meant)| meant);
        return Err(FileError::Key { path: path.to_owned(), line, key: name, meant });
    };
    let value = value.value;
    let values = if STRUCTURED.contains(&name.as_str()) {
        // It may be written as a text, too, as in a variable.
        Ok(vec![value.as_str().map_or_else(|| value.to_string(), str::to_owned)])
    } else {
        texts(option, value).map_err(|what| format!("{name}: {what}"))
    };
    let values = values.map_err(|what| FileError::Value { path: path.to_owned(), line, what })?;
    Ok(Entry { option: option.clone(), line, values })
}

/// A value as text, or several where an option may be given more than once.
fn texts(option: &Arg, value: Value) -> Result<Vec<String>, String> {
    let may_be_many = matches!(option.get_action(), clap::ArgAction::Append);
    match value {
        Value::Array(values) if may_be_many => {
            values.into_iter().map(|value| text(option, value)).collect()
        }
        value => Ok(vec![text(option, value)?]),
    }
}

fn text(option: &Arg, value: Value) -> Result<String, String> {
    match value {
        Value::Bool(bool) if is_switch(option) => Ok(bool.to_string()),
        other if is_switch(option) => Err(format!("true or false is wanted, not {other}")),
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(bool) => Ok(bool.to_string()),
        Value::Null => Err("there is no value".to_owned()),
        Value::Array(_) => Err("a single value is wanted, not a list".to_owned()),
        Value::Object(_) => Err("a value is wanted, not a map".to_owned()),
    }
}
