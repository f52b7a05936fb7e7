//! Whether the server keeps `trace_id` with the samples.
//!
//! Before 2.1.0 it made a series of each trace, which costs its operator dearly: unless the server
//! says that it is new enough, the label stays off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::info;

/// A server that answered is not asked again sooner, whatever happens.
const MIN_INTERVAL: Duration = Duration::from_mins(5);
/// One that did not is asked again after this, at the earliest.
const MIN_INTERVAL_UNANSWERED: Duration = Duration::from_secs(10);
/// Servers are replaced behind our back, too.
const MAX_INTERVAL: Duration = Duration::from_hours(1);

/// Asks at the start, and again when the server was away, and sets the flag. Never ends.
pub(super) async fn keep_asking<F>(
    ask: impl Fn() -> F,
    flag: Arc<AtomicBool>,
    recovered: Arc<Notify>,
) where
    F: Future<Output = Option<Vec<u8>>>,
{
    loop {
        let asked = Instant::now();
        let answer = ask().await;
        let takes = answer.as_deref().is_some_and(takes_trace_id);
        if flag.swap(takes, Ordering::Relaxed) != takes {
            info!(trace_id = takes, "label decided by the server's version");
        }
        let least = if answer.is_some() { MIN_INTERVAL } else { MIN_INTERVAL_UNANSWERED };
        sleep_until(asked + least).await;
        // Time-out or notice: ask again.
        drop(timeout(MAX_INTERVAL - least, recovered.notified()).await);
    }
}

fn takes_trace_id(build_info: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Answer {
        data: BuildInfo,
    }
    #[derive(serde::Deserialize)]
    struct BuildInfo {
        version: String,
    }
    serde_json::from_slice::<Answer>(build_info)
        .is_ok_and(|answer| parse(&answer.data.version).is_some_and(|version| version >= (2, 1, 0)))
}

/// Major, minor and patch of a release. Of a pre-release or a weekly build nobody can tell.
fn parse(version: &str) -> Option<(u32, u32, u32)> {
    let version = version.strip_prefix('v').unwrap_or(version);
    let release = version.split('+').next()?;
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().ok());
    let parsed = (numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some(parsed)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[track_caller]
    fn check(version: &str, expected: bool) {
        let json = serde_json::json!({"status": "success", "data": {"version": version}});
        assert_eq!(takes_trace_id(json.to_string().as_bytes()), expected, "{version}");
    }

    #[test]
    fn servers_from_2_1_take_it() {
        for version in ["2.1.0", "v2.1.0", "2.2.1", "2.10.0", "3.0.0", "2.1.0+build.7"] {
            check(version, true);
        }
        for version in [
            "",
            "1.12.0",
            "v1.21.1",
            "2.0.6",
            "2.1.0-rc.1",
            "weekly-f184",
            "2.1",
            "2.1.0.1",
            "2.1.x",
            "99999999999.0.0",
            "-2.1.0",
        ] {
            check(version, false);
        }
    }

    #[test]
    fn other_answers_mean_no() {
        for answer in [&b""[..], b"{}", b"not json", br#"{"data":{"version":2}}"#, b"\xff"] {
            assert!(!takes_trace_id(answer));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_asked_again_after_a_recovery_but_not_often() {
        let (flag, recovered) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
        let asked = AtomicU32::new(0);
        let start = Instant::now();
        // When it was asked, and what the flag was then.
        let (times, mut at) = tokio::sync::mpsc::unbounded_channel();
        let ask = {
            let flag = Arc::clone(&flag);
            move || {
                times.send((start.elapsed(), flag.load(Ordering::Relaxed))).unwrap();
                let number = asked.fetch_add(1, Ordering::Relaxed);
                // Away at first, then new, then old.
                let version = [None, Some("2.2.1"), Some("1.12.0"), None][number as usize];
                let json = version.map(|v| format!(r#"{{"data":{{"version":"{v}"}}}}"#));
                std::future::ready(json.map(String::into_bytes))
            }
        };
        let task = tokio::spawn(keep_asking(ask, flag, Arc::clone(&recovered)));
        assert_eq!(at.recv().await, Some((Duration::ZERO, false)));
        recovered.notify_one();
        let mut time = MIN_INTERVAL_UNANSWERED;
        assert_eq!(at.recv().await, Some((time, false)));
        recovered.notify_one();
        time += MIN_INTERVAL;
        assert_eq!(at.recv().await, Some((time, true)));
        // Nothing happens for an hour.
        time += MAX_INTERVAL;
        assert_eq!(at.recv().await, Some((time, false)));
        task.abort();
    }
}
