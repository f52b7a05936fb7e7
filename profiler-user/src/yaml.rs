//! YAML as options are written in.

use serde::de::DeserializeOwned;

/// Reads a text of YAML 1.2: `yes` and `off` are no truths.
///
/// # Errors
///
/// What is wrong, and where. Nothing of the text is in it: it may hold secrets.
pub(crate) fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn only_true_and_false_are_truths() {
        let found: Value = read("[on, yes, off, true, 'true']").unwrap();
        assert_eq!(found, json!(["on", "yes", "off", true, "true"]));
    }

    #[test]
    fn an_error_says_where_and_repeats_nothing() {
        for text in ["a: 1\nheader: [\"hunter2\n", "a: 1\nb: [{c: hunter2}, hunter2: }"] {
            let error = read::<Value>(text).unwrap_err();
            assert!(error.contains("line 2") && !error.contains("hunter2"), "{error}");
        }
    }
}
