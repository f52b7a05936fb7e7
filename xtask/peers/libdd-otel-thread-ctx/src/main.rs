//! Prints what libdd-otel-thread-ctx costs, in nanoseconds of CPU time, as one line of JSON.

use std::hint::black_box;

use libdd_otel_thread_ctx::linux::OwnedThreadContext;

#[path = "../../../../span-marker/examples/enter_exit/measure.rs"]
mod measure;

use measure::measure;

fn new() -> OwnedThreadContext {
    let name: &[(u8, &str)] = &[(1, "price"), (2, "GET /cart")];
    OwnedThreadContext::new(black_box([1; 16]), black_box([2; 8]), 1, [3; 8], name)
}

fn main() {
    let empty = measure(|| {
        black_box(());
    });
    let building = measure(|| drop(black_box(new())));
    let mut context = Some(new());
    let attach_detach = measure(|| {
        drop(context.take().and_then(OwnedThreadContext::attach));
        context = OwnedThreadContext::detach();
    });
    let update = measure(|| {
        OwnedThreadContext::update(black_box([1; 16]), black_box([2; 8]), 1, [3; 8], &[]);
    });
    let numbers = [("build_ns", building), ("enter_exit_ns", attach_detach), ("update_ns", update)];
    let numbers = numbers.map(|(name, ns)| format!("\"{name}\":{}", ns - empty));
    println!("{{{}}}", numbers.join(","));
}
