//! Plain threads: each marks what it works for.
//!
//! Run it under `spanprof record`, and the profile has a span for each order.

use std::thread;

use span_marker::{Record, SpanIds};

fn main() -> Result<(), span_marker::InitError> {
    span_marker::init_with(span_marker::Config::default().service_name("threads"))?;
    thread::scope(|scope| {
        for order in 1..=4_u8 {
            scope.spawn(move || {
                let ids = SpanIds { trace_id: [order; 16], span_id: [order; 8], trace_flags: 1 };
                let root = Record::builder(ids).local_root(ids.span_id, None).name("order").build();
                let _in_order = span_marker::enter(&root);
                price(order, ids);
            });
        }
    });
    Ok(())
}

/// A span below: it names its root, so that the root's profile has its work too.
fn price(order: u8, root: SpanIds) {
    let ids = SpanIds { span_id: [order, 0, 0, 0, 0, 0, 0, 1], ..root };
    let builder = Record::builder(ids).local_root(root.span_id, Some("order")).name("price");
    let record = builder.attr("order", &order.to_string()).build();
    let _in_price = span_marker::enter(&record);
    std::hint::black_box((0..100_000_000_u64).fold(0, |sum, n| std::hint::black_box(sum ^ n)));
}
