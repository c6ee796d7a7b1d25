//! Records and snapshots by hand.
#![allow(dead_code, reason = "each test file uses some of them")]

use leakcheck::judge::attribute::{Membership, Provenance};
use leakcheck::parse::nslink::NsType;
use leakcheck::resource::*;
use leakcheck::text::Text;
use leakcheck::{KindSet, Scope, Snapshot};

pub(crate) fn text(bytes: impl AsRef<[u8]>) -> Text {
    Text::from(bytes.as_ref())
}

pub(crate) fn host() -> Snapshot {
    scoped(Scope::Host)
}

pub(crate) fn scoped(scope: Scope) -> Snapshot {
    let mut snapshot = Snapshot::empty(scope, KindSet::all());
    snapshot.boot_id = "boot".to_owned();
    snapshot
}

pub(crate) fn process(pid: u32, start: u64) -> Process {
    Process { pid, start, ppid: 1, state: 'S', pgrp: 1, session: 1, comm: text("cat") }
}

pub(crate) fn fd(pid: u32, number: u32, target: &str) -> Fd {
    Fd {
        pid,
        start: 10,
        table: pid,
        fd: number,
        dev: 0,
        ino: 0,
        serial: None,
        target: text(target),
        mount: None,
        in_flight: 0,
    }
}

pub(crate) fn fd_on(pid: u32, dev: u64, ino: u64) -> Fd {
    Fd { dev, ino, ..fd(pid, 3, "/some/file") }
}

pub(crate) fn mount(ns: u64, id: u64, target: &str) -> Mount {
    Mount {
        ns,
        id: MountId::Unique(id),
        target: text(target),
        root: text("/"),
        fs_type: text("tmpfs"),
        source: text("none"),
        dev: 7,
        propagation: text(""),
        holder: "namespace".to_owned(),
    }
}

pub(crate) fn cgroup(ino: u64, path: &str) -> Cgroup {
    Cgroup { hierarchy: text("v2"), ino, path: text(path), dir: text(format!("/sys/fs/cgroup{path}")) }
}

pub(crate) fn lock(class: &str, ino: u64, pid: i64) -> Lock {
    Lock {
        class: class.to_owned(),
        dev: 7,
        ino,
        start: 0,
        end: None,
        pid,
        nth: 0,
        access: "write".to_owned(),
        waiters: 0,
    }
}

pub(crate) fn lock_file(path: &str, state: LockFileState) -> LockFile {
    LockFile { path: text(path), dev: 7, ino: 3, state, pid: None }
}

pub(crate) fn file(path: impl AsRef<[u8]>, ino: u64) -> File {
    File {
        dev: 7,
        ino,
        birth: Some(5),
        link: 0,
        mapped_by: None,
        path: text(path),
        class: "file".to_owned(),
        mode: 0o644,
        uid: 0,
        size: 1,
        state: None,
        version: None,
    }
}

pub(crate) fn ipc(ns: u64, class: IpcClass, creator: u32) -> Ipc {
    Ipc { ns, class, id: 4, birth: None, name: text("/dev/shm/x"), uid: 0, size: 1, creator, attached: 0 }
}

pub(crate) fn namespace(ns_type: NsType, ino: u64, holders: Vec<NsHolder>) -> Namespace {
    Namespace { ns_type, ino, id: None, holders }
}

pub(crate) fn net(netns: u64, class: NetClass, number: u64) -> Net {
    Net { netns, class, number, scope: text(""), name: text("x"), uid: None }
}

pub(crate) fn loop_device() -> LoopDevice {
    LoopDevice { device: text("loop0"), diskseq: 1, backing: text("/img") }
}

pub(crate) fn key() -> Key {
    Key { serial: 9, key_type: text("user"), description: text("k"), uid: 0 }
}

pub(crate) fn bpf(class: BpfClass, id: u32) -> Bpf {
    Bpf { class, id }
}

pub(crate) fn sysctl(value: &str) -> Sysctl {
    Sysctl { path: text("/proc/sys/vm/swappiness"), value: text(value), before: None }
}

/// One record of each kind.
pub(crate) fn one_of_each() -> Vec<Resource> {
    vec![
        process(50, 10).into(),
        fd(50, 3, "pipe:[8]").into(),
        mount(100, 1, "/mnt").into(),
        cgroup(6, "/a").into(),
        lock("flock", 3, 50).into(),
        lock_file("/run/l", LockFileState::Stale).into(),
        file("/tmp/f", 3).into(),
        ipc(101, IpcClass::Sem, 0).into(),
        namespace(NsType::Net, 102, Vec::new()).into(),
        net(102, NetClass::Interface, 2).into(),
        loop_device().into(),
        key().into(),
        bpf(BpfClass::Map, 4).into(),
        sysctl("60").into(),
    ]
}

pub(crate) fn add(snapshot: &mut Snapshot, resource: Resource) {
    match resource {
        Resource::Process(r) => snapshot.processes.push(r),
        Resource::Fd(r) => snapshot.fds.push(r),
        Resource::Mount(r) => snapshot.mounts.push(r),
        Resource::Cgroup(r) => snapshot.cgroups.push(r),
        Resource::Lock(r) => snapshot.locks.push(r),
        Resource::Lockfile(r) => snapshot.lock_files.push(r),
        Resource::File(r) => snapshot.files.push(r),
        Resource::Ipc(r) => snapshot.ipc.push(r),
        Resource::Namespace(r) => snapshot.namespaces.push(r),
        Resource::Net(r) => snapshot.net.push(r),
        Resource::Loop(r) => snapshot.loops.push(r),
        Resource::Key(r) => snapshot.keys.push(r),
        Resource::Bpf(r) => snapshot.bpf.push(r),
        Resource::Sysctl(r) => snapshot.sysctls.push(r),
    }
    snapshot.normalise();
}

pub(crate) fn with(mut snapshot: Snapshot, resources: impl IntoIterator<Item = Resource>) -> Snapshot {
    for resource in resources {
        add(&mut snapshot, resource);
    }
    snapshot
}

/// Provenance by table. What is not listed is unknown.
#[derive(Default)]
pub(crate) struct Known {
    /// Whether the run made a key, any loop device or any BPF object.
    pub(crate) made: Option<Membership>,
    /// Processes that made such an object.
    pub(crate) makers: Vec<u32>,
    pub(crate) processes: Vec<(u32, Membership)>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) ever: Vec<(u32, Membership)>,
    pub(crate) creators: Vec<(&'static str, Membership)>,
    pub(crate) mounts: Vec<(u64, Membership)>,
    pub(crate) watched_mounts: Vec<u64>,
    pub(crate) cgroups: Vec<(u32, &'static str)>,
    pub(crate) uids: Vec<(u32, u32)>,
}

fn find<K: PartialEq>(list: &[(K, Membership)], key: K) -> Membership {
    list.iter().find(|(k, _)| *k == key).map_or(Membership::Unknown, |(_, m)| *m)
}

impl Provenance for Known {
    fn process(&self, process: &Process) -> Membership {
        find(&self.processes, process.pid)
    }

    fn token(&self, pid: u32) -> bool {
        self.tokens.contains(&pid)
    }

    fn ever(&self, pid: u32) -> Membership {
        find(&self.ever, pid)
    }

    fn creator(&self, path: &[u8]) -> Membership {
        self.creators.iter().find(|(p, _)| p.as_bytes() == path).map_or(Membership::Unknown, |(_, m)| *m)
    }

    fn mount(&self, id: u64) -> Membership {
        find(&self.mounts, id)
    }

    fn watches_mounts(&self, ns: u64) -> bool {
        self.watched_mounts.contains(&ns)
    }

    fn made(&self, _resource: &Resource) -> Membership {
        self.made.unwrap_or(Membership::Unknown)
    }

    fn makes(&self, pid: u32, _resource: &Resource) -> u64 {
        self.makers.iter().filter(|maker| **maker == pid).count() as u64
    }

    fn uid(&self, pid: u32) -> Option<u32> {
        self.uids.iter().find(|(p, _)| *p == pid).map(|(_, uid)| *uid)
    }

    fn cgroups(&self, pid: u32) -> Vec<(String, String)> {
        let of = self.cgroups.iter().filter(|(p, _)| *p == pid);
        of.map(|(_, path)| ("v2".to_owned(), (*path).to_owned())).collect()
    }
}
