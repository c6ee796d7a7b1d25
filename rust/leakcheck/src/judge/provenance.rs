//! What is known about a run beyond the snapshots, and to whom a resource belongs by that knowledge.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::membership::Membership;
use crate::resource::{Bpf, Process, Resource};

/// Why residue counts as the run's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attribution {
    /// The process descends from the run.
    Descent,
    /// The process has the run token in its environment.
    Token,
    /// It is in a cgroup that the run made.
    Cgroup,
    /// It is in a namespace that the run made.
    Namespace,
    /// Its owner is a user that only processes of the run have.
    Uid,
    /// A process of the run made it.
    Creator,
    /// A process of the run holds it.
    Holder,
    /// It belongs to this process itself.
    Own,
    /// Everything in the scope is the run's.
    Scope,
    /// The kind cannot be attributed here: it may belong to something else.
    None,
}

impl fmt::Display for Attribution {
    /// The word in JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Attribution::Descent => "descent",
            Attribution::Token => "token",
            Attribution::Cgroup => "cgroup",
            Attribution::Namespace => "namespace",
            Attribution::Uid => "uid",
            Attribution::Creator => "creator",
            Attribution::Holder => "holder",
            Attribution::Own => "own",
            Attribution::Scope => "scope",
            Attribution::None => "none",
        })
    }
}

/// Whose a resource is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The run's.
    Run(Attribution),
    /// Another process's: noise.
    Stranger,
    /// Not known.
    Unknown,
}

impl Owner {
    /// By a process that certainly made or holds it.
    pub(super) fn by_evidence(membership: Membership, by: Attribution) -> Self {
        match membership {
            Membership::Run => Owner::Run(by),
            Membership::Stranger => Owner::Stranger,
            Membership::Unknown => Owner::Unknown,
        }
    }

    /// For evidence that only shows that the run took part: if a stranger took part, the object is still not the
    /// stranger's.
    pub(super) fn by_hint(membership: Membership, by: Attribution) -> Self {
        match membership {
            Membership::Run => Owner::Run(by),
            Membership::Stranger | Membership::Unknown => Owner::Unknown,
        }
    }
}

/// What is known about the run beyond the snapshots.
pub trait Provenance {
    /// Whether there was a run to watch. A comparison of two snapshots has none: then nothing that appeared is a
    /// stranger's, whichever process holds it.
    fn watched(&self) -> bool {
        true
    }
    /// Whether a process that is in the look belongs to the run.
    fn process(&self, process: &Process) -> Membership;
    /// Whether a process has the run's token.
    fn token(&self, pid: u32) -> bool;
    /// Whether a process id was the run's at any time during the watch.
    fn ever(&self, pid: u32) -> Membership;
    /// Whether a process of the run made the file (or cgroup directory) at `path`.
    fn creator(&self, path: &[u8]) -> Membership;
    /// Whether a process of the run attached the mount.
    fn mount(&self, id: u64) -> Membership;
    /// Which process, of the run or not, made the file or cgroup directory at `path`.
    fn maker_of_file(&self, _path: &[u8]) -> Option<u32> {
        None
    }
    /// Which process attached the mount.
    fn maker_of_mount(&self, _id: u64) -> Option<u32> {
        None
    }
    /// Which process forked a process that is not the run's: only a hint, since ids are reused.
    fn parent_of_stranger(&self, _pid: u32) -> Option<u32> {
        None
    }
    /// Whether [`Provenance::mount`] knows every mount that was attached in this mount namespace since the baseline.
    fn watches_mounts(&self, _ns: u64) -> bool {
        false
    }
    /// Whether processes of the run, or of the arena, made a key, any loop device or any BPF object of its class.
    fn made(&self, _resource: &Resource) -> Membership {
        Membership::Unknown
    }
    /// Whether processes of the run made this very BPF object; none if only the makers of all of its class are known.
    fn made_this(&self, _object: &Bpf) -> Option<Membership> {
        None
    }
    /// How many of the kind, of BPF objects of the class, a process of the host is known to have made.
    fn makes(&self, _pid: u32, _resource: &Resource) -> u64 {
        0
    }
    /// Whether they made or may have made keys.
    fn makes_keys(&self) -> bool {
        true
    }
    /// Path of a process' cgroup, `hierarchy:path` lines of `/proc/PID/cgroup`.
    fn cgroups(&self, pid: u32) -> Vec<(String, String)>;
    /// Effective user id of a process; none if it has exited.
    fn uid(&self, pid: u32) -> Option<u32>;
}
