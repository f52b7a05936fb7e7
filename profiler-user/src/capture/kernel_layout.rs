//! Where the running kernel keeps what the BPF programs read of a task, from its BTF.
//!
//! aya-ebpf has no CO-RE relocations: the offsets are read here and passed as read-only globals.

use std::path::Path;

use btf_rs::{Btf, BtfType as _, Type};

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
    /// The file is missing or not BTF.
    #[error("cannot read the kernel's BTF at {path}")]
    Unreadable {
        /// Where it was looked for.
        path: String,
        /// Why not.
        #[source]
        source: btf_rs::Error,
    },
    /// It has no such member.
    #[error("the kernel's BTF has no `{path}` in `task_struct`")]
    NoMember {
        /// The member that was looked for.
        path: String,
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
        let btf = Btf::from_file(path).map_err(|source| LayoutError::Unreadable {
            path: path.display().to_string(),
            source,
        })?;
        let member = |names: &[&str]| {
            byte_offset(&btf, names).ok_or_else(|| LayoutError::NoMember { path: names.join(".") })
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

/// The offset of `names[0].names[1]…` in `struct task_struct`.
fn byte_offset(btf: &Btf, names: &[&str]) -> Option<u32> {
    let types = btf.resolve_types_by_name("task_struct").ok()?;
    let mut within = types.into_iter().find(|kind| matches!(kind, Type::Struct(_)))?;
    let mut bits = 0;
    for name in names {
        let (offset, kind) = member(btf, &within, name, 0)?;
        bits += offset;
        within = kind;
    }
    Some(bits / 8)
}

/// Anonymous structs nest no deeper than this in the kernel's task.
const ANONYMOUS_DEPTH: u32 = 8;

/// The bit offset and type of a member, looked for in anonymous structs and unions too.
fn member(btf: &Btf, within: &Type, name: &str, depth: u32) -> Option<(u32, Type)> {
    let (Type::Struct(of) | Type::Union(of)) = within else { return None };
    for at in &of.members {
        let own_name = btf.resolve_name(at).ok().unwrap_or_default();
        if own_name == name {
            return Some((at.bit_offset(), underlying(btf, at.get_type_id()?)?));
        }
        if own_name.is_empty() && depth < ANONYMOUS_DEPTH {
            let nested = underlying(btf, at.get_type_id()?)?;
            if let Some((bits, kind)) = member(btf, &nested, name, depth + 1) {
                return Some((at.bit_offset() + bits, kind));
            }
        }
    }
    None
}

/// The type behind typedefs and qualifiers.
fn underlying(btf: &Btf, mut id: u32) -> Option<Type> {
    for _ in 0..ANONYMOUS_DEPTH {
        let kind = btf.resolve_type_by_id(id).ok()?;
        match &kind {
            Type::Typedef(of) => id = of.get_type_id()?,
            Type::Const(of) | Type::Volatile(of) | Type::Restrict(of) => id = of.get_type_id()?,
            Type::TypeTag(of) => id = of.get_type_id()?,
            _ => return Some(kind),
        }
    }
    None
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
