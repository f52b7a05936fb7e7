//! A copy of the vDSO, the library that the kernel maps into every process: it is in no file.

use std::{fs::File, io, io::Write as _, os::unix::fs::FileExt as _};

use rustix::fs::{MemfdFlags, memfd_create};

use super::maps::{EntryName, Maps};
use super::proc_fs::Proc;
use crate::decode::Pid;

/// What the kernel calls it.
pub(super) const NAME: &str = "[vdso]";

/// One or two pages; bounded all the same.
const SIZE_MAX: usize = 1 << 20;

/// Copies the vDSO of this very process.
pub(super) fn copy() -> io::Result<File> {
    let process = Proc::default().process(Pid(std::process::id()))?;
    let mut text = Vec::new();
    process.maps(&mut text)?;
    let maps = Maps::parse(&text);
    let is_vdso = |name: &EntryName| matches!(name, EntryName::Special(name) if &**name == NAME);
    let mapping = maps.executable.iter().find(|entry| is_vdso(&entry.name));
    let mapping = mapping.ok_or(io::ErrorKind::NotFound)?;
    let size = usize::try_from(mapping.end.wrapping_sub(mapping.start)).unwrap_or(usize::MAX);
    if size > SIZE_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = vec![0; size];
    process.memory()?.read_exact_at(&mut bytes, mapping.start)?;
    let mut file: File = memfd_create("vdso", MemfdFlags::CLOEXEC)?.into();
    file.write_all(&bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_is_an_elf_file_that_exports_what_libc_calls() {
        let mut bytes = vec![0; SIZE_MAX];
        let size = copy().unwrap().read_at(&mut bytes, 0).unwrap();
        use object::{Object as _, ObjectSymbol as _};
        let elf = object::File::parse(&bytes[..size]).unwrap();
        let name = if cfg!(target_arch = "x86_64") {
            "__vdso_clock_gettime"
        } else {
            "__kernel_clock_gettime"
        };
        assert!(elf.dynamic_symbols().any(|symbol| symbol.name() == Ok(name)));
    }
}
