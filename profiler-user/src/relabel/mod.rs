//! Prometheus's relabelling (`relabel_configs`) of the series that profiles become: rules that are
//! written for Prometheus or Alloy mean the same here.
//!
//! Each rule joins the values of its source labels, and does something with the labels if its
//! regular expression, which is anchored at both ends, matches. Labels that begin with `__` are
//! there for the rules alone.

use std::collections::BTreeMap;

use md5::{Digest as _, Md5};
use regex::{Regex, RegexBuilder};

mod read;

pub use read::{RuleError, filters, read};

/// Labels by name. One without a value is one that is not there.
pub type Labels = BTreeMap<String, String>;

/// How large a regular expression may be when it is compiled, in bytes.
const REGEX_MAX: usize = 1 << 20;

/// One rule, checked.
#[derive(Clone, Debug)]
pub struct Rule {
    sources: Vec<String>,
    separator: String,
    regex: Regex,
    action: Action,
}

#[derive(Clone, Debug)]
enum Action {
    Replace { target: String, replacement: String },
    Keep,
    Drop,
    KeepEqual { target: String },
    DropEqual { target: String },
    HashMod { target: String, modulus: u64 },
    LabelMap { replacement: String },
    LabelDrop,
    LabelKeep,
    Lowercase { target: String },
    Uppercase { target: String },
}

/// Applies rules in their order. `false`: the series is dropped.
#[must_use]
pub fn apply(rules: &[Rule], labels: &mut Labels) -> bool {
    rules.iter().all(|rule| rule.apply(labels))
}

impl Rule {
    fn apply(&self, labels: &mut Labels) -> bool {
        let values: Vec<&str> =
            self.sources.iter().map(|name| labels.get(name).map_or("", String::as_str)).collect();
        let joined = values.join(&self.separator);
        match &self.action {
            Action::Keep => return self.regex.is_match(&joined),
            Action::Drop => return !self.regex.is_match(&joined),
            Action::KeepEqual { target } => {
                return labels.get(target).map_or("", String::as_str) == joined;
            }
            Action::DropEqual { target } => {
                return labels.get(target).map_or("", String::as_str) != joined;
            }
            Action::Replace { target, replacement } => {
                if let Some(captures) = self.regex.captures(&joined) {
                    let (mut name, mut value) = (String::new(), String::new());
                    captures.expand(target, &mut name);
                    captures.expand(replacement, &mut value);
                    if is_label_name(&name) {
                        set(labels, name, value);
                    }
                }
            }
            Action::HashMod { target, modulus } => {
                let hash = Md5::digest(&joined);
                let last =
                    hash.iter().skip(8).fold(0, |number, byte| number << 8 | u64::from(*byte));
                set(labels, target.clone(), (last % modulus).to_string());
            }
            Action::Lowercase { target } => set(labels, target.clone(), joined.to_lowercase()),
            Action::Uppercase { target } => set(labels, target.clone(), joined.to_uppercase()),
            Action::LabelMap { replacement } => {
                let mapped: Vec<(String, String)> = labels
                    .iter()
                    .filter(|(name, _)| self.regex.is_match(name))
                    .map(|(name, value)| {
                        let name = self.regex.replace_all(name, replacement.as_str());
                        (name.into_owned(), value.clone())
                    })
                    .collect();
                labels.extend(mapped.into_iter().filter(|(name, _)| is_label_name(name)));
            }
            Action::LabelDrop => labels.retain(|name, _| !self.regex.is_match(name)),
            Action::LabelKeep => labels.retain(|name, _| self.regex.is_match(name)),
        }
        true
    }
}

fn set(labels: &mut Labels, name: String, value: String) {
    if value.is_empty() {
        labels.remove(&name);
    } else {
        labels.insert(name, value);
    }
}

/// A text as part of a label's name, as Prometheus makes it: `app.kubernetes.io/name` is
/// `app_kubernetes_io_name`.
#[must_use]
pub fn sanitized(text: &str) -> String {
    let fits = |character: char| character.is_ascii_alphanumeric() || character == '_';
    text.replace(|character| !fits(character), "_")
}

fn is_label_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.bytes().all(fits) && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

/// Anchored, and `.` matches the end of a line too.
fn compile(text: &str) -> Result<Regex, regex::Error> {
    // By itself first: `a)(b` is none, and would be one in brackets.
    RegexBuilder::new(text).size_limit(REGEX_MAX).build()?;
    RegexBuilder::new(&format!("^(?s:{text})$")).size_limit(REGEX_MAX).build()
}

#[cfg(test)]
mod tests;
