//! Folded stacks: one line a stack, for flame graph tools, `grep` and `diff`.

use std::io::{self, Write};

use crate::aggregate::Window;
use crate::symbolize::Names;

use super::stacks::Stacks;

/// Writes `service;span_name;frame;frame count` lines, root first, sorted, counted in samples;
/// without `by_span`, the span's name is left out.
///
/// In names, `;` becomes `:`, and what is not printable becomes `U+FFFD`.
///
/// # Errors
///
/// Those of `out`.
pub fn write_folded(
    window: &Window,
    names: &Names,
    by_span: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    for line in Stacks::new(window, names, by_span).lines() {
        writeln!(out, "{line}")?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::encode::test_window::{any_seen, checkout, window};

    fn folded(window: &Window, names: &Names, by_span: bool) -> String {
        let mut out = Vec::new();
        write_folded(window, names, by_span, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn root_first_by_service_and_span() {
        let (window, names) = checkout();
        let text = folded(&window, &names, true);
        let write = text.split(';').find(|frame| frame.starts_with("libc.so.6+0x")).unwrap();
        let expected = format!(
            "checkout;(no span);main;[unmapped] 7\n\
             checkout;(unnamed span);main;cart 1\n\
             checkout;GET /cart;main;cart 3\n\
             checkout;GET /cart;main;cart;cart::sort 12\n\
             checkout;POST /pay;main;pay;{write};do_write 5\n\
             checkout;POST /pay;main;pay;pay::sign;pay::hash 30\n\
             unknown_service:sh;(no span);[no stack] 1\n\
             unknown_service:sh;(no span);do_write 2\n"
        );
        assert_eq!(text, expected);
        assert!(folded(&window, &names, false).contains("checkout;main;cart 4\n"));
    }

    proptest! {
        #[test]
        fn any_window_keeps_its_count_and_depth(
            (seen, shuffled) in
                any_seen().prop_flat_map(|seen| (Just(seen.clone()), Just(seen).prop_shuffle()))
        ) {
            let (one, one_names) = window(&seen, [1, 2]);
            let text = folded(&one, &one_names, true);
            let mut depths: BTreeMap<usize, u64> = BTreeMap::new();
            for line in text.lines() {
                let (stack, count) = line.rsplit_once(' ').unwrap();
                *depths.entry(stack.split(';').count()).or_default() += count.parse::<u64>().unwrap();
            }
            let mut expected: BTreeMap<usize, u64> = BTreeMap::new();
            for seen in seen.iter().filter(|seen| seen.samples > 0) {
                // A `<` inlines; a location without a name is one frame all the same.
                let inlined = seen.stack.iter().filter(|word| !word.ends_with('!'));
                let inlined: usize = inlined.map(|word| word.matches('<').count()).sum();
                let frames = seen.stack.len().max(1) + inlined;
                *expected.entry(2 + frames).or_default() += seen.samples;
            }
            prop_assert_eq!(depths, expected);

            let (two, two_names) = window(&shuffled, [9, 4]);
            prop_assert_eq!(text, folded(&two, &two_names, true));
        }
    }
}
