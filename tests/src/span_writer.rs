//! A program that publishes spans as the standard says, in C: `tests/fixtures/spans.c`. What it
//! publishes is known, and it can be told to publish garbage.

use std::path::PathBuf;

use anyhow::Result;
use tempfile::TempDir;

use crate::process_context;
use crate::workload::{Program, Workload};

/// The service that a good writer says it is.
pub const SERVICE: &str = "shop";

/// The keys of its attributes, in the order in which its records use them.
pub const KEYS: [&str; 3] = ["local_root_span_id", "span_name", "local_root_span_name"];

/// A span that a good writer works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// 32 hex digits.
    pub trace_id: &'static str,
    /// The local root's id, 16 hex digits.
    pub root: &'static str,
    /// The local root's name.
    pub root_name: &'static str,
    /// The active span's id, 16 hex digits.
    pub active: &'static str,
    /// The active span's name.
    pub active_name: &'static str,
    /// The function that runs in this span and in no other.
    pub function: &'static str,
}

/// Half of its time: a child span.
pub const CHILD: Known = Known {
    trace_id: "0af7651916cd43dd8448eb211c80319c",
    root: "00f067aa0ba902b7",
    root_name: "POST /pay",
    active: "b7ad6b7169203331",
    active_name: "sign",
    function: "in_span",
};

/// A quarter of its time: a local root. The rest is in no span, in the function [`OUTSIDE`].
pub const ROOT: Known = Known {
    trace_id: "4bf92f35000000000000000000000036",
    root: "53995c3f000000a8",
    root_name: "GET /",
    active: "53995c3f000000a8",
    active_name: "GET /",
    function: "in_other_span",
};

/// The function that runs in no span.
pub const OUTSIDE: &str = "outside";

/// The compiled program, and the process context that it publishes.
#[derive(Debug)]
pub struct SpanWriter {
    program: Program,
    folder: TempDir,
}

impl SpanWriter {
    /// The way a C program is linked that follows the standard: the slot is a dynamic symbol.
    ///
    /// # Errors
    ///
    /// It cannot be compiled.
    pub fn compile() -> Result<Self> {
        Self::compile_with(&["-rdynamic"])
    }

    /// A program whose slot no symbol names.
    ///
    /// # Errors
    ///
    /// It cannot be compiled.
    pub fn compile_without_symbol() -> Result<Self> {
        Self::compile_with(&["-s"])
    }

    /// A program that is compiled with these flags: see `tests/fixtures/spans.c`.
    ///
    /// # Errors
    ///
    /// It cannot be compiled.
    pub fn compile_with(flags: &[&str]) -> Result<Self> {
        Self::of(Program::compile_with("spans", flags)?)
    }

    /// A program of `tests/fixtures/spans.c`, however it was made.
    ///
    /// # Errors
    ///
    /// There is no room for its context.
    pub fn of(program: Program) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("spanprof-context-").tempdir()?;
        let writer = Self { program, folder };
        writer.context(&process_context::payload(SERVICE, &KEYS, None))?;
        Ok(writer)
    }

    /// Changes what the next one publishes.
    ///
    /// # Errors
    ///
    /// There is no room for it.
    pub fn context(&self, payload: &[u8]) -> Result<()> {
        Ok(std::fs::write(self.context_path(), payload)?)
    }

    fn context_path(&self) -> PathBuf {
        self.folder.path().join("context")
    }

    /// As a command: it ends after so much CPU time.
    #[must_use]
    pub fn arguments(&self, mode: &str, cpu_ms: u32) -> Vec<String> {
        let context = self.context_path().to_string_lossy().into_owned();
        vec![self.program.arg().to_owned(), mode.to_owned(), cpu_ms.to_string(), context]
    }

    /// Starts one that ends when its stdin does.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub fn start(&self, mode: &str) -> Result<Workload> {
        let arguments = self.arguments(mode, 0);
        let arguments: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
        self.program.start(&arguments)
    }
}
