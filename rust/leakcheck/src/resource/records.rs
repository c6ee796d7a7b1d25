//! One record a kind.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::kind::Kind;
use crate::parse::nslink::NsType;
use crate::text::Text;

/// A record with an identity.
pub trait Identified {
    /// What makes two records the same resource.
    type Id<'a>: Ord
    where
        Self: 'a;
    /// The kind of every such record.
    const KIND: Kind;
    /// The identity, ordered, within one boot of one machine.
    fn id(&self) -> Self::Id<'_>;
    /// Whether both are one record in memory.
    fn is_shared_with(&self, _other: &Self) -> bool {
        false
    }
}

impl<T: Identified> Identified for Arc<T> {
    type Id<'a>
        = T::Id<'a>
    where
        T: 'a;
    const KIND: Kind = T::KIND;
    fn id(&self) -> Self::Id<'_> {
        (**self).id()
    }
    fn is_shared_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(self, other)
    }
}

macro_rules! identified {
    ($type:ty, $kind:ident, |$r:ident| -> <$life:lifetime> ($($part:ty),+ $(,)?) $id:expr) => {
        impl Identified for $type {
            type Id<$life> = ($($part,)+);
            const KIND: Kind = Kind::$kind;
            fn id(&self) -> Self::Id<'_> {
                let $r = self;
                $id
            }
        }
    };
}

/// A thread group. Identity: pid and start time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Process id in the observer's pid namespace.
    pub pid: u32,
    /// Start time in clock ticks (1/100 s) after boot, field 22 of `/proc/PID/stat` (proc(5)).
    pub start: u64,
    /// Parent's process id.
    pub ppid: u32,
    /// State letter of proc(5); `Z` is a zombie.
    pub state: char,
    /// Process group.
    pub pgrp: i32,
    /// Session.
    pub session: i32,
    /// Command name, at most 15 bytes; the process chooses it.
    pub comm: Text,
}
identified!(Process, Process, |r| -> <'a> (u32, u64) (r.pid, r.start));

/// A descriptor in an FD table. Identity: process, table, number, and the open file as far as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fd {
    /// The owner.
    pub pid: u32,
    /// The owner's start time, as in [`Process::start`].
    pub start: u64,
    /// Thread whose table it is: `pid`, unless a thread has a table of its own (`CLONE_FILES` unshared).
    pub table: u32,
    /// The number.
    pub fd: u32,
    /// Device of a file with a path (`st_dev`, kernel encoding `major << 32 | minor`), else 0.
    pub dev: u64,
    /// Inode of a file with a path, else 0: then `target` names the object.
    pub ino: u64,
    /// `eventfd-id`, `map_id`, `prog_id` or `link_id` of fdinfo: identifies anonymous files, which share one inode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<u64>,
    /// The text of the `/proc/PID/fd/N` link.
    pub target: Text,
    /// Id of the mount that a path was opened on: unique since Linux 6.8 (`STATX_MNT_ID_UNIQUE`), before that mountinfo's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<u64>,
    /// Descriptors in flight in this unix socket's receive queue (`scm_fds` of fdinfo), part of the identity: a
    /// descriptor that no process has received yet is in no table.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub in_flight: u32,
}
identified!(Fd, Fd, |r| -> <'a> (u32, u64, u32, u32, u64, u64, Option<u64>, Option<&'a Text>, u32)
    (r.pid, r.start, r.table, r.fd, r.dev, r.ino, r.serial, (r.ino == 0).then_some(&r.target), r.in_flight));

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// The identity of a mount.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountId {
    /// The 64-bit id that is never reused (`statmount(2)`, Linux 6.8).
    Unique(u64),
    /// The whole mountinfo tuple, where the kernel has no unique id.
    Tuple(Text),
}

/// A mount. Identity: mount namespace and unique id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// Inode of the mount namespace; 0 for a detached mount.
    pub ns: u64,
    /// The mount's own id.
    pub id: MountId,
    /// Where it is mounted; empty for a detached one.
    pub target: Text,
    /// Directory of the file system that forms its root.
    pub root: Text,
    /// File system type.
    pub fs_type: Text,
    /// Source, as mount(8) shows it.
    pub source: Text,
    /// Device of the file system, `major << 32 | minor`.
    pub dev: u64,
    /// `shared:N`, `master:N`, `unbindable`, or empty for private.
    pub propagation: Text,
    /// Who keeps it: `namespace`, or for a detached mount the object that pins it (`cwd of 12`, `fd 3 of 12`).
    pub holder: String,
}
identified!(Mount, Mount, |r| -> <'a> (u64, &'a MountId) (r.ns, &r.id));

/// A cgroup directory. Identity: hierarchy and kernfs inode, which holds a generation (kernfs_ino, Linux 5.5).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cgroup {
    /// `v2`, or the controllers of a v1 hierarchy as `/proc/PID/cgroup` writes them (`pids`, `name=systemd`).
    pub hierarchy: Text,
    /// Inode.
    pub ino: u64,
    /// Path below the hierarchy's mount, as `/proc/PID/cgroup` writes it.
    pub path: Text,
    /// The directory as the observer reaches it.
    pub dir: Text,
}
identified!(Cgroup, Cgroup, |r| -> <'a> (&'a Text, u64) (&r.hierarchy, r.ino));

/// A file lock. Identity: type, file, range, and the owner that `/proc/locks` names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lock {
    /// `flock`, `posix`, `ofdlck`, `lease`, `deleg`, `layout` …: the word of `/proc/locks`.
    pub class: String,
    /// Device of the file's super block, `major << 32 | minor`.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// First byte.
    pub start: u64,
    /// Last byte; none is the end of the file.
    pub end: Option<u64>,
    /// The process that took it, −1 for OFD; it may be dead: the lock belongs to the open file description.
    pub pid: i64,
    /// Numbers equal locks (two shared OFD locks on one range).
    pub nth: u32,
    /// `read` or `write`.
    pub access: String,
    /// How many requests wait for it.
    pub waiters: u32,
}
identified!(Lock, Lock, |r| -> <'a> (&'a str, u64, u64, u64, Option<u64>, i64, u32)
    (&r.class, r.dev, r.ino, r.start, r.end, r.pid, r.nth));

/// State of a lock file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockFileState {
    /// Not locked, and it names no process: as expected between runs.
    Free,
    /// Locked, or it names a living process.
    Held,
    /// Not locked, and it names a dead process.
    Stale,
    /// Its content is neither empty, nor a process id, nor a JSON object with one.
    Corrupt,
}

/// A lock file at a declared path. Identity: path, file and state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LockFile {
    /// The path.
    pub path: Text,
    /// Device, `major << 32 | minor`.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// The state.
    pub state: LockFileState,
    /// The process id in its content.
    pub pid: Option<u32>,
}
identified!(LockFile, Lockfile, |r| -> <'a> (&'a Text, u64, u64, LockFileState) (&r.path, r.dev, r.ino, r.state));

/// A file of any type below a declared root. Identity: device, inode, birth time, and which of its links it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct File {
    /// Device, `major << 32 | minor`.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Birth time in nanoseconds since the epoch; none where the file system has none.
    pub birth: Option<i64>,
    /// 0 for the first link inside the roots, 1 for the second …
    pub link: u32,
    /// Process id and start time of a process that maps a deleted file; none for a file with a path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapped_by: Option<(u32, u64)>,
    /// The path.
    pub path: Text,
    /// `file`, `dir`, `symlink`, `fifo`, `socket`, `char`, `block`.
    pub class: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Size in bytes.
    pub size: u64,
    /// In an overlay of an arena: its change relative to the lower layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<FileState>,
    /// For a changed or deleted file, whose device and inode are those in the lower layer: a digest of path, content
    /// and attributes, to distinguish a second change from the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}
identified!(File, File, |r| -> <'a> (u64, u64, Option<i64>, u32, Option<(u32, u64)>, Option<FileState>, Option<u64>)
    (r.dev, r.ino, r.birth, r.link, r.mapped_by, r.state, r.version));

/// The change of a file in an overlay's upper layer relative to the lower layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileState {
    /// The lower layer has no file with that name.
    Created,
    /// Content, type, owner, mode or extended attributes differ; a directory was also replaced by another one.
    Changed,
    /// It is gone.
    Deleted,
    /// It was copied up, and differs at most in its times. Not residue: the gauge `touched_files` counts it.
    Touched,
}

impl FileState {
    /// The word of the JSON form.
    pub fn as_str(self) -> &'static str {
        match self {
            FileState::Created => "created",
            FileState::Changed => "changed",
            FileState::Deleted => "deleted",
            FileState::Touched => "touched",
        }
    }
}

/// Class of an IPC object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IpcClass {
    /// SysV shared memory.
    Shm,
    /// SysV semaphore set.
    Sem,
    /// SysV message queue.
    Msg,
    /// POSIX shared memory or named semaphore: a file in `/dev/shm`.
    PosixShm,
    /// POSIX message queue.
    Mqueue,
}

/// An IPC object. Identity: IPC namespace, class, id (SysV ids hold a sequence number; POSIX objects have inode and
/// birth time). The SysV `ctime` is not part of it: `semctl(SETVAL)` changes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ipc {
    /// Inode of the IPC namespace (0 for POSIX shared memory, which belongs to a mount).
    pub ns: u64,
    /// The class.
    pub class: IpcClass,
    /// SysV id, or inode.
    pub id: u64,
    /// Birth time of POSIX objects, nanoseconds since the epoch.
    pub birth: Option<i64>,
    /// SysV key, or the path.
    pub name: Text,
    /// Owner.
    pub uid: u32,
    /// Size in bytes, semaphores, or messages.
    pub size: u64,
    /// Creator's process id (SysV shm), else the last sender's or 0.
    pub creator: u32,
    /// Attached processes (SysV shm).
    pub attached: u64,
}
identified!(Ipc, Ipc, |r| -> <'a> (u64, IpcClass, u64, Option<i64>) (r.ns, r.class, r.id, r.birth));

/// What keeps a namespace alive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NsHolder {
    /// A process or one of its threads: pid and start time.
    Process(u32, u64),
    /// A descriptor: pid, start time, number.
    Fd(u32, u64, u32),
    /// A bind mount at this path.
    Bind(Text),
}

/// A namespace. Identity: type, inode, and the id that is never reused (`NS_GET_ID`, Linux 6.18; for mount namespaces
/// `NS_GET_MNTNS_ID`, Linux 6.11).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Namespace {
    /// The type.
    pub ns_type: NsType,
    /// Inode of the nsfs file.
    pub ino: u64,
    /// The unique id, where the kernel has one.
    pub id: Option<u64>,
    /// Some of its holders (at most eight).
    pub holders: Vec<NsHolder>,
}
identified!(Namespace, Namespace, |r| -> <'a> (NsType, u64, Option<u64>) (r.ns_type, r.ino, r.id));

/// Class of a network object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetClass {
    /// A network interface.
    Interface,
    /// A network namespace with a name below `/run/netns` or `/var/run/netns`.
    NamedNetns,
    /// A listening TCP or bound UDP socket.
    Listener,
    /// A listening or bound unix socket.
    Unix,
    /// An nftables table.
    NftTable,
    /// A chain in an nftables table; likewise below.
    NftChain,
    /// A rule in a chain.
    NftRule,
    /// A named set or map.
    NftSet,
    /// An element of a named set or map.
    NftElement,
    /// A stateful object: a counter, a quota, a limit …
    NftObject,
    /// A flowtable.
    NftFlowtable,
    /// Another name of an interface.
    AltName,
    /// An address of an interface.
    Address,
    /// A route.
    Route,
    /// A rule that selects a table of routes.
    Rule,
    /// A next hop that routes share.
    Nexthop,
    /// A queueing discipline.
    Qdisc,
    /// A class of a queueing discipline.
    TrafficClass,
    /// A filter of traffic control.
    Filter,
    /// A neighbour that somebody entered.
    Neighbour,
    /// A state of IPsec.
    IpsecState,
    /// A policy of IPsec.
    IpsecPolicy,
    /// A chain of legacy iptables that somebody made.
    IptablesChain,
    /// A rule of legacy iptables.
    IptablesRule,
    /// A set of ipset(8).
    Ipset,
    /// An element of such a set.
    IpsetElement,
    /// An entry that somebody made in the forwarding table of a bridge, a VXLAN or another interface (bridge(8), fdb).
    Forwarding,
    /// A permanent multicast group of a bridge (bridge(8), mdb).
    MulticastGroup,
    /// A label for the selection of IPv6 addresses (ip-addrlabel(8)).
    AddressLabel,
}

impl NetClass {
    /// Whether it is part of nftables.
    pub fn is_nftables(self) -> bool {
        use NetClass::{NftChain, NftElement, NftFlowtable, NftObject, NftRule, NftSet, NftTable};
        matches!(self, NftTable | NftChain | NftRule | NftSet | NftElement | NftObject | NftFlowtable)
    }

    /// Whether it configures interfaces, routes or what happens to packets, and ends with its interface or namespace.
    pub fn is_configuration(self) -> bool {
        use NetClass::{Interface, Listener, NamedNetns, Unix};
        !self.is_nftables() && !matches!(self, Interface | NamedNetns | Listener | Unix)
    }
}

/// A network object. Identity: network namespace, class, number (interface index; socket inode; handle of nftables; inode of the
/// namespace) and, where numbers are reused, a name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Net {
    /// Inode of the network namespace.
    pub netns: u64,
    /// The class.
    pub class: NetClass,
    /// Interface index (0 for none), socket inode, handle of nftables or namespace inode.
    pub number: u64,
    /// Part of the identity: for nftables the family and table, for a rule also the chain; for a named namespace its
    /// path; for an address, a route and the like what the kernel distinguishes it by; else empty.
    pub scope: Text,
    /// Name or address, for people.
    pub name: Text,
    /// Owner, if the kernel reports it.
    pub uid: Option<u32>,
}
identified!(Net, Net, |r| -> <'a> (u64, NetClass, u64, &'a Text) (r.netns, r.class, r.number, &r.scope));

/// An attached loop device. Identity: device and `diskseq`, which is never reused (Linux 5.15), and backing file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoopDevice {
    /// Name, `loop0`.
    pub device: Text,
    /// Disk sequence number; 0 if the kernel has none.
    pub diskseq: u64,
    /// Backing file, as `/sys/block/loopN/loop/backing_file` writes it.
    pub backing: Text,
}
identified!(LoopDevice, Loop, |r| -> <'a> (&'a Text, u64, &'a Text) (&r.device, r.diskseq, &r.backing));

/// A kernel key. Identity: serial, type and description.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// Serial number, random and positive.
    pub serial: u32,
    /// Type: `user`, `keyring` …
    pub key_type: Text,
    /// Description without the payload summary that the kernel appends.
    pub description: Text,
    /// Owner.
    pub uid: u32,
}
identified!(Key, Key, |r| -> <'a> (u32, &'a Text, &'a Text) (r.serial, &r.key_type, &r.description));

/// Class of a BPF object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BpfClass {
    /// A program.
    Prog,
    /// A map.
    Map,
    /// A link.
    Link,
}

/// A BPF object. Identity: class and id, which the kernel assigns cyclically.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bpf {
    /// The class.
    pub class: BpfClass,
    /// The id of `BPF_*_GET_NEXT_ID`.
    pub id: u32,
}
impl Bpf {
    /// Whether a descriptor refers to this object: its link shows the class, its fdinfo the id.
    pub fn is_open_in(&self, fd: &Fd) -> bool {
        let link: &[u8] = match self.class {
            BpfClass::Prog => b"anon_inode:bpf-prog",
            BpfClass::Map => b"anon_inode:bpf-map",
            BpfClass::Link => b"anon_inode:bpf_link",
        };
        fd.serial == Some(u64::from(self.id)) && fd.target.as_ref() == link
    }
}
identified!(Bpf, Bpf, |r| -> <'a> (BpfClass, u32) (r.class, r.id));

/// A setting of the kernel. Identity: path and value, so that a changed one is residue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sysctl {
    /// The file, below `/proc/sys` or `/sys`.
    pub path: Text,
    /// The value, without the last newline; for a choice (`always [madvise] never`) the chosen word.
    pub value: Text,
    /// The value at the baseline; only known for a change.
    #[serde(default)]
    pub before: Option<Text>,
}
identified!(Sysctl, Sysctl, |r| -> <'a> (&'a Text, &'a Text) (&r.path, &r.value));

/// `major:minor` of a device in this crate's encoding.
pub fn device(dev: u64) -> String {
    format!("{}:{}", dev >> 32, dev & 0xffff_ffff)
}

/// This crate's encoding of a device.
pub fn encode_device(major: u32, minor: u32) -> u64 {
    u64::from(major) << 32 | u64::from(minor)
}
