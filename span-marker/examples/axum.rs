//! A web service without OpenTelemetry: a span for each request, by `tracing`.
//!
//! `cargo run -p span-marker --features tracing --example axum`, then
//! `curl -H 'traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01' localhost:3000/cart`.

use std::io;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::get;
use tracing::Instrument as _;
use tracing_subscriber::prelude::*;

#[tokio::main]
async fn main() -> io::Result<()> {
    tracing_subscriber::registry().with(span_marker::tracing::layer()).init();
    let service = Router::new().route("/cart", get(cart)).layer(from_fn(in_a_span));
    axum::serve(tokio::net::TcpListener::bind("127.0.0.1:3000").await?, service).await
}

/// With the trace id of the caller, if it sent one: `version-traceid-parentid-flags`.
async fn in_a_span(request: Request, next: Next) -> Response {
    let header = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
    let trace_id = header.and_then(|header| header.split('-').nth(1)).unwrap_or_default();
    // The span's name is one of few: not the path, in which clients write what they like.
    let span = tracing::info_span!("request", trace_id);
    next.run(request).instrument(span).await
}

#[tracing::instrument]
async fn cart() -> String {
    let sum = (0..50_000_000_u64).fold(0, |sum, n| std::hint::black_box(sum ^ n));
    format!("{sum}\n")
}
