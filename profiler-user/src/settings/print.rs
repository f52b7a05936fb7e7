//! The options as they are in force, as a file of options.

use std::collections::BTreeMap;
use std::io::{self, Write};

use clap::{Arg, parser::ValueSource};
use serde_json::Value;

use super::{Settings, is_switch, key, options};
use crate::yaml;

/// The option whose values may be secrets, by itself and in those of `endpoints`.
const SECRET: &str = "header";

/// Writes every option with its value and where that is from. Secrets are left out.
///
/// # Errors
///
/// Those of writing.
pub fn print(settings: &Settings, out: &mut dyn Write) -> io::Result<()> {
    for option in options() {
        let id = option.get_id().as_str();
        let from = match settings.matches.value_source(id) {
            _ if settings.from_file.contains(&key(&option)) => "file",
            Some(ValueSource::CommandLine) => "command line",
            Some(ValueSource::EnvVariable) => "variable",
            _ => "default",
        };
        match value(settings, &option) {
            Some(value) => writeln!(out, "{}: {value} # {from}", key(&option))?,
            None => writeln!(out, "# {}: not set", key(&option))?,
        }
    }
    Ok(())
}

fn value(settings: &Settings, option: &Arg) -> Option<String> {
    let id = option.get_id().as_str();
    if is_switch(option) {
        return Some(settings.matches.get_flag(id).to_string());
    }
    let raw = settings.matches.get_raw(id)?.map(|value| value.to_string_lossy().into_owned());
    let shown: Vec<String> = raw.map(|value| quoted(&hidden(id, &value))).collect();
    let is_list = matches!(option.get_action(), clap::ArgAction::Append);
    Some(if is_list { format!("[{}]", shown.join(", ")) } else { shown.concat() })
}

/// Without what may be secret: a header's value, and the user and password of a URL.
fn hidden(id: &str, value: &str) -> String {
    if id == SECRET {
        let name = value.split_once(':').map_or("", |(name, _)| name);
        return format!("{name}: <hidden>");
    }
    if id == "endpoints" {
        return endpoints(value);
    }
    match value.split_once("://") {
        Some((scheme, rest)) => {
            let end = rest.find('/').unwrap_or(rest.len());
            match rest.get(..end).and_then(|authority| authority.rfind('@')) {
                Some(at) => format!("{scheme}://<hidden>{}", rest.get(at..).unwrap_or_default()),
                None => value.to_owned(),
            }
        }
        None => value.to_owned(),
    }
}

fn endpoints(text: &str) -> String {
    let Ok(mut servers) = yaml::read::<Vec<BTreeMap<String, Value>>>(text) else {
        return "<hidden>".to_owned();
    };
    for (key, value) in servers.iter_mut().flatten() {
        match value {
            Value::Array(values) => {
                let hide =
                    |it: &mut Value| *it = hidden(key, it.as_str().unwrap_or_default()).into();
                values.iter_mut().for_each(hide);
            }
            Value::String(text) => *text = hidden(key, text),
            _ => {}
        }
    }
    serde_json::to_string(&servers).unwrap_or_default()
}

/// JSON's texts are YAML's, too.
fn quoted(text: &str) -> String {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.to_owned() } else { Value::from(text).to_string() }
}
