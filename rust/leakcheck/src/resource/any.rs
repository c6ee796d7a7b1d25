//! A record of any kind, and the single list of the kinds.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::records::{
    Bpf, Cgroup, Fd, File, Ipc, Key, Lock, LockFile, LoopDevice, Mount, MountId, Namespace, Net, Process, Sysctl,
    device,
};
use crate::kind::Kind;

/// Calls `$do!(field, Type, Variant)` for every kind, in report order. The only list of them.
macro_rules! each_kind {
    ($do:ident) => {
        $do!(processes, Process, Process);
        $do!(fds, Fd, Fd);
        $do!(mounts, Mount, Mount);
        $do!(cgroups, Cgroup, Cgroup);
        $do!(locks, Lock, Lock);
        $do!(lock_files, LockFile, Lockfile);
        $do!(files, File, File);
        $do!(ipc, Ipc, Ipc);
        $do!(namespaces, Namespace, Namespace);
        $do!(net, Net, Net);
        $do!(loops, LoopDevice, Loop);
        $do!(keys, Key, Key);
        $do!(bpf, Bpf, Bpf);
        $do!(sysctls, Sysctl, Sysctl);
    };
}
pub(crate) use each_kind;

/// Any resource. In JSON, an object with its `kind` and its own fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[allow(missing_docs, reason = "each variant wraps the record of its name")]
pub enum Resource {
    Process(Process),
    Fd(Fd),
    Mount(Mount),
    Cgroup(Cgroup),
    Lock(Lock),
    Lockfile(LockFile),
    File(File),
    Ipc(Ipc),
    Namespace(Namespace),
    Net(Net),
    Loop(LoopDevice),
    Key(Key),
    Bpf(Bpf),
    Sysctl(Sysctl),
}

macro_rules! from_record {
    ($field:ident, $type:ident, $variant:ident) => {
        impl From<$type> for Resource {
            fn from(record: $type) -> Self {
                Resource::$variant(record)
            }
        }
    };
}
each_kind!(from_record);

impl From<Arc<File>> for Resource {
    fn from(file: Arc<File>) -> Self {
        Resource::File(Arc::unwrap_or_clone(file))
    }
}

impl Resource {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Resource::Process(_) => Kind::Process,
            Resource::Fd(_) => Kind::Fd,
            Resource::Mount(_) => Kind::Mount,
            Resource::Cgroup(_) => Kind::Cgroup,
            Resource::Lock(_) => Kind::Lock,
            Resource::Lockfile(_) => Kind::Lockfile,
            Resource::File(_) => Kind::File,
            Resource::Ipc(_) => Kind::Ipc,
            Resource::Namespace(_) => Kind::Namespace,
            Resource::Net(_) => Kind::Net,
            Resource::Loop(_) => Kind::Loop,
            Resource::Key(_) => Kind::Key,
            Resource::Bpf(_) => Kind::Bpf,
            Resource::Sysctl(_) => Kind::Sysctl,
        }
    }

    /// The identity as one line, equal exactly for equal resources within one boot.
    pub fn key(&self) -> String {
        match self {
            Resource::Process(r) => format!("process:{}@{}", r.pid, r.start),
            Resource::Fd(r) => {
                let table = if r.table == r.pid { String::new() } else { format!("/{}", r.table) };
                let file = if r.ino == 0 { r.target.to_string() } else { format!("{}:{}", device(r.dev), r.ino) };
                let serial = r.serial.map(|s| format!("#{s}")).unwrap_or_default();
                let flight = if r.in_flight == 0 { String::new() } else { format!("+{}", r.in_flight) };
                format!("fd:{}@{}{table}:{}={file}{serial}{flight}", r.pid, r.start, r.fd)
            }
            Resource::Mount(r) => match &r.id {
                MountId::Unique(id) => format!("mount:{}:{id}", r.ns),
                MountId::Tuple(tuple) => format!("mount:{}:{tuple}", r.ns),
            },
            Resource::Cgroup(r) => format!("cgroup:{}:{}", r.hierarchy, r.ino),
            Resource::Lock(r) => {
                let end = r.end.map_or("EOF".to_owned(), |e| e.to_string());
                format!("lock:{}:{}:{}:{}-{end}:{}#{}", r.class, device(r.dev), r.ino, r.start, r.pid, r.nth)
            }
            Resource::Lockfile(r) => format!("lockfile:{}:{}:{}:{:?}", r.path, device(r.dev), r.ino, r.state),
            Resource::File(r) => {
                let birth = r.birth.map_or("?".to_owned(), |b| b.to_string());
                let mapped = r.mapped_by.map(|(pid, start)| format!(":mapped {pid}@{start}")).unwrap_or_default();
                let state = r.state.map(|s| format!(":{}", s.as_str())).unwrap_or_default();
                let version = r.version.map(|v| format!(":{v:016x}")).unwrap_or_default();
                format!("file:{}:{}@{birth}#{}{mapped}{state}{version}", device(r.dev), r.ino, r.link)
            }
            Resource::Ipc(r) => {
                let birth = r.birth.map(|b| format!("@{b}")).unwrap_or_default();
                format!("ipc:{}:{:?}:{}{birth}", r.ns, r.class, r.id)
            }
            Resource::Namespace(r) => {
                let id = r.id.map(|id| format!("#{id}")).unwrap_or_default();
                format!("namespace:{}:{}{id}", r.ns_type.as_str(), r.ino)
            }
            Resource::Net(r) => format!("net:{}:{:?}:{}:{}", r.netns, r.class, r.number, r.scope),
            Resource::Loop(r) => format!("loop:{}:{}:{}", r.device, r.diskseq, r.backing),
            Resource::Key(r) => format!("key:{:08x}:{}:{}", r.serial, r.key_type, r.description),
            Resource::Bpf(r) => format!("bpf:{:?}:{}", r.class, r.id),
            Resource::Sysctl(r) => {
                // The name of a binfmt_misc format may contain it.
                let path = r.path.to_string().replace('=', "\\x3d");
                format!("sysctl:{path}={}", r.value)
            }
        }
    }

    /// The user that owns an object, if it has one.
    pub(crate) fn owning_user(&self) -> Option<u32> {
        match self {
            Resource::File(r) if r.mapped_by.is_none() => Some(r.uid),
            Resource::Ipc(r) => Some(r.uid),
            Resource::Net(r) => r.uid,
            Resource::Key(r) => Some(r.uid),
            Resource::Process(_)
            | Resource::Fd(_)
            | Resource::Mount(_)
            | Resource::Cgroup(_)
            | Resource::Lock(_)
            | Resource::Lockfile(_)
            | Resource::File(_)
            | Resource::Namespace(_)
            | Resource::Loop(_)
            | Resource::Bpf(_)
            | Resource::Sysctl(_) => None,
        }
    }

    /// What must be equal in two looks for residue to have stayed: the key, but for a setting only its path. A setting
    /// that changes repeatedly differs from the baseline all the time.
    pub(crate) fn settling_key(&self) -> String {
        match self {
            Resource::Sysctl(r) => format!("sysctl:{}", r.path),
            _ => self.key(),
        }
    }
}
