//! Namespaces, found through everything that can hold one: a process or thread, a descriptor, a bind mount
//! (namespaces(7)).

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::arena::ObservedArena;
use super::enter::NsView;
use super::mount::{self, MountNs};
use super::pass::Sample;
use super::proc_root;
use super::sys;
use crate::arena::{ArenaView, proc_path};
use crate::parse::nslink::{self, NsType};
use crate::resource::{Mount, Namespace, NsHolder};
use crate::snapshot::Snapshot;

/// Maximum number of holders named per namespace.
const HOLDERS: usize = 8;

struct Found {
    holders: Vec<NsHolder>,
    path: Option<PathBuf>,
    pid: Option<u32>,
}

/// The namespaces found, and how to reach each.
pub(super) struct Namespaces<'a> {
    found: BTreeMap<(NsType, u64), Found>,
    arena: Option<&'a ObservedArena>,
}

impl<'a> Namespaces<'a> {
    /// From the namespaces that processes (the arena's if there is one) and their descriptors hold.
    pub(crate) fn of(samples: &[Sample], arena: Option<&'a ObservedArena>) -> Self {
        let mut all = Namespaces { found: BTreeMap::new(), arena };
        let view = all.view();
        for sample in samples {
            let (pid, start) = (sample.process.pid, sample.process.start);
            for (ns_type, ino, link) in &sample.namespaces {
                // A namespace for future children contains no process yet, but opens like any other.
                let path = || proc_path(view, format_args!("{pid}/{link}"));
                let entry = all.add(*ns_type, *ino, NsHolder::Process(pid, start), path);
                entry.pid.get_or_insert(pid);
            }
            for fd in sample.fds.iter().filter(|fd| may_be_namespace(fd.target.as_ref())) {
                if let Ok((ns_type, ino)) = nslink::parse(fd.target.as_ref()) {
                    let path = || proc_path(view, format_args!("{pid}/task/{}/fd/{}", fd.table, fd.fd));
                    all.add(ns_type, ino, NsHolder::Fd(pid, start, fd.fd), path);
                }
            }
        }
        all
    }

    fn view(&self) -> Option<&'a ArenaView> {
        self.arena.map(|arena| &arena.view)
    }

    fn add(&mut self, ns_type: NsType, ino: u64, holder: NsHolder, path: impl FnOnce() -> PathBuf) -> &mut Found {
        let found = self.found.entry((ns_type, ino)).or_insert(Found { holders: Vec::new(), path: None, pid: None });
        if found.holders.len() < HOLDERS && found.holders.last() != Some(&holder) {
            found.holders.push(holder);
        }
        found.path.get_or_insert_with(path);
        found
    }

    /// Lists the mounts of every mount namespace, and follows the namespaces that are bind mounted there, which may be
    /// mount namespaces too.
    pub(crate) fn mounts(&mut self, out: &mut Snapshot) {
        let own = out.own_ns.get(&NsType::Mnt).copied();
        let mut done = std::collections::BTreeSet::new();
        loop {
            let todo: Vec<MountNs<'a>> = self
                .found
                .iter()
                .filter(|((t, ino), _)| *t == NsType::Mnt && !done.contains(ino))
                .filter_map(|((_, ino), f)| {
                    let (path, pid) = self.way(NsType::Mnt, *ino, f, Some(*ino) == own)?;
                    Some(MountNs { ino: *ino, path, pid, own: Some(*ino) == own, arena: self.view() })
                })
                .collect();
            if todo.is_empty() {
                return;
            }
            for ns in todo {
                done.insert(ns.ino);
                let from = out.mounts.len();
                mount::collect(&ns, self.arena.map(|arena| &arena.mounts), out);
                self.follow_binds(&out.mounts[from..], &ns);
            }
        }
    }

    fn follow_binds(&mut self, mounts: &[Mount], ns: &MountNs<'_>) {
        for m in mounts.iter().filter(|m| m.fs_type.as_ref() == b"nsfs") {
            if let Ok((ns_type, ino)) = nslink::parse(m.root.as_ref()) {
                let target = Path::new(std::ffi::OsStr::from_bytes(m.target.as_ref()));
                let path = match ns.pid {
                    _ if ns.own => target.to_owned(),
                    Some(pid) => {
                        proc_path(ns.arena, format_args!("{pid}/root")).join(target.strip_prefix("/").unwrap_or(target))
                    }
                    None => continue,
                };
                self.add(ns_type, ino, NsHolder::Bind(m.target.clone()), || path);
            }
        }
    }

    /// One view per namespace; `own` are the observer's.
    pub(crate) fn views(&self, own: &BTreeMap<NsType, u64>) -> Vec<NsView> {
        self.found
            .iter()
            .filter_map(|((ns_type, ino), f)| {
                let own = own.get(ns_type) == Some(ino);
                // Others are not entered.
                let entered = matches!(ns_type, NsType::Ipc | NsType::Net);
                let (path, _) = self.way(*ns_type, *ino, f, own || !entered)?;
                Some(NsView { ns_type: *ns_type, ino: *ino, path, own })
            })
            .collect()
    }

    /// A path that opens a namespace, and a process in it: through the first holder, or through another one if that has
    /// exited.
    fn way(&self, ns_type: NsType, ino: u64, found: &Found, any: bool) -> Option<(PathBuf, Option<u32>)> {
        let first = found.path.clone()?;
        // PID 1 of an arena, which the look has just read, is ours and stays in its namespaces.
        let of_init = self.arena.is_some() && found.pid == Some(1);
        if any || of_init || leads_to(&first, ino) {
            return Some((first, found.pid));
        }
        let other = found.holders.iter().find_map(|holder| {
            let path = other_way(holder, ns_type, self.view()).filter(|path| leads_to(path, ino))?;
            let pid = if let NsHolder::Process(pid, _) = holder { Some(*pid) } else { None };
            Some((path, pid))
        });
        other.or(Some((first, found.pid)))
    }

    /// Appends the records.
    pub(crate) fn collect(self, out: &mut Snapshot) {
        let own = out.own_ns.clone();
        let view = self.view();
        for ((ns_type, ino), found) in self.found {
            // A process may have exited meanwhile although its namespace still exists.
            let ask = || {
                let other = || {
                    let mut paths = found.holders.iter().filter_map(|holder| other_way(holder, ns_type, view));
                    paths.find_map(|path| unique_id(&path, ns_type, ino))
                };
                let ours = || {
                    let path = format!("/proc/thread-self/ns/{}", ns_type.as_str());
                    (own.get(&ns_type) == Some(&ino)).then(|| unique_id(Path::new(&path), ns_type, ino)).flatten()
                };
                found.path.as_deref().and_then(|path| unique_id(path, ns_type, ino)).or_else(other).or_else(ours)
            };
            let id = match self.arena.filter(|_| found.pid == Some(1)) {
                None => ask(),
                Some(arena) => {
                    let mut known = arena.namespaces();
                    let id = known.get(&ino).copied().or_else(ask);
                    known.extend(id.map(|id| (ino, id)));
                    id
                }
            };
            out.namespaces.push(Namespace { ns_type, ino, id, holders: found.holders });
        }
    }
}

/// Another path that opens a namespace, through another holder.
fn other_way(holder: &NsHolder, ns_type: NsType, arena: Option<&ArenaView>) -> Option<PathBuf> {
    match holder {
        NsHolder::Process(pid, _) => Some(proc_path(arena, format_args!("{pid}/ns/{}", ns_type.as_str()))),
        NsHolder::Fd(pid, _, fd) => Some(proc_path(arena, format_args!("{pid}/fd/{fd}"))),
        NsHolder::Bind(_) => None,
    }
}

fn leads_to(path: &Path, ino: u64) -> bool {
    let found = proc_root::open(path, OFlags::PATH);
    found.and_then(rustix::fs::fstat).is_ok_and(|st| st.st_ino == ino)
}

/// Rejects most links faster than an error of the parser, which contains a copy of the line.
fn may_be_namespace(target: &[u8]) -> bool {
    NsType::ALL.iter().any(|t| target.starts_with(t.as_str().as_bytes()))
}

fn unique_id(path: &Path, ns_type: NsType, ino: u64) -> Option<u64> {
    let file = proc_root::open(path, OFlags::RDONLY | OFlags::NONBLOCK).ok()?;
    // The pid in the path may have been reused.
    if rustix::fs::fstat(&file).ok()?.st_ino != ino {
        return None;
    }
    sys::ns_id(file.as_fd()).or_else(|| (ns_type == NsType::Mnt).then(|| sys::mount_ns_id(file.as_fd())).flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_reached_through_another_holder_if_the_first_has_ended_meanwhile() {
        let mut first = std::process::Command::new("/bin/true").spawn().unwrap();
        first.wait().unwrap();
        let (ended, own) = (first.id(), std::process::id());
        let ino = rustix::fs::stat(format!("/proc/{own}/ns/net")).unwrap().st_ino;
        let mut all = Namespaces { found: BTreeMap::new(), arena: None };
        for pid in [ended, own] {
            let path = || proc_path(None, format_args!("{pid}/ns/net"));
            all.add(NsType::Net, ino, NsHolder::Process(pid, 1), path).pid.get_or_insert(pid);
        }
        let found = &all.found[&(NsType::Net, ino)];
        assert_eq!(found.pid, Some(ended));
        let (path, pid) = all.way(NsType::Net, ino, found, false).unwrap();
        assert_eq!(pid, Some(own));
        assert!(leads_to(&path, ino));
    }
}
