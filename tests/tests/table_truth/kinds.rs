//! What came of comparisons.

use std::{collections::BTreeMap, fmt};

/// Why a table says something else than the call frame information, and rightly so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Between two functions there are 15 bytes at most, which are padding and never run: there the
    /// rule before goes on.
    Padding,
    /// Nothing describes this code, and the table knows what it is: the program's entry point, a
    /// return from signals, Go.
    KnownCode,
    /// The rule cannot be said in the table's terms, and the table says that.
    Unsupported,
    /// The frame pointer is saved in a way that cannot be said, and the table says that.
    FramePointerElsewhere,
    /// Two functions cover this address.
    Overlap,
    /// The description of this function is damaged: gimli refuses it too.
    Damaged,
    /// The caller would not be above, with made-up registers.
    NotAbove,
}

/// Comparisons of one file or many.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Files that were compared.
    pub(crate) files: u64,
    /// Files that are not for this, by reason.
    pub(crate) refused: BTreeMap<String, u64>,
    /// Rows of call frame information.
    pub(crate) rows: u64,
    /// Addresses at which both were asked.
    pub(crate) compared: u64,
    /// Differences that have a reason.
    pub(crate) named: BTreeMap<Kind, u64>,
    /// Differences that have none: the first few.
    pub(crate) different: Vec<String>,
}

impl Tally {
    /// Adds another.
    pub(crate) fn add(&mut self, other: Self) {
        self.files += other.files;
        self.rows += other.rows;
        self.compared += other.compared;
        for (reason, count) in other.refused {
            *self.refused.entry(reason).or_default() += count;
        }
        for (kind, count) in other.named {
            *self.named.entry(kind).or_default() += count;
        }
        self.different.extend(other.different);
        self.different.truncate(50);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { files, rows, compared, .. } = self;
        writeln!(f, "{files} files, {rows} rows, {compared} addresses compared")?;
        writeln!(f, "no table: {:?}", self.refused)?;
        writeln!(f, "named differences: {:?}", self.named)?;
        writeln!(f, "other differences: {}", self.different.len())?;
        self.different.iter().try_for_each(|difference| writeln!(f, "  {difference}"))
    }
}
