//! Names that others chose, made fit to be shown.

use std::borrow::Cow;

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Replaces what would move the cursor, break the line, turn the direction of the text around it,
/// or may not be in XML.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if text.contains(is_unprintable) {
        Cow::Owned(text.replace(is_unprintable, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            // Line and paragraph separators, then marks, embeddings and isolates of direction.
            '\u{2028}' | '\u{2029}' | '\u{61c}' | '\u{200e}' | '\u{200f}'
            | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
        )
}

/// Exactly `columns` wide on a terminal, cut or filled up on the right.
pub(super) fn column(text: &str, columns: usize) -> String {
    let mut text = cut(text, columns);
    let missing = columns.saturating_sub(text.width());
    text.push_str(&" ".repeat(missing));
    text
}

/// At most `columns` wide on a terminal; ends with `…` if something is missing.
fn cut(text: &str, columns: usize) -> String {
    let text = printable(text);
    if text.width() <= columns {
        return text.into_owned();
    }
    let mut kept = String::new();
    let mut width = 1;
    for character in text.chars() {
        width += character.width().unwrap_or(0);
        if width > columns {
            break;
        }
        kept.push(character);
    }
    kept.push('…');
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_moves_the_cursor() {
        assert_eq!(printable("GET /a"), "GET /a");
        assert_eq!(printable("\u{1b}[2J\r\nx\u{202e}"), "\u{fffd}[2J\u{fffd}\u{fffd}x\u{fffd}");
    }

    #[test]
    fn columns_are_counted_as_a_terminal_does() {
        assert_eq!(column("abc", 5), "abc  ");
        assert_eq!(column("abcdef", 5), "abcd…");
        assert_eq!(column("支払い", 6), "支払い");
        assert_eq!(column("支払い", 5), "支払…");
        assert_eq!(column("支払い", 4), "支… ");
        // A letter and a combining accent stay together.
        assert_eq!(column("e\u{301}e\u{301}e\u{301}", 2), "e\u{301}…");
    }
}
