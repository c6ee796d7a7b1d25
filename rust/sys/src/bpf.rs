//! BPF objects: bpf(2).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::check;

// linux/bpf.h
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// The name of an object, with zero bytes at its end.
pub type Name = [u8; 16];

/// The first fields of `union bpf_attr` for BPF_MAP_CREATE; the kernel takes the rest as zero.
#[repr(C)]
#[derive(Default)]
struct MapAttributes {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: Name,
}

/// Likewise for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct ProgramAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: Name,
}

/// Likewise for BPF_OBJ_PIN.
#[repr(C)]
struct PinAttributes {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Makes an array map of one entry: 4 bytes of key, 8 of value.
pub fn make_array_map(name: Name) -> io::Result<OwnedFd> {
    let attributes = MapAttributes {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
        map_name: name,
        ..MapAttributes::default()
    };
    // SAFETY: the attributes contain no address, and the command returns a new descriptor, which has no other owner.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(BPF_MAP_CREATE, &attributes)?)) }
}

/// Loads a socket filter, which is attached to nothing.
pub fn load_socket_filter(program: &[u64], license: &CStr, name: Name) -> io::Result<OwnedFd> {
    let attributes = ProgramAttributes {
        prog_type: BPF_PROG_TYPE_SOCKET_FILTER,
        insn_cnt: u32::try_from(program.len()).map_err(io::Error::other)?,
        insns: program.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        prog_name: name,
        ..ProgramAttributes::default()
    };
    // SAFETY: the kernel reads as many instructions as there are and a null-terminated license, both of which outlive
    // the call; the command returns a new descriptor, which has no other owner.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(BPF_PROG_LOAD, &attributes)?)) }
}

/// Makes a file in a bpffs that holds the object.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = PinAttributes {
        pathname: path.as_ptr().expose_provenance() as u64,
        bpf_fd: object.as_raw_fd().cast_unsigned(),
        file_flags: 0,
    };
    // SAFETY: the path is null-terminated and outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &attributes) }.map(drop)
}

/// # Safety
/// `T` has the layout of the command's attributes, and what their addresses name outlives the call.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of the attributes; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    check(result)?;
    i32::try_from(result).map_err(io::Error::other)
}
