//! How much an observation saw, what it did not see, and which rights creating something there needs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::kind::{Kind, KindSet};
use crate::text::Text;

/// How much of a kind was seen. Ordered from worst to best, so that `min` merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Not seen at all.
    None,
    /// Seen in part.
    Partial,
    /// Seen in full, except for what `docs/explanation/undetected.md` lists.
    Full,
}

/// Coverage of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// How much was seen.
    pub level: Level,
    /// Why not more; empty when full.
    pub reason: String,
}

impl Coverage {
    /// Everything was seen.
    pub fn full() -> Self {
        Coverage { level: Level::Full, reason: String::new() }
    }

    /// The worse of two levels, both reasons.
    pub fn merge(&mut self, other: Coverage) {
        self.level = self.level.min(other.level);
        if !other.reason.is_empty() && !self.reason.contains(&other.reason) {
            if !self.reason.is_empty() {
                self.reason.push_str("; ");
            }
            self.reason.push_str(&other.reason);
        }
    }
}

/// Coverage of every requested kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CoverageMap(pub BTreeMap<Kind, Coverage>);

impl CoverageMap {
    /// Records that `kind` was seen no better than `level`, and why. If many objects fail alike, the same reason is
    /// recorded once.
    pub fn lower(&mut self, kind: Kind, level: Level, reason: impl Into<String>) {
        let coverage = Coverage { level, reason: reason.into() };
        self.0.entry(kind).or_insert_with(Coverage::full).merge(coverage);
    }

    /// The worse of both, kind by kind.
    pub fn merge(&mut self, other: &CoverageMap) {
        for (kind, coverage) in &other.0 {
            self.0.entry(*kind).or_insert_with(Coverage::full).merge(coverage.clone());
        }
    }
}

/// A process that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unreadable {
    /// Process id.
    pub pid: u32,
    /// Start time in ticks after boot.
    pub start: u64,
    /// What could not be read: `fd`, `ns` …, and the kernel's answer.
    pub what: String,
    /// The kinds that it hides.
    #[serde(default = "hidden_by_descriptors")]
    pub hides: KindSet,
}

/// The kinds that may be reachable only through descriptors: a namespace that only a descriptor holds is not found, nor
/// are its contents.
pub(crate) fn hidden_by_descriptors() -> KindSet {
    [Kind::Fd, Kind::Mount, Kind::Ipc, Kind::Namespace, Kind::Net].into_iter().collect()
}

/// A place that was not read, although a run with enough rights could have left something there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The kind that is not seen in full.
    pub kind: Kind,
    /// How much of it was seen nevertheless; full if it matters only when a later observation says so.
    pub level: Level,
    /// Why.
    pub reason: String,
    /// What was not read.
    pub place: Unseen,
}

/// What was not looked into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unseen {
    /// A directory below a root.
    Directory(Directory),
    /// The nftables of the observer's own network namespace, which only CAP_NET_ADMIN can list and create.
    Nftables,
    /// The BPF objects of the machine, which only CAP_SYS_ADMIN can list.
    Bpf,
    /// The keys of other users.
    Keys,
    /// The POSIX message queues of the observer's own IPC namespace, where no `mqueue` is mounted. The gauge [`QUEUES`]
    /// shows how many bytes those of its user take.
    Queues,
}

/// Bytes that the POSIX message queues of the observer's user take (`RLIMIT_MSGQUEUE`, getrlimit(2)), and the size of a small one.
pub(crate) const QUEUES: &str = "mqueue_bytes";

/// The number of keys that the quota of their users counts, but no list shows.
pub(crate) const HIDDEN_KEYS: &str = "hidden_keys";

/// A directory that could not be listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Where it is.
    pub path: Text,
    /// Its device; 0, like all following fields, if it is not known.
    pub dev: u64,
    /// Its inode.
    pub ino: u64,
    /// Its owner.
    pub uid: u32,
    /// Its mode.
    pub mode: u32,
    /// Whether the observer cannot search it (access(2), `X_OK`), so that no path reaches anything below.
    pub closed: bool,
    /// Whether it has no subdirectory and the observer cannot create anything in it.
    pub barren: bool,
}

/// Lowers `coverage` for the kinds that unreadable processes hide, with one reason per kind.
pub(crate) fn lower_for_unreadable(unreadable: &[&Unreadable], coverage: &mut CoverageMap) {
    for kind in Kind::ALL {
        let mut hiding = unreadable.iter().filter(|u| u.hides.contains(kind));
        if let Some(first) = hiding.next().filter(|_| coverage.0.contains_key(&kind)) {
            let all = 1 + hiding.count();
            let processes = if all == 1 { "process" } else { "processes" };
            let why = format!("cannot read /proc/{}/{} ({all} {processes} in all)", first.pid, first.what);
            coverage.lower(kind, Level::Partial, why);
        }
    }
}

/// Lowers `coverage` for places that were not read. Only the first few directories are named: one unreadable directory
/// is reported as clearly as a thousand.
pub(crate) fn lower_for_gaps<'a>(gaps: impl Iterator<Item = &'a Gap>, coverage: &mut CoverageMap) {
    const NAMED: usize = 3;
    let mut directories = 0;
    for gap in gaps.filter(|g| g.level != Level::Full) {
        if matches!(gap.place, Unseen::Directory(_)) {
            directories += 1;
            if directories > NAMED {
                continue;
            }
        }
        if coverage.0.contains_key(&gap.kind) {
            coverage.lower(gap.kind, gap.level, gap.reason.clone());
        }
    }
    if directories > NAMED && coverage.0.contains_key(&Kind::File) {
        coverage.lower(Kind::File, Level::Partial, format!("and {} more directories", directories - NAMED));
    }
}
