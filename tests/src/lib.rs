//! The harness of the tests that need the whole: workloads with known answers, the profiler, a
//! server.

pub mod require;
pub mod wait;

pub mod cargo_fixture;
pub mod kustomize;
pub mod made_elf;
pub mod ports;
pub mod process_context;
pub mod span_writer;
pub mod switches;
pub mod workload;
pub mod export_matrix;

pub mod profile;
pub mod recorded_file;
pub mod recorded_stacks;
pub mod spanprof;

pub mod agent;
pub mod api_server;
pub mod cluster;
pub mod collector;
pub mod control_group;
pub mod own_mounts;
pub mod pushed;
pub mod pyroscope;
pub mod relay;

pub mod virtual_machine;

mod child;
