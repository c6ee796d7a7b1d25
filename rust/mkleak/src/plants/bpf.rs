//! BPF objects that stay: held by an FD, or by a file in bpffs (bpf(2)).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;

use super::Plant;
use crate::error::{During, Result};
use crate::facts;
use crate::stage::{Planting, Stage, planting, removal};

// linux/bpf.h
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;

pub(super) const PLANTS: &[Plant] = &[
    Plant {
        name: "bpf-map",
        needs: &["root", "bpf"],
        what: "an array map held by its FD only",
        prepare: |_| held(create_map, "map_id", "bpf(BPF_MAP_CREATE)"),
    },
    Plant {
        name: "bpf-prog",
        needs: &["root", "bpf"],
        what: "a loaded socket filter, attached to nothing and held by its FD only",
        prepare: |_| held(load_program, "prog_id", "bpf(BPF_PROG_LOAD)"),
    },
    Plant {
        name: "bpf-pinned",
        needs: &["root", "bpf", "bpffs"],
        what: "an array map which only its file in a bpffs holds",
        prepare: pinned,
    },
];

fn held(make: fn() -> io::Result<OwnedFd>, id: &'static str, operation: &'static str) -> Result<Planting> {
    planting(move |undo| {
        let object = make().during(operation)?;
        let mut facts = facts::of_fd(&object)?;
        facts[id] = number(&object, id)?;
        undo.keep(object);
        Ok(facts)
    })
}

fn number(object: &OwnedFd, field: &str) -> Result<Value> {
    Ok(facts::fdinfo(object, field)?.and_then(|id| id.parse::<u32>().ok()).into())
}

fn pinned(stage: &mut Stage) -> Result<Planting> {
    let bpffs = stage.directory("bpffs")?;
    mount("leakcheck-mkleak", &bpffs, "bpf", MountFlags::empty(), None).on("mount bpffs", &bpffs)?;
    let path = bpffs.join("map");
    stage.scaffold().push(move || unmount(&bpffs, UnmountFlags::empty()).on("unmount", &bpffs));
    planting(move |undo| {
        let map = create_map().during("bpf(BPF_MAP_CREATE)")?;
        pin(&map, &path).on("bpf(BPF_OBJ_PIN)", &path)?;
        undo.push(removal(&path));
        let mut facts = facts::of_path(&path)?;
        facts["map_id"] = number(&map, "map_id")?;
        Ok(facts)
    })
}

/// The first fields of `union bpf_attr` for BPF_MAP_CREATE; the kernel takes what follows as zero.
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
    map_name: [u8; 16],
}

fn create_map() -> io::Result<OwnedFd> {
    bpf_fd(
        BPF_MAP_CREATE,
        &MapAttributes {
            map_type: BPF_MAP_TYPE_ARRAY,
            key_size: 4,
            value_size: 8,
            max_entries: 1,
            map_name: *b"mkleak_map\0\0\0\0\0\0",
            ..MapAttributes::default()
        },
    )
}

/// The same for BPF_PROG_LOAD.
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
    prog_name: [u8; 16],
}

fn load_program() -> io::Result<OwnedFd> {
    // r0 = 0 (BPF_ALU64 | BPF_MOV | BPF_K), exit (BPF_JMP | BPF_EXIT): a filter that drops everything.
    let program: [u64; 2] = [0xb7, 0x95];
    let license = c"GPL";
    bpf_fd(
        BPF_PROG_LOAD,
        &ProgramAttributes {
            prog_type: BPF_PROG_TYPE_SOCKET_FILTER,
            insn_cnt: 2,
            insns: program.as_ptr().expose_provenance() as u64,
            license: license.as_ptr().expose_provenance() as u64,
            prog_name: *b"mkleak_prog\0\0\0\0\0",
            ..ProgramAttributes::default()
        },
    )
}

/// The same for BPF_OBJ_PIN.
#[repr(C)]
struct PinAttributes {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn pin(map: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf(
        BPF_OBJ_PIN,
        &PinAttributes {
            pathname: path.as_ptr().expose_provenance() as u64,
            bpf_fd: map.as_raw_fd().cast_unsigned(),
            file_flags: 0,
        },
    )
    .map(drop)
}

#[allow(unsafe_code)]
fn bpf_fd<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: both commands that come here return a new descriptor, which is close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[allow(unsafe_code)]
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: T is one of the structures above, of that size, and the buffers that it points to live in the caller.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    i32::try_from(result).ok().filter(|&result| result >= 0).ok_or_else(io::Error::last_os_error)
}
