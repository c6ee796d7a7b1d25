//! Namespaces that stay: held by a process, by an FD or by a bind mount (namespaces(7)).

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Plant, mount};
use crate::child::{Then, spawn};
use crate::error::{Doing, Error, Result};
use crate::facts;
use crate::stage::{Planting, Undo, planting};

pub(super) const PLANTS: &[Plant] = &[
    Plant {
        name: "ns-mnt",
        needs: &["root"],
        what: "a mount namespace held by a child",
        prepare: |_| held_by_child("mnt", libc::CLONE_NEWNS),
    },
    Plant {
        name: "ns-net",
        needs: &["root"],
        what: "a network namespace held by a child",
        prepare: |_| held_by_child("net", libc::CLONE_NEWNET),
    },
    Plant {
        name: "ns-ipc",
        needs: &["root"],
        what: "an IPC namespace held by a child",
        prepare: |_| held_by_child("ipc", libc::CLONE_NEWIPC),
    },
    Plant {
        name: "ns-uts",
        needs: &["root"],
        what: "a UTS namespace held by a child",
        prepare: |_| held_by_child("uts", libc::CLONE_NEWUTS),
    },
    Plant {
        name: "ns-pid",
        needs: &["root"],
        what: "a pid namespace held by a child, which is its init",
        prepare: |_| held_by_child("pid", libc::CLONE_NEWPID),
    },
    Plant {
        name: "ns-user",
        needs: &["user namespaces"],
        what: "a user namespace without mappings held by a child",
        prepare: |_| held_by_child("user", libc::CLONE_NEWUSER),
    },
    Plant {
        name: "ns-cgroup",
        needs: &["root"],
        what: "a cgroup namespace held by a child",
        prepare: |_| held_by_child("cgroup", libc::CLONE_NEWCGROUP),
    },
    Plant {
        name: "ns-time",
        needs: &["root", "time namespaces"],
        what: "a time namespace held by a child",
        prepare: |_| held_by_child("time", CLONE_NEWTIME),
    },
    Plant {
        name: "ns-net-fd",
        needs: &["root"],
        what: "a network namespace which only an FD holds",
        prepare: |_| {
            planting(|undo| {
                let (path, mut helper) = of_helper("net", libc::CLONE_NEWNET)?;
                let namespace = File::open(&path).doing("open", &path)?;
                helper.run()?;
                let mut facts = facts::of_fd(&namespace)?;
                facts["ns"] = json!("net");
                undo.keep(namespace);
                Ok(facts)
            })
        },
    },
    Plant {
        name: "ns-uts-bind",
        needs: &["root"],
        what: "a UTS namespace which only a bind mount of its nsfs file holds",
        prepare: |stage| {
            let holder = stage.file("uts-ns")?;
            planting(move |undo| {
                let mut facts = bound(undo, "uts", libc::CLONE_NEWUTS, &holder)?;
                facts["ns"] = json!("uts");
                Ok(facts)
            })
        },
    },
];

/// Linux 5.6; the libc crate lacks it on some targets.
const CLONE_NEWTIME: libc::c_int = 0x80;

fn held_by_child(entry: &'static str, flag: libc::c_int) -> Result<Planting> {
    planting(move |undo| {
        if !Path::new("/proc/self/ns").join(entry).exists() {
            return Err(Error::Unavailable(format!("this kernel has no {entry} namespaces")));
        }
        let child = spawn(flag, || Ok(Then::Pause(None)))?;
        undo.push(move || child.end());
        let path = child.namespace(entry);
        let link = fs::read_link(&path).doing("readlink", &path)?;
        let link = link.to_string_lossy();
        let inode: Option<u64> =
            link.split_once('[').and_then(|(_, rest)| rest.strip_suffix(']')).and_then(|inode| inode.parse().ok());
        Ok(json!({"pid": child.pid(), "ns": entry, "ino": inode, "link": link}))
    })
}

/// The nsfs file of a new namespace below `/proc` of a helper, which lives as long as the second value.
pub(super) fn of_helper(entry: &str, flag: libc::c_int) -> Result<(PathBuf, Undo)> {
    let child = spawn(flag, || Ok(Then::Pause(None)))?;
    let mut helper = Undo::default();
    helper.push(move || child.end());
    Ok((child.namespace(entry), helper))
}

/// A new namespace that a bind mount on `holder` holds, as `ip netns add` makes it.
pub(super) fn bound(undo: &mut Undo, entry: &str, flag: libc::c_int, holder: &Path) -> Result<Value> {
    let (namespace, mut helper) = of_helper(entry, flag)?;
    mount::bind(undo, &namespace, holder)?;
    helper.run()?;
    facts::of_path(holder)
}
