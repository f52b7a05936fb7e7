//! Prints what custom-labels costs, in nanoseconds of CPU time, as one line of JSON.

use std::hint::black_box;

use custom_labels::Labelset;

#[path = "../../../../span-marker/examples/enter_exit/measure.rs"]
mod measure;

use measure::measure;

fn new() -> Labelset {
    let mut labels = Labelset::new();
    labels.set("trace_id", black_box("0af7651916cd43dd8448eb211c80319c"));
    labels.set("span_id", black_box("b7ad6b7169203331"));
    labels.set("span_name", black_box("price"));
    labels
}

fn main() {
    let empty = measure(|| {
        black_box(());
    });
    let building = measure(|| drop(black_box(new())));
    let mut labels = new();
    let enter_exit = measure(|| {
        black_box(&mut labels).enter(|| black_box(()));
    });
    let numbers = [("build_ns", building), ("enter_exit_ns", enter_exit)];
    let numbers = numbers.map(|(name, ns)| format!("\"{name}\":{}", ns - empty));
    println!("{{{}}}", numbers.join(","));
}
