//! The table on real processes.
