//! Windows to what a person reads: flame graph, folded stacks, span table.

mod flame_graph;
mod folded;
mod span_table;
mod span_text;
mod stacks;
mod text;

pub use flame_graph::write_flame_graph;
pub use folded::write_folded;
pub use span_table::{ServiceRow, SpanRow, SpanTable, Totals};
