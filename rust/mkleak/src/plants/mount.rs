//! Mounts that stay. Mount points are scaffolding.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsmount, fsopen, mount, mount_bind, mount_change, open_tree, unmount,
};
use rustix::process::chdir;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};

use super::Plant;
use crate::child::{Then, spawn};
use crate::error::{Doing, Error, Result};
use crate::facts;
use crate::stage::{Planting, Stage, Undo, planting};

pub(super) const PLANTS: &[Plant] = &[
    Plant {
        name: "mount-bind",
        needs: &["root"],
        what: "a directory bound onto another",
        prepare: |stage| {
            let source = stage.directory("source")?;
            mounted(stage, move |target| mount_bind(&source, target).doing("bind mount", target))
        },
    },
    Plant {
        name: "mount-tmpfs",
        needs: &["root"],
        what: "a tmpfs mounted on a directory",
        prepare: |stage| mounted(stage, tmpfs),
    },
    Plant {
        name: "mount-overlay",
        needs: &["root", "overlay"],
        what: "an overlay of two directories",
        prepare: |stage| {
            // Without an upper layer: its work directory would be a second leak.
            let (above, below) = (stage.directory("above")?, stage.directory("below")?);
            mounted(stage, move |target| overlay(&above, &below, target))
        },
    },
    Plant {
        name: "mount-lazy-cwd",
        needs: &["root"],
        what: "a tmpfs that was unmounted lazily and lives on as a working directory, in no mount table",
        prepare: lazy_cwd,
    },
    Plant {
        name: "mount-ns-fd",
        needs: &["root"],
        what: "a tmpfs in another mount namespace which only an FD holds",
        prepare: |stage| {
            let target = stage.directory("mount")?;
            planting(move |undo| {
                let (path, mut helper) = namespace_with_tmpfs(&target)?;
                let namespace = File::open(&path).doing("open", &path)?;
                helper.run()?;
                let mut facts = facts::of_fd(&namespace)?;
                facts["target"] = json!(target);
                undo.keep(namespace);
                Ok(facts)
            })
        },
    },
    Plant {
        name: "mount-ns-bind",
        needs: &["root"],
        what: "a tmpfs in another mount namespace which only a bind mount of its nsfs file holds",
        prepare: |stage| {
            let (target, holder) = (stage.directory("mount")?, stage.file("mnt-ns")?);
            planting(move |undo| {
                bind_on_some_cpu(undo, &target, &holder)?;
                let mut facts = facts::of_path(&holder)?;
                facts["target"] = json!(target);
                Ok(facts)
            })
        },
    },
    Plant {
        name: "mount-detached",
        needs: &["root"],
        what: "a tmpfs made by fsmount and never attached, held by its FD only",
        prepare: |_| detached(detached_tmpfs),
    },
    Plant {
        name: "mount-detached-clone",
        needs: &["root"],
        what: "a detached copy of a mounted tree made by open_tree, held by its FD only",
        prepare: |stage| {
            let path = stage.dir().to_owned();
            detached(move || {
                open_tree(CWD, &path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
                    .doing("open_tree", &path)
            })
        },
    },
];

fn tmpfs(target: &Path) -> Result<()> {
    let size = c"size=64k,mode=700";
    mount("leakcheck-mkleak", target, "tmpfs", MountFlags::empty(), size).doing("mount tmpfs", target)
}

fn overlay(above: &Path, below: &Path, target: &Path) -> Result<()> {
    let options = format!("lowerdir={}:{}", escaped(above), escaped(below));
    let options = CString::new(options).doing("mount overlay", target)?;
    mount("leakcheck-mkleak", target, "overlay", MountFlags::empty(), options.as_c_str()).doing("mount overlay", target)
}

/// In overlay's options a colon separates layers and a comma options (Documentation/filesystems/overlayfs.rst).
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

/// A mount in the caller's own namespace, on a fresh directory.
fn mounted(stage: &mut Stage, attach: impl FnOnce(&Path) -> Result<()> + 'static) -> Result<Planting> {
    let target = stage.directory("mount")?;
    planting(move |undo| {
        attach(&target)?;
        let facts = facts::of_path(&target)?;
        undo.push(move || unmount(&target, UnmountFlags::empty()).doing("unmount", &target));
        Ok(facts)
    })
}

fn lazy_cwd(stage: &mut Stage) -> Result<Planting> {
    let target = stage.directory("mount")?;
    // There is no way back to a deleted working directory.
    let home = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    planting(move |undo| {
        tmpfs(&target)?;
        let mut attached = Undo::default();
        let path = target.clone();
        attached.push(move || unmount(&path, UnmountFlags::DETACH).doing("unmount lazily", &path));
        chdir(&target).doing("chdir", &target)?;
        undo.push(move || chdir(&home).doing("chdir", &home));
        let mut facts = facts::of_path(&target)?;
        attached.run()?;
        facts["pid"] = json!(std::process::id());
        Ok(facts)
    })
}

/// The nsfs file below `/proc` of a helper process, which lives as long as the second value.
fn namespace_with_tmpfs(target: &Path) -> Result<(PathBuf, Undo)> {
    let child = spawn(libc::CLONE_NEWNS, || {
        // A shared mount would propagate to the namespace that this one was copied from.
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).during("make / private")?;
        tmpfs(target)?;
        Ok(Then::Pause(None))
    })?;
    let mut helper = Undo::default();
    helper.push(move || child.end());
    Ok((child.namespace("mnt"), helper))
}

/// A mount namespace can be bound only in an older one, so that they can't hold each other. Linux 6.18 compares the age by
/// an id that each CPU takes from its own batch: a younger namespace from another CPU may have the lower id, and binding it
/// fails with EINVAL. On the CPU that made the caller's namespace it works.
fn bind_on_some_cpu(undo: &mut Undo, target: &Path, holder: &Path) -> Result<()> {
    let attempt = |undo: &mut Undo| {
        let (namespace, mut helper) = namespace_with_tmpfs(target)?;
        bind(undo, &namespace, holder)?;
        helper.run()
    };
    let mut outcome = attempt(undo);
    let allowed = sched_getaffinity(None).during("sched_getaffinity")?;
    for cpu in (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)) {
        match &outcome {
            Err(Error::Os(failure)) if failure.cause().kind() == io::ErrorKind::InvalidInput => {}
            _ => break,
        }
        let mut only = CpuSet::new();
        only.set(cpu);
        sched_setaffinity(None, &only).during(format_args!("sched_setaffinity to CPU {cpu}"))?;
        outcome = attempt(undo);
        sched_setaffinity(None, &allowed).during("sched_setaffinity back")?;
    }
    outcome
}

/// Binds an nsfs file, which keeps its namespace alive (namespaces(7)).
pub(super) fn bind(undo: &mut Undo, namespace: &Path, holder: &Path) -> Result<()> {
    mount_bind(namespace, holder).doing("bind mount a namespace on", holder)?;
    let holder = holder.to_owned();
    undo.push(move || unmount(&holder, UnmountFlags::empty()).doing("unmount", &holder));
    Ok(())
}

fn detached(open: impl FnOnce() -> Result<OwnedFd> + 'static) -> Result<Planting> {
    planting(|undo| {
        let tree = open()?;
        let mut facts = facts::of_fd(&tree)?;
        facts["mnt_id"] = mount_id(&tree)?;
        undo.keep(tree);
        Ok(facts)
    })
}

fn mount_id(tree: &OwnedFd) -> Result<Value> {
    Ok(facts::fdinfo(tree, "mnt_id")?.and_then(|id| id.parse::<u64>().ok()).into())
}

fn detached_tmpfs() -> Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).during("fsopen tmpfs")?;
    fsconfig_create(&context).during("fsconfig")?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).during("fsmount")
}
