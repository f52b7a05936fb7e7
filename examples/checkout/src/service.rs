//! The routes. Each burns most of its CPU in a function of its own, in slices between awaits.

use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use tokio::task::{JoinError, yield_now};
use tracing::Instrument as _;

use crate::truth::{Snapshot, Truth};
use crate::work;

/// `GET /cart`, `/recommend`, `/checkout`; `GET /truth` is not a span.
pub(crate) fn router(truth: Truth) -> Router {
    Router::new()
        .route("/cart", get(cart))
        .route("/recommend", get(recommend))
        .route("/checkout", get(checkout))
        .route("/truth", get(snapshot))
        .with_state(truth)
}

async fn snapshot(State(truth): State<Truth>) -> Json<Snapshot> {
    Json(truth.snapshot())
}

#[tracing::instrument(name = "GET /cart")]
async fn cart() -> Json<u64> {
    let cart = query("load_cart", work::parse_request(1)).await;
    let mut total = 0;
    for item in 0..2 {
        total ^= price(cart ^ item).await;
        yield_now().await;
    }
    Json(work::price_cart(total))
}

#[tracing::instrument(skip_all)]
async fn price(cart: u64) -> u64 {
    let total = work::price_cart(cart);
    yield_now().await;
    work::price_cart(total)
}

#[tracing::instrument(name = "GET /recommend")]
async fn recommend() -> Result<Json<u64>, TaskFailed> {
    let customer = query("load_customer", work::parse_request(2)).await;
    // Two tasks of their own: they may run at the same time, on other threads.
    let rank = |seed: u64| {
        let task = async move {
            let best = work::rank_products(seed);
            yield_now().await;
            best ^ work::rank_products(best)
        };
        tokio::spawn(task.instrument(tracing::info_span!("rank")))
    };
    let (left, right) = (rank(customer), rank(customer ^ 1));
    let best = left.await? ^ right.await?;
    Ok(Json(work::rank_products(best)))
}

#[tracing::instrument(name = "GET /checkout")]
async fn checkout() -> Json<u64> {
    let mut order = query("load_order", work::parse_request(3)).await;
    for _ in 0..2 {
        order = work::sign_order(order);
        yield_now().await;
        order = sign(order).await;
    }
    Json(order)
}

#[tracing::instrument(skip_all)]
async fn sign(order: u64) -> u64 {
    tokio::time::sleep(Duration::from_micros(300)).await;
    let signature = work::sign_order(order);
    yield_now().await;
    signature
}

/// A data base that takes its time and little CPU.
async fn query(name: &'static str, key: u64) -> u64 {
    let answer = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        work::parse_request(key)
    };
    answer.instrument(tracing::info_span!("query", otel.name = name)).await
}

/// Housekeeping that belongs to no request.
pub(crate) async fn sweep_carts() {
    let mut carts = 0;
    loop {
        carts = work::sweep_expired_carts(carts);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A part of a request panicked.
struct TaskFailed(JoinError);

impl From<JoinError> for TaskFailed {
    fn from(error: JoinError) -> Self {
        Self(error)
    }
}

impl axum::response::IntoResponse for TaskFailed {
    fn into_response(self) -> axum::response::Response {
        (axum::http::StatusCode::INTERNAL_SERVER_ERROR, self.0.to_string()).into_response()
    }
}
