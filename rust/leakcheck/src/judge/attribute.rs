//! Whose residue is it? Decided by descent, run token, cgroup, namespace, creator or holder; never by name or time
//! alone.

mod mount;

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};

pub use super::provenance::{Attribution, Owner, Provenance};
use crate::kind::Kind;
pub use crate::membership::Membership;
use crate::parse::nslink::NsType;
use crate::resource::{
    Bpf, BpfClass, Fd, Ipc, IpcClass, Lock, Mount, MountId, NetClass, NsHolder, Process, Resource, encode_device,
};
use crate::scope::Scope;
use crate::snapshot::Snapshot;
use mount::{lasting_namespaces, may_come_in};

/// Attributes the resources that one look shows and the baseline does not.
pub struct Attributor<'a, P> {
    baseline: &'a Snapshot,
    observation: &'a Snapshot,
    provenance: &'a P,
    own_pid: Option<u32>,
    processes: HashMap<u32, Owner>,
    holders: HashMap<(NsType, u64), Vec<NsHolder>>,
    /// Inodes: namespaces of all types take them from one counter.
    old_namespaces: HashSet<u64>,
    /// Mount namespaces that still have a mount from before; looked up on first use.
    lasting: OnceCell<HashSet<u64>>,
    /// Users that only processes of the run have; looked up on first use.
    uids: OnceCell<HashSet<u32>>,
}

impl<'a, P: Provenance> Attributor<'a, P> {
    /// `own_pid` is this process if its own descriptors count.
    pub fn new(baseline: &'a Snapshot, observation: &'a Snapshot, provenance: &'a P, own_pid: Option<u32>) -> Self {
        let holders = observation.namespaces.iter().map(|n| ((n.ns_type, n.ino), n.holders.clone())).collect();
        let seen = baseline.namespaces.iter().map(|n| n.ino).chain(baseline.mounts.iter().map(|m| m.ns));
        let old_namespaces = seen.chain(baseline.own_ns.values().copied()).collect();
        let (processes, lasting, uids) = (HashMap::new(), OnceCell::new(), OnceCell::new());
        let mut this = Attributor {
            baseline,
            observation,
            provenance,
            own_pid,
            processes,
            holders,
            old_namespaces,
            lasting,
            uids,
        };
        this.processes = observation.processes.iter().map(|p| (p.pid, this.process(p))).collect();
        this.by_cgroup();
        this.by_namespace();
        this
    }

    /// This process, if its own descriptors count.
    pub fn own_pid(&self) -> Option<u32> {
        self.own_pid
    }

    /// See [`Provenance::uid`].
    pub fn uid(&self, pid: u32) -> Option<u32> {
        self.provenance.uid(pid)
    }

    /// See [`Provenance::watched`].
    pub fn is_watched(&self) -> bool {
        self.provenance.watched()
    }

    /// Whether a process of the run lives, and whether one may be about to exit: a running process, or a zombie that
    /// its reaper has not collected yet.
    pub fn alive(&self) -> (bool, bool) {
        let of_run = |p: &&Process| match self.owner_of_pid(p.pid) {
            Owner::Run(Attribution::Own) | Owner::Stranger => false,
            // In a scope, a process from before the run is not a survivor of the run.
            Owner::Run(Attribution::Scope) => self.baseline.process(p.pid).is_none_or(|old| old.start != p.start),
            Owner::Run(_) | Owner::Unknown => true,
        };
        let (mut lives, mut running) = (false, false);
        for p in self.observation.processes.iter().filter(of_run) {
            match p.state {
                'Z' | 'X' | 'x' => running |= self.is_adopted(p),
                state => {
                    lives = true;
                    running |= matches!(state, 'R' | 'D');
                }
            }
        }
        (lives, running)
    }

    /// Whether the parent of a zombie is not a process of the run. Then init or a subreaper has to reap it, and some
    /// inits take two seconds.
    fn is_adopted(&self, zombie: &Process) -> bool {
        self.observation.process(zombie.ppid).is_none_or(|parent| match self.observation.scope {
            // Of the processes that an arena had before, only its init reaps.
            Scope::Arena => self.baseline.process(parent.pid).is_some_and(|old| old.start == parent.start),
            Scope::Host | Scope::Cgroup(_) | Scope::Tree(_) => self.provenance.process(parent) != Membership::Run,
        })
    }

    fn process(&self, p: &Process) -> Owner {
        if Some(p.pid) == self.own_pid {
            return Owner::Run(Attribution::Own);
        }
        let known = |old: &Process| (old.pid, old.start) == (p.pid, p.start);
        if self.baseline.process(p.pid).is_some_and(known) {
            return if self.baseline.scope == Scope::Host { Owner::Stranger } else { Owner::Run(Attribution::Scope) };
        }
        if self.observation.scope == Scope::Arena {
            return Owner::Run(Attribution::Scope);
        }
        match self.provenance.process(p) {
            Membership::Run => Owner::Run(Attribution::Descent),
            _ if self.provenance.token(p.pid) => Owner::Run(Attribution::Token),
            _ if self.baseline.scope != Scope::Host => Owner::Run(Attribution::Scope),
            Membership::Stranger => Owner::Stranger,
            Membership::Unknown => Owner::Unknown,
        }
    }

    /// If descent does not decide, a process is the run's if it is in a cgroup that the run made.
    fn by_cgroup(&mut self) {
        let unknown = self.unknown();
        if unknown.is_empty() {
            return;
        }
        let old: HashSet<(&crate::text::Text, u64)> =
            self.baseline.cgroups.iter().map(|c| (&c.hierarchy, c.ino)).collect();
        let made: HashSet<(String, String)> = self
            .observation
            .cgroups
            .iter()
            .filter(|c| !old.contains(&(&c.hierarchy, c.ino)))
            .filter(|c| self.provenance.creator(c.dir.as_ref()) == Membership::Run)
            .map(|c| (c.hierarchy.to_string(), c.path.to_string()))
            .collect();
        for pid in unknown {
            if self.provenance.cgroups(pid).iter().any(|c| made.contains(c)) {
                self.processes.insert(pid, Owner::Run(Attribution::Cgroup));
            }
        }
    }

    /// Likewise if it shares a namespace that is new since the baseline with a process of the run.
    fn by_namespace(&mut self) {
        for pid in self.unknown() {
            let shares = |holders: &[NsHolder]| {
                let pids = holders.iter().filter_map(|h| match h {
                    NsHolder::Process(pid, _) => Some(*pid),
                    NsHolder::Fd(..) | NsHolder::Bind(_) => None,
                });
                let of_run = |p: u32| matches!(self.owner_of_pid(p), Owner::Run(a) if a != Attribution::Own);
                pids.clone().any(|p| p == pid) && pids.clone().any(of_run)
            };
            if self.holders.iter().any(|((_, ino), holders)| self.fresh_ns(*ino) && shares(holders)) {
                self.processes.insert(pid, Owner::Run(Attribution::Namespace));
            }
        }
    }

    fn unknown(&self) -> Vec<u32> {
        self.processes.iter().filter(|(_, owner)| **owner == Owner::Unknown).map(|(pid, _)| *pid).collect()
    }

    /// Whether processes of the run have this user, and no other process has.
    fn is_user_of_the_run(&self, uid: u32) -> bool {
        let users = || {
            let mut users: HashSet<u32> = HashSet::new();
            let mut others: HashSet<u32> = [0].into();
            for p in &self.observation.processes {
                let set = match self.owner_of_pid(p.pid) {
                    Owner::Run(Attribution::Own) | Owner::Stranger | Owner::Unknown => &mut others,
                    Owner::Run(_) => &mut users,
                };
                set.extend(self.provenance.uid(p.pid));
            }
            users.difference(&others).copied().collect()
        };
        self.uids.get_or_init(users).contains(&uid)
    }

    /// Whose a process is, even if it started after the look.
    pub fn owner_of(&self, p: &Process) -> Owner {
        match self
            .observation
            .process(p.pid)
            .filter(|seen| seen.start == p.start)
            .and_then(|_| self.processes.get(&p.pid))
        {
            Some(owner) => *owner,
            None => self.process(p),
        }
    }

    fn owner_of_pid(&self, pid: u32) -> Owner {
        self.processes.get(&pid).copied().unwrap_or(Owner::Unknown)
    }

    /// Whether a mount of a new namespace is only a copy of one that the baseline had elsewhere: a new mount namespace
    /// starts as a copy.
    pub fn is_copy(&self, mount: &Mount) -> bool {
        let same = |old: &&Mount| {
            (&old.target, &old.root, old.dev, &old.fs_type) == (&mount.target, &mount.root, mount.dev, &mount.fs_type)
        };
        self.fresh_ns(mount.ns) && self.baseline.mounts.iter().any(|old| same(&old))
    }

    /// Whether a namespace inode is new since the baseline.
    pub fn fresh_ns(&self, ino: u64) -> bool {
        // Every mount namespace has mounts; of the other types the baseline must have looked for namespaces.
        let looked_for = || {
            self.baseline.kinds.contains(Kind::Namespace)
                || self.baseline.kinds.contains(Kind::Mount) && self.observation.mounts.iter().any(|m| m.ns == ino)
        };
        ino != 0 && !self.old_namespaces.contains(&ino) && looked_for()
    }

    /// Whose `resource` is.
    pub fn owner(&self, resource: &Resource) -> Owner {
        if self.observation.scope == Scope::Arena {
            return self.in_arena(resource);
        }
        match self.evident_owner(resource) {
            Owner::Stranger if !self.provenance.watched() && !matches!(resource, Resource::Process(_)) => {
                Owner::Unknown
            }
            Owner::Unknown if resource.owning_user().is_some_and(|uid| self.is_user_of_the_run(uid)) => {
                Owner::Run(Attribution::Uid)
            }
            known => known,
        }
    }

    /// What is new in an arena is the run's, except resources that no namespace isolates: those need evidence.
    fn in_arena(&self, resource: &Resource) -> Owner {
        let shared_net = |ino: u64| self.observation.own_ns.get(&NsType::Net) == Some(&ino);
        match resource {
            Resource::Sysctl(_) => Owner::Unknown,
            Resource::Key(_) => Owner::by_evidence(self.provenance.made(resource), Attribution::Creator),
            Resource::Bpf(_) => match self.evident_owner(resource) {
                Owner::Run(by) => Owner::Run(by),
                Owner::Stranger | Owner::Unknown => {
                    Owner::by_evidence(self.provenance.made(resource), Attribution::Scope)
                }
            },
            Resource::Loop(d) => {
                let number =
                    d.device.as_ref().strip_prefix(b"loop").and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
                // Block major 7 (Documentation/admin-guide/devices.txt).
                let mounted =
                    number.is_some_and(|n: u32| self.observation.mounts.iter().any(|m| m.dev == encode_device(7, n)));
                match self.evident_owner(resource) {
                    _ if mounted => Owner::Run(Attribution::Holder),
                    Owner::Run(by) => Owner::Run(by),
                    Owner::Stranger | Owner::Unknown => {
                        Owner::by_evidence(self.provenance.made(resource), Attribution::Scope)
                    }
                }
            }
            // An arena may use the host's network.
            Resource::Net(n) if shared_net(n.netns) => self.evident_owner(resource),
            _ => Owner::Run(Attribution::Scope),
        }
    }

    fn evident_owner(&self, resource: &Resource) -> Owner {
        let part = matches!(self.observation.scope, Scope::Cgroup(_) | Scope::Tree(_));
        if part && !matches!(resource, Resource::Process(_) | Resource::File(_)) {
            return Owner::Run(Attribution::Scope);
        }
        match resource {
            Resource::Process(p) => self.owner_of_pid(p.pid),
            Resource::Fd(fd) => self.held_by([fd.pid]),
            Resource::Mount(m) => self.mount(m),
            Resource::Cgroup(c) => Owner::by_evidence(self.provenance.creator(c.dir.as_ref()), Attribution::Creator),
            Resource::Lock(l) => self.lock(l),
            Resource::Lockfile(f) => self.made(f.path.as_ref(), f.pid),
            Resource::File(f) => match f.mapped_by {
                Some((pid, _)) => self.held_by([pid]),
                None => match self.made(f.path.as_ref(), None) {
                    Owner::Unknown if self.observation.scope != Scope::Host => Owner::Run(Attribution::Scope),
                    other => other,
                },
            },
            Resource::Ipc(i) => self.ipc(i),
            Resource::Namespace(n) => self.namespace(&n.holders),
            Resource::Net(n) => match n.class {
                NetClass::Listener | NetClass::Unix => {
                    let link = format!("socket:[{}]", n.number);
                    let holders = self.observation.fds.iter().filter(|fd| fd.target.as_ref() == link.as_bytes());
                    match self.held_by(holders.map(|fd| fd.pid)) {
                        Owner::Unknown => self.in_namespace(NsType::Net, n.netns),
                        known => known,
                    }
                }
                NetClass::NamedNetns => match self.observation.mounts.iter().find(|m| m.target == n.scope) {
                    Some(m) => self.mount(m),
                    None => self.made(n.scope.as_ref(), None),
                },
                // Interfaces and nftables objects.
                _ => self.in_namespace(NsType::Net, n.netns),
            },
            Resource::Bpf(b) => self.bpf(b, resource),
            Resource::Loop(d) => match self.provenance.creator(d.backing.as_ref()) {
                Membership::Run => Owner::Run(Attribution::Creator),
                _ if self.provenance.made(resource) == Membership::Stranger => Owner::Stranger,
                Membership::Stranger | Membership::Unknown => Owner::Unknown,
            },
            Resource::Key(_) => Owner::by_evidence(self.provenance.made(resource), Attribution::Creator),
            // The kernel does not record which process wrote it.
            Resource::Sysctl(_) => Owner::Unknown,
        }
    }

    /// A BPF object's maker may have closed it: something else holds it then, as the file system does to which it is
    /// pinned, or what it is attached to. The kernel frees it some hundred milliseconds after the last of these.
    fn bpf(&self, object: &Bpf, resource: &Resource) -> Owner {
        let open = self.observation.fds.iter().filter(|fd| object.is_open_in(fd));
        let holders: Vec<u32> = open.map(|fd| fd.pid).collect();
        let (by, made) = (self.held_by(holders.iter().copied()), self.provenance.made(resource));
        if !matches!(by, Owner::Run(_))
            && made == Membership::Run
            && let Some(this) = self.provenance.made_this(object)
        {
            return Owner::by_evidence(this, Attribution::Creator);
        }
        match (by, made) {
            (by @ Owner::Run(_), _) => by,
            (_, Membership::Stranger) => Owner::Stranger,
            // The run may have handed it to somebody who holds more than he made.
            (Owner::Stranger, Membership::Run)
                if holders
                    .iter()
                    .any(|pid| self.new_in(*pid, object.class) > self.provenance.makes(*pid, resource)) =>
            {
                Owner::Unknown
            }
            (by, _) => by,
        }
    }

    /// How many BPF objects of a class that appeared since the baseline a process holds.
    fn new_in(&self, pid: u32, class: BpfClass) -> u64 {
        let fds: Vec<&Fd> = self.observation.fds.iter().filter(|fd| fd.pid == pid && fd.serial.is_some()).collect();
        let new = self.observation.bpf.iter().filter(|b| b.class == class && !self.baseline.bpf.contains(b));
        new.filter(|b| fds.iter().any(|fd| b.is_open_in(fd))).count() as u64
    }

    /// A POSIX lock or lease belongs to its process. The other locks belong to an open file description, which any
    /// process that has the file open may share.
    fn lock(&self, lock: &Lock) -> Owner {
        let taker = u32::try_from(lock.pid).ok().filter(|p| self.processes.contains_key(p));
        if let ("posix" | "lease", Some(pid)) = (lock.class.as_str(), taker) {
            return self.held_by([pid]);
        }
        // A process that took the lock and exited left it to those who share the open file description: whoever passed
        // the file to the run.
        let gone = u32::try_from(lock.pid).ok().filter(|_| taker.is_none());
        if gone.is_some_and(|pid| self.provenance.ever(pid) == Membership::Run) {
            return Owner::Run(Attribution::Descent);
        }
        let opened = |same: &dyn Fn(u64) -> bool| -> Vec<u32> {
            let fds = self.observation.fds.iter().filter(|fd| fd.ino == lock.ino && fd.ino != 0 && same(fd.dev));
            fds.map(|fd| fd.pid).collect()
        };
        let mut holders = opened(&|dev| dev == lock.dev);
        if holders.is_empty() {
            // On overlayfs and btrfs, `/proc/locks` and stat(2) show different devices.
            holders = opened(&|_| true);
        }
        self.held_by(holders.into_iter().chain(taker))
    }

    /// The run's if any holder is the run's; a stranger's if all holders are.
    fn held_by(&self, pids: impl IntoIterator<Item = u32>) -> Owner {
        let mut worst = None;
        for owner in pids.into_iter().map(|pid| self.owner_of_pid(pid)) {
            match (owner, worst) {
                (Owner::Run(Attribution::Own), _) => return owner,
                (Owner::Run(_), _) => return Owner::Run(Attribution::Holder),
                (Owner::Unknown, _) | (Owner::Stranger, None) => worst = Some(owner),
                (Owner::Stranger, Some(_)) => {}
            }
        }
        worst.unwrap_or(Owner::Unknown)
    }

    fn made(&self, path: &[u8], pid: Option<u32>) -> Owner {
        match (self.provenance.creator(path), pid.map(|p| self.provenance.ever(p))) {
            (Membership::Run, _) | (Membership::Unknown, Some(Membership::Run)) => Owner::Run(Attribution::Creator),
            (Membership::Stranger, _) => Owner::Stranger,
            (Membership::Unknown, _) => Owner::Unknown,
        }
    }

    fn namespace(&self, holders: &[NsHolder]) -> Owner {
        let by_process = self.held_by(holders.iter().filter_map(|h| match h {
            NsHolder::Process(pid, _) | NsHolder::Fd(pid, _, _) => Some(*pid),
            NsHolder::Bind(_) => None,
        }));
        if let Owner::Run(_) = by_process {
            return by_process;
        }
        let bound = holders.iter().find_map(|h| match h {
            NsHolder::Bind(path) => self.observation.mounts.iter().find(|m| m.target == *path),
            NsHolder::Process(..) | NsHolder::Fd(..) => None,
        });
        // If the run bind mounted a namespace, the mount keeps it, whichever processes are inside.
        bound.map_or(by_process, |m| self.mount(m))
    }

    fn in_namespace(&self, ns_type: NsType, ino: u64) -> Owner {
        if !self.fresh_ns(ino) {
            return Owner::Unknown;
        }
        match self.holders.get(&(ns_type, ino)).map(|holders| self.namespace(holders)) {
            Some(Owner::Run(_)) => Owner::Run(Attribution::Namespace),
            Some(other) => other,
            None => Owner::Unknown,
        }
    }

    fn ipc(&self, object: &Ipc) -> Owner {
        if self.fresh_ns(object.ns) {
            return self.in_namespace(NsType::Ipc, object.ns);
        }
        match object.class {
            IpcClass::PosixShm => self.made(object.name.as_ref(), None),
            IpcClass::Shm if object.creator > 1 => {
                Owner::by_evidence(self.provenance.ever(object.creator), Attribution::Creator)
            }
            // For a queue, the kernel reports only the last sender.
            IpcClass::Msg if object.creator > 1 => {
                Owner::by_hint(self.provenance.ever(object.creator), Attribution::Creator)
            }
            IpcClass::Shm | IpcClass::Msg | IpcClass::Sem | IpcClass::Mqueue => Owner::Unknown,
        }
    }

    fn mount(&self, mount: &Mount) -> Owner {
        if let MountId::Unique(id) = mount.id {
            let by_event = Owner::by_evidence(self.provenance.mount(id), Attribution::Creator);
            if by_event != Owner::Unknown {
                return by_event;
            }
        }
        let ns = mount.ns;
        if ns == 0 {
            let pid = mount.holder.rsplit(' ').next().and_then(|word| word.parse().ok());
            return pid.map_or(Owner::Unknown, |pid: u32| self.held_by([pid]));
        }
        if self.fresh_ns(ns) {
            return self.in_namespace(NsType::Mnt, ns);
        }
        match self.holders.get(&(NsType::Mnt, ns)).filter(|_| !self.is_own_mount_ns(ns)) {
            // Only strangers mount in an old namespace that contains only strangers, but others' mounts may propagate
            // into it.
            Some(holders) => match self.namespace(holders) {
                Owner::Stranger
                    if !self.provenance.watches_mounts(ns)
                        && self.is_still_there(ns)
                        && may_come_in(mount, self.baseline) =>
                {
                    Owner::Unknown
                }
                known => known,
            },
            None => Owner::Unknown,
        }
    }

    /// Whether a mount namespace of the baseline still has any of its mounts. If not, another namespace reuses its
    /// inode, and all its mounts are new.
    fn is_still_there(&self, ns: u64) -> bool {
        self.lasting.get_or_init(|| lasting_namespaces(self.baseline, self.observation)).contains(&ns)
    }

    /// Whether it is a namespace, or a mount in one, that the machine had before the scope's first process entered it.
    pub fn was_only_entered(&self, resource: &Resource) -> bool {
        if !matches!(self.observation.scope, Scope::Cgroup(_) | Scope::Tree(_)) {
            return false;
        }
        match resource {
            Resource::Namespace(n) => self.is_the_machines(n.ino),
            Resource::Mount(m) => self.is_the_machines(m.ns) && !self.baseline.mounts.iter().any(|old| old.ns == m.ns),
            _ => false,
        }
    }

    /// Whether a namespace is the observer's own or an initial one (include/linux/proc_ns.h: later ones have an inode
    /// of at least `PROC_DYNAMIC_FIRST`).
    fn is_the_machines(&self, ino: u64) -> bool {
        (0xEFFF_FF00..0xF000_0000).contains(&ino) || self.observation.own_ns.values().any(|own| *own == ino)
    }

    fn is_own_mount_ns(&self, ns: u64) -> bool {
        self.own_mount_ns() == Some(ns)
    }

    /// Inode of the observer's own mount namespace.
    pub fn own_mount_ns(&self) -> Option<u64> {
        self.observation.own_ns.get(&NsType::Mnt).copied()
    }
}
