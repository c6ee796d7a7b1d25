//! The kinds of resource that a sandbox can leave behind.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A kind of resource. `Ord` is the order of reports: what runs first, what it holds next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Kind {
    /// Processes, zombies marked.
    Process,
    /// File descriptors, in every FD table of every process.
    Fd,
    /// Mounts of every reachable mount namespace, and detached ones.
    Mount,
    /// Cgroup directories in every hierarchy, v1 and v2.
    Cgroup,
    /// flock, POSIX, OFD locks and leases.
    Lock,
    /// Lock files at declared paths.
    Lockfile,
    /// Files of every type below declared roots, and deleted files that are still mapped.
    File,
    /// SysV shared memory, semaphores and queues; POSIX shared memory and queues.
    Ipc,
    /// Namespaces of all eight types.
    Namespace,
    /// Interfaces, named network namespaces, listening sockets, nftables tables.
    Net,
    /// Attached loop devices.
    Loop,
    /// Kernel keys.
    Key,
    /// BPF programs, maps and links.
    Bpf,
    /// Settings of the kernel that no namespace isolates.
    Sysctl,
}

impl Kind {
    /// Every kind, in report order.
    pub const ALL: [Kind; 14] = [
        Kind::Process,
        Kind::Fd,
        Kind::Mount,
        Kind::Cgroup,
        Kind::Lock,
        Kind::Lockfile,
        Kind::File,
        Kind::Ipc,
        Kind::Namespace,
        Kind::Net,
        Kind::Loop,
        Kind::Key,
        Kind::Bpf,
        Kind::Sysctl,
    ];

    /// The name in commands, JSON and allow files.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Process => "process",
            Kind::Fd => "fd",
            Kind::Mount => "mount",
            Kind::Cgroup => "cgroup",
            Kind::Lock => "lock",
            Kind::Lockfile => "lockfile",
            Kind::File => "file",
            Kind::Ipc => "ipc",
            Kind::Namespace => "namespace",
            Kind::Net => "net",
            Kind::Loop => "loop",
            Kind::Key => "key",
            Kind::Bpf => "bpf",
            Kind::Sysctl => "sysctl",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Kind::ALL.into_iter().find(|k| k.as_str() == s).ok_or_else(|| {
            let known: Vec<_> = Kind::ALL.iter().map(|k| k.as_str()).collect();
            Error::usage(format!("unknown kind {s:?}: choose from {}", known.join(", ")))
        })
    }
}

/// A set of kinds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "Vec<Kind>", into = "Vec<Kind>")]
pub struct KindSet(u16);

impl KindSet {
    /// No kind.
    pub const EMPTY: KindSet = KindSet(0);

    /// Every kind.
    pub fn all() -> Self {
        Kind::ALL.into_iter().collect()
    }

    /// Whether `kind` is in the set.
    pub fn contains(self, kind: Kind) -> bool {
        self.0 & (1 << kind as u8) != 0
    }

    /// Whether any of `kinds` is in the set.
    pub fn any(self, kinds: &[Kind]) -> bool {
        kinds.iter().any(|k| self.contains(*k))
    }

    /// The members, in report order.
    pub fn iter(self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(move |k| self.contains(*k))
    }

    /// What is in both.
    #[must_use]
    pub fn and(self, other: KindSet) -> KindSet {
        KindSet(self.0 & other.0)
    }
}

impl FromIterator<Kind> for KindSet {
    fn from_iter<I: IntoIterator<Item = Kind>>(kinds: I) -> Self {
        KindSet(kinds.into_iter().fold(0, |set, k| set | 1 << k as u8))
    }
}

impl From<Vec<Kind>> for KindSet {
    fn from(kinds: Vec<Kind>) -> Self {
        kinds.into_iter().collect()
    }
}

impl From<KindSet> for Vec<Kind> {
    fn from(set: KindSet) -> Self {
        set.iter().collect()
    }
}

impl fmt::Debug for KindSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl FromStr for KindSet {
    type Err = Error;

    /// Comma-separated kind names.
    fn from_str(s: &str) -> Result<Self> {
        let set: KindSet =
            s.split(',').map(str::trim).filter(|s| !s.is_empty()).map(Kind::from_str).collect::<Result<_>>()?;
        if set == KindSet::EMPTY {
            return Err(Error::usage("no kind given: give a comma-separated list such as process,fd,mount"));
        }
        Ok(set)
    }
}
