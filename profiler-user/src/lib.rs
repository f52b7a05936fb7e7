//! The user side of spanprof, as a pipeline of stages, declared in reading order:
//!
//! ```text
//! kernel ─▶ capture ─▶ decode ─▶ attribute ─▶ aggregate ─▶ symbolize ─▶ encode ─▶ export
//!              ▲                     │
//!              └──── control ◀───────┘     facts about processes go back to BPF maps, never samples
//! ```
//!
//! A stage imports only from stages to its left; `cargo xtask tidy` checks it. `ARCHITECTURE.md`
//! has the invariants.

mod file;
mod yaml;
pub mod stats;

pub mod metric;
pub mod decode;
pub mod privilege;
pub mod clock;
pub mod container;
pub mod pods;
pub mod engine;
pub mod process;
pub mod unwind;
pub mod capture;
pub mod attribute;
pub mod aggregate;
pub mod symbolize;
pub mod encode;
pub mod export;
pub mod report;
pub mod relabel;
pub mod serve;
pub mod cli;
pub mod config;
pub mod documents;
pub mod settings;
pub mod recording;
pub mod inspect;
pub mod pipeline;
