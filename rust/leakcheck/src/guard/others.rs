//! Which processes made the noise. A daemon from before may have made it for the run (a container for its client), and
//! only the daemon knows. So the report names the processes that made something lasting.

use std::collections::{BTreeMap, HashSet};

use crate::judge::attribute::Provenance;
use crate::judge::report::Other;
use crate::resource::{Ipc, IpcClass, MountId, NetClass, NsHolder, Resource};
use crate::snapshot::Snapshot;

/// Maximum number of differences whose maker is looked up.
pub(super) const MOST: usize = 2048;
/// Maximum number of makers named.
const NAMED: usize = 16;
/// No relevant chain of parents is longer; a loop through reused ids ends here.
const DEEPEST: usize = 64;

/// Whether it lasts: a daemon's descriptors, locks and mappings are its own temporary state.
pub(super) fn counts(resource: &Resource) -> bool {
    match resource {
        Resource::Fd(_) | Resource::Lock(_) => false,
        Resource::File(f) => f.mapped_by.is_none(),
        _ => true,
    }
}

/// The makers of `strange`, each traced to the nearest process from before the run.
pub(super) fn who<P: Provenance>(
    strange: &[Resource],
    baseline: &Snapshot,
    observation: &Snapshot,
    provenance: &P,
) -> Vec<Other> {
    let trace = Trace { baseline, observation, provenance };
    let mut made: BTreeMap<u32, Other> = BTreeMap::new();
    for resource in strange {
        let Some(pid) = trace.maker(resource).map(|pid| trace.origin(pid)) else { continue };
        let other = made.entry(pid).or_insert_with(|| trace.describe(pid));
        *other.made.entry(resource.kind()).or_default() += 1;
    }
    let mut others: Vec<Other> = made.into_values().collect();
    others.sort_by_key(|o| (o.listens != Some(true), std::cmp::Reverse(o.made.values().sum::<u64>()), o.pid));
    others.truncate(NAMED);
    others
}

struct Trace<'a, P> {
    baseline: &'a Snapshot,
    observation: &'a Snapshot,
    provenance: &'a P,
}

impl<P: Provenance> Trace<'_, P> {
    /// A process that made or holds it.
    fn maker(&self, resource: &Resource) -> Option<u32> {
        let pid = match resource {
            Resource::Process(p) => Some(p.pid),
            Resource::Mount(m) => self.of_mount(&m.id).or_else(|| self.inhabitant(m.ns)),
            Resource::Cgroup(c) => self.provenance.maker_of_file(c.dir.as_ref()),
            Resource::File(f) => self.provenance.maker_of_file(f.path.as_ref()),
            Resource::Lockfile(f) => self.provenance.maker_of_file(f.path.as_ref()).or(f.pid),
            Resource::Ipc(Ipc { class: IpcClass::PosixShm, name, .. }) => self.provenance.maker_of_file(name.as_ref()),
            Resource::Ipc(i) => Some(i.creator),
            Resource::Namespace(n) => self.holder(&n.holders),
            Resource::Net(n) => match n.class {
                NetClass::NamedNetns => {
                    let bound = self.observation.mounts.iter().find(|m| m.target == n.scope);
                    bound.and_then(|m| self.of_mount(&m.id)).or_else(|| self.provenance.maker_of_file(n.scope.as_ref()))
                }
                NetClass::Listener | NetClass::Unix => {
                    let link = format!("socket:[{}]", n.number);
                    self.observation.fds.iter().find(|fd| fd.target.as_ref() == link.as_bytes()).map(|fd| fd.pid)
                }
                _ => self.inhabitant(n.netns),
            },
            Resource::Loop(d) => self.provenance.maker_of_file(d.backing.as_ref()),
            Resource::Bpf(b) => self.observation.fds.iter().find(|fd| b.is_open_in(fd)).map(|fd| fd.pid),
            Resource::Fd(_) | Resource::Lock(_) | Resource::Key(_) | Resource::Sysctl(_) => None,
        };
        // 0 is a process outside our pid namespace.
        pid.filter(|pid| *pid > 0)
    }

    fn of_mount(&self, id: &MountId) -> Option<u32> {
        match id {
            MountId::Unique(id) => self.provenance.maker_of_mount(*id),
            MountId::Tuple(_) => None,
        }
    }

    fn holder(&self, holders: &[NsHolder]) -> Option<u32> {
        let one = |holder: &NsHolder| match holder {
            NsHolder::Process(pid, _) | NsHolder::Fd(pid, _, _) => Some(*pid),
            NsHolder::Bind(path) => self.of_mount(&self.observation.mounts.iter().find(|m| m.target == *path)?.id),
        };
        holders.iter().find_map(one)
    }

    fn inhabitant(&self, ns: u64) -> Option<u32> {
        self.holder(&self.observation.namespaces.iter().find(|n| n.ino == ns)?.holders)
    }

    /// The nearest of a process and its ancestors that existed before the run; the process itself if none is known.
    fn origin(&self, maker: u32) -> u32 {
        let mut pid = maker;
        for _ in 0..DEEPEST {
            let before = self.baseline.process(pid);
            let now = self.observation.process(pid);
            if before.is_some_and(|old| now.is_none_or(|now| now.start == old.start)) {
                return pid;
            }
            // An orphan's current parent did not fork it.
            match self.provenance.parent_of_stranger(pid).or(now.map(|p| p.ppid)).filter(|parent| *parent > 0) {
                Some(parent) => pid = parent,
                None => break,
            }
        }
        maker
    }

    fn describe(&self, pid: u32) -> Other {
        let process = self.observation.process(pid).or(self.baseline.process(pid));
        let sockets: HashSet<String> = self
            .observation
            .net
            .iter()
            .filter(|n| matches!(n.class, NetClass::Listener | NetClass::Unix))
            .map(|n| format!("socket:[{}]", n.number))
            .collect();
        let listens = |fd: &&crate::resource::Fd| fd.pid == pid && sockets.contains(&fd.target.to_string());
        let seen = self.observation.kinds.contains(crate::kind::Kind::Net);
        Other {
            pid,
            comm: process.map(|p| p.comm.to_string()).unwrap_or_default(),
            listens: seen.then(|| self.observation.fds.iter().any(|fd| listens(&fd))),
            made: BTreeMap::new(),
        }
    }
}
