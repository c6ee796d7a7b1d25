//! BPF objects that stay: held by an FD, or by a file in bpffs (bpf(2)).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use leakcheck_sys::bpf;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;

use super::Plant;
use crate::error::{Doing, Result};
use crate::facts;
use crate::stage::{Planting, Stage, planting, removal};

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
    mount("leakcheck-mkleak", &bpffs, "bpf", MountFlags::empty(), None).doing("mount bpffs", &bpffs)?;
    let path = bpffs.join("map");
    stage.scaffold().push(move || unmount(&bpffs, UnmountFlags::empty()).doing("unmount", &bpffs));
    planting(move |undo| {
        let map = create_map().during("bpf(BPF_MAP_CREATE)")?;
        bpf::pin(map.as_fd(), &path).doing("bpf(BPF_OBJ_PIN)", &path)?;
        undo.push(removal(&path));
        let mut facts = facts::of_path(&path)?;
        facts["map_id"] = number(&map, "map_id")?;
        Ok(facts)
    })
}

fn create_map() -> io::Result<OwnedFd> {
    bpf::make_array_map(*b"mkleak_map\0\0\0\0\0\0")
}

fn load_program() -> io::Result<OwnedFd> {
    // r0 = 0 (BPF_ALU64 | BPF_MOV | BPF_K), exit (BPF_JMP | BPF_EXIT): a filter that drops everything.
    bpf::load_socket_filter(&[0xb7, 0x95], c"GPL", *b"mkleak_prog\0\0\0\0\0")
}
