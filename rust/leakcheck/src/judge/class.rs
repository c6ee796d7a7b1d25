//! Classes of residue.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::resource::{Cgroup, FileState, LockFileState, NetClass, NsHolder, Resource};
use crate::snapshot::Snapshot;

/// Why residue is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Something that existed before and does not belong to the target was changed or removed.
    Damaged,
    /// A chain of processes, each of which starts the next and exits.
    Respawning,
    /// Nothing will remove it.
    Orphaned,
    /// A live holder keeps it.
    Held,
    /// The kernel is still freeing it.
    Dying,
    /// Each run leaves one and removes one: their number does not grow.
    Bounded,
    /// The target's recover command or its next run removed it.
    Reclaimable,
    /// Every run adds more of it.
    Growing,
}

impl fmt::Display for Class {
    /// The word in JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Class::Damaged => "damaged",
            Class::Respawning => "respawning",
            Class::Orphaned => "orphaned",
            Class::Held => "held",
            Class::Dying => "dying",
            Class::Bounded => "bounded",
            Class::Reclaimable => "reclaimable",
            Class::Growing => "growing",
        })
    }
}

/// The class of residue that one snapshot shows. The last three classes need a recovery or several runs, and the caller
/// that performed those sets them. `fresh_ns` tells whether a namespace inode is new since the baseline, `populated`
/// whether a cgroup has processes. `own_pid` is the guarded process, if it does not adopt orphans: then its children are
/// those that it started.
pub fn classify(
    resource: &Resource,
    observation: &Snapshot,
    own_pid: Option<u32>,
    fresh_ns: impl Fn(u64) -> bool,
    populated: impl Fn(&Cgroup) -> bool,
) -> Class {
    match resource {
        Resource::Process(p) => match p.state {
            'X' | 'x' => Class::Dying,
            // Its parent lives and does not reap it.
            'Z' if observation.process(p.ppid).is_some() => Class::Held,
            'Z' => Class::Dying,
            _ if own_pid == Some(p.ppid) => Class::Held,
            _ => Class::Orphaned,
        },
        Resource::Fd(_) | Resource::Lock(_) => Class::Held,
        Resource::Mount(m) if m.ns == 0 || fresh_ns(m.ns) => Class::Held,
        Resource::Mount(_) => Class::Orphaned,
        Resource::Cgroup(c) if populated(c) => Class::Held,
        Resource::Cgroup(_) => Class::Orphaned,
        Resource::Lockfile(f) => match f.state {
            LockFileState::Held => Class::Held,
            LockFileState::Free | LockFileState::Stale | LockFileState::Corrupt => Class::Orphaned,
        },
        Resource::File(f) if matches!(f.state, Some(FileState::Changed | FileState::Deleted)) => Class::Damaged,
        Resource::File(f) if f.mapped_by.is_some() => Class::Held,
        Resource::File(_) => Class::Orphaned,
        Resource::Ipc(i) if i.attached > 0 || fresh_ns(i.ns) => Class::Held,
        Resource::Ipc(_) => Class::Orphaned,
        Resource::Namespace(n) => {
            let bound_only = n.holders.iter().all(|h| match h {
                NsHolder::Bind(_) => true,
                NsHolder::Process(..) | NsHolder::Fd(..) => false,
            });
            if bound_only { Class::Orphaned } else { Class::Held }
        }
        Resource::Net(n) => match n.class {
            NetClass::Listener | NetClass::Unix => Class::Held,
            NetClass::NamedNetns => Class::Orphaned,
            _ if fresh_ns(n.netns) => Class::Held,
            _ => Class::Orphaned,
        },
        Resource::Bpf(b) => {
            let held = observation.fds.iter().any(|fd| b.is_open_in(fd));
            if held { Class::Held } else { Class::Orphaned }
        }
        Resource::Loop(_) | Resource::Key(_) => Class::Orphaned,
        Resource::Sysctl(_) => Class::Damaged,
    }
}
