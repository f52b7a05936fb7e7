//! Rules as they are written, and what is wrong with them.

use serde::Deserialize;

use super::{Action, Rule, compile, is_label_name};
use crate::yaml;

/// The most rules.
const RULES_MAX: usize = 1000;

/// What is wrong with rules.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// They are not a list of rules.
    #[error("{0}")]
    Yaml(String),
    /// Nobody writes so many.
    #[error("there are more than {RULES_MAX} rules")]
    TooMany,
    /// A rule that cannot be.
    #[error("rule {number}: {what}")]
    Rule {
        /// The first is 1.
        number: usize,
        /// What is wrong.
        what: String,
    },
    /// A filter that cannot be.
    #[error(
        "{0:?}: it must be NAME=REGEX, and NAME one of namespace, pod, container, service, exe"
    )]
    Filter(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    source_labels: Vec<String>,
    separator: Option<String>,
    regex: Option<Text>,
    modulus: Option<u64>,
    target_label: Option<String>,
    replacement: Option<Text>,
    action: Option<String>,
}

/// A value that may look like something else: `regex: 8080`, `replacement: true`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    String(String),
    Number(serde_json::Number),
    Bool(bool),
}

impl Text {
    fn into_string(self) -> String {
        match self {
            Self::String(text) => text,
            Self::Number(number) => number.to_string(),
            Self::Bool(bool) => bool.to_string(),
        }
    }
}

/// Reads a list of rules as YAML, or as JSON.
///
/// # Errors
///
/// They are not rules that Prometheus would take; the first one that is wrong is named.
pub fn read(text: &str) -> Result<Vec<Rule>, RuleError> {
    let written: Vec<Written> = yaml::read(text).map_err(RuleError::Yaml)?;
    if written.len() > RULES_MAX {
        return Err(RuleError::TooMany);
    }
    let rules = written.into_iter().enumerate();
    rules
        .map(|(before, written)| {
            written.check().map_err(|what| RuleError::Rule { number: before + 1, what })
        })
        .collect()
}

impl Written {
    fn check(self) -> Result<Rule, String> {
        let Self { source_labels, separator, regex, modulus, target_label, replacement, action } =
            self;
        let name = action.unwrap_or_else(|| "replace".to_owned()).to_lowercase();
        let takes_only_a_regex = name == "labeldrop" || name == "labelkeep";
        let has_more = !source_labels.is_empty()
            || [&separator, &target_label].iter().any(|field| field.is_some())
            || replacement.is_some()
            || modulus.is_some();
        if takes_only_a_regex && has_more {
            return Err(format!("{name} takes regex and nothing else"));
        }
        let equal = name == "keepequal" || name == "dropequal";
        if equal && (regex.is_some() || separator.is_some() || replacement.is_some()) {
            return Err(format!("{name} takes source_labels and target_label and nothing else"));
        }
        let target = |may_be_template: bool| match target_label.clone() {
            None => Err(format!("{name} takes a target_label")),
            // It is a name once what was matched is put in.
            Some(label) if may_be_template && label.contains('$') => Ok(label),
            Some(label) if is_label_name(&label) => Ok(label),
            Some(label) => Err(format!("{label:?} is no name of a label")),
        };
        let replacement = replacement.map_or_else(|| "$1".to_owned(), Text::into_string);
        let action = match name.as_str() {
            "replace" => Action::Replace { target: target(true)?, replacement },
            "keep" => Action::Keep,
            "drop" => Action::Drop,
            "keepequal" => Action::KeepEqual { target: target(false)? },
            "dropequal" => Action::DropEqual { target: target(false)? },
            "hashmod" => match modulus {
                None | Some(0) => return Err("hashmod takes a modulus above 0".to_owned()),
                Some(modulus) => Action::HashMod { target: target(false)?, modulus },
            },
            "labelmap" => Action::LabelMap { replacement },
            "labeldrop" => Action::LabelDrop,
            "labelkeep" => Action::LabelKeep,
            "lowercase" => Action::Lowercase { target: target(false)? },
            "uppercase" => Action::Uppercase { target: target(false)? },
            other => return Err(format!("there is no action {other:?}")),
        };
        let regex = regex.map_or_else(|| "(.*)".to_owned(), Text::into_string);
        let regex = compile(&regex).map_err(|error| format!("{regex:?}: {error}"))?;
        let separator = separator.unwrap_or_else(|| ";".to_owned());
        Ok(Rule { sources: source_labels, separator, regex, action })
    }
}

/// Rules of filters such as `namespace=kube-.*`: a series is kept if it matches every one of `keep`
/// and none of `drop`.
///
/// # Errors
///
/// One is not of that form, or not a regular expression.
pub fn filters(keep: &[String], drop: &[String]) -> Result<Vec<Rule>, RuleError> {
    let keep = keep.iter().map(|filter| (filter, Action::Keep));
    let drop = drop.iter().map(|filter| (filter, Action::Drop));
    keep.chain(drop)
        .map(|(filter, action)| {
            let bad = || RuleError::Filter(filter.clone());
            let (name, regex) = filter.split_once('=').ok_or_else(bad)?;
            let label = match name.trim() {
                "namespace" | "pod" | "container" => name.trim().to_owned(),
                "service" => "service_name".to_owned(),
                "exe" => "__meta_process_exe".to_owned(),
                _ => return Err(bad()),
            };
            let regex = compile(regex).map_err(|error| RuleError::Yaml(error.to_string()))?;
            Ok(Rule { sources: vec![label], separator: String::new(), regex, action })
        })
        .collect()
}
