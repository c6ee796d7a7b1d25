//! Cgroup directories that stay, always below the caller's own cgroup or the one that it names.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use leakcheck_parse::{cgroup, mountinfo};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use super::Plant;
use crate::child::{Then, spawn};
use crate::error::{Doing, Error, Result};
use crate::facts;
use crate::stage::{Planting, Stage, Undo, planting, tag};

const V2: &str = "v2";

pub(super) const PLANTS: &[Plant] = &[
    Plant {
        name: "cgroup-v2",
        needs: &["root", "cgroup-v2"],
        what: "an empty cgroup in the unified hierarchy",
        prepare: |stage| empty(stage, V2),
    },
    Plant {
        name: "cgroup-v1-pids",
        needs: &["root", "cgroup-v1:pids"],
        what: "an empty cgroup in the v1 hierarchy of the pids controller only",
        prepare: |stage| empty(stage, "pids"),
    },
    Plant {
        name: "cgroup-v1-memory",
        needs: &["root", "cgroup-v1:memory"],
        what: "an empty cgroup in the v1 hierarchy of the memory controller only",
        prepare: |stage| empty(stage, "memory"),
    },
    Plant {
        name: "cgroup-v1-freezer",
        needs: &["root", "cgroup-v1:freezer"],
        what: "an empty cgroup in the v1 hierarchy of the freezer controller only",
        prepare: |stage| empty(stage, "freezer"),
    },
    Plant {
        name: "cgroup-v1-cpu",
        needs: &["root", "cgroup-v1:cpu"],
        what: "an empty cgroup in the v1 hierarchy of the cpu controller only",
        prepare: |stage| empty(stage, "cpu"),
    },
    Plant {
        name: "cgroup-nested",
        needs: &["root", "cgroup-v2 or cgroup-v1:pids"],
        what: "three cgroups, one below the other, whose parents were made by the same hand",
        prepare: |stage| {
            let (parent, hierarchy) = any_hierarchy(stage)?;
            planting(move |undo| {
                let top = parent.join(tag());
                let leaf = top.join("second").join("third");
                for path in [&top, &top.join("second"), &leaf] {
                    make(undo, path)?;
                }
                let mut facts = describe(&top, hierarchy)?;
                facts["leaf"] = json!(leaf);
                Ok(facts)
            })
        },
    },
    Plant {
        name: "cgroup-populated",
        needs: &["root", "cgroup-v2 or cgroup-v1:pids"],
        what: "a cgroup with a child in it",
        prepare: |stage| {
            let (parent, hierarchy) = any_hierarchy(stage)?;
            planting(move |undo| populated(undo, &parent, hierarchy).map(|(_, facts)| facts))
        },
    },
    Plant {
        name: "cgroup-frozen",
        needs: &["root", "cgroup-v1:freezer or cgroup-v2"],
        what: "a cgroup that was frozen with a child in it, which then does not even die of SIGKILL (v1)",
        prepare: frozen,
    },
];

/// What a supervisor leaves if it is killed between freezing and thawing.
fn frozen(stage: &mut Stage) -> Result<Planting> {
    let (parent, hierarchy, file, [freeze, thaw]) = match parent(stage, "freezer") {
        Ok(parent) => (parent, "freezer", "freezer.state", ["FROZEN", "THAWED"]),
        Err(_) => (parent(stage, V2)?, V2, "cgroup.freeze", ["1", "0"]),
    };
    planting(move |undo| {
        let (path, facts) = populated(undo, &parent, hierarchy)?;
        let state = path.join(file);
        let again = state.clone();
        // The undoing is in reverse order: a process that v1 has frozen must be thawed before it can die.
        undo.push(move || fs::write(&again, thaw).doing("write", &again));
        fs::write(&state, freeze).doing("write", &state)?;
        Ok(facts)
    })
}

/// A new cgroup below `parent` with a child in it, and its facts.
fn populated(undo: &mut Undo, parent: &Path, hierarchy: &str) -> Result<(PathBuf, Value)> {
    let path = parent.join(tag());
    make(undo, &path)?;
    let procs = path.join("cgroup.procs");
    let child = spawn(0, || {
        fs::write(&procs, "0").doing("write", &procs)?;
        Ok(Then::Pause(None))
    })?;
    undo.push(move || child.end());
    let mut facts = describe(&path, hierarchy)?;
    facts["pid"] = json!(child.pid());
    Ok((path, facts))
}

fn empty(stage: &Stage, hierarchy: &'static str) -> Result<Planting> {
    let parent = parent(stage, hierarchy)?;
    planting(move |undo| {
        let path = parent.join(tag());
        make(undo, &path)?;
        describe(&path, hierarchy)
    })
}

fn describe(path: &Path, hierarchy: &str) -> Result<Value> {
    let mut facts = facts::of_path(path)?;
    facts["hierarchy"] = json!(hierarchy);
    Ok(facts)
}

fn any_hierarchy(stage: &Stage) -> Result<(PathBuf, &'static str)> {
    match parent(stage, V2) {
        Ok(parent) => Ok((parent, V2)),
        Err(_) => parent(stage, "pids").map(|parent| (parent, "pids")),
    }
}

/// The directory to plant in: the given one if it belongs to this hierarchy, otherwise the caller's own cgroup.
fn parent(stage: &Stage, hierarchy: &str) -> Result<PathBuf> {
    let mounts = fs::read("/proc/self/mountinfo").doing("read", "/proc/self/mountinfo")?;
    let mounts = mountinfo::parse(&mounts).doing("read", "/proc/self/mountinfo")?;
    let own = fs::read("/proc/self/cgroup").doing("read", "/proc/self/cgroup")?;
    let own = cgroup::parse(&own).doing("read", "/proc/self/cgroup")?;
    let own = own
        .iter()
        .find(|entry| if hierarchy == V2 { entry.is_v2() } else { entry.has_controller(hierarchy.as_bytes()) })
        .ok_or_else(|| Error::Unavailable(format!("/proc/self/cgroup has no line for {hierarchy}")))?;
    // The last mount covers those before it.
    let mount = mounts
        .iter()
        .rfind(|mount| mount.is_hierarchy_of(own))
        .ok_or_else(|| Error::Unavailable(format!("no cgroup hierarchy {hierarchy} is mounted here")))?;
    if let Some(given) = stage.cgroup() {
        if given.starts_with(mount.point()) {
            return Ok(given.to_owned());
        }
        return Err(Error::Failed(format!(
            "--cgroup {given:?} is not in the hierarchy mounted on {:?}",
            mount.point()
        )));
    }
    cgroup::directories(own, std::slice::from_ref(mount))
        .next()
        .ok_or_else(|| Error::Unavailable(format!("own cgroup is outside of what {:?} shows", mount.point())))
}

fn make(undo: &mut Undo, path: &Path) -> Result<()> {
    fs::create_dir(path).doing("mkdir", path)?;
    let path = path.to_owned();
    undo.push(move || remove(&path));
    Ok(())
}

/// A process may be reaped shortly before its cgroup counts as empty.
fn remove(path: &Path) -> Result<()> {
    for _ in 0..200 {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => wait_for_change(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            outcome => return outcome.doing("rmdir", path),
        }
    }
    fs::remove_dir(path).doing("rmdir", path)
}

/// `cgroup.events` reports a change as an exceptional condition (Documentation/admin-guide/cgroup-v2.rst); v1 reports
/// nothing, so that only the timeout ends the wait.
fn wait_for_change(path: &Path) {
    let limit = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    let events = fs::File::open(path.join("cgroup.events"));
    let mut ends: Vec<_> = events.iter().map(|events| PollFd::new(events, PollFlags::PRI)).collect();
    let _ = poll(&mut ends, Some(&limit));
}
