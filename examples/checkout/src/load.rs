//! Requests, a fixed number at a time, in a fixed mix.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

/// Of ten requests. The routes cost about the same, so their shares of the CPU are about these.
const MIX: [&str; 10] = [
    "/cart",
    "/recommend",
    "/cart",
    "/checkout",
    "/cart",
    "/recommend",
    "/cart",
    "/checkout",
    "/cart",
    "/recommend",
];

/// How much load, and how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) duration: Duration,
    pub(crate) concurrency: usize,
}

/// What was sent.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    requests: BTreeMap<&'static str, u64>,
    failed: u64,
    /// The last failure.
    error: Option<String>,
}

pub(crate) async fn run(url: &str, plan: Plan) -> anyhow::Result<Report> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(10))
        .build()
        .context("cannot make an HTTP client")?;
    let until = Instant::now() + plan.duration;
    let senders: Vec<_> = (0..plan.concurrency)
        .map(|first| {
            tokio::spawn(send(client.clone(), url.trim_end_matches('/').to_owned(), first, until))
        })
        .collect();
    let mut report = Report::default();
    for sender in senders {
        let sent = sender.await.context("a sender panicked")?;
        for (route, count) in sent.requests {
            *report.requests.entry(route).or_default() += count;
        }
        report.failed += sent.failed;
        report.error = sent.error.or(report.error);
    }
    anyhow::ensure!(
        !report.requests.is_empty() || plan.duration.is_zero(),
        "no request to {url} succeeded: {}",
        report.error.as_deref().unwrap_or("none was answered in time")
    );
    Ok(report)
}

/// One request after the other; each sender starts elsewhere in the mix.
async fn send(client: reqwest::Client, url: String, first: usize, until: Instant) -> Report {
    let mut report = Report::default();
    for route in MIX.iter().cycle().skip(first % MIX.len()) {
        if Instant::now() >= until {
            break;
        }
        match get(&client, &format!("{url}{route}")).await {
            Ok(()) => *report.requests.entry(route).or_default() += 1,
            Err(error) => {
                report.failed += 1;
                report.error = Some(format!("{:#}", anyhow::Error::from(error)));
                // A server that refuses at once is not asked in a busy loop.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    report
}

async fn get(client: &reqwest::Client, url: &str) -> reqwest::Result<()> {
    client.get(url).send().await?.error_for_status()?.bytes().await.map(drop)
}
