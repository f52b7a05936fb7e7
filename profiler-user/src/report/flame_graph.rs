//! A flame graph as one SVG that a browser shows: zoom and search are in it.

use std::io::{self, Write};

use inferno::flamegraph::{self, Options, Palette, color::MultiPalette};

use crate::aggregate::Window;
use crate::symbolize::Names;

use super::stacks::Stacks;
use super::text::printable;

const TITLE: &str = "CPU time by service and span";

/// Frames narrower than this are left out: half a pixel before zooming in. A whole host at inferno's
/// own 0.01 % draws every frame of every sample, which is tens of megabytes.
const WIDTH_MIN_PERCENT: f64 = 0.05;

/// Writes a flame graph with the services at the root and the names of their spans above them.
/// The same window gives the same bytes. What used less than 0.05 % of the CPU time is not drawn;
/// folded stacks and pprof have it.
///
/// # Errors
///
/// Those of `out`.
pub fn write_flame_graph(
    window: &Window,
    names: &Names,
    host: &str,
    out: &mut dyn Write,
) -> io::Result<()> {
    let subtitle = subtitle(window, host);
    let lines: Vec<_> = Stacks::new(window, names, true).lines().collect();
    if lines.is_empty() {
        return write_empty(&subtitle, out);
    }
    let mut options = Options::default();
    options.title = TITLE.to_owned();
    options.subtitle = Some(subtitle);
    // Rust's own crates, then the others by whether they look like Rust; shades by hash of the name.
    options.colors = Palette::Multi(MultiPalette::Rust);
    options.deterministic = true;
    options.min_width = WIDTH_MIN_PERCENT;
    // A "flame chart" takes its lines as they come, last one first. Sorted as text, as inferno
    // would do it, `f::g;h` lies between `f` and `f;h`, and `f` is drawn twice.
    options.flame_chart = true;
    flamegraph::from_lines(&mut options, lines.iter().rev().map(String::as_str), &mut *out)?;
    out.flush()
}

fn subtitle(window: &Window, host: &str) -> String {
    let samples = window.samples();
    let seconds = seconds(window.duration_ns.max(0).cast_unsigned());
    let cpu_ns = window
        .groups
        .iter()
        .flat_map(|group| &group.rows)
        .fold(0_u64, |sum, row| sum.saturating_add(row.cpu_ns));
    let cpu = self::seconds(cpu_ns);
    format!("{}: {samples} samples, {cpu:.2} s of CPU time in {seconds:.1} s", printable(host))
}

#[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// inferno calls a graph without samples an error, and writes that into it.
fn write_empty(subtitle: &str, out: &mut dyn Write) -> io::Result<()> {
    let subtitle = subtitle.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1200\" height=\"80\" \
         font-family=\"monospace\" text-anchor=\"middle\">\n\
         <text x=\"600\" y=\"30\" font-size=\"17\">{TITLE}</text>\n\
         <text x=\"600\" y=\"60\" font-size=\"12\">{subtitle}</text>\n\
         </svg>"
    )?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use quick_xml::events::Event;

    use super::*;
    use crate::encode::test_window::{
        any_seen, checkout, rename_functions, rename_spans, seen, window,
    };

    fn svg(window: &Window, names: &Names, host: &str) -> String {
        let mut out = Vec::new();
        write_flame_graph(window, names, host, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// The names of all elements, and the text of each `title` and `text`, by a parser of XML.
    fn parse(svg: &str) -> (Vec<String>, Vec<String>) {
        let mut reader = quick_xml::Reader::from_str(svg);
        let (mut elements, mut texts, mut text) = (Vec::new(), Vec::new(), None);
        loop {
            match reader.read_event().unwrap() {
                Event::Start(start) => {
                    let name = String::from_utf8(start.name().as_ref().to_vec()).unwrap();
                    if ["title", "text"].contains(&name.as_str()) {
                        text = Some(String::new());
                    }
                    for attribute in start.attributes() {
                        attribute.unwrap();
                    }
                    elements.push(name);
                }
                Event::Text(part) => {
                    if let Some(text) = &mut text {
                        text.push_str(&part.decode().unwrap());
                    }
                }
                Event::GeneralRef(part) => {
                    if let Some(text) = &mut text {
                        text.push_str(match &*part.decode().unwrap() {
                            "lt" => "<",
                            "gt" => ">",
                            "amp" => "&",
                            "quot" => "\"",
                            "apos" => "'",
                            other => panic!("an unknown entity: {other}"),
                        });
                    }
                }
                Event::End(_) => texts.extend(text.take()),
                Event::Eof => return (elements, texts),
                _ => {}
            }
        }
    }

    #[test]
    fn services_and_spans_at_the_root() {
        let (window, names) = checkout();
        let svg = svg(&window, &names, "web-1");
        let (_, texts) = parse(&svg);
        for title in [
            "all (61 samples, 100%)",
            "checkout (58 samples, 95.08%)",
            "POST /pay (35 samples, 57.38%)",
            "GET /cart (15 samples, 24.59%)",
            "(no span) (7 samples, 11.48%)",
            "pay::hash (30 samples, 49.18%)",
            "web-1: 61 samples, 0.61 s of CPU time in 10.0 s",
            TITLE,
        ] {
            assert!(texts.iter().any(|text| text == title), "{title} is not in {texts:?}");
        }
    }

    #[test]
    fn a_frame_with_a_longer_namesake_is_drawn_once() {
        let (window, names) = window(
            &[
                seen("s", &["a:f"], None, 1),
                seen("s", &["a:f::g"], None, 1),
                seen("s", &["a:h", "a:f"], None, 1),
            ],
            [1, 2],
        );
        let (_, texts) = parse(&svg(&window, &names, "h"));
        let drawn: Vec<_> = texts.iter().filter(|text| text.starts_with("f (")).collect();
        assert_eq!(drawn, ["f (2 samples, 66.67%)"]);
    }

    #[test]
    fn hostile_names_stay_text() {
        let (mut window, mut names) = checkout();
        let hostile = "<script>alert(1)</script>&\"'\u{1b}]]>";
        rename_functions(&mut names, |_| hostile.to_owned());
        let group = &mut window.groups[0];
        let service = Arc::make_mut(&mut group.service);
        service.name = format!("</svg>{hostile}");
        rename_spans(group, |_| Some(hostile.to_owned()));
        let hostile_svg = svg(&window, &names, hostile);
        let (elements, texts) = parse(&hostile_svg);
        assert_eq!(elements.iter().filter(|name| *name == "script").count(), 1, "inferno's own");
        assert!(elements.iter().all(|name| name != "alert"));
        let shown = "<script>alert(1)</script>&\"'\u{fffd}]]>";
        assert!(texts.iter().any(|text| text.starts_with(shown)), "{texts:?}");
        assert!(texts.iter().any(|text| text.starts_with(&format!("</svg>{shown} (58"))));

        window.groups.clear();
        let (elements, texts) = parse(&svg(&window, &names, hostile));
        assert_eq!(elements, ["svg", "text", "text"]);
        assert!(texts[1].starts_with(&format!("{shown}: 0 samples")), "{texts:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_window_is_the_same_well_formed_svg(
            (seen, shuffled) in
                any_seen().prop_flat_map(|seen| (Just(seen.clone()), Just(seen).prop_shuffle()))
        ) {
            let (one, one_names) = window(&seen, [1, 2]);
            let one_svg = svg(&one, &one_names, "h");
            let (_, texts) = parse(&one_svg);
            let all = match one.samples() {
                0 => "h: 0 samples, 0.00 s of CPU time in 10.0 s".to_owned(),
                samples => format!("all ({samples} samples, 100%)"),
            };
            prop_assert!(texts.contains(&all), "{:?}", texts);
            let (two, two_names) = window(&shuffled, [9, 4]);
            prop_assert_eq!(one_svg, svg(&two, &two_names, "h"));
        }
    }
}
