//! The ids that a span has among its fields.

use std::fmt;

use tracing_core::field::{Field, Visit};
use tracing_core::span::Attributes;

/// The ids that were found, neither of them zero.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) trace_id: Option<[u8; 16]>,
    pub(super) span_id: Option<[u8; 8]>,
}

impl Fields {
    pub(super) fn of(attributes: &Attributes<'_>) -> Self {
        let mut fields = Self::default();
        let names = attributes.metadata().fields();
        // Most spans have neither, and their values are then not looked at.
        if names.field("trace_id").is_some() || names.field("span_id").is_some() {
            attributes.record(&mut fields);
        }
        fields
    }
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "span_id" {
            self.span_id = Some(value.to_be_bytes()).filter(|_| value != 0);
        }
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        if field.name() == "trace_id" {
            self.trace_id = Some(value.to_be_bytes()).filter(|_| value != 0);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "trace_id" => self.trace_id = hexadecimal(value),
            "span_id" => self.span_id = hexadecimal(value),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if matches!(field.name(), "trace_id" | "span_id") {
            // `trace_id = %id`, whose `Debug` is the id's `Display`.
            self.record_str(field, &format!("{value:?}"));
        }
    }
}

/// Two digits for each byte, and not all zero.
fn hexadecimal<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let mut id = [0; N];
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else { return None };
    if pairs.len() != N {
        return None;
    }
    for (byte, [high, low]) in id.iter_mut().zip(pairs) {
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|it| u8::try_from(it).ok());
        *byte = (digit(*high)? << 4) | digit(*low)?;
    }
    Some(id).filter(|id| *id != [0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_all_its_digits_and_is_not_zero() {
        assert_eq!(hexadecimal("00f0"), Some([0, 0xf0]));
        assert_eq!(hexadecimal("00F0"), Some([0, 0xf0]));
        for wrong in ["", "0f", "0f0", "0ff00", "0000", "0g00", "+f00", "éé"] {
            assert_eq!(hexadecimal::<2>(wrong), None, "{wrong}");
        }
    }
}
