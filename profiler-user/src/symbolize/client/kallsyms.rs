//! A copy of the kernel's symbols for the worker.
//!
//! The kernel decides at `open` whether a reader sees addresses (`kallsyms_show_value` of the
//! opener's credentials), and the worker, which has no `CAP_SYSLOG`, opens whatever it gets by path:
//! given our descriptor of `/proc/kallsyms` it would read zeros. So it gets a copy in memory. Only
//! functions are copied: data symbols would only give wrong names to addresses between functions.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{MemfdFlags, memfd_create};

/// The most bytes that are read: some eight times what a large kernel has.
const KALLSYMS_LEN_MAX: u64 = 128 << 20;

/// What the kernel's symbols were at some time.
#[derive(Debug)]
pub(super) struct Kallsyms {
    /// The copy; `None` if they could not be read.
    pub(super) copy: Option<File>,
    /// How many symbols it has, 0 if the kernel hides the addresses.
    pub(super) symbol_count: usize,
    /// The kernel proper, without modules and BPF programs. Never changes.
    pub(super) image: Range<u64>,
    /// When it was made.
    pub(super) taken: Instant,
}

impl Kallsyms {
    /// What stands for symbols that could not be read.
    pub(super) fn hidden() -> Self {
        Self { copy: None, symbol_count: 0, image: 0..0, taken: Instant::now() }
    }

    pub(super) fn copy(path: &Path) -> io::Result<Self> {
        let copy = File::from(memfd_create("spanprof-kallsyms", MemfdFlags::CLOEXEC)?);
        let mut writer = BufWriter::with_capacity(1 << 16, &copy);
        let mut reader =
            BufReader::with_capacity(1 << 16, File::open(path)?.take(KALLSYMS_LEN_MAX));
        let mut image = 0..0;
        let mut symbol_count = 0;
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            if let Some((address, is_image)) = function(&line) {
                symbol_count += 1;
                if is_image {
                    let start = if image.is_empty() { address } else { image.start.min(address) };
                    image = start..image.end.max(address.saturating_add(1));
                }
                writer.write_all(&line)?;
            }
            line.clear();
        }
        writer.flush()?;
        drop(writer);
        Ok(Self { copy: Some(copy), symbol_count, image, taken: Instant::now() })
    }
}

/// The address of a line's function, and whether it belongs to the kernel proper.
fn function(line: &[u8]) -> Option<(u64, bool)> {
    let line = str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let kind = words.next()?;
    let _name = words.next()?;
    (matches!(kind, "t" | "T" | "w" | "W") && address != 0)
        .then(|| (address, words.next().is_none()))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, SeekFrom};

    use super::*;

    #[test]
    fn copies_functions_and_finds_the_image() {
        let source = tempfile::NamedTempFile::new().unwrap();
        let text = "ffffffff81000000 T _text\n\
                    ffffffff81000100 D data\n\
                    ffffffff81000200 t inner\n\
                    ffffffffc0000000 t in_module\t[fuse]\n\
                    nonsense\n\
                    0000000000000000 T hidden\n";
        std::fs::write(source.path(), text).unwrap();
        let kallsyms = Kallsyms::copy(source.path()).unwrap();
        assert_eq!(kallsyms.symbol_count, 3);
        assert_eq!(kallsyms.image, 0xffff_ffff_8100_0000..0xffff_ffff_8100_0201);
        let mut file = kallsyms.copy.unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut copy = String::new();
        file.read_to_string(&mut copy).unwrap();
        assert!(copy.contains("in_module\t[fuse]"));
        assert!(!copy.contains("data"));
    }
}
