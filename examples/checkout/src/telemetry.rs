//! Traces: `tracing` to opentelemetry, marked by span-marker, and watched by the truth.

use anyhow::Context as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::truth::{Truth, TruthLayer, thread_cpu_ns};

/// Starts tracing for the whole program.
pub(crate) fn start(sample: f64, marked: bool) -> anyhow::Result<(SdkTracerProvider, Truth)> {
    let mut provider = SdkTracerProvider::builder();
    if marked {
        // All that a service does to be profiled by span.
        provider = provider.with_span_processor(span_marker::opentelemetry::processor());
    }
    let provider = provider
        .with_resource(resource())
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(sample))));
    let provider = with_exporter(provider)?.build();

    let truth = Truth::default();
    let traces = tracing_opentelemetry::layer().with_tracer(provider.tracer("checkout"));
    let layers = traces.and_then(TruthLayer::new(truth.clone(), thread_cpu_ns));
    tracing_subscriber::registry()
        .with(layers.with_filter(LevelFilter::INFO))
        .try_init()
        .context("tracing is already set up")?;
    Ok((provider, truth))
}

/// The environment names the service, else we do.
fn resource() -> Resource {
    let resource = Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_some() {
        resource.build()
    } else {
        resource.with_service_name("checkout").build()
    }
}

type ProviderBuilder = opentelemetry_sdk::trace::TracerProviderBuilder;

/// To where the `OTEL_EXPORTER_OTLP_*` variables say, in batches, from a thread of its own.
#[cfg(feature = "otlp")]
fn with_exporter(provider: ProviderBuilder) -> anyhow::Result<ProviderBuilder> {
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_http().build();
    Ok(provider.with_batch_exporter(exporter.context("cannot start the exporter")?))
}

/// Nobody needs the traces to judge the profiles.
#[cfg(not(feature = "otlp"))]
#[expect(clippy::unnecessary_wraps, reason = "an exporter may not start")]
fn with_exporter(provider: ProviderBuilder) -> anyhow::Result<ProviderBuilder> {
    Ok(provider)
}
