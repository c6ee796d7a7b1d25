//! Cgroup directories that stay, only ever below the caller's own cgroup or the one that it names.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use super::Plant;
use crate::child::{Then, spawn};
use crate::error::{During, Error, Result};
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
            planting(move |undo| {
                let path = parent.join(tag());
                make(undo, &path)?;
                let procs = path.join("cgroup.procs");
                let child = spawn(0, || {
                    fs::write(&procs, "0").on("write", &procs)?;
                    Ok(Then::Pause(None))
                })?;
                undo.push(move || child.end());
                let mut facts = describe(&path, hierarchy)?;
                facts["pid"] = json!(child.pid());
                Ok(facts)
            })
        },
    },
    Plant {
        name: "cgroup-frozen",
        needs: &["root", "cgroup-v1:freezer or cgroup-v2"],
        what: "a cgroup that was frozen with a child in it, which then does not even die of SIGKILL (v1)",
        prepare: frozen,
    },
];

/// What a supervisor leaves that is killed between freezing and thawing.
fn frozen(stage: &mut Stage) -> Result<Planting> {
    let (parent, hierarchy, file, [freeze, thaw]) = match parent(stage, "freezer") {
        Ok(parent) => (parent, "freezer", "freezer.state", ["FROZEN", "THAWED"]),
        Err(_) => (parent(stage, V2)?, V2, "cgroup.freeze", ["1", "0"]),
    };
    planting(move |undo| {
        let path = parent.join(tag());
        make(undo, &path)?;
        let procs = path.join("cgroup.procs");
        let child = spawn(0, || {
            fs::write(&procs, "0").on("write", &procs)?;
            Ok(Then::Pause(None))
        })?;
        undo.push(move || child.end());
        let state = path.join(file);
        let again = state.clone();
        // Undone last first: a v1-frozen process has to be thawed before it can die.
        undo.push(move || fs::write(&again, thaw).on("write", &again));
        fs::write(&state, freeze).on("write", &state)?;
        let mut facts = describe(&path, hierarchy)?;
        facts["pid"] = json!(child.pid());
        Ok(facts)
    })
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

/// The directory below which to plant: the given one if it is of this hierarchy, else the caller's own cgroup.
fn parent(stage: &Stage, hierarchy: &str) -> Result<PathBuf> {
    let mounts = fs::read("/proc/self/mountinfo").during("read /proc/self/mountinfo")?;
    let mount = mounts
        .split(|&byte| byte == b'\n')
        .filter_map(Mount::parse)
        // The last one covers those before it.
        .rfind(|mount| mount.is_of(hierarchy))
        .ok_or_else(|| Error::Unavailable(format!("no cgroup hierarchy {hierarchy} is mounted here")))?;
    if let Some(given) = stage.cgroup() {
        if given.starts_with(&mount.point) {
            return Ok(given.to_owned());
        }
        return Err(Error::Failed(format!("--cgroup {given:?} is not in the hierarchy mounted on {:?}", mount.point)));
    }
    let own = fs::read("/proc/self/cgroup").during("read /proc/self/cgroup")?;
    let own = own
        .split(|&byte| byte == b'\n')
        .find_map(|line| own_path(line, hierarchy))
        .ok_or_else(|| Error::Unavailable(format!("/proc/self/cgroup has no line for {hierarchy}")))?;
    // The mount shows the hierarchy from its root on, which need not be the hierarchy's (cgroup namespaces).
    let below = own
        .strip_prefix(&mount.root)
        .map_err(|_| Error::Unavailable(format!("own cgroup {own:?} is outside of what {:?} shows", mount.point)))?;
    Ok(mount.point.join(below))
}

struct Mount {
    root: PathBuf,
    point: PathBuf,
    fstype: Vec<u8>,
    options: Vec<u8>,
}

impl Mount {
    /// A line of proc_pid_mountinfo(5).
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let separator = fields.iter().skip(6).position(|&field| field == b"-")? + 6;
        Some(Self {
            root: unescape(fields.get(3)?),
            point: unescape(fields.get(4)?),
            fstype: fields.get(separator + 1)?.to_vec(),
            options: fields.get(separator + 3)?.to_vec(),
        })
    }

    fn is_of(&self, hierarchy: &str) -> bool {
        if hierarchy == V2 {
            return self.fstype == b"cgroup2";
        }
        self.fstype == b"cgroup"
            && self.options.split(|&byte| byte == b',').any(|option| option == hierarchy.as_bytes())
    }
}

/// Blanks and backslashes stand in mountinfo as a backslash and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// The path of a line of `/proc/PID/cgroup` (cgroups(7)): `id:controllers:path`, and `0::path` for v2.
fn own_path(line: &[u8], hierarchy: &str) -> Option<PathBuf> {
    let mut parts = line.splitn(3, |&byte| byte == b':');
    let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let this = if hierarchy == V2 {
        id == b"0" && controllers.is_empty()
    } else {
        controllers.split(|&byte| byte == b',').any(|controller| controller == hierarchy.as_bytes())
    };
    this.then(|| OsStr::from_bytes(path).into())
}

fn make(undo: &mut Undo, path: &Path) -> Result<()> {
    fs::create_dir(path).on("mkdir", path)?;
    let path = path.to_owned();
    undo.push(move || remove(&path));
    Ok(())
}

/// A process may be reaped a moment before its cgroup counts as empty.
fn remove(path: &Path) -> Result<()> {
    for _ in 0..200 {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => wait_for_change(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            outcome => return outcome.on("rmdir", path),
        }
    }
    fs::remove_dir(path).on("rmdir", path)
}

/// `cgroup.events` tells of a change as an exceptional condition (Documentation/admin-guide/cgroup-v2.rst); v1
/// has nothing to tell, and the timeout alone bounds the wait.
fn wait_for_change(path: &Path) {
    let limit = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    let events = fs::File::open(path.join("cgroup.events"));
    let mut ends: Vec<_> = events.iter().map(|events| PollFd::new(events, PollFlags::PRI)).collect();
    let _ = poll(&mut ends, Some(&limit));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_v1_mount_is_known_by_its_controller_and_its_escaped_point_is_read() {
        let line = br"35 31 0:32 /a\040b /sys/fs/cgroup/mem\134ory rw,relatime shared:9 - cgroup cgroup rw,memory";
        let mount = Mount::parse(line).unwrap();
        assert!(mount.is_of("memory") && !mount.is_of("mem") && !mount.is_of(V2));
        assert_eq!(mount.root, Path::new("/a b"));
        assert_eq!(mount.point, Path::new(r"/sys/fs/cgroup/mem\ory"));
    }

    #[test]
    fn the_own_cgroup_is_found_in_hybrid_hierarchies_and_may_hold_colons() {
        assert_eq!(own_path(b"4:cpu,cpuacct:/a:b", "cpuacct").unwrap(), Path::new("/a:b"));
        assert_eq!(own_path(b"0::/user.slice", V2).unwrap(), Path::new("/user.slice"));
        assert_eq!(own_path(b"9:name=systemd:/", V2), None);
        assert_eq!(own_path(b"4:cpu,cpuacct:/", "cpuset"), None);
    }
}
