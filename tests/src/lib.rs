//! Workloads with known answers, and what the privileged and end-to-end tests need.

pub mod pyroscope;
