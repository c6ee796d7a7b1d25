//! What a snapshot looks at.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::kind::{Kind, KindSet};

/// What a snapshot looks at.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Scope {
    /// The whole machine, as far as this process sees it.
    #[default]
    Host,
    /// The processes of one cgroup and of those below it. The path is absolute below `/sys/fs/cgroup`'s mounts,
    /// either as a directory or as `/proc/PID/cgroup` writes it.
    Cgroup(PathBuf),
    /// One process and its descendants, by parent links. An orphan that another process adopted is outside.
    Tree(u32),
    /// All of a disposable host. Observing it needs an [`ArenaView`](crate::ArenaView).
    Arena,
}

impl Scope {
    /// Kinds that this scope can limit. Machine-wide kinds belong to no process and need the host scope; files and lock
    /// files do not if their roots are declared.
    pub fn kinds(&self) -> KindSet {
        use Kind::{Cgroup, Fd, Lock, Mount, Namespace, Process};
        match self {
            Scope::Host | Scope::Arena => KindSet::all(),
            Scope::Cgroup(_) => [Process, Fd, Mount, Cgroup, Lock, Namespace].into_iter().collect(),
            Scope::Tree(_) => [Process, Fd, Mount, Lock, Namespace].into_iter().collect(),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Host => f.write_str("host"),
            Scope::Cgroup(path) => write!(f, "cgroup:{}", path.display()),
            Scope::Tree(pid) => write!(f, "tree:{pid}"),
            Scope::Arena => f.write_str("arena"),
        }
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let wrong = || Error::usage(format!("unknown scope {s:?}: write host, cgroup:PATH or tree:PID"));
        match s.split_once(':') {
            None if s == "host" => Ok(Scope::Host),
            None if s == "arena" => Ok(Scope::Arena),
            Some(("cgroup", path)) if path.starts_with('/') => Ok(Scope::Cgroup(path.into())),
            Some(("cgroup", path)) => Err(Error::usage(format!("scope cgroup:{path}: the path must be absolute"))),
            Some(("tree", pid)) => match pid.parse::<u32>() {
                Ok(pid) if pid >= 1 && i32::try_from(pid).is_ok() => Ok(Scope::Tree(pid)),
                _ => Err(Error::usage(format!("scope tree:{pid}: a process id is a positive whole number"))),
            },
            _ => Err(wrong()),
        }
    }
}

impl Serialize for Scope {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}
