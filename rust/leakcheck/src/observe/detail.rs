//! Evidence: details that are looked up only for differences. A detail that cannot be read is left out; the record is
//! complete without it.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::lookup::now_ns;
use super::proc_root;
use super::proc_root::read_file;
use super::process_files::{Part, read_memory};
use super::task::task_of;
use super::{bpf, sockdiag};
use crate::arena::{ArenaView, proc_path};
use crate::parse;
use crate::resource::{
    Bpf, Cgroup, Fd, File, FileState, IpcClass, Lock, LockFileState, Mount, Namespace, NetClass, NsHolder, Process,
    Resource,
};
use crate::snapshot::Snapshot;
use crate::text::Text;

/// The label of a resource, and everything that helps to understand it.
pub(crate) struct Evidence {
    /// One phrase.
    pub(crate) label: String,
    /// `resource`, `who`, `since`, `inspect` and details.
    pub(crate) facts: Map<String, Value>,
}

struct Notes {
    label: String,
    who: String,
    /// Nanoseconds since the epoch.
    since: Option<i64>,
    observation: String,
    details: Vec<(&'static str, Value)>,
}

/// A look and its context.
#[derive(Clone, Copy)]
struct Observation<'a> {
    records: &'a Snapshot,
    arena: Option<&'a ArenaView>,
}

impl Observation<'_> {
    fn proc(self, below: impl std::fmt::Display) -> std::path::PathBuf {
        proc_path(self.arena, below)
    }
}

/// Looks up a resource of a look, of the arena if there is one.
pub(crate) fn evidence(resource: &Resource, observation: &Snapshot, arena: Option<&ArenaView>) -> Evidence {
    let observation = Observation { records: observation, arena };
    let notes = match resource {
        Resource::Process(p) => process(p, observation),
        Resource::Fd(fd) => descriptor(fd, observation),
        Resource::Mount(m) => mount(m),
        Resource::Cgroup(c) => cgroup(c, observation),
        Resource::Lock(l) => lock(l, observation),
        Resource::Lockfile(f) => Notes {
            label: format!(
                "{} lock file {}",
                match f.state {
                    LockFileState::Free => "free",
                    LockFileState::Held => "held",
                    LockFileState::Stale => "stale",
                    LockFileState::Corrupt => "corrupt",
                },
                f.path
            ),
            who: f.pid.map_or("names no process".to_owned(), |pid| format!("names process {pid}")),
            since: None,
            observation: format!("cat {}", quote(f.path.as_ref())),
            details: Vec::new(),
        },
        Resource::File(f) => file(f),
        Resource::Ipc(i) => Notes {
            label: match i.class {
                IpcClass::Shm => format!("SysV shared memory {} ({} bytes)", i.id, i.size),
                IpcClass::Sem => format!("SysV semaphore set {} ({} semaphores)", i.id, i.size),
                IpcClass::Msg => format!("SysV message queue {} ({} messages)", i.id, i.size),
                IpcClass::PosixShm => format!("POSIX shared memory {}", i.name),
                IpcClass::Mqueue => format!("POSIX message queue {}", i.name),
            },
            who: match i.creator {
                0 => format!("uid {}", i.uid),
                pid => format!("uid {}, made by {}", i.uid, name_of(pid, observation)),
            },
            since: i.birth,
            observation: match i.class {
                IpcClass::Shm => format!("ipcs -m -i {}", i.id),
                IpcClass::Sem => format!("ipcs -s -i {}", i.id),
                IpcClass::Msg => format!("ipcs -q -i {}", i.id),
                IpcClass::PosixShm => format!("stat {}", quote(i.name.as_ref())),
                IpcClass::Mqueue => "ls -l /dev/mqueue".to_owned(),
            },
            details: Vec::new(),
        },
        Resource::Namespace(n) => namespace(n, observation),
        Resource::Net(n) => Notes {
            label: match n.class {
                NetClass::Interface => format!("network interface {}", n.name),
                NetClass::NamedNetns => format!("named network namespace {}", n.name),
                NetClass::Listener => format!("socket {}", n.name),
                NetClass::Unix => format!("socket {}", n.name),
                NetClass::NftTable => format!("nftables table {}", n.name),
                NetClass::NftChain => format!("nftables chain {}", n.name),
                NetClass::NftRule => format!("nftables rule {}", n.name),
                NetClass::NftSet => format!("nftables set {}", n.name),
                NetClass::NftElement => format!("element of nftables set {}", n.name),
                NetClass::NftObject => format!("nftables object {}", n.name),
                NetClass::NftFlowtable => format!("nftables flowtable {}", n.name),
                NetClass::AltName => format!("alternative interface name {}", n.name),
                NetClass::Address => format!("address {}", n.name),
                NetClass::Route => format!("route {}", n.name),
                NetClass::Rule => format!("routing rule {}", n.name),
                NetClass::Nexthop => format!("next hop {}", n.name),
                NetClass::Qdisc => format!("queueing discipline {}", n.name),
                NetClass::TrafficClass => format!("class of traffic control {}", n.name),
                NetClass::Filter => format!("filter of traffic control {}", n.name),
                NetClass::Neighbour => format!("neighbour {}", n.name),
                NetClass::IpsecState => format!("IPsec state {}", n.name),
                NetClass::IpsecPolicy => format!("IPsec policy {}", n.name),
                NetClass::IptablesChain => format!("iptables chain {}", n.name),
                NetClass::IptablesRule => format!("iptables rule {}", n.name),
                NetClass::Ipset => format!("ipset {}", n.name),
                NetClass::IpsetElement => format!("element of ipset {}", n.name),
                NetClass::Forwarding => format!("forwarding entry {}", n.name),
                NetClass::MulticastGroup => format!("multicast group {}", n.name),
                NetClass::AddressLabel => format!("address label {}", n.name),
            },
            who: n.uid.map_or(format!("network namespace {}", n.netns), |uid| format!("uid {uid}")),
            since: None,
            observation: match n.class {
                NetClass::Interface => format!("ip -d link show {}", quote(n.name.as_ref())),
                NetClass::NamedNetns => "ip netns list".to_owned(),
                NetClass::Listener => "ss -tulnpe".to_owned(),
                NetClass::Unix => "ss -xlpe".to_owned(),
                NetClass::NftTable => "nft list tables".to_owned(),
                NetClass::NftChain
                | NetClass::NftRule
                | NetClass::NftSet
                | NetClass::NftElement
                | NetClass::NftObject
                | NetClass::NftFlowtable => "nft -a list ruleset".to_owned(),
                NetClass::AltName => "ip link".to_owned(),
                NetClass::Address => "ip address".to_owned(),
                NetClass::Route => "ip route show table all; ip -6 route show table all".to_owned(),
                NetClass::Rule => "ip rule; ip -6 rule".to_owned(),
                NetClass::Nexthop => "ip nexthop".to_owned(),
                NetClass::Qdisc => "tc qdisc".to_owned(),
                NetClass::TrafficClass => "tc class show dev INTERFACE".to_owned(),
                NetClass::Filter => "tc filter show dev INTERFACE".to_owned(),
                NetClass::Neighbour => "ip neighbour show nud all; ip neighbour show proxy".to_owned(),
                NetClass::IpsecState => "ip xfrm state".to_owned(),
                NetClass::IpsecPolicy => "ip xfrm policy".to_owned(),
                NetClass::IptablesChain | NetClass::IptablesRule => {
                    "iptables-legacy-save; ip6tables-legacy-save; arptables-legacy-save".to_owned()
                }
                NetClass::Ipset | NetClass::IpsetElement => "ipset list".to_owned(),
                NetClass::Forwarding => "bridge fdb".to_owned(),
                NetClass::MulticastGroup => "bridge mdb".to_owned(),
                NetClass::AddressLabel => "ip addrlabel".to_owned(),
            },
            details: Vec::new(),
        },
        Resource::Loop(d) => Notes {
            label: format!("loop device {} on {}", d.device, d.backing),
            who: "attached to its backing file".to_owned(),
            since: None,
            observation: format!("losetup -l /dev/{}", d.device),
            details: Vec::new(),
        },
        Resource::Key(k) => Notes {
            label: format!("{} key {:#x} {}", k.key_type, k.serial, k.description),
            who: format!("uid {}", k.uid),
            since: None,
            observation: format!("grep {:08x} /proc/keys", k.serial),
            details: Vec::new(),
        },
        Resource::Sysctl(s) => {
            let name = s.name();
            Notes {
                label: match &s.before {
                    Some(before) => format!("setting {name} = {} (was {before})", s.value),
                    None => format!("setting {name} = {}", s.value),
                },
                who: "the kernel does not record which process wrote it".to_owned(),
                since: None,
                observation: format!("cat {}", quote(s.path.as_ref())),
                details: s.restore().map(|command| ("restore", json!(command))).into_iter().collect(),
            }
        }
        Resource::Bpf(b) => {
            let class = format!("{:?}", b.class).to_lowercase();
            Notes {
                label: format!("bpf {class} {}", b.id),
                who: holders_of_bpf(b, observation),
                since: None,
                observation: format!("bpftool {class} show id {}", b.id),
                details: bpf::describe(b.class, b.id).map(|object| ("object", object.into())).into_iter().collect(),
            }
        }
    };
    let mut facts = Map::new();
    facts.insert("resource".to_owned(), serde_json::to_value(resource).unwrap_or(Value::Null));
    facts.insert("who".to_owned(), notes.who.into());
    facts.insert("since".to_owned(), notes.since.and_then(iso).map_or(Value::Null, Value::from));
    facts.insert("inspect".to_owned(), notes.observation.clone().into());
    // The old name, for readers of this version.
    facts.insert("look".to_owned(), notes.observation.into());
    facts.extend(notes.details.into_iter().map(|(name, value)| (name.to_owned(), value)));
    Evidence { label: notes.label, facts }
}

fn process(p: &Process, observation: Observation<'_>) -> Notes {
    let (task, led) = task_of(p.pid, observation.arena);
    let base = observation.proc(task);
    let mut details = Vec::new();
    let argv = read_memory(&base, Part::Arguments).unwrap_or_default();
    let argv = argv.strip_suffix(b"\0").unwrap_or(&argv);
    let args: Vec<String> = argv.split(|b| *b == 0).map(|arg| Text::from(arg).to_string()).collect();
    let argv: Vec<u8> = argv.iter().map(|b| if *b == 0 { b' ' } else { *b }).collect();
    if !argv.is_empty() {
        details.push(("argv", Text::from(&*argv).to_string().into()));
        details.push(("args", args.into()));
    }
    if let Ok(exe) = proc_root::read_link(&base.join("exe")) {
        details.push(("exe", Text::from(&*exe).to_string().into()));
    }
    let parent = name_of(p.ppid, observation);
    let mut who = format!("parent {parent}");
    details.push(("parent", parent.into()));
    if let Ok(text) = read_file(base.join("status"))
        && let Some(uid) = parse::status::parse(&text).ok().and_then(|s| s.uid)
    {
        details.push(("uid", uid[1].into()));
        who.push_str(&format!(", uid {}", uid[1]));
    }
    if let Some(path) = own_cgroup(&base) {
        details.push(("cgroup", path.into()));
    }
    let fds = observation.records.fds.iter().filter(|fd| fd.pid == p.pid).count();
    if fds > 0 {
        details.push(("fds", fds.into()));
    }
    let what = if p.state == 'Z' { "zombie" } else { "process" };
    let led = if led || p.state == 'Z' { "" } else { ", whose first thread has ended" };
    let tail =
        if argv.is_empty() { String::new() } else { format!(": {}", shorten(&Text::from(&*argv).to_string(), 80)) };
    Notes {
        label: format!("{what} {} ({}){led}{tail}", p.pid, p.comm),
        who,
        since: start_ns(p.start),
        observation: format!("cat /proc/{0}/status; ls -l /proc/{0}/fd", p.pid),
        details,
    }
}

/// The most informative cgroup: in v2 if it is not the root, else the first v1 cgroup that is not a root.
fn own_cgroup(process: &Path) -> Option<String> {
    let text = read_file(process.join("cgroup")).ok()?;
    let entries = parse::cgroup::parse(&text).ok()?;
    let best = entries.iter().rev().find(|e| e.path != b"/").or(entries.last())?;
    Some(Text::from(best.path).to_string())
}

fn descriptor(fd: &Fd, observation: Observation<'_>) -> Notes {
    let owner = name_of(fd.pid, observation);
    let table = if fd.table == fd.pid { String::new() } else { format!(" in the table of thread {}", fd.table) };
    let mut details = Vec::new();
    let info = observation.proc(format_args!("{}/task/{}/fdinfo/{}", fd.pid, fd.table, fd.fd));
    if let Ok(text) = read_file(&info) {
        let parsed = parse::fdinfo::parse(&text);
        details.extend(parsed.flags.map(|f| ("flags", format!("{f:#o}").into())));
        details.extend(parsed.pid.map(|pid| ("pidfd_of", pid.into())));
        details.extend(parsed.scm_fds.filter(|n| *n > 0).map(|n| ("in_flight", n.into())));
    }
    if let Some(process) = observation.records.process(fd.pid) {
        details.push(("comm", process.comm.to_string().into()));
    }
    if let Ok(exe) =
        proc_root::read_link(&observation.proc(format_args!("{}/exe", task_of(fd.pid, observation.arena).0)))
    {
        details.push(("exe", Text::from(&*exe).to_string().into()));
    }
    let socket = socket_inode(fd.target.as_ref()).and_then(sockdiag::describe_socket);
    let target = socket.unwrap_or_else(|| fd.target.to_string());
    let flight = match fd.in_flight {
        0 => String::new(),
        n => format!(" with {n} descriptors in flight"),
    };
    Notes {
        label: format!("fd {} of {owner}{table}: {target}{flight}", fd.fd),
        who: format!("held by {owner}"),
        since: None,
        observation: format!(
            "ls -l /proc/{0}/task/{1}/fd/{2}; cat /proc/{0}/task/{1}/fdinfo/{2}",
            fd.pid, fd.table, fd.fd
        ),
        details,
    }
}

/// The inode in `socket:[123]`, the link text of every socket (proc_pid_fd(5)).
fn socket_inode(target: &[u8]) -> Option<u64> {
    let digits = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn mount(m: &Mount) -> Notes {
    let label = if m.ns == 0 {
        format!("detached mount {} kept by {}", m.root, m.holder)
    } else {
        let from = if m.root.as_ref() == b"/" { String::new() } else { format!(" (its {})", m.root) };
        format!("mount {} on {}: {}{from}", m.fs_type, m.target, m.source)
    };
    Notes {
        label,
        who: if m.ns == 0 { m.holder.clone() } else { format!("mount namespace {}", m.ns) },
        since: None,
        observation: if m.ns == 0 {
            "ls -l /proc/*/cwd /proc/*/fd".to_owned()
        } else {
            format!("findmnt {}", quote(m.target.as_ref()))
        },
        details: Vec::new(),
    }
}

/// Processes of a cgroup; none if it cannot be read.
pub(crate) fn cgroup_processes(c: &Cgroup) -> Option<Vec<u32>> {
    let text = read_file(c.dir.as_path().join("cgroup.procs")).ok()?;
    Some(text.split(|b| *b == b'\n').filter_map(|l| std::str::from_utf8(l).ok()?.parse().ok()).collect())
}

fn cgroup(c: &Cgroup, observation: Observation<'_>) -> Notes {
    let procs = cgroup_processes(c);
    let populated = match procs.as_deref() {
        None | Some([]) => "empty".to_owned(),
        Some([pid]) if observation.arena.is_none() => format!("holds process {pid}"),
        Some([_]) => "holds one process".to_owned(),
        Some(all) => format!("holds {} processes", all.len()),
    };
    Notes {
        label: format!("cgroup {} {}", c.hierarchy, c.path),
        who: populated,
        since: None,
        observation: format!("cat {}", quote(&[c.dir.as_ref(), b"/cgroup.procs"].concat())),
        // cgroupfs shows pids of the observer's namespace.
        details: procs
            .filter(|_| observation.arena.is_none())
            .map(|all| ("processes", json!(all)))
            .into_iter()
            .collect(),
    }
}

fn lock(l: &Lock, observation: Observation<'_>) -> Notes {
    let has_line = |fd: &&Fd| {
        let info = observation.proc(format_args!("{}/task/{}/fdinfo/{}", fd.pid, fd.table, fd.fd));
        let text = read_file(info).unwrap_or_default();
        parse::fdinfo::parse(&text).locks.iter().any(|line| line.inode == l.ino)
    };
    // The `lock:` line of fdinfo appears at every descriptor of the open file description: these are the holders.
    let candidates: Vec<&Fd> = observation.records.fds.iter().filter(|fd| fd.ino == l.ino).collect();
    let holders: Vec<&Fd> = candidates.iter().copied().filter(|fd| has_line(fd)).collect();
    let path = holders.first().or(candidates.first()).map(|fd| fd.target.to_string());
    let mut who: Vec<String> =
        holders.iter().map(|fd| format!("fd {} of {}", fd.fd, name_of(fd.pid, observation))).collect();
    who.dedup();
    let taken = match u32::try_from(l.pid) {
        Ok(0) => "taken by a process outside this pid namespace".to_owned(),
        Ok(pid) => format!("taken by {}", name_of(pid, observation)),
        Err(_) => "taken by an open file description".to_owned(),
    };
    let file = path.clone().unwrap_or_else(|| format!("inode {} on {}", l.ino, crate::resource::device(l.dev)));
    Notes {
        label: format!("{} {} lock on {file}", l.class, l.access),
        who: if who.is_empty() { taken } else { format!("{taken}, held through {}", who.join(", ")) },
        since: None,
        observation: format!("grep :{} /proc/locks", l.ino),
        details: path.map(|p| ("path", p.into())).into_iter().collect(),
    }
}

fn file(f: &File) -> Notes {
    let mapped = f.mapped_by.map(|(pid, _)| pid);
    Notes {
        label: match mapped {
            Some(pid) => format!("deleted file {} still mapped by {pid}", f.path),
            None => match f.state {
                None | Some(FileState::Created) => format!("{} {}", f.class, f.path),
                Some(state) => format!("{} {} {}", state.as_str(), f.class, f.path),
            },
        },
        who: mapped.map_or(format!("uid {}, mode {:04o}", f.uid, f.mode), |pid| format!("held by {pid}")),
        since: f.birth,
        observation: match mapped {
            Some(pid) => format!("grep -F '(deleted)' /proc/{pid}/maps"),
            None => format!("stat {}", quote(f.path.as_ref())),
        },
        details: Vec::new(),
    }
}

fn namespace(n: &Namespace, observation: Observation<'_>) -> Notes {
    let holders: Vec<String> = n
        .holders
        .iter()
        .map(|h| match h {
            NsHolder::Process(pid, _) => name_of(*pid, observation),
            NsHolder::Fd(pid, _, fd) => format!("fd {fd} of {}", name_of(*pid, observation)),
            NsHolder::Bind(path) => format!("bind mount {path}"),
        })
        .collect();
    let inspect = match n.holders.first() {
        Some(NsHolder::Process(pid, _)) => format!("ls -l /proc/{pid}/ns"),
        Some(NsHolder::Fd(pid, _, fd)) => format!("ls -l /proc/{pid}/fd/{fd}"),
        Some(NsHolder::Bind(path)) => format!("findmnt {}", quote(path.as_ref())),
        None => "lsns".to_owned(),
    };
    Notes {
        label: format!("{} namespace {}", n.ns_type.as_str(), n.ino),
        who: format!("held by {}", holders.join(", ")),
        since: None,
        observation: inspect,
        details: Vec::new(),
    }
}

fn holders_of_bpf(object: &Bpf, observation: Observation<'_>) -> String {
    let holders: Vec<String> = observation
        .records
        .fds
        .iter()
        .filter(|fd| object.is_open_in(fd))
        .map(|fd| format!("fd {} of {}", fd.fd, name_of(fd.pid, observation)))
        .collect();
    if holders.is_empty() { "held by no descriptor".to_owned() } else { format!("held by {}", holders.join(", ")) }
}

fn name_of(pid: u32, observation: Observation<'_>) -> String {
    match observation.records.process(pid) {
        Some(p) => format!("{pid} ({})", p.comm),
        None => match read_file(observation.proc(format_args!("{pid}/comm"))) {
            Ok(comm) => format!("{pid} ({})", Text::from(comm.trim_ascii_end())),
            Err(_) => format!("{pid} (gone)"),
        },
    }
}

/// A word for a POSIX shell. Bytes that must not reach a terminal are written as `$'\xNN'`.
pub(crate) fn quote(bytes: &[u8]) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(b);
    if !bytes.is_empty() && bytes.iter().all(plain) {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let printable = std::str::from_utf8(bytes).is_ok_and(|s| Text::from(bytes).to_string() == s);
    if printable && !bytes.contains(&b'\'') {
        return format!("'{}'", String::from_utf8_lossy(bytes));
    }
    let mut word = String::from("$'");
    for b in bytes {
        match b {
            b'\'' => word.push_str("\\'"),
            b'\\' => word.push_str("\\\\"),
            b' '..=b'~' => word.push(char::from(*b)),
            _ => word.push_str(&format!("\\x{b:02x}")),
        }
    }
    word.push('\'');
    word
}

fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

/// Start time in ticks since boot → nanoseconds since the epoch.
pub(crate) fn start_ns(ticks: u64) -> Option<i64> {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let per_second = rustix::param::clock_ticks_per_second();
    let since_boot = i64::try_from(ticks.checked_mul(1_000_000_000 / per_second.max(1))?).ok()?;
    Some(now_ns() - (boot.tv_sec * 1_000_000_000 + boot.tv_nsec) + since_boot)
}

fn iso(ns: i64) -> Option<String> {
    let time = jiff::Timestamp::from_nanosecond(i128::from(ns)).ok()?;
    time.round(jiff::Unit::Millisecond).ok().map(|t| t.to_string())
}
