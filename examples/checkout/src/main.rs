//! A traced service that looks like what people run: axum, tokio, `tracing`, opentelemetry.
//!
//! Three routes burn CPU in functions of their own, in slices between awaits, so that requests hop
//! from thread to thread. The service keeps its own truth about which span burnt how much
//! ([`truth`]), by which a profiler can be judged.

mod load;
mod service;
mod telemetry;
mod truth;
mod work;

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// A traced web shop, its own load generator, and its own truth about CPU time per span.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    mode: Mode,

    /// Where to listen; port 0 picks a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// Threads that serve requests.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: u16,

    /// Part of the traces that is recorded.
    #[arg(long, value_name = "0..1", default_value_t = 1.0)]
    sample: f64,

    /// Publish no spans, to measure what publishing them costs.
    #[arg(long)]
    no_marker: bool,

    /// Keep serving when stdin ends.
    #[arg(long)]
    ignore_stdin: bool,

    /// How long to generate load.
    #[arg(long, value_name = "N", default_value_t = 20)]
    seconds: u64,

    /// How many requests are under way at once.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Mode {
    /// Serve until SIGTERM, SIGINT or the end of stdin.
    #[arg(long)]
    serve: bool,

    /// Send requests to a service that runs elsewhere.
    #[arg(long, value_name = "URL")]
    load: Option<String>,

    /// Serve, with a second process that sends requests, and print the truth.
    #[arg(long)]
    demo: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all();
    if args.mode.load.is_none() {
        runtime.worker_threads(args.workers.into());
    }
    let runtime = runtime.build().context("cannot start the threads")?;
    let done = runtime.block_on(run(args));
    // A request that is still under way after the grace period is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

async fn run(args: Args) -> anyhow::Result<()> {
    let load = load::Plan {
        duration: Duration::from_secs(args.seconds),
        concurrency: args.concurrency.into(),
    };
    if let Some(url) = &args.mode.load {
        return print(&serde_json::to_value(load::run(url, load).await?)?);
    }

    let (telemetry, truth) = telemetry::start(args.sample, !args.no_marker)?;
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr().context("cannot tell the port")?;
    let (stop, stopped) = oneshot::channel::<()>();
    let service = service::router(truth.clone());
    let server = axum::serve(listener, service).with_graceful_shutdown(async {
        // An error is a dropped sender, which means the same.
        drop(stopped.await);
    });
    let server = tokio::spawn(server.into_future());
    let sweeper = tokio::spawn(service::sweep_carts());
    print(&json!({ "listening": address.to_string(), "pid": std::process::id() }))?;

    if args.mode.demo {
        let url = format!("http://{address}");
        let report = run_load_process(&url, &args).await?;
        print(&json!({ "load": report, "truth": truth.snapshot() }))?;
    } else {
        wait_for_the_end(args.ignore_stdin).await?;
    }

    sweeper.abort();
    drop(stop);
    match tokio::time::timeout(Duration::from_secs(5), server).await {
        Ok(served) => served.context("the server panicked")?.context("cannot serve")?,
        Err(_still_busy) => {}
    }
    telemetry.shutdown().context("cannot shut the telemetry down")
}

/// Another process, so that its CPU time is not this one's.
async fn run_load_process(url: &str, args: &Args) -> anyhow::Result<serde_json::Value> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let child = tokio::process::Command::new(program)
        .args(["--load", url, "--seconds", &args.seconds.to_string()])
        .args(["--concurrency", &args.concurrency.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start the load generator")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    tokio::select! {
        output = child.wait_with_output() => {
            let output = output.context("cannot read the load generator's report")?;
            anyhow::ensure!(output.status.success(), "the load generator failed");
            serde_json::from_slice(&output.stdout).context("the load generator's report is no JSON")
        }
        _ = terminate.recv() => Ok(serde_json::Value::Null),
    }
}

async fn wait_for_the_end(ignore_stdin: bool) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let (ended, end_of_stdin) = oneshot::channel::<()>();
    if !ignore_stdin {
        std::thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || {
                let mut stdin = std::io::stdin().lock();
                let mut ignored = [0; 256];
                while stdin.read(&mut ignored).is_ok_and(|len| len > 0) {}
                // Dropping it tells.
                drop(ended);
            })
            .context("cannot watch stdin")?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = end_of_stdin => {}
        }
    } else {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    Ok(())
}

/// One line, at once: who started this program waits for it.
fn print(value: &serde_json::Value) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{value}").context("cannot write to stdout")?;
    stdout.flush().context("cannot write to stdout")
}
