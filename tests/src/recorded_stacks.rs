//! The user stacks in a recorded file: how each ended, and in which file.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::recorded_file::parts;

/// The bytes of a sample record before its frames.
const HEADER_LEN: usize = 72;
/// A bit of a user frame that is no part of its address.
const INTERRUPTED: u64 = 1 << 63;
/// Where a task gives its memory back: it ends, or starts another program.
const WITHOUT_MEMORY: [&str; 2] = ["do_exit", "begin_new_exec"];

/// A sample's stacks.
#[derive(Clone, Debug)]
pub struct Stack {
    /// When, on the boot clock.
    pub boot_ns: u64,
    /// `profiler_common::sample::FLAG_*`.
    pub flags: u16,
    /// `profiler_common::sample::USER_STACK_*`.
    pub user_stack: u8,
    /// Leaf first.
    pub kernel: Vec<u64>,
    /// Leaf first.
    pub user: Vec<u64>,
    process: usize,
}

/// A recorded file, as much of it as tests look at.
#[derive(Debug)]
pub struct Recorded {
    /// As they were taken.
    pub stacks: Vec<Stack>,
    processes: Vec<Process>,
    paths: BTreeMap<u64, String>,
    without_memory: BTreeSet<u64>,
}

#[derive(Debug, Deserialize)]
struct Process {
    name: String,
    mappings: Vec<Mapping>,
}

#[derive(Debug, Deserialize)]
struct Mapping {
    start: u64,
    end: u64,
    backing: Value,
}

#[derive(Deserialize)]
struct Names {
    entries: Vec<(Value, Vec<Function>)>,
    binaries: Vec<(u64, Binary)>,
}

#[derive(Deserialize)]
struct Function {
    function: String,
}

#[derive(Deserialize)]
struct Binary {
    path: String,
}

impl Recorded {
    /// Reads the chunks of a file of this machine.
    ///
    /// # Errors
    ///
    /// They are not as `profiler_user::recording` describes them.
    pub fn read(chunks: &[u8]) -> Result<Self> {
        let (mut stacks, mut processes) = (Vec::new(), Vec::new());
        let (mut paths, mut without_memory) = (BTreeMap::new(), BTreeSet::new());
        for (tag, content) in parts(chunks)? {
            match tag {
                b'S' => stacks.push(Stack::read(content).context("a sample is cut")?),
                b'P' => processes.push(serde_json::from_slice(content)?),
                b'N' => {
                    let names: Names = serde_json::from_slice(content)?;
                    paths.extend(names.binaries.into_iter().map(|(elf, it)| (elf, it.path)));
                    let kernel = names.entries.iter().filter(|(_, functions)| {
                        functions.iter().any(|it| WITHOUT_MEMORY.contains(&&*it.function))
                    });
                    without_memory
                        .extend(kernel.filter_map(|(location, _)| location["Kernel"].as_u64()));
                }
                _ => {}
            }
        }
        ensure!(stacks.iter().all(|stack| stack.process < processes.len()), "no such process");
        Ok(Self { stacks, processes, paths, without_memory })
    }

    /// The program's name.
    #[must_use]
    pub fn program(&self, stack: &Stack) -> &str {
        self.processes.get(stack.process).map_or("", |process| &process.name)
    }

    /// Whether the thread was where it has no memory any more, and so no stack.
    #[must_use]
    pub fn is_without_memory(&self, stack: &Stack) -> bool {
        // A frame that is a return address has the name of the call before.
        let mut names = stack.kernel.iter().flat_map(|at| [*at, at.wrapping_sub(1)]);
        names.any(|at| self.without_memory.contains(&at))
    }

    /// The file that the outermost frame is in.
    #[must_use]
    pub fn ends_in(&self, stack: &Stack) -> &str {
        let Some(last) = stack.user.last() else { return "no frame" };
        let at = last & !INTERRUPTED;
        let mappings = self.processes.get(stack.process).map(|process| &process.mappings[..]);
        let holds = |mapping: &&Mapping| (mapping.start..mapping.end).contains(&at);
        let Some(mapping) = mappings.unwrap_or_default().iter().find(holds) else {
            return "no mapping";
        };
        let path = mapping.backing["Elf"].as_u64().and_then(|elf| self.paths.get(&elf));
        path.map_or("no file", String::as_str)
    }
}

impl Stack {
    /// From the number of the process and the record.
    fn read(content: &[u8]) -> Option<Self> {
        let (process, record) = content.split_first_chunk::<4>()?;
        let half = |at: usize| {
            let bytes: &[u8; 2] = record.get(at..)?.first_chunk()?;
            Some(u16::from_ne_bytes(*bytes))
        };
        let (kernel, user) = (usize::from(half(48)?), usize::from(half(50)?));
        let frames = record.get(HEADER_LEN..)?.get(..8 * (kernel + user))?;
        let frames: Vec<u64> =
            frames.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        let (kernel, user) = frames.split_at(kernel);
        Some(Self {
            boot_ns: u64::from_ne_bytes(*record.first_chunk()?),
            flags: half(46)?,
            user_stack: *record.get(54)?,
            kernel: kernel.to_vec(),
            user: user.to_vec(),
            process: usize::try_from(u32::from_le_bytes(*process)).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorded_file::{SAMPLES, chunks};

    #[test]
    fn stacks_are_what_the_described_file_holds() {
        let recorded = Recorded::read(&chunks().unwrap()).unwrap();
        assert_eq!(recorded.stacks.len() as u64, SAMPLES);
        let first = &recorded.stacks[0];
        assert_eq!((recorded.program(first), first.user_stack, first.flags), ("shop", 0, 0));
        assert_eq!(first.user, [0x1_0010, 0x1_0101, 0x1_0201]);
        assert_eq!(recorded.ends_in(first), "/app/shop");
        let files: BTreeSet<_> = recorded.stacks.iter().map(|it| recorded.ends_in(it)).collect();
        assert_eq!(files, BTreeSet::from(["/app/shop", "no frame", "no mapping"]));
        assert!(!recorded.stacks.iter().any(|stack| recorded.is_without_memory(stack)));
        assert!(Recorded::read(b"S\x09\0\0\0too short").is_err());
    }
}
