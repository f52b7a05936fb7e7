//! Unwind tables against a fresh evaluation of the same call frame information.
//!
//! For each function that a file describes, at the first and last byte of each of its rows and one
//! byte after, and at both ends of the gap that follows: the rule of our table, followed by the BPF
//! program's own step over made-up registers and memory, leads to the same caller (return address,
//! stack pointer, frame pointer) as gimli's row, evaluated as the DWARF standard says.
//!
//! With `SPANPROF_TESTS=all`, every ELF file under `/usr`; otherwise a few.

#[cfg(test)]
mod kinds;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod ours;

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        fs, io,
        os::unix::fs::MetadataExt as _,
        path::{Path, PathBuf},
        sync::Mutex,
    };

    use crate::kinds::Tally;
    use crate::oracle;

    /// What is checked in any case.
    const FEW: [&str; 6] = [
        "/usr/lib/x86_64-linux-gnu/libc.so.6",
        "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
        "/usr/lib/x86_64-linux-gnu/libcrypto.so.3",
        "/usr/bin/bash",
        "/proc/self/exe",
    ];

    fn all() -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut seen = BTreeSet::new();
        let mut folders = vec![PathBuf::from("/usr")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let Ok(kind) = entry.file_type() else { continue };
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if kind.is_file()
                    && is_elf(&entry.path()).unwrap_or(false)
                    && entry.metadata().is_ok_and(|file| seen.insert((file.dev(), file.ino())))
                {
                    files.push(entry.path());
                }
            }
        }
        files
    }

    fn is_elf(path: &Path) -> io::Result<bool> {
        let mut magic = [0; 4];
        io::Read::read_exact(&mut fs::File::open(path)?, &mut magic)?;
        Ok(magic == *b"\x7fELF")
    }

    #[test]
    fn each_rule_leads_where_the_call_frame_information_leads() {
        let wanted_all = std::env::var_os("SPANPROF_TESTS").is_some_and(|value| value == "all");
        let mut files: Vec<PathBuf> = if wanted_all {
            all()
        } else {
            FEW.iter().map(PathBuf::from).filter(|path| path.exists()).collect()
        };
        assert!(files.len() >= 4, "{files:?}");
        // Large ones first, so that no thread is left alone with one.
        files.sort_by_key(|path| fs::metadata(path).map_or(0, |metadata| metadata.len()));
        let files = Mutex::new(files);
        let total = Mutex::new(Tally::default());
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let Some(path) = files.lock().unwrap().pop() else { return };
                        let tally = oracle::compare(&path);
                        total.lock().unwrap().add(tally);
                    }
                });
            }
        });
        let total = total.into_inner().unwrap();
        eprintln!("{total}");
        assert!(total.compared > 10_000, "{total}");
        assert!(total.different.is_empty(), "{total}");
    }
}
