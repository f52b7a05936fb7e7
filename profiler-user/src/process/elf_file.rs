//! An ELF file that some process has mapped, held open from its discovery on.

use std::{fs::File, sync::Arc};

use serde::{Deserialize, Serialize};

/// Stands for one ELF file in everything downstream. Given out in order of discovery, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ElfId(pub u32);

/// The GNU build ID: 8 to 20 bytes in practice, at most 64 are kept.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BuildId(pub Box<[u8]>);

impl std::fmt::Display for BuildId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for BuildId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// As hex.
impl Serialize for BuildId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Of hex, at most 64 bytes.
impl<'de> Deserialize<'de> for BuildId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let hex = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let digit = |digit: &u8| u8::try_from(char::from(*digit).to_digit(16)?).ok();
        let byte = |pair: &[u8; 2]| Some(digit(&pair[0])? << 4 | digit(&pair[1])?);
        let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
        let bytes = pairs.iter().map(byte).collect::<Option<Box<[u8]>>>();
        bytes
            .filter(|bytes| rest.is_empty() && bytes.len() <= 64)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("a build ID is at most 64 bytes of hex"))
    }
}

/// An ELF file, identified by device, inode, size and modification time.
#[derive(Clone, Debug)]
pub struct ElfFile {
    /// Its id.
    pub id: ElfId,
    /// The path as the process sees it (`/proc/PID/maps`), or `[vdso]`.
    pub path: Arc<str>,
    /// Opened at discovery, so that it outlives the process; `None` if it could not be opened, or
    /// if it was closed since to keep the number of descriptors bounded.
    pub file: Option<Arc<File>>,
    /// The GNU build ID, where the file has one.
    pub build_id: Option<BuildId>,
}

impl ElfFile {
    /// The last component of the path: what a person calls the binary.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}
