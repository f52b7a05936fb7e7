//! Programs without frame pointers: each sample's stack is the one that the program had, up to the
//! outermost frame, in 99.5 of 100 samples.
//!
//! Samples that were taken before the tables of the program's files were there are told by their
//! own marks, held against the agent's counters, and left out.

#[cfg(test)]
mod profile;
#[cfg(test)]
mod stack;

#[cfg(test)]
mod frames;
#[cfg(test)]
mod languages;
#[cfg(test)]
mod linkers;
#[cfg(test)]
mod places;
