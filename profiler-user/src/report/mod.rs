//! Windows to what a person reads: flame graph, folded stacks, span table.
