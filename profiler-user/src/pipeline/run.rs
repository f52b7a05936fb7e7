//! `spanprof run`: window after window to Pyroscope, until told to stop.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::Receiver,
    },
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};

use super::books::Books;
use super::collect::Collected;
use super::coverage::Coverage;
use super::outputs;
use super::own_cost::OwnCost;
use super::place::{Placed, Placer, Rules};
use super::reload::{ReloadStats, lock, take};
use super::running::{Running, StartConfig, StartError, join};
use super::series::{Labels, Place};
use super::servers::Servers;
use super::unwinding::UnwindStats;
use crate::aggregate::{Group, Window};
use crate::capture::{Counters, HookStats};
use crate::config::RunConfig;
use crate::encode::{AdmittedValues, cap_attributes, split_by_span_name};
use crate::engine::Engines;
use crate::export::file::{FileError, check_writable, write_atomically};
use crate::export::otlp::{Otlp, OtlpError, in_span};
use crate::export::pyroscope::ConfigError;
use crate::metric::metrics;
use crate::pods::{Pods, is_in_cluster};
use crate::privilege::Setup;
use crate::process::{ElfRegistry, TableStats};
use crate::serve::{Beat, DEFAULT_LISTEN, Health, Listen, ListenError, Target, Telling, serve};
use crate::stats::{Count, Stats};
use crate::symbolize::{Names, SymbolizeStats, Symbolizer, SymbolizerConfig};

/// How long the last profiles may take to be delivered. With the names of at most three windows
/// that are under way it stays below 30 s, when Kubernetes kills.
const GRACE: Duration = Duration::from_secs(10);
/// How long the names of a window may take when it is time to end.
const LAST_NAMES: Duration = Duration::from_secs(2);

pub use super::reload::{Reload, Reloaded, TAKEN_AT_ONCE};

/// Why it does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The exporter's settings.
    #[error(transparent)]
    Export(#[from] ConfigError),
    /// The file for the counters.
    #[error(transparent)]
    File(#[from] FileError),
    /// What it tells of itself.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The same, to a collector.
    #[error(transparent)]
    Otlp(#[from] OtlpError),
    /// Sampling.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Nobody asked for it.
    #[error("sampling has ended by itself")]
    EndedByItself,
    /// Our own threads and signals.
    #[error("cannot go on")]
    Io(#[from] io::Error),
}

/// Samples and pushes until SIGTERM or SIGINT, then delivers what is left.
///
/// # Errors
///
/// Nothing could be sampled, or a thread of ours has panicked. A server that is not there is no
/// error.
pub async fn run(config: RunConfig, setup: Setup, reload: Box<Reload>) -> Result<(), RunError> {
    // First of all: as process 1 of a container, a signal without a handler is ignored.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    if let Some(path) = &config.stats {
        check_writable(path)?;
    }
    let stats = Arc::new(Stats::default());
    let (health, telling) = (Arc::new(Health::default()), Arc::new(Telling::default()));
    listen(&config.listen, &health, &telling).await?;
    let otlp = config.otlp.as_deref().map(|url| Otlp::start(url, &config.host)).transpose()?;
    let servers = Arc::new(Servers::start(&config, &stats)?);
    let start = StartConfig {
        capture: config.capture.clone(),
        spans: config.spans.clone(),
        origins: true,
        setup: Some(setup),
        health: Arc::clone(&health),
        window: Some(config.window),
        recorder: None,
    };
    let Running { stop, counters, elfs, perf_maps, windows, collector } =
        Running::start(start, &stats)?;
    let stopping = Arc::new(AtomicBool::new(false));
    let symbolizer = SymbolizerConfig {
        // Later than the next window, names would cost samples.
        window_budget: config.window / 2,
        ..SymbolizerConfig::new(config.inline)
    };
    if config.node.is_none() && is_in_cluster() {
        tracing::warn!("pods are not asked for: --kubernetes is off, or there is no --node-name");
    }
    let rules = Rules::default();
    rules.set(Arc::clone(&config.rules));
    let reloads = Arc::new(Mutex::new(ReloadStats::default()));
    let place = Place { host: config.host.clone(), node: config.node.clone() };
    let pods = config.node.as_deref().map(Pods::watch_in_cluster);
    let finisher = Finisher {
        placer: Placer::new(place, rules.clone(), pods, Engines::below(Path::new("/"))),
        symbolizer: Symbolizer::new(symbolizer).with_perf_maps(perf_maps),
        span_names: config.span_names.map(AdmittedValues::new),
        attributes: HashMap::new(),
        coverage: Coverage::default(),
        config,
        servers: Arc::clone(&servers),
        elfs,
        counters,
        stats,
        process: TableStats::default(),
        hooks: HookStats::default(),
        unwind: UnwindStats::default(),
        stopping: Arc::clone(&stopping),
        health: Arc::clone(&health),
        telling,
        otlp,
        reloads: Arc::clone(&reloads),
    };
    // A thread of its own: the symbolizing worker lives as long as the thread that started it.
    let (done, mut finished) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("finish".to_owned()).spawn(move || {
        // Nobody to tell means that the program is ending.
        drop(done.send(finisher.run(&windows)));
    })?;

    let early = loop {
        tokio::select! {
            _ = interrupt.recv() => break None,
            _ = terminate.recv() => break None,
            finished = &mut finished => break Some(finished),
            _ = hangup.recv() => take(reload(), &rules, &reloads),
        }
    };
    tracing::info!("stopping");
    health.set_stopping();
    stopping.store(true, Ordering::Relaxed);
    stop.stop();
    let by_itself = early.is_some();
    let finisher = match early {
        Some(finished) => finished,
        None => finished.await,
    };
    let joined = tokio::task::spawn_blocking(move || join(collector)).await;
    let mut finisher = finisher;
    let otlp = finisher.as_mut().ok().and_then(|finisher| finisher.otlp.take());
    let told = tokio::task::spawn_blocking(move || otlp.as_ref().map(Otlp::shutdown));
    servers.shutdown(GRACE).await;
    // Whatever has panicked, what was queued before is delivered first.
    let finisher =
        finisher.map_err(|_gone| io::Error::other("the finishing thread has panicked"))?;
    told.await.map_err(|_panic| io::Error::other("the SDK of telemetry has panicked"))?;
    let books = finisher.books()?;
    finisher.write_stats(&books)?;
    tracing::info!("{books}");
    joined.map_err(|_panic| io::Error::other("the collecting thread has panicked"))??;
    if by_itself { Err(RunError::EndedByItself) } else { Ok(()) }
}

/// Serves metrics and the like. That nobody asked for this address is no reason not to run: another
/// agent may have it.
async fn listen(
    listen: &Listen,
    health: &Arc<Health>,
    telling: &Arc<Telling>,
) -> Result<(), ListenError> {
    let address = match listen {
        Listen::Off => return Ok(()),
        Listen::Default => DEFAULT_LISTEN,
        Listen::At(address) => address,
    };
    match serve(address, Arc::clone(health), Arc::clone(telling)).await {
        Ok(address) => tracing::info!(%address, "serving /metrics, /healthz and /readyz"),
        Err(error) if *listen == Listen::Default => {
            tracing::warn!(%error, "there is no /metrics, /healthz and /readyz");
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// The finishing thread: windows in, profiles out.
struct Finisher {
    config: RunConfig,
    symbolizer: Symbolizer,
    servers: Arc<Servers>,
    elfs: ElfRegistry,
    counters: Arc<Counters>,
    stats: Arc<Stats>,
    process: TableStats,
    hooks: HookStats,
    unwind: UnwindStats,
    /// The span names of each service that are a series of their own, if any are.
    span_names: Option<AdmittedValues>,
    /// And the values of each of their attributes.
    attributes: HashMap<Arc<str>, AdmittedValues>,
    coverage: Coverage,
    placer: Placer,
    /// It is time to end: names have to come soon or not at all.
    stopping: Arc<AtomicBool>,
    health: Arc<Health>,
    telling: Arc<Telling>,
    otlp: Option<Otlp>,
    reloads: Arc<Mutex<ReloadStats>>,
}

impl Finisher {
    fn run(mut self, windows: &Receiver<Collected>) -> Self {
        for collected in windows {
            self.health.beat(Beat::Finish);
            let samples = collected.window.samples();
            in_span("window", samples, || self.window(collected));
            self.health.rest(Beat::Finish);
        }
        if let Some(placed) = self.placer.flush() {
            self.finish(&placed);
        }
        self
    }

    fn window(&mut self, Collected { window, process, hooks, unwind }: Collected) {
        self.process = process;
        self.hooks = hooks;
        self.unwind = unwind;
        if self.stopping.load(Ordering::Relaxed) {
            self.symbolizer.set_window_budget(LAST_NAMES);
        }
        let samples = window.samples();
        let placed: Vec<Placed> = self.placer.place(window).into_iter().flatten().collect();
        self.tell_targets(&placed);
        for placed in &placed {
            self.finish(placed);
        }
        match self.books() {
            Ok(books) => {
                tracing::info!(samples, "window: {books}");
                let json = books.to_json();
                if let Some(otlp) = &mut self.otlp {
                    otlp.observe(metrics(&json));
                }
                self.telling.set_books(json);
                if let Err(error) = self.write_stats(&books) {
                    tracing::warn!(%error, "cannot write the counters");
                }
            }
            Err(error) => tracing::warn!(%error, "cannot read the kernel's counters"),
        }
    }

    fn tell_targets(&self, placed: &[Placed]) {
        let series = placed.iter().flat_map(|it| it.labels.iter().zip(&it.window.groups));
        let target = |(labels, group): (&Labels, &Group)| Target {
            labels: labels.clone(),
            samples: group.samples(),
        };
        self.telling.set_targets(series.map(target).collect());
    }

    fn finish(&mut self, Placed { window, labels, unwanted }: &Placed) {
        self.stats.add(Count::LostDroppedByRule, *unwanted);
        let samples = window.samples();
        let names = in_span("symbolize", samples, || {
            outputs::names(&mut self.symbolizer, window, &self.elfs)
        });
        self.coverage.add(window);
        in_span("encode", samples, || self.encode(window, labels, &names));
    }

    fn encode(&mut self, window: &Window, labels: &[Labels], names: &Names) {
        for (group, labels) in window.groups.iter().zip(labels) {
            let mut group = group.clone();
            cap_attributes(&mut group, self.config.span_attribute_values, &mut self.attributes);
            let parts = match &mut self.span_names {
                Some(admitted) => split_by_span_name(&group, admitted),
                None => vec![(None, group)],
            };
            for (name, group) in parts {
                let mut labels = labels.clone();
                labels.extend(name.map(|name| ("span_name".to_owned(), name.to_string())));
                let labels = labels.into_iter().collect();
                self.servers.push(window, &group, &labels, names);
            }
        }
    }

    fn books(&self) -> io::Result<Books> {
        let symbolize: SymbolizeStats = self.symbolizer.stats();
        let books = Books::new(self.counters.totals()?, &self.stats, self.servers.queued());
        Ok(self
            .servers
            .in_books(books)
            .with("services", &self.coverage)
            .with("containers", &self.placer.stats())
            .with("pods", &self.placer.pod_stats())
            .with("config", &*lock(&self.reloads))
            .with("process", &self.process)
            .with("hooks", &self.hooks)
            .with("unwind", &self.unwind)
            .with("symbolize", &symbolize)
            .with("sampler", &self.counters.cost()?)
            .with("agent", &OwnCost::until_now()))
    }

    fn write_stats(&self, books: &Books) -> Result<(), FileError> {
        match &self.config.stats {
            Some(path) => write_atomically(path, |out| books.write_json(out)),
            None => Ok(()),
        }
    }
}
