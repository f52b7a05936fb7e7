//! How a reader can find this process's spans, or why it cannot.

use std::path::PathBuf;
use std::{fmt, io};

use crate::own_elf::{self, Symbol};
use crate::process_context::{self, Backing, InitError, InitReport};

/// What [`diagnose()`] found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Diagnosis {
    /// Where the slot's symbol is. If it could not be looked for, why.
    pub symbol: io::Result<Symbol>,
    /// The program or library that holds the slot.
    pub object: io::Result<PathBuf>,
    /// What was published of the process. Its `tp_offset` says whether the slot is at one place in
    /// every thread (static TLS) or has to be looked up for each (dynamic TLS).
    pub published: Result<InitReport, InitError>,
}

/// Says how a reader can find this process's spans, or why it cannot.
///
/// Publishes the process context, unless it is published already. Reads the program's file: not for
/// every request. `SPAN_MARKER_DEBUG=1` in the environment writes the same, as one line, to the
/// standard error output when the process context is published for the first time.
#[must_use]
pub fn diagnose() -> Diagnosis {
    Diagnosis::new(process_context::init())
}

impl Diagnosis {
    fn new(published: Result<InitReport, InitError>) -> Self {
        Self { symbol: own_elf::symbol(), object: own_elf::path(), published }
    }
}

/// Writes the line for a process that was told to.
#[expect(clippy::print_stderr, reason = "only where the environment asks for it")]
pub(crate) fn tell(published: &Result<InitReport, InitError>) {
    let (symbol, object) = (own_elf::symbol(), own_elf::path());
    eprintln!("{}", Line { symbol: &symbol, object: &object, published });
}

/// One line, without its end.
impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { symbol, object, published } = self;
        Line { symbol, object, published }.fmt(f)
    }
}

struct Line<'a> {
    symbol: &'a io::Result<Symbol>,
    object: &'a io::Result<PathBuf>,
    published: &'a Result<InitReport, InitError>,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("span-marker: ")?;
        let report = match self.published {
            Ok(report) => report,
            Err(error @ (InitError::Unsupported | InitError::Disabled)) => {
                return write!(f, "nothing is published: {error}");
            }
            Err(error) => {
                write!(f, "no process context, so readers do not look for spans: {error}")?;
                if let Some(cause) = std::error::Error::source(error) {
                    write!(f, ": {cause}")?;
                }
                return Ok(());
            }
        };
        match self.object {
            Ok(path) => write!(f, "the slot is in {}", path.display())?,
            Err(error) => write!(f, "the slot is in an unknown file ({error})")?,
        }
        match self.symbol {
            Ok(Symbol::Dynamic) => f.write_str(", exported (.dynsym)")?,
            Ok(Symbol::Static) => f.write_str(", not exported (.symtab and note only)")?,
            Ok(Symbol::None) => f.write_str(", not exported (note only)")?,
            Err(error) => write!(f, ", symbols unknown ({error})")?,
        }
        match report.tp_offset {
            Some(offset) => write!(f, "; static TLS, {offset} bytes from the thread pointer")?,
            None => f.write_str("; dynamic TLS")?,
        }
        f.write_str(match report.backing {
            Backing::Memfd => "; process context published in a memfd",
            Backing::Anonymous => "; process context published in a named mapping",
        })?;
        match &report.service_name {
            Some(name) => write!(f, " for the service {name:?}"),
            None => f.write_str(", without a service name"),
        }
    }
}
