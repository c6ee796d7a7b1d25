//! One observation of a scope, and how far it reached.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::coverage::{Coverage, CoverageMap, Directory, Gap, Level, Unreadable, Unseen};
use crate::kind::{Kind, KindSet};
use crate::parse::nslink::NsType;
use crate::resource::{
    Bpf, Cgroup, Fd, File, Files, Identified, Ipc, Key, Lock, LockFile, LoopDevice, Mount, Namespace, Net, Process,
    Resource, Sysctl, each_kind,
};
use crate::scope::Scope;
use crate::text::Text;

fn yes() -> bool {
    true
}

/// A file system that is mounted below a root and whose files were read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submount {
    /// Where.
    pub path: Text,
    /// The mount's unique id (Linux 6.8), else the id in mountinfo; 0 if the kernel reports none.
    pub id: u64,
    /// Device, `major << 32 | minor`.
    pub dev: u64,
}

/// One observation. Every list is sorted by identity.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Always [`Snapshot::SCHEMA`].
    pub schema: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Start time in nanoseconds since the epoch.
    pub taken_ns: i64,
    /// Duration in nanoseconds.
    pub took_ns: u64,
    /// The scope.
    pub scope: Scope,
    /// The kinds that it covers.
    pub kinds: KindSet,
    /// Roots of the file kind.
    pub roots: Vec<PathBuf>,
    /// Which directory each root was, with its resolved path; none if it was missing, device 0 if it could not be opened.
    /// Empty in an arena, whose roots stay open.
    #[serde(default)]
    pub root_directories: Vec<Option<Directory>>,
    /// File systems below the roots that were read too.
    #[serde(default)]
    pub submounts: Vec<Submount>,
    /// Declared lock files, or directories of them.
    pub lock_paths: Vec<PathBuf>,
    /// How much of each kind it saw, regardless of which processes could have made the rest.
    pub coverage: CoverageMap,
    /// The same before unreadable processes and gaps lower it: a judge adds only those in which the run can have left
    /// something.
    #[serde(default)]
    pub beside: Option<CoverageMap>,
    /// Processes that could not be read.
    pub unreadable: Vec<Unreadable>,
    /// Places that were not read.
    #[serde(default)]
    pub gaps: Vec<Gap>,
    /// Whether the observer had CAP_SYS_PTRACE. Nobody can read a process that is unreadable even with it.
    #[serde(default = "yes")]
    pub may_trace: bool,
    /// Inodes of the observer's own namespaces.
    pub own_ns: BTreeMap<NsType, u64>,
    /// Process id and start time of the observer, which is never a leak.
    #[serde(default)]
    pub observer: Option<(u32, u64)>,
    /// Numbers that are not resources: `dying_cgroups` …
    pub gauges: BTreeMap<String, i64>,
    /// See [`Process`]; likewise below.
    pub processes: Vec<Process>,
    #[allow(missing_docs)]
    pub fds: Vec<Fd>,
    #[allow(missing_docs)]
    pub mounts: Vec<Mount>,
    #[allow(missing_docs)]
    pub cgroups: Vec<Cgroup>,
    /// Those in hierarchies that are not mounted here: who makes one is not known.
    #[serde(default)]
    pub unmounted_cgroups: Vec<Cgroup>,
    #[allow(missing_docs)]
    pub locks: Vec<Lock>,
    #[allow(missing_docs)]
    pub lock_files: Vec<LockFile>,
    #[allow(missing_docs)]
    pub files: Files,
    #[allow(missing_docs)]
    pub ipc: Vec<Ipc>,
    #[allow(missing_docs)]
    pub namespaces: Vec<Namespace>,
    #[allow(missing_docs)]
    pub net: Vec<Net>,
    #[allow(missing_docs)]
    pub loops: Vec<LoopDevice>,
    #[allow(missing_docs)]
    pub keys: Vec<Key>,
    #[allow(missing_docs)]
    pub bpf: Vec<Bpf>,
    #[allow(missing_docs)]
    #[serde(default)]
    pub sysctls: Vec<Sysctl>,
    /// Ids of processes that were found but exited before they could be read.
    #[serde(skip)]
    pub gone: Vec<u32>,
}

impl Snapshot {
    /// The version of the saved form.
    pub const SCHEMA: &'static str = "leakcheck.snapshot/1";

    /// An empty observation of `kinds`.
    pub fn empty(scope: Scope, kinds: KindSet) -> Self {
        Snapshot {
            schema: Self::SCHEMA.to_owned(),
            boot_id: String::new(),
            taken_ns: 0,
            took_ns: 0,
            scope,
            kinds,
            roots: Vec::new(),
            root_directories: Vec::new(),
            submounts: Vec::new(),
            lock_paths: Vec::new(),
            coverage: CoverageMap(kinds.iter().map(|k| (k, Coverage::full())).collect()),
            beside: None,
            unreadable: Vec::new(),
            gaps: Vec::new(),
            may_trace: true,
            own_ns: BTreeMap::new(),
            observer: None,
            gauges: BTreeMap::new(),
            processes: Vec::new(),
            fds: Vec::new(),
            mounts: Vec::new(),
            cgroups: Vec::new(),
            unmounted_cgroups: Vec::new(),
            locks: Vec::new(),
            lock_files: Vec::new(),
            files: Files::default(),
            ipc: Vec::new(),
            namespaces: Vec::new(),
            net: Vec::new(),
            loops: Vec::new(),
            keys: Vec::new(),
            bpf: Vec::new(),
            sysctls: Vec::new(),
            gone: Vec::new(),
        }
    }

    /// How many resources it holds.
    pub fn len(&self) -> usize {
        let mut n = 0;
        macro_rules! add {
            ($field:ident, $type:ident, $variant:ident) => {
                n += self.$field.len();
            };
        }
        each_kind!(add);
        n
    }

    /// How many resources of one kind it holds.
    pub fn count(&self, kind: Kind) -> usize {
        let mut n = 0;
        macro_rules! add {
            ($field:ident, $type:ident, $variant:ident) => {
                if kind == <$type as Identified>::KIND {
                    n = self.$field.len();
                }
            };
        }
        each_kind!(add);
        n
    }

    /// Its resources, of one kind or all kinds.
    pub fn resources(&self, kind: Option<Kind>) -> Vec<Resource> {
        let mut all = Vec::new();
        macro_rules! add {
            ($field:ident, $type:ident, $variant:ident) => {
                if kind.is_none_or(|k| k == <$type as Identified>::KIND) {
                    all.extend(self.$field.iter().cloned().map(Resource::from));
                }
            };
        }
        each_kind!(add);
        all
    }

    /// Whether it has no resources.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sorts every list by identity and removes duplicates.
    pub fn normalise(&mut self) {
        macro_rules! sort {
            ($field:ident, $type:ident, $variant:ident) => {
                if !self.$field.is_sorted_by(|a, b| a.id() < b.id()) {
                    self.$field.sort_by(|a, b| a.id().cmp(&b.id()));
                    self.$field.dedup_by(|a, b| a.id() == b.id());
                }
            };
        }
        each_kind!(sort);
        self.unreadable.sort();
        self.unreadable.dedup();
    }

    /// Adds what another thread saw of the same scope at the same time.
    pub(crate) fn absorb(&mut self, mut part: Snapshot) {
        macro_rules! append {
            ($field:ident, $type:ident, $variant:ident) => {
                self.$field.append(&mut part.$field);
            };
        }
        each_kind!(append);
        self.root_directories.append(&mut part.root_directories);
        self.submounts.append(&mut part.submounts);
        self.unmounted_cgroups.append(&mut part.unmounted_cgroups);
        self.coverage.merge(&part.coverage);
        self.gaps.append(&mut part.gaps);
        self.gauges.append(&mut part.gauges);
    }

    /// The process with this id, if it is in the snapshot.
    pub fn process(&self, pid: u32) -> Option<&Process> {
        let at = self.processes.binary_search_by_key(&pid, |p| p.pid).ok()?;
        self.processes.get(at)
    }
}
