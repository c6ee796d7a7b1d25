//! Locks that stay held. The locked file and the FD on it are scaffolding; the lock is the leak.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{FlockOperation, fcntl_lock, flock};
use serde_json::json;

use super::Plant;
use crate::child::Then;
use crate::error::{During, Result};
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
        prepare: |stage| lock(stage, "OFDLCK", |file| ofd(file, libc::F_WRLCK), |file| ofd(file, libc::F_UNLCK)),
    },
    Plant {
        name: "lock-lease",
        needs: &[],
        what: "a write lease on a file",
        prepare: |stage| lock(stage, "LEASE", |file| lease(file, libc::F_WRLCK), |file| lease(file, libc::F_UNLCK)),
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
    let file = OpenOptions::new().read(true).write(true).open(&path).on("open", &path)?;
    let file = stage.share(file);
    planting(move |undo| {
        take(&file).during(format!("{class} lock on {path:?}"))?;
        let mut facts = facts::of_fd(&*file)?;
        facts::merge(&mut facts, json!({"path": path, "class": class}));
        undo.push(move || release(&file).during(format!("release the {class} lock on {path:?}")));
        Ok(facts)
    })
}

#[allow(unsafe_code)]
fn ofd(file: &File, class: libc::c_int) -> io::Result<()> {
    // SAFETY: an all-zero `flock` is valid (SEEK_SET is 0); the call reads it only.
    let done = unsafe {
        let mut range: libc::flock = std::mem::zeroed();
        range.l_type = class as libc::c_short;
        range.l_len = 10;
        libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// F_SETLEASE of fcntl(2): a write lease wants the only open descriptor, and the file's owner or CAP_LEASE.
#[allow(unsafe_code)]
fn lease(file: &File, class: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, class) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn orphaned(stage: &mut Stage) -> Result<Planting> {
    let path = stage.file("locked")?;
    planting(move |undo| {
        let file = File::open(&path).on("open", &path)?;
        let kept = OwnedFd::from(file.try_clone().on("dup", &path)?);
        let fd = kept.as_raw_fd();
        let orphan = orphan(
            || flock(&file, FlockOperation::NonBlockingLockExclusive).on("flock", &path),
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
