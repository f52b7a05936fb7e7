//! `uprobe_multi` links (Linux 6.6), by `bpf(2)`: aya 0.14 cannot load a program for them, as it says
//! no attach type, and cannot make the link.

use std::{
    collections::HashSet,
    ffi::CStr,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
};

use aya::{Ebpf, maps::Map};
use aya_obj::generated::{
    bpf_attach_type::BPF_TRACE_UPROBE_MULTI, bpf_attr, bpf_cmd, bpf_prog_type::BPF_PROG_TYPE_KPROBE,
};
use aya_obj::{Function, Object};

use super::object;
use super::uprobe::owned;

/// Loads a program of the object once more, with the maps that the object has been given.
///
/// # Errors
///
/// The kernel has no such links, or loading is not permitted.
pub(super) fn load(ebpf: &Ebpf, name: &str) -> io::Result<OwnedFd> {
    let function = relocated(ebpf, name)?;
    let instructions = &function.instructions;
    // SAFETY: integers and unions of integers, of which zero is a value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: zero is a value of every one of the union's structures.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = BPF_PROG_TYPE_KPROBE as u32;
    load.expected_attach_type = BPF_TRACE_UPROBE_MULTI as u32;
    load.insns = instructions.as_ptr().addr() as u64;
    load.insn_cnt = u32::try_from(instructions.len()).map_err(io::Error::other)?;
    load.license = c"Dual MIT/GPL".as_ptr().addr() as u64;
    for (to, from) in load.prog_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the instructions and the licence live until the call returns.
    let program = unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &attr) }?;
    match link(program.as_fd(), c"/", 0) {
        // "/" is no regular file, as kernels with such links notice; others know no such link.
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Ok(program),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("a folder was probed")),
    }
}

/// Runs a program where processes come to `offset` of the file at a path. The link ends when it is
/// closed.
///
/// # Errors
///
/// There is no such file, its instruction there cannot be probed, or it is not permitted.
pub(super) fn link(program: BorrowedFd<'_>, path: &CStr, offset: u64) -> io::Result<OwnedFd> {
    let offsets = [offset];
    // SAFETY: integers and unions of integers, of which zero is a value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: zero is a value of every one of the union's structures.
    let create = unsafe { &mut attr.link_create };
    create.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
    create.attach_type = BPF_TRACE_UPROBE_MULTI as u32;
    // SAFETY: as above.
    let multi = unsafe { &mut create.__bindgen_anon_3.uprobe_multi };
    multi.path = path.as_ptr().addr() as u64;
    multi.offsets = offsets.as_ptr().addr() as u64;
    multi.cnt = 1;
    // SAFETY: the path and the offset live until the call returns.
    unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &attr) }
}

/// The program's instructions, with the descriptors of its maps and the functions that it calls.
fn relocated(ebpf: &Ebpf, name: &str) -> io::Result<Function> {
    let mut object = Object::parse(object::bytes()).map_err(io::Error::other)?;
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    // The other programs are loaded already.
    let others = object.programs.iter().filter(|(of, _)| of.as_str() != name);
    let others: HashSet<_> = others.map(|(_, program)| program.function_key()).collect();
    object.functions.retain(|key, _| !others.contains(key));
    object.programs.retain(|of, _| of == name);
    let program = object.programs.get(name).ok_or(io::ErrorKind::NotFound)?;
    let key = program.function_key();
    let maps = std::mem::take(&mut object.maps);
    let maps =
        maps.iter().filter_map(|(name, map)| Some((name.as_str(), map_fd(ebpf.map(name)?)?, map)));
    object.relocate_maps(maps, &sections).map_err(io::Error::other)?;
    object.relocate_calls(&sections).map_err(io::Error::other)?;
    object.functions.remove(&key).ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn map_fd(map: &Map) -> Option<RawFd> {
    let data = match map {
        Map::Array(data)
        | Map::ArrayOfMaps(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data) => data,
        _ => return None,
    };
    Some(data.fd().as_fd().as_raw_fd())
}

/// Calls that give a descriptor.
///
/// # Safety
///
/// What `attr` points to is valid for this command.
unsafe fn bpf(command: bpf_cmd, attr: &bpf_attr) -> io::Result<OwnedFd> {
    let command = libc::c_long::from(command as u32);
    // SAFETY: `attr` has this size; the rest is what the caller promises.
    owned(unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<bpf_attr>())
    })
}
