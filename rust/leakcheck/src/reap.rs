//! Removes what a saved report attributes to a run, and nothing else: `leakcheck reap --diff FILE`.
//!
//! A report may be old when it is read. Each resource is therefore looked up again by its whole identity, and held by a
//! descriptor where the kernel allows it (pidfd, `O_PATH`). A resource that was replaced is left alone. A resource that
//! exists only as long as something holds it is not touched: it goes with its holder. What nothing attributes to the
//! run is listed and stays.

mod action;
mod cgroup;
mod file;
mod kernel;
mod mount;
mod now;
mod process;
mod sys;

use std::cmp::Reverse;
use std::path::Path;

use crate::error::{Error, Result};
use crate::judge::attribute::Attribution;
use crate::judge::class::Class;
use crate::judge::report::{Leak, REPLACES, Report};
use crate::kind::Kind;
use crate::observe;
use crate::persist;
use crate::resource::{IpcClass, NetClass, Resource};
use crate::scope::Scope;
use action::Outcome;
pub use action::{Action, Status, Verb};
use now::Now;

/// Reads a saved report; `path` names it in errors.
///
/// # Errors
/// [`Error::Saved`] for another schema or version, a truncated or damaged text, and a report from another boot, whose
/// identities are no longer valid.
pub fn load(text: &str, path: &Path) -> Result<Report> {
    persist::check_schema(text, path, Report::SCHEMA, "leakcheck guard --json -- COMMAND > FILE")?;
    let report: Report = serde_json::from_str(text).map_err(|e| Error::saved(path, persist::damaged(&e)))?;
    match stale(&report)? {
        None => Ok(report),
        Some(why) => Err(Error::saved(path, why)),
    }
}

fn stale(report: &Report) -> Result<Option<String>> {
    let now = observe::boot_id()?;
    Ok((report.boot_id != now).then(|| {
        format!(
            "is from another boot ({:?}, this one is {now:?}): only files can remain from it, and nothing proves which. Remove \
             those by hand, or make a report of a new run with `leakcheck guard --json`",
            report.boot_id
        )
    }))
}

/// Removes what `report` attributes to its run; without `apply`, only reports what would be removed. The actions are in
/// the order of execution: holders before what they hold, children before parents.
///
/// # Errors
/// [`Error::Usage`] for a report from another boot; what [`observe::snapshot`] raises. A resource that cannot be
/// removed is not an error: its action says `failed`.
pub fn reap(report: &Report, apply: bool) -> Result<Vec<Action>> {
    if let Some(why) = stale(report)? {
        return Err(Error::usage(format!("the report {why}")));
    }
    if report.scope == Scope::Arena {
        // Its pids and paths refer to other things here.
        return Err(Error::usage("the report is about an arena, which is removed as a whole: take the arena down"));
    }
    let mut tasks = Vec::new();
    let mut left = Vec::new();
    for leak in report.leaks.iter().chain(&report.unattributed) {
        match record(leak) {
            Ok(resource) => tasks.push((leak, resource)),
            Err(why) => left.push((leak, Outcome::skipped(Verb::None, why))),
        }
    }
    tasks.sort_by(|(_, a), (_, b)| rank(a).cmp(&rank(b)));
    let (leaks, resources): (Vec<&Leak>, Vec<Resource>) = tasks.into_iter().unzip();
    let outcomes = Reaper::new(&resources, apply, report.baseline_ns).run()?;
    let all = leaks.into_iter().zip(outcomes).chain(left);
    Ok(all.map(|(leak, outcome)| outcome.of(leak)).collect())
}

/// The record of a leak that reap may remove, or why it may not.
fn record(leak: &Leak) -> std::result::Result<Resource, String> {
    match leak.attribution {
        Attribution::None => {
            // Only people restore a setting.
            let restore = leak.evidence.get("restore").and_then(serde_json::Value::as_str);
            let how = restore.map(|command| format!("; restore it with: {command}")).unwrap_or_default();
            return Err(format!("nothing attributes it to the run: it may belong to something else{how}"));
        }
        Attribution::Own => return Err("it belongs to the process that made the report".to_owned()),
        Attribution::Descent
        | Attribution::Token
        | Attribution::Cgroup
        | Attribution::Namespace
        | Attribution::Uid
        | Attribution::Creator
        | Attribution::Holder
        | Attribution::Scope => {}
    }
    if leak.class == Class::Respawning {
        let why = "it is a chain of processes, each of which starts the next and exits, so a signal to one of them does not end it: \
                   freeze its cgroup, or forbid its user to start more processes (pids.max, RLIMIT_NPROC), then kill all of them";
        return Err(why.to_owned());
    }
    if leak.attribution == Attribution::Scope
        && matches!(leak.kind, Kind::File | Kind::Lockfile | Kind::Loop | Kind::Mount)
    {
        return Err("a scope does not tell which process made it: it may belong to something else".to_owned());
    }
    if leak.evidence.contains_key(REPLACES) {
        return Err("the name existed before the run and referred to something else".to_owned());
    }
    let Some(value) = leak.evidence.get("resource") else {
        return Err("the report has no record of it".to_owned());
    };
    let resource: Resource =
        serde_json::from_value(value.clone()).map_err(|e| format!("its record in the report is damaged: {e}"))?;
    if resource.kind() != leak.kind || resource.key() != leak.key {
        return Err("its record and its key in the report name different resources".to_owned());
    }
    if place_of(&resource).is_some_and(|path| observe::at(path) == observe::At::Hidden) {
        return Err("its directory is on a file system that may hang, or this user cannot access it".to_owned());
    }
    Ok(resource)
}

/// The directory that holds its name.
fn place_of(resource: &Resource) -> Option<&Path> {
    let path = match resource {
        Resource::Mount(m) => &m.target,
        Resource::Cgroup(c) => &c.dir,
        Resource::File(f) => &f.path,
        Resource::Lockfile(f) => &f.path,
        Resource::Ipc(i) if i.class == IpcClass::PosixShm => &i.name,
        Resource::Net(n) if n.class == NetClass::NamedNetns => &n.scope,
        _ => return None,
    };
    path.as_path().parent()
}

fn stage(resource: &Resource) -> Stage {
    match resource {
        // A zombie goes when its parent does.
        Resource::Process(p) if p.state == 'Z' => Stage::Zombie,
        Resource::Process(_) => Stage::Process,
        Resource::Net(n) => match n.class {
            NetClass::NamedNetns => Stage::NamedNetns,
            NetClass::Interface => Stage::Kernel,
            _ => Stage::Held,
        },
        Resource::Mount(_) => Stage::Mount,
        Resource::Loop(_) | Resource::Key(_) => Stage::Kernel,
        Resource::Ipc(i) if i.class != IpcClass::PosixShm => Stage::Kernel,
        Resource::Cgroup(_) => Stage::Cgroup,
        Resource::File(f) if f.mapped_by.is_some() => Stage::Held,
        Resource::File(_) | Resource::Ipc(_) | Resource::Lockfile(_) => Stage::File,
        Resource::Fd(_) | Resource::Lock(_) | Resource::Namespace(_) | Resource::Bpf(_) | Resource::Sysctl(_) => {
            Stage::Held
        }
    }
}

/// The order within a stage. Compared in reverse, a path comes before the directory that holds it.
fn rank(resource: &Resource) -> (Stage, Reverse<(&[u8], u64)>) {
    let (path, number): (&[u8], u64) = match resource {
        // If several are mounted at one target, the youngest is on top.
        Resource::Mount(m) => (m.target.as_ref(), mount::age(&m.id)),
        Resource::Cgroup(c) => (c.dir.as_ref(), 0),
        Resource::File(f) => (f.path.as_ref(), 0),
        Resource::Lockfile(f) => (f.path.as_ref(), 0),
        Resource::Ipc(i) => (i.name.as_ref(), i.id),
        _ => (b"", 0),
    };
    (stage(resource), Reverse((path, number)))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Process,
    Zombie,
    NamedNetns,
    Mount,
    Kernel,
    Cgroup,
    File,
    Held,
}

/// What the removal of one resource needs to know about the others.
struct Reaper<'a> {
    resources: &'a [Resource],
    apply: bool,
    processes: process::Processes,
    files: file::Files,
    now: Option<Now>,
}

impl<'a> Reaper<'a> {
    fn new(resources: &'a [Resource], apply: bool, baseline_ns: i64) -> Self {
        Reaper {
            resources,
            apply,
            processes: process::Processes::new(apply, baseline_ns),
            files: file::Files::new(apply, baseline_ns),
            now: None,
        }
    }

    /// One outcome per resource, in the same order.
    fn run(&mut self) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        for group in self.resources.chunk_by(|a, b| stage(a) == stage(b)) {
            match stage(&group[0]) {
                Stage::Process => {
                    let all: Vec<_> = group
                        .iter()
                        .filter_map(|r| if let Resource::Process(p) = r { Some(p) } else { None })
                        .collect();
                    outcomes.extend(self.processes.kill(&all));
                }
                Stage::Mount => {
                    let all: Vec<_> =
                        group.iter().filter_map(|r| if let Resource::Mount(m) = r { Some(m) } else { None }).collect();
                    outcomes.extend(mount::unmount_all(&all, self.apply));
                }
                Stage::Zombie | Stage::NamedNetns | Stage::Kernel | Stage::Cgroup | Stage::File | Stage::Held => {
                    for resource in group {
                        outcomes.push(self.one(resource)?);
                    }
                }
            }
        }
        Ok(outcomes)
    }

    fn one(&mut self, resource: &Resource) -> Result<Outcome> {
        let apply = self.apply;
        Ok(match resource {
            Resource::Process(p) => self.processes.bury(p),
            Resource::Mount(m) => mount::unmount_all(&[m], self.apply).remove(0),
            Resource::Cgroup(c) => cgroup::remove(c, self.resources, &self.processes, self.apply),
            Resource::File(f) if f.mapped_by.is_none() => self.files.remove(f),
            Resource::Ipc(i) if i.class == IpcClass::PosixShm => self.files.remove_shm(i),
            Resource::Net(n) if n.class == NetClass::NamedNetns => mount::named_netns(n, self.apply),
            Resource::Loop(d) => kernel::loop_device(d, self.apply),
            Resource::Lockfile(f) => {
                self.observe()?;
                self.files.remove_lock_file(f, self.now.as_ref())
            }
            Resource::Ipc(i) => kernel::ipc(i, resource, self.observe()?, apply),
            Resource::Net(n) => kernel::net(n, resource, self.observe()?, apply),
            Resource::Key(k) => kernel::key(k, resource, self.observe()?, apply),
            Resource::Sysctl(s) => self.observe()?.held(resource, &kernel::sysctl_advice(s)),
            Resource::Bpf(b) => self.observe()?.held(resource, &kernel::bpf_advice(b)),
            Resource::File(_) | Resource::Fd(_) | Resource::Lock(_) | Resource::Namespace(_) => {
                self.observe()?.held(resource, "")
            }
        })
    }

    /// What exists after the processes have exited and the mounts are gone: what they held is free then.
    fn observe(&mut self) -> Result<&Now> {
        match &mut self.now {
            Some(now) => Ok(now),
            empty @ None => Ok(empty.insert(Now::of(self.resources)?)),
        }
    }
}
