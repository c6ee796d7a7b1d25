//! Which hierarchy enforces which limit.

use std::fs;
use std::path::{Path, PathBuf};

use leakcheck_parse::cgroup::CgroupEntry;
use leakcheck_parse::{cgroup, mountinfo};
use rustix::fs::{Access, access};
use serde::Serialize;

use crate::error::{Doing, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    /// Only for v1: v2 lists its own in `cgroup.controllers`.
    controllers: Vec<String>,
    /// The directory of our own cgroup.
    own: PathBuf,
}

/// The purpose of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Memory,
    Processes,
    Cpu,
    /// To kill all processes in it at once.
    Kill,
}

/// A hierarchy that is in use.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) version: Version,
    pub(crate) dir: PathBuf,
    pub(crate) uses: Vec<Use>,
}

/// What enforces each limit.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct LimitsBy {
    pub(crate) memory: &'static str,
    pub(crate) processes: &'static str,
    pub(crate) cpu: &'static str,
}

/// The cgroups that a box needs.
pub(crate) fn plan(name: &str) -> Result<Vec<Place>> {
    let mut usable = hierarchies()?;
    usable.retain(|h| access(&h.own, Access::WRITE_OK).is_ok());
    for v2 in usable.iter_mut().filter(|h| h.version == Version::V2) {
        v2.controllers = enabled(&v2.own);
        // A sibling of our own cgroup can have controllers that a child cannot.
        if let Some(parent) = v2.own.parent().filter(|_| !complete(&v2.controllers)) {
            let given = words(parent, "cgroup.subtree_control");
            if complete(&given) && access(parent, Access::WRITE_OK).is_ok() {
                (v2.own, v2.controllers) = (parent.to_owned(), given);
            }
        }
    }
    Ok(choose(&usable, name))
}

/// The hierarchies that are mounted and show our own cgroup.
fn hierarchies() -> Result<Vec<Hierarchy>> {
    let read = |path: &str| fs::read(path).doing("read", path);
    let (cgroups, mounts) = (read("/proc/self/cgroup")?, read("/proc/self/mountinfo")?);
    let mounts = mountinfo::parse(&mounts).doing("read", "/proc/self/mountinfo")?;
    let of = |entry: &CgroupEntry<'_>| {
        let controllers = String::from_utf8_lossy(entry.controllers);
        Some(Hierarchy {
            version: if entry.is_v2() { Version::V2 } else { Version::V1 },
            controllers: controllers.split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect(),
            own: cgroup::directories(entry, &mounts).next()?,
        })
    };
    Ok(cgroup::parse(&cgroups).doing("read", "/proc/self/cgroup")?.iter().filter_map(of).collect())
}

/// The controllers that a v2 cgroup needs from its parent.
const WANTED: [&str; 2] = ["memory", "pids"];

fn complete(controllers: &[String]) -> bool {
    WANTED.iter().all(|wanted| controllers.iter().any(|c| c == wanted))
}

fn words(cgroup: &Path, file: &str) -> Vec<String> {
    let text = fs::read_to_string(cgroup.join(file)).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// The controllers of cgroups below `own`. A cgroup that contains processes cannot enable any for its children (no internal
/// processes rule), unless it is the root.
fn enabled(own: &Path) -> Vec<String> {
    let (available, mut given) = (words(own, "cgroup.controllers"), words(own, "cgroup.subtree_control"));
    for wanted in WANTED {
        let possible = available.iter().any(|c| c == wanted) && !given.iter().any(|c| c == wanted);
        // It stays enabled: disabling it would take it from another box.
        if possible && fs::write(own.join("cgroup.subtree_control"), format!("+{wanted}")).is_ok() {
            given.push(wanted.to_owned());
        }
    }
    given
}

fn choose(usable: &[Hierarchy], name: &str) -> Vec<Place> {
    let v2 = || usable.iter().find(|h| h.version == Version::V2);
    let with = |controller: &str| {
        let has = |h: &&Hierarchy| h.controllers.iter().any(|c| c == controller);
        v2().filter(has).or_else(|| usable.iter().find(has))
    };
    let mut places: Vec<Place> = Vec::new();
    // v2 counts processor time and kills without any controller.
    for (what, hierarchy) in [
        (Use::Memory, with("memory")),
        (Use::Processes, with("pids")),
        (Use::Cpu, v2().or_else(|| with("cpuacct"))),
        (Use::Kill, v2().or_else(|| with("freezer"))),
    ] {
        let Some(hierarchy) = hierarchy else { continue };
        let dir = hierarchy.own.join(name);
        match places.iter_mut().find(|place| place.dir == dir) {
            Some(place) => place.uses.push(what),
            None => places.push(Place { version: hierarchy.version, dir, uses: vec![what] }),
        }
    }
    places
}

/// What enforces each limit if `places` are in use.
pub(crate) fn limits_by(places: &[Place]) -> LimitsBy {
    let by = |what: Use| match places.iter().find(|place| place.uses.contains(&what)).map(|place| place.version) {
        Some(Version::V1) => "cgroup v1",
        Some(Version::V2) => "cgroup v2",
        None => "rlimit",
    };
    LimitsBy { memory: by(Use::Memory), processes: by(Use::Processes), cpu: by(Use::Cpu) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(version: Version, controllers: &[&str], own: &str) -> Hierarchy {
        Hierarchy { version, controllers: controllers.iter().map(|c| (*c).to_owned()).collect(), own: own.into() }
    }

    #[test]
    fn a_hybrid_host_limits_by_v1_and_kills_by_v2() {
        let usable = [
            hierarchy(Version::V1, &["memory"], "/m"),
            hierarchy(Version::V1, &["cpu", "cpuacct"], "/c"),
            hierarchy(Version::V1, &["pids"], "/p"),
            hierarchy(Version::V1, &["freezer"], "/f"),
            hierarchy(Version::V2, &[], "/u"),
        ];
        let places = choose(&usable, "x");
        let dirs: Vec<_> = places.iter().map(|p| (p.dir.to_str().unwrap(), p.uses.clone())).collect();
        let expected =
            [("/m/x", vec![Use::Memory]), ("/p/x", vec![Use::Processes]), ("/u/x", vec![Use::Cpu, Use::Kill])];
        assert_eq!(dirs, expected);
        assert_eq!(limits_by(&places).memory, "cgroup v1");
    }

    #[test]
    fn a_v2_host_needs_one_directory_and_a_v1_host_four() {
        assert_eq!(choose(&[hierarchy(Version::V2, &["memory", "pids"], "/u")], "x").len(), 1);
        let v1 = ["memory", "pids", "cpuacct", "freezer"].map(|c| hierarchy(Version::V1, &[c], &format!("/{c}")));
        assert_eq!(choose(&v1, "x").len(), 4);
    }

    #[test]
    fn what_no_controller_holds_is_by_rlimit() {
        let places = choose(&[hierarchy(Version::V2, &["pids"], "/u")], "x");
        let by = limits_by(&places);
        assert_eq!((by.memory, by.processes, by.cpu), ("rlimit", "cgroup v2", "cgroup v2"));
        assert_eq!(limits_by(&choose(&[], "x")).cpu, "rlimit");
    }
}
