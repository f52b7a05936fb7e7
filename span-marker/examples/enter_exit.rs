//! Prints what marking costs, in nanoseconds of CPU time, as one line of JSON: medians of several
//! rounds.

use std::hint::black_box;

use opentelemetry::Context;
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, Tracer as _,
    TracerProvider as _,
};
use opentelemetry_sdk::trace::SdkTracerProvider;
use span_marker::{Record, SpanIds};

const ROUNDS: usize = 15;
const TIMES: u32 = 200_000;

/// The median, over the rounds, of the time that `work` takes.
fn measure(mut work: impl FnMut()) -> f64 {
    let mut round = || {
        let start = thread_cpu_ns();
        for _ in 0..TIMES {
            work();
        }
        (thread_cpu_ns() - start) / f64::from(TIMES)
    };
    round();
    let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| round()).collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

/// The thread's own clock: what other programs do meanwhile does not count.
#[expect(clippy::cast_precision_loss, reason = "a program does not run for 2^52 nanoseconds")]
fn thread_cpu_ns() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to the structure that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

fn context(span_id: u8) -> Context {
    let span = SpanContext::new(
        TraceId::from_bytes([1; 16]),
        SpanId::from_bytes([span_id; 8]),
        TraceFlags::SAMPLED,
        false,
        TraceState::default(),
    );
    Context::new().with_remote_span_context(span)
}

fn attach_and_detach(context: &Context) {
    let guard = black_box(context).clone().attach();
    drop(black_box(guard));
}

fn span_in_context(provider: &SdkTracerProvider) -> impl FnMut() {
    let tracer = provider.tracer("enter_exit");
    move || drop(black_box(Context::current_with_span(tracer.start("span"))))
}

#[expect(clippy::print_stdout, reason = "a program that prints its result")]
fn main() {
    let empty = measure(|| {
        black_box(());
    });
    let record = SpanIds { trace_id: [1; 16], span_id: [2; 8], trace_flags: 1 };
    let record = Record::builder(record).name("enter_exit").build();
    let enter_exit = measure(|| drop(black_box(span_marker::enter(black_box(&record)))));

    let plain = context(3);
    let attach_without = measure(|| attach_and_detach(&plain));
    let span_without = measure(span_in_context(&SdkTracerProvider::builder().build()));

    let processor = span_marker::opentelemetry::processor();
    let marked = context(4);
    let attach_with = measure(|| attach_and_detach(&marked));
    let provider = SdkTracerProvider::builder().with_span_processor(processor).build();
    let span_with = measure(span_in_context(&provider));

    let line = serde_json::json!({
        "enter_exit_ns": enter_exit - empty,
        "otel_attach_detach_ns": attach_without - empty,
        "otel_attach_detach_extra_ns": attach_with - attach_without,
        "otel_span_ns": span_without - empty,
        "otel_span_extra_ns": span_with - span_without,
    });
    println!("{line}");
}
