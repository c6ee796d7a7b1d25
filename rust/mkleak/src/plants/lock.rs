//! Locks that stay held. The locked file and the FD on it are scaffolding; the lock is the leak.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use leakcheck_sys::{set_lease, set_ofd_lock};
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use serde_json::json;

use super::Plant;
use crate::child::Then;
use crate::error::{Doing, Result};
use crate::facts;
use crate::orphan::orphan;
use crate::stage::{Planting, Stage, planting};

pub(super) const PLANTS: &[Plant] = &[
    Plant {
        name: "lock-flock",
        needs: &[],
        what: "a flock on a whole file",
        prepare: |stage| {
            lock(
                stage,
                "FLOCK",
                |file| flock(file, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from),
                |file| flock(file, FlockOperation::Unlock).map_err(io::Error::from),
            )
        },
    },
    Plant {
        name: "lock-posix",
        needs: &[],
        what: "a POSIX record lock, which belongs to the process",
        prepare: |stage| {
            lock(
                stage,
                "POSIX",
                |file| fcntl_lock(file, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from),
                |file| fcntl_lock(file, FlockOperation::Unlock).map_err(io::Error::from),
            )
        },
    },
    Plant {
        name: "lock-ofd",
        needs: &[],
        what: "a lock of an open file description on ten bytes, for which /proc/locks names no process",
        prepare: |stage| {
            lock(
                stage,
                "OFDLCK",
                |file| set_ofd_lock(file, libc::F_WRLCK, 10),
                |file| set_ofd_lock(file, libc::F_UNLCK, 10),
            )
        },
    },
    Plant {
        name: "lock-lease",
        needs: &[],
        what: "a write lease on a file",
        prepare: |stage| {
            lock(stage, "LEASE", |file| set_lease(file, libc::F_WRLCK), |file| set_lease(file, libc::F_UNLCK))
        },
    },
    Plant {
        name: "lock-orphaned",
        needs: &[],
        what: "a flock held by an orphan that inherited it from its dead parent, whom /proc/locks names",
        prepare: orphaned,
    },
];

type Change = fn(&File) -> io::Result<()>;

fn lock(stage: &mut Stage, class: &'static str, take: Change, release: Change) -> Result<Planting> {
    let path = stage.file("locked")?;
    let file = OpenOptions::new().read(true).write(true).open(&path).doing("open", &path)?;
    let file = stage.share(file);
    planting(move |undo| {
        take(&file).doing(format_args!("{class} lock on"), &path)?;
        let mut facts = facts::of_fd(&*file)?;
        facts::merge(&mut facts, json!({"path": path, "class": class}));
        undo.push(move || release(&file).doing(format_args!("release the {class} lock on"), &path));
        Ok(facts)
    })
}

fn orphaned(stage: &mut Stage) -> Result<Planting> {
    let path = stage.file("locked")?;
    planting(move |undo| {
        let file = File::open(&path).doing("open", &path)?;
        let kept = OwnedFd::from(file.try_clone().doing("dup", &path)?);
        let fd = kept.as_raw_fd();
        let orphan = orphan(
            || flock(&file, FlockOperation::NonBlockingLockExclusive).doing("flock", &path),
            || Ok(Then::Pause(Some(kept))),
        )?;
        let pid = orphan.pid();
        undo.push(move || orphan.end());
        drop(file);
        let mut facts = facts::of_path(&path)?;
        facts::merge(&mut facts, json!({"pid": pid, "fd": fd, "class": "FLOCK"}));
        Ok(facts)
    })
}
