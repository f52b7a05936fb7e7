//! The agent's own traces and metrics over OTLP (HTTP, protobuf), by the OpenTelemetry SDK.
//!
//! What is not delivered is lost: it is no profile.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use opentelemetry::metrics::{AsyncInstrument, Meter, MeterProvider as _};
use opentelemetry::trace::{TraceContextExt as _, Tracer as _};
use opentelemetry::{KeyValue, global};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    MetricExporter, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use reqwest::redirect::Policy;

use crate::metric::Metric;

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// No answer is longer.
const ANSWER_MAX: u64 = 1 << 20;
/// What tracers and meters are called.
const NAME: &str = "spanprof";

/// Why there is nothing to send it by.
#[derive(Debug, thiserror::Error)]
#[error("the OTLP endpoint is not usable: {0}")]
pub struct OtlpError(String);

/// Sends until [`shutdown`](Self::shutdown).
#[derive(Debug)]
pub struct Otlp {
    traces: SdkTracerProvider,
    metrics: SdkMeterProvider,
    meter: Meter,
    /// The metrics that have an instrument.
    known: HashSet<String>,
    latest: Latest,
}

/// The metrics of the newest window.
#[derive(Clone, Debug, Default)]
struct Latest(Arc<Mutex<BTreeMap<String, Metric>>>);

impl Latest {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Metric>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Otlp {
    /// Starts to send to this URL, of `http` or `https`, below which are `/v1/traces` and
    /// `/v1/metrics`. Must be called in a tokio run time. The SDK's variables
    /// (`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_METRIC_EXPORT_INTERVAL`, …) are heeded.
    ///
    /// # Errors
    ///
    /// It is no such URL. A server that is not there is no error.
    pub fn start(url: &str, host: &str) -> Result<Self, OtlpError> {
        let error = |error: &dyn std::fmt::Display| OtlpError(error.to_string());
        let base = reqwest::Url::parse(url).map_err(|it| error(&it))?;
        if !["http", "https"].contains(&base.scheme()) {
            return Err(OtlpError("it must begin with http:// or https://".to_owned()));
        }
        let at = |path: &str| format!("{}/{path}", base.as_str().trim_end_matches('/'));
        // A redirect would take the headers, which may be secrets, elsewhere.
        let http = reqwest::Client::builder().timeout(TIMEOUT).redirect(Policy::none()).build();
        let client = Client {
            http: http.map_err(|it| error(&it))?,
            runtime: tokio::runtime::Handle::current(),
            fails: Arc::default(),
        };
        let resource = Resource::builder()
            .with_service_name(NAME)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("host.name", host.to_owned()))
            .build();
        let spans = SpanExporter::builder()
            .with_http()
            .with_http_client(client.clone())
            .with_endpoint(at("v1/traces"))
            .build()
            .map_err(|it| error(&it))?;
        let numbers = MetricExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(at("v1/metrics"))
            .build()
            .map_err(|it| error(&it))?;
        let traces = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_batch_exporter(spans)
            .build();
        let metrics = SdkMeterProvider::builder()
            .with_resource(resource)
            .with_periodic_exporter(numbers)
            .build();
        global::set_tracer_provider(traces.clone());
        let meter = metrics.meter(NAME);
        Ok(Self { traces, metrics, meter, known: HashSet::new(), latest: Latest::default() })
    }

    /// Takes the metrics of a window: they are sent when the SDK's interval (60 s) is over.
    pub fn observe(&mut self, metrics: BTreeMap<String, Metric>) {
        for (name, metric) in &metrics {
            if !self.known.contains(name) {
                self.known.insert(name.clone());
                self.make_instrument(name, metric);
            }
        }
        *self.latest.lock() = metrics;
    }

    /// Numbers are exact up to 2^53.
    fn make_instrument(&self, name: &str, metric: &Metric) {
        let (full, latest, name) = (format!("{NAME}.{name}"), self.latest.clone(), name.to_owned());
        let tell = move |to: &dyn AsyncInstrument<f64>| {
            let latest = latest.lock();
            for (label, count) in latest.get(&name).into_iter().flat_map(|metric| &metric.counts) {
                let label = label.iter().map(|(name, value)| KeyValue::new(*name, value.clone()));
                to.observe(count.as_f64().unwrap_or_default(), &label.collect::<Vec<_>>());
            }
        };
        // The meter keeps it.
        if metric.is_gauge {
            let _kept = self.meter.f64_observable_gauge(full).with_callback(tell).build();
        } else {
            let _kept = self.meter.f64_observable_counter(full).with_callback(tell).build();
        }
    }

    /// Sends what is left. Blocks, for as long as a request may take: not for the threads of a run
    /// time.
    pub fn shutdown(&self) {
        for (what, ended) in
            [("traces", self.traces.shutdown()), ("metrics", self.metrics.shutdown())]
        {
            if let Err(error) = ended {
                tracing::warn!(%error, "the agent's last own {what} are lost");
            }
        }
    }
}

/// Does some work of the agent's in a span of its own traces; without an endpoint, the work alone.
pub fn in_span<T>(name: &'static str, samples: u64, work: impl FnOnce() -> T) -> T {
    global::tracer(NAME).in_span(name, |context| {
        let samples = i64::try_from(samples).unwrap_or(i64::MAX);
        context.span().set_attribute(KeyValue::new("spanprof.samples", samples));
        work()
    })
}

/// The exporter's requests, by the client and the run time of everything else: the SDK's threads
/// have none.
#[derive(Clone, Debug)]
struct Client {
    http: reqwest::Client,
    runtime: tokio::runtime::Handle,
    /// Whether the last request of this client or a copy of it failed.
    fails: Arc<AtomicBool>,
}

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = reqwest::Request::try_from(request)?;
        let answer = self.runtime.spawn(ask(self.http.clone(), request)).await?;
        self.tell(&answer);
        answer
    }
}

impl Client {
    /// Says once that it does not work, and that it works again: the SDK says nothing.
    fn tell(&self, answer: &Result<Response<Bytes>, HttpError>) {
        let failure = match answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(answer.status().to_string()),
            Err(error) => Some(error.to_string()),
        };
        let failed_before = self.fails.swap(failure.is_some(), Ordering::Relaxed);
        match failure {
            Some(error) if !failed_before => {
                tracing::warn!(error, "the agent's own metrics and traces do not arrive");
            }
            None if failed_before => {
                tracing::info!("the agent's own metrics and traces arrive again");
            }
            _ => {}
        }
    }
}

async fn ask(
    http: reqwest::Client,
    request: reqwest::Request,
) -> Result<Response<Bytes>, HttpError> {
    let mut answer = http.execute(request).await?;
    let mut response = Response::builder().status(answer.status());
    if let Some(headers) = response.headers_mut() {
        headers.clone_from(answer.headers());
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        body.extend_from_slice(&chunk);
        if u64::try_from(body.len()).unwrap_or(u64::MAX) > ANSWER_MAX {
            return Err("the answer is too long".into());
        }
    }
    Ok(response.body(Bytes::from(body))?)
}
