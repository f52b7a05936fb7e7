//! CPU time by service and name of span, as a table for a terminal.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use unicode_width::UnicodeWidthStr as _;

use super::span_table::{SpanTable, relative_error};
use super::stacks::{NO_SPAN, UNNAMED_SPAN};
use super::text::{column, printable};

/// The width of the table, and of its numbers.
const COLUMNS: usize = 100;
const SAMPLES: usize = 9;
const CPU: usize = 10;
const SHARE: usize = 7;
const SPANS: usize = 7;
const ERROR: usize = 6;
/// What remains for the names of the service and of the span, with a space before each number and
/// between the two.
const NAMES: usize = COLUMNS - (SAMPLES + CPU + 2 * SHARE + SPANS + ERROR) - 7;
const SERVICE_MAX: usize = 22;

/// What is known of a line.
#[derive(Clone, Debug, Default)]
struct Line {
    service: String,
    span: String,
    samples: u64,
    cpu_ns: u64,
    /// The CPU time of its service, where it has one.
    service_cpu_ns: Option<u64>,
    /// How many distinct spans, where it is about spans.
    spans: Option<usize>,
}

impl SpanTable {
    /// Writes a table of at most 100 columns: a line for each service and name of span, the most CPU
    /// time first, and one for what each service did outside of spans; after `top` lines, one for
    /// all others; at last, the total.
    ///
    /// `±` is the relative standard error of the CPU time, see [`SpanRow::error`](super::SpanRow).
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn write_text(&self, top: usize, out: &mut dyn Write) -> io::Result<()> {
        let mut lines = self.lines();
        let others = lines.split_off(top.min(lines.len()));
        if !others.is_empty() {
            lines.push(sum(&others));
        }
        let spans: BTreeSet<_> =
            self.spans.iter().map(|row| (&row.trace_id, &row.span_id)).collect();
        let total = Line {
            service: "total".to_owned(),
            samples: self.totals.samples,
            cpu_ns: self.totals.cpu_ns,
            spans: Some(spans.len()),
            ..Line::default()
        };

        let service_width = lines
            .iter()
            .map(|line| printable(&line.service).width())
            .fold("SERVICE".len(), usize::max)
            .min(SERVICE_MAX);
        writeln!(
            out,
            "{} {} {:>SAMPLES$} {:>CPU$} {:>SHARE$} {:>SHARE$} {:>SPANS$} {:>ERROR$}",
            column("SERVICE", service_width),
            column("SPAN", NAMES - service_width),
            "SAMPLES",
            "CPU s",
            "OF SVC",
            "OF ALL",
            "SPANS",
            "±",
        )?;
        for line in lines.iter().chain([&total]) {
            let names = format!(
                "{} {}",
                column(&line.service, service_width),
                column(&line.span, NAMES - service_width)
            );
            let samples = number(line.samples, SAMPLES);
            let cpu = seconds(line.cpu_ns, CPU);
            let of_service =
                line.service_cpu_ns.map(|all| share(line.cpu_ns, all)).unwrap_or_default();
            let of_all = share(line.cpu_ns, self.totals.cpu_ns);
            let spans = line.spans.map(|spans| number(spans as u64, SPANS)).unwrap_or_default();
            let error = error(line.samples);
            writeln!(
                out,
                "{names} {samples:>SAMPLES$} {cpu:>CPU$} {of_service:>SHARE$} {of_all:>SHARE$} \
                 {spans:>SPANS$} {error:>ERROR$}"
            )?;
        }
        out.flush()
    }

    /// By CPU time, descending, then by name.
    fn lines(&self) -> Vec<Line> {
        let mut lines: BTreeMap<(String, Span), Line> = BTreeMap::new();
        let mut ids: BTreeMap<(String, Span), BTreeSet<(&str, &str)>> = BTreeMap::new();
        for row in &self.spans {
            let service = full_name(&row.service, row.service_namespace.as_deref());
            let name = row.span_name.clone().filter(|name| !name.is_empty());
            let key = (service, name.map_or(Span::Unnamed, Span::Named));
            let ids = ids.entry(key.clone()).or_default();
            ids.insert((&row.trace_id, &row.span_id));
            let line = lines.entry(key).or_default();
            line.samples = line.samples.saturating_add(row.samples);
            line.cpu_ns = line.cpu_ns.saturating_add(row.cpu_ns);
            line.spans = Some(ids.len());
        }
        let mut service_cpu_ns = BTreeMap::new();
        for row in &self.services {
            let service = full_name(&row.service, row.service_namespace.as_deref());
            service_cpu_ns.insert(service.clone(), row.totals.cpu_ns);
            let samples = row.totals.samples.saturating_sub(row.totals.span_samples);
            if samples > 0 {
                let cpu_ns = row.totals.cpu_ns.saturating_sub(row.totals.span_cpu_ns);
                let line = Line { samples, cpu_ns, ..Line::default() };
                lines.insert((service, Span::Outside), line);
            }
        }
        let mut lines: Vec<_> = lines
            .into_iter()
            .map(|((service, span), line)| Line {
                service_cpu_ns: service_cpu_ns.get(&service).copied(),
                span: match span {
                    Span::Named(name) => name,
                    Span::Unnamed => UNNAMED_SPAN.to_owned(),
                    Span::Outside => NO_SPAN.to_owned(),
                },
                service,
                ..line
            })
            .collect();
        lines.sort_by_key(|line| Reverse(line.cpu_ns));
        lines
    }
}

/// What a line is about, within its service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Span {
    Named(String),
    Unnamed,
    Outside,
}

fn full_name(service: &str, namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("{namespace}/{service}"),
        None => service.to_owned(),
    }
}

fn sum(lines: &[Line]) -> Line {
    let mut sum = Line { span: format!("others ({})", lines.len()), ..Line::default() };
    for line in lines {
        sum.samples = sum.samples.saturating_add(line.samples);
        sum.cpu_ns = sum.cpu_ns.saturating_add(line.cpu_ns);
        if let Some(spans) = line.spans {
            sum.spans = Some(sum.spans.unwrap_or(0).saturating_add(spans));
        }
    }
    sum
}

/// In full where it fits, otherwise its order of magnitude.
#[expect(clippy::cast_precision_loss, reason = "only two digits are shown")]
fn number(value: u64, columns: usize) -> String {
    let full = value.to_string();
    if full.len() <= columns { full } else { format!("{:.1e}", value as f64) }
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits after the point")]
fn seconds(ns: u64, columns: usize) -> String {
    let seconds = ns as f64 / 1e9;
    let full = format!("{seconds:.3}");
    if full.len() <= columns { full } else { format!("{seconds:.1e}") }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit after the point")]
fn share(part: u64, whole: u64) -> String {
    if whole == 0 { String::new() } else { format!("{:.1}%", 100.0 * part as f64 / whole as f64) }
}

fn error(samples: u64) -> String {
    if samples == 0 { String::new() } else { format!("{:.1}%", 100.0 * relative_error(samples)) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::aggregate::Window;
    use crate::encode::test_window::{any_seen, checkout, rename_spans, window};

    fn text(window: &Window, top: usize) -> String {
        let mut out = Vec::new();
        SpanTable::new(window).write_text(top, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// Spaces at the end of a line do not show.
    #[track_caller]
    fn check(window: &Window, top: usize, expected: &[&str]) {
        let text = text(window, top);
        let lines: Vec<_> = text.lines().map(str::trim_end).collect();
        assert_eq!(lines, expected, "\n{text}");
    }

    #[test]
    fn every_service_and_span_name() {
        check(
            &checkout().0,
            10,
            &[
                "SERVICE            SPAN                            SAMPLES      CPU s  OF SVC  OF ALL   SPANS      ±",
                "checkout           POST /pay                            35      0.350   60.3%   57.4%       1  16.9%",
                "checkout           GET /cart                            15      0.150   25.9%   24.6%       2  25.8%",
                "checkout           (no span)                             7      0.070   12.1%   11.5%          37.8%",
                "unknown_service:sh (no span)                             3      0.030  100.0%    4.9%          57.7%",
                "checkout           (unnamed span)                        1      0.010    1.7%    1.6%       1 100.0%",
                "total                                                   61      0.610          100.0%       4  12.8%",
            ],
        );
    }

    #[test]
    fn the_rest_is_one_line() {
        check(
            &checkout().0,
            1,
            &[
                "SERVICE  SPAN                                      SAMPLES      CPU s  OF SVC  OF ALL   SPANS      ±",
                "checkout POST /pay                                      35      0.350   60.3%   57.4%       1  16.9%",
                "         others (4)                                     26      0.260           42.6%       3  19.6%",
                "total                                                   61      0.610          100.0%       4  12.8%",
            ],
        );
    }

    #[test]
    fn nothing_is_a_table_too() {
        check(
            &Window::default(),
            5,
            &[
                "SERVICE SPAN                                       SAMPLES      CPU s  OF SVC  OF ALL   SPANS      ±",
                "total                                                    0      0.000                       0",
            ],
        );
    }

    #[test]
    fn a_span_may_be_called_no_span() {
        let (mut window, _) = checkout();
        let group = &mut window.groups[0];
        rename_spans(group, |_| Some(NO_SPAN.to_owned()));
        let lines = text(&window, 10);
        assert_eq!(lines.matches(NO_SPAN).count(), 3, "{lines}");
    }

    proptest! {
        #[test]
        fn fits_a_hundred_columns(
            seen in any_seen(),
            service in "\\PC{0,40}|支{0,30}",
            span in any::<String>(),
            samples in any::<u64>(),
            top in 0_usize..10,
        ) {
            let (mut window, _) = window(&seen, [1, 2]);
            if let Some(group) = window.groups.first_mut() {
                Arc::make_mut(&mut group.service).name = service;
                rename_spans(group, |_| Some(span.clone()));
                for row in &mut group.rows {
                    (row.samples, row.cpu_ns) = (samples, samples);
                }
            }
            let text = text(&window, top);
            for line in text.lines() {
                prop_assert!(line.width() <= COLUMNS, "{} columns: {:?}", line.width(), line);
                prop_assert!(!line.contains(char::is_control));
            }
            prop_assert!(text.lines().count() <= top + 3);
        }
    }
}
