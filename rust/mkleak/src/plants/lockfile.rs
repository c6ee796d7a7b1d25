//! Lock files: files whose existence or content means that something is taken.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};
use rustix::process::WaitIdOptions;
use serde_json::json;

use super::Plant;
use crate::child::{Then, spawn};
use crate::error::{Doing, Result};
use crate::facts;
use crate::stage::{Planting, Stage, planting, removal, tag};

pub(super) const PLANTS: &[Plant] = &[
    Plant {
        name: "lockfile-stale",
        needs: &[],
        what: "a lock file with the pid of a process that is dead, as a plain number",
        prepare: |stage| stale(lock_path(stage), |pid| format!("{pid}\n")),
    },
    Plant {
        name: "lockfile-stale-json",
        needs: &[],
        what: "a lock file in JSON with the pid and the start time of a process that is dead",
        prepare: |stage| {
            stale(lock_path(stage), |pid| format!("{}\n", json!({"pid": pid, "start_time": 1, "host": "localhost"})))
        },
    },
    Plant {
        name: "lockfile-corrupt",
        needs: &[],
        what: "a lock file with garbage in it, as after a crash in the middle of writing it",
        prepare: |stage| {
            let path = lock_path(stage);
            planting(move |undo| {
                undo.push(removal(&path));
                fs::write(&path, b"{\"pid\": 12\x00\x00\xff\xfe\x1b[2J garbage").doing("write", &path)?;
                facts::of_path(&path)
            })
        },
    },
    Plant {
        name: "lockfile-held",
        needs: &[],
        what: "a lock file with its living owner's pid in it, and a flock on it",
        prepare: held,
    },
];

fn lock_path(stage: &Stage) -> PathBuf {
    stage.dir().join(format!("{}.lock", tag()))
}

fn stale(path: PathBuf, content: impl FnOnce(i32) -> String + 'static) -> Result<Planting> {
    planting(move |undo| {
        // The pid of a process that has just died, so that it is plausible.
        let child = spawn(0, || Ok(Then::Exit))?;
        let waited = child.wait_unreaped(WaitIdOptions::EXITED);
        child.end()?;
        waited?;
        undo.push(removal(&path));
        fs::write(&path, content(child.pid())).doing("write", &path)?;
        let mut facts = facts::of_path(&path)?;
        facts["dead_pid"] = json!(child.pid());
        Ok(facts)
    })
}

fn held(stage: &mut Stage) -> Result<Planting> {
    let path = lock_path(stage);
    planting(move |undo| {
        let mut file: File = OpenOptions::new().write(true).create_new(true).open(&path).doing("create", &path)?;
        undo.push(removal(&path));
        flock(&file, FlockOperation::NonBlockingLockExclusive).doing("flock", &path)?;
        writeln!(file, "{}", std::process::id()).doing("write", &path)?;
        let mut facts = facts::of_fd(&file)?;
        facts::merge(&mut facts, facts::of_path(&path)?);
        undo.keep(file);
        Ok(facts)
    })
}
