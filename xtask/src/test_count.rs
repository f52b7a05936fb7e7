//! What the test runners say, summed.

use std::fmt;

/// Sums over several runners.
#[derive(Default)]
pub(crate) struct Count {
    passed: u64,
    ignored: u64,
    failed: u64,
    failures: Vec<String>,
}

impl Count {
    /// Takes one line of a runner's output.
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            for part in counts.split(['.', ';']) {
                let mut words = part.split_whitespace();
                let (Some(number), Some(what), None) = (words.next(), words.next(), words.next())
                else {
                    continue;
                };
                let Ok(number) = number.parse::<u64>() else { continue };
                match what {
                    "passed" => self.passed += number,
                    "failed" => self.failed += number,
                    "ignored" => self.ignored += number,
                    _ => {}
                }
            }
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        }
    }

    /// A runner that failed and did not say which test: it counts as one failure.
    pub(crate) fn broken_run(&mut self, arguments: &str) {
        self.failed += 1;
        self.failures.push(format!("cargo {arguments} ended early: see its output"));
    }

    /// Tests that failed so far.
    pub(crate) const fn failed(&self) -> u64 {
        self.failed
    }

    /// The end of the story. `skipped`: one line for each test that returned early, which its
    /// runner took for passed.
    pub(crate) fn summary(&self, skipped: &str) -> Summary {
        let skipped: Vec<String> = skipped.lines().map(str::to_owned).collect();
        let returned_early = u64::try_from(skipped.len()).unwrap_or(u64::MAX);
        Summary {
            passed: self.passed.saturating_sub(returned_early),
            failed: self.failed,
            skipped: returned_early.saturating_add(self.ignored),
            failures: self.failures.clone(),
            reasons: skipped,
        }
    }
}

/// What is printed last.
pub(crate) struct Summary {
    passed: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
    skipped: u64,
    failures: Vec<String>,
    reasons: Vec<String>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped, failures, reasons } = self;
        if !failures.is_empty() {
            writeln!(f, "\n==== FAILED ====")?;
            for failure in failures {
                writeln!(f, "  {failure}")?;
            }
        }
        if *skipped > 0 {
            writeln!(f, "\n==== {skipped} TESTS DID NOT RUN ====")?;
            for reason in reasons {
                writeln!(f, "  {reason}")?;
            }
            writeln!(f, "SPANPROF_TESTS=all makes each of them a failure.")?;
        }
        write!(f, "\n{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_RUNNERS: [&str; 5] = [
        "test decode::stops ... ok",
        "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.12s",
        "test spans::add_up ... FAILED",
        "test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out; finished in 2.00s",
        "test result: is a word of somebody else",
    ];

    fn count(lines: &[&str]) -> Count {
        let mut count = Count::default();
        for line in lines {
            count.line(line);
        }
        count
    }

    #[test]
    fn runners_are_summed_and_the_last_line_stands_alone() {
        let summary = count(&TWO_RUNNERS).summary("").to_string();
        assert!(summary.contains("  spans::add_up\n"), "{summary}");
        assert_eq!(summary.lines().last(), Some("7 passed, 1 failed, 1 skipped"));
    }

    #[test]
    fn a_test_that_returned_early_did_not_pass() {
        let summary = count(&TWO_RUNNERS[..2]).summary("spans::hop: not root\n").to_string();
        assert!(summary.contains("  spans::hop: not root\n"), "{summary}");
        assert_eq!(summary.lines().last(), Some("2 passed, 0 failed, 2 skipped"));
    }

    #[test]
    fn a_runner_that_broke_is_a_failure() {
        let mut count = Count::default();
        count.broken_run("test --workspace");
        let summary = count.summary("");
        assert_eq!(summary.failed, 1);
        assert!(summary.to_string().contains("cargo test --workspace ended early"));
    }
}
