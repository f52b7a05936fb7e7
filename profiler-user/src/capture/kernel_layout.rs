//! Where the running kernel keeps what the BPF programs read of a task, from its BTF.
//!
//! aya-ebpf has no CO-RE relocations: the offsets are read here and passed as read-only globals.

use std::{fs, io, path::Path};

use super::btf;

/// The BTF of the running kernel (`CONFIG_DEBUG_INFO_BTF`, Linux 5.4).
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Byte offsets in `struct task_struct`; 0 where the kernel does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskLayout {
    /// The user-space thread pointer: `thread.fsbase` on x86-64, `thread.uw.tp_value` on aarch64.
    pub thread_pointer: u32,
    /// `flags`.
    pub flags: u32,
    /// `tgid`.
    pub tgid: u32,
    /// `pid`.
    pub pid: u32,
    /// `stack`.
    pub stack: u32,
}

/// Why there is no layout.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The file is missing.
    #[error("cannot read the kernel's BTF at {path}")]
    Unreadable {
        /// Where it was looked for.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is not BTF, or has no such member.
    #[error("{file} does not say where `{member}` is in `task_struct`")]
    NoMember {
        /// The file.
        file: String,
        /// The member that was looked for.
        member: String,
    },
}

#[cfg(target_arch = "x86_64")]
const THREAD_POINTER: &[&str] = &["thread", "fsbase"];
#[cfg(target_arch = "aarch64")]
const THREAD_POINTER: &[&str] = &["thread", "uw", "tp_value"];

impl TaskLayout {
    /// Reads the layout from a BTF file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or a member is not where every kernel has it.
    pub fn from_btf(path: &Path) -> Result<Self, LayoutError> {
        let name = || path.display().to_string();
        let btf =
            fs::read(path).map_err(|source| LayoutError::Unreadable { path: name(), source })?;
        let member = |names: &[&str]| {
            btf::member_offset(&btf, "task_struct", names)
                .ok_or_else(|| LayoutError::NoMember { file: name(), member: names.join(".") })
        };
        Ok(Self {
            thread_pointer: member(THREAD_POINTER)?,
            flags: member(&["flags"])?,
            tgid: member(&["tgid"])?,
            pid: member(&["pid"])?,
            stack: member(&["stack"])?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_btf_is_an_error() {
        let error = TaskLayout::from_btf(Path::new("/dev/null")).unwrap_err();
        assert!(error.to_string().contains("/dev/null"), "{error}");
    }

    #[test]
    fn this_kernel_has_every_member() {
        if !Path::new(KERNEL_BTF).exists() {
            // Without the kernel's BTF there is nothing to check against; the privileged tests
            // demand it.
            return;
        }
        let layout = TaskLayout::from_btf(Path::new(KERNEL_BTF)).unwrap();
        let offsets = [layout.thread_pointer, layout.flags, layout.tgid, layout.pid, layout.stack];
        assert!(offsets.iter().all(|&offset| offset > 0), "{layout:?}");
        // Unlike all the others, these two are neighbours on every kernel.
        assert_eq!(layout.pid + 4, layout.tgid);
    }
}
