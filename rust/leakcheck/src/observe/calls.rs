//! Which keys, BPF objects and loop devices an arena's processes made, or which processes of the host made some:
//! recorded on return from the system call, for every system call table.
//!
//! One BPF program of this process is attached to the tracepoint `sys_exit` (raw tracepoints: Linux 4.17;
//! `bpf_probe_read_kernel()`: 5.5). It checks the number of the call, and only for the few relevant calls the cgroup of
//! the task, or on the host its process. A process of an arena cannot leave the arena's cgroup, so none of its calls is
//! missed, and no other process is mistaken for it. The kernel removes the program when our descriptors are closed.

mod program;

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use program::{KEY, LINK, LOOP, MAP, OBJECTS, PROGRAM, Subject, assemble};

use super::bpf;
use super::proc_root::read_file;
use crate::error::in_words;
use crate::membership::Membership;
use crate::own_fd::OwnFd;
use crate::resource::{Bpf, BpfClass, Resource};
use crate::this_process::ThisProcess;

/// Maximum number of arenas recorded at a time, and of records of all arenas. A record that does not fit is counted as
/// lost.
const ARENAS: u32 = 1024;
const RECORDS: u32 = 16384;
/// `PROC_CGROUP_INIT_INO` (include/linux/proc_ns.h): in other cgroup namespaces a path does not tell the depth of a
/// cgroup.
const INITIAL_CGROUP_NS: u64 = 0xEFFF_FFFB;

/// `PROC_PID_INIT_INO`: in other pid namespaces, processes have other numbers than those recorded.
const INITIAL_PID_NS: u64 = 0xEFFF_FFFC;

/// Key types that only add_key(2), request_key(2) and keyctl(2) create; the kernel creates others on behalf of a
/// process.
const TYPES: &[&[u8]] = &[b"user", b"logon", b"keyring", b"big_key", b"encrypted", b"trusted", b"asymmetric"];

/// The programs of this process. One is attached while a view of an arena or a guard of the host exists: during that
/// time, every system call on the machine takes the slower path through its tracepoints.
static PROGRAMS: Mutex<Vec<Arc<Program>>> = Mutex::new(Vec::new());

struct Program {
    subject: Subject,
    /// Whether a record of an arena, or of the host, was lost.
    lost: OwnFd,
    records: OwnFd,
    program: OwnFd,
    /// A forked child shares the maps, and would remove its parent's records.
    owner: ThisProcess,
    /// Its objects but for the link, which are the same for ever.
    own: Vec<(BpfClass, u32)>,
    link: Mutex<Option<Link>>,
    /// The number of views of each arena, by the id of its cgroup; of the host by [`HOST`].
    views: Mutex<HashMap<u64, usize>>,
    /// The records of the recorder's own calls.
    probes: Mutex<HashSet<[u64; 2]>>,
}

struct Link {
    fd: OwnFd,
    id: Option<u32>,
}

/// No cgroup has this id.
const HOST: u64 = 0;

/// What one arena's processes did, or all processes of the host.
pub(crate) struct Calls {
    program: Arc<Program>,
    scope: u64,
    /// On the host, an object of each class whose makers can be told, made when the recorder began.
    first: Vec<Probe>,
    /// What was found of their order.
    order: Mutex<Vec<Order>>,
}

/// Who made the objects of a class, one after the other: the time of the call, and the process; none for the recorder.
struct Order {
    class: BpfClass,
    /// The number of the first.
    first: u32,
    made: Vec<(u64, Option<u32>)>,
}

impl Order {
    /// Where the object with this number is.
    fn at(&self, id: u32) -> Option<usize> {
        usize::try_from(id.checked_sub(self.first)?).ok().filter(|at| *at < self.made.len())
    }
}

/// An object of the recorder, which is closed at once: the number that its class had come to, and when.
struct Probe {
    class: BpfClass,
    id: u32,
    time: u64,
}

/// Nanoseconds between the numbers of two objects and the records of their calls, at most: a process may have to wait for a
/// processor in between.
const AT_ONCE: u64 = 50_000_000;

/// The descriptors of this process that are the recorder's, or were until the program closed them.
pub(crate) fn own_fds() -> Vec<RawFd> {
    let programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    let fds = programs.iter().flat_map(|p| [&p.lost, &p.records, &p.program].map(OwnFd::number));
    fds.chain(programs.iter().filter_map(|p| p.link().as_ref().map(|link| link.fd.number()))).collect()
}

/// The recorder's BPF objects, which are never leaks.
pub(super) fn own_objects() -> Vec<(BpfClass, u32)> {
    let programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut own = Vec::new();
    for p in programs.iter() {
        own.extend(&p.own);
        own.extend(p.link().as_ref().and_then(|link| link.id).map(|id| (BpfClass::Link, id)));
    }
    own
}

impl Calls {
    /// Records the calls of processes in the arena with these cgroups and this `/proc/1/cgroup`.
    ///
    /// # Errors
    /// Why nothing can be recorded here: a missing privilege, kernel feature or v2 hierarchy.
    pub(crate) fn of(cgroups: &[(String, PathBuf)], of_init: &[u8]) -> Result<Self, String> {
        let (_, dir) = cgroups.iter().find(|(name, _)| name == "v2").ok_or("the arena has no v2 cgroup")?;
        let initial = std::fs::metadata("/proc/self/ns/cgroup").map(|ns| ns.ino() == INITIAL_CGROUP_NS);
        if !initial.unwrap_or(false) {
            return Err("leakcheck runs in a cgroup namespace".to_owned());
        }
        let path = of_init.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"0::/"));
        let name = dir.file_name().map(OsStrExt::as_bytes);
        let at = path.and_then(|path| path.split(|b| *b == b'/').position(|part| Some(part) == name));
        let level = at.and_then(|at| u32::try_from(at + 1).ok()).ok_or("PID 1 of the arena is in another cgroup")?;
        // The inode of a cgroup directory is its id (cgroup_id(), where ino_t has 64 bits).
        let cgroup =
            std::fs::metadata(dir).map_err(|e| format!("cannot stat {}: {}", dir.display(), in_words(e)))?.ino();
        Self::begin(Subject::Arena(level), cgroup)
    }

    /// Records the calls of every process of the machine.
    ///
    /// # Errors
    /// As [`Calls::of`].
    pub(crate) fn of_host() -> Result<Self, String> {
        let initial = std::fs::metadata("/proc/self/ns/pid").map(|ns| ns.ino() == INITIAL_PID_NS);
        if !initial.unwrap_or(false) {
            return Err("leakcheck runs in a pid namespace".to_owned());
        }
        Self::begin(Subject::Process, HOST)
    }

    fn begin(subject: Subject, scope: u64) -> Result<Self, String> {
        let refused = |e| format!("cannot record system calls with BPF: {}", in_words(e));
        let program = Program::of(subject).map_err(refused)?;
        let mut views = program.views.lock().unwrap_or_else(PoisonError::into_inner);
        let attached = match views.get(&scope) {
            Some(_) => Ok(()),
            None => bpf::update(&program.lost, &[scope], 0).and_then(|()| program.attach()),
        };
        attached.map_err(refused)?;
        let count = views.entry(scope).or_default();
        *count += 1;
        let first = *count == 1;
        drop(views);
        let mut calls = Calls { program, scope, first: Vec::new(), order: Mutex::default() };
        if first && subject == Subject::Process {
            // What loaded and attached the program is no work of the run.
            calls.forget(|[process, _]| process == u64::from(std::process::id()));
        }
        if subject == Subject::Process {
            calls
                .first
                .extend([BpfClass::Map, BpfClass::Prog].into_iter().filter_map(|class| calls.program.probe(class)));
        }
        Ok(calls)
    }

    /// The processes of the host that made an object like this one, once for each: a key by its serial, which those have
    /// as well who found it; else anything of its class. None if a record was lost.
    pub(crate) fn makers(&self, resource: &Resource) -> Option<Vec<u32>> {
        let wanted = |rest: u64| match resource {
            Resource::Key(key) => rest == record(HOST, KEY, key.serial)[1],
            Resource::Loop(_) => rest == record(HOST, LOOP, 0)[1],
            Resource::Bpf(object) => objects(object.class).contains(&what(rest)),
            _ => false,
        };
        let probes = self.program.probes();
        let records = self.program.keys().into_iter();
        let makers = records.filter(|key| wanted(key[1]) && !probes.contains(key));
        let makers = makers.filter_map(|key| u32::try_from(key[0]).ok()).collect();
        (!self.lost()).then_some(makers)
    }

    /// The process of the host that made this very BPF object, or those that may have: the kernel numbers the objects of
    /// a class in the order in which they are made. None unless every number since the recorder's first is accounted for.
    pub(crate) fn makers_of_this(&self, object: &Bpf) -> Option<Vec<u32>> {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let known = order.iter().position(|order| order.class == object.class && order.at(object.id).is_some());
        let at = match known {
            Some(at) => at,
            None => {
                order.retain(|order| order.class != object.class);
                order.push(self.order(object.class)?);
                order.len() - 1
            }
        };
        let made = &order[at].made;
        let (time, _) = made[order[at].at(object.id)?];
        // Between the number and the record of one call, another one may come.
        Some(made.iter().filter(|(other, _)| time.abs_diff(*other) <= AT_ONCE).filter_map(|(_, pid)| *pid).collect())
    }

    fn order(&self, class: BpfClass) -> Option<Order> {
        let first = self.first.iter().find(|probe| probe.class == class)?;
        let last = self.program.probe(class)?;
        let probes = self.program.probes();
        let mut made: Vec<(u64, Option<u32>)> = Vec::new();
        for key in self.program.keys() {
            match what(key[1]) {
                // It makes any number of them.
                OBJECTS => return None,
                one if one == objects(class)[0] => {
                    let pid = (!probes.contains(&key)).then_some(key[0] as u32);
                    made.push((self.program.time_of(&key)?, pid));
                }
                _ => {}
            }
        }
        made.retain(|(time, _)| (first.time..=last.time).contains(time));
        made.sort_unstable();
        // An attempt that failed may have used up a number.
        let whole = made.len() as u64 == u64::from(last.id.checked_sub(first.id)?) + 1;
        (whole && !self.lost()).then_some(Order { class, first: first.id, made })
    }

    /// Whether the arena made it.
    pub(crate) fn made(&self, resource: &Resource) -> Membership {
        match resource {
            Resource::Key(key) if self.has(KEY, key.serial) => Membership::Run,
            // A request that failed may have left a negative key, which no call returned.
            Resource::Key(key) if self.lost() || self.has(KEY, 0) || !TYPES.contains(&key.key_type.as_ref()) => {
                Membership::Unknown
            }
            Resource::Key(_) => Membership::Stranger,
            Resource::Loop(_) => self.any(&[LOOP]),
            Resource::Bpf(object) => self.any(&objects(object.class)),
            _ => Membership::Unknown,
        }
    }

    /// Whether it made or asked for any key.
    pub(crate) fn keys(&self) -> bool {
        self.lost() || self.program.keys().iter().any(|[scope, rest]| *scope == self.scope && what(*rest) == KEY)
    }

    fn any(&self, what: &[u32]) -> Membership {
        match (what.iter().any(|what| self.has(*what, 0)), self.lost()) {
            (true, _) => Membership::Run,
            (false, true) => Membership::Unknown,
            (false, false) => Membership::Stranger,
        }
    }

    fn has(&self, what: u32, serial: u32) -> bool {
        self.program.time_of(&record(self.scope, what, serial)).is_some()
    }

    fn forget(&self, which: impl Fn([u64; 2]) -> bool) {
        for key in self.program.keys().into_iter().filter(|key| which(*key)) {
            bpf::delete(&self.program.records, &key);
        }
    }

    fn lost(&self) -> bool {
        self.is_closed() || bpf::lookup(&self.program.lost, &[self.scope]) != Some(0)
    }

    /// Whether the program under test has closed a descriptor of the recorder, or this is a forked child: then nothing tells
    /// who made what.
    pub(crate) fn is_closed(&self) -> bool {
        !self.program.is_whole()
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        let mut views = self.program.views.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = views.get_mut(&self.scope) else { return };
        *count -= 1;
        if *count == 0 {
            views.remove(&self.scope);
            self.program.probes().clear();
            if self.program.is_whole() {
                bpf::delete(&self.program.lost, &[self.scope]);
                self.forget(|[subject, _]| self.scope == HOST || subject == self.scope);
            }
        }
        if views.is_empty() {
            self.program.link().take();
        }
    }
}

/// The records of calls that may make a BPF object of this class.
fn objects(class: BpfClass) -> [u32; 2] {
    let alone = match class {
        BpfClass::Prog => PROGRAM,
        BpfClass::Map => MAP,
        BpfClass::Link => LINK,
    };
    [alone, OBJECTS]
}

/// `struct { u64 subject; u32 what; u32 serial; }`
fn record(subject: u64, what: u32, serial: u32) -> [u64; 2] {
    let [a, b, c, d] = what.to_ne_bytes();
    let [e, f, g, h] = serial.to_ne_bytes();
    [subject, u64::from_ne_bytes([a, b, c, d, e, f, g, h])]
}

/// What a record is about, by the second part of its key.
fn what(rest: u64) -> u32 {
    let [a, b, c, d, ..] = rest.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

impl Program {
    fn of(subject: Subject) -> Result<Arc<Self>, Errno> {
        let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
        // One whose descriptors were closed records nothing more. What is left of it is closed with its last view.
        programs.retain(|p| p.is_whole() || Arc::strong_count(p) > 1);
        if let Some(program) = programs.iter().find(|p| p.subject == subject && p.is_whole()) {
            return Ok(Arc::clone(program));
        }
        if !cfg!(target_arch = "x86_64") {
            return Err(Errno::NOSYS);
        }
        let (lost, records) = (OwnFd::new(bpf::create_hash(8, ARENAS)?)?, OwnFd::new(bpf::create_hash(16, RECORDS)?)?);
        let code = assemble(subject, lost.as_raw_fd(), records.as_raw_fd());
        let program = OwnFd::new(bpf::load_raw_tracepoint(&code)?)?;
        let held = [(BpfClass::Map, &lost), (BpfClass::Map, &records), (BpfClass::Prog, &program)];
        let own = held.into_iter().filter_map(|(class, fd)| Some((class, bpf::id_of(fd)?))).collect();
        let (link, views, probes) = Default::default();
        let owner = ThisProcess::now();
        let program = Arc::new(Program { subject, lost, records, program, owner, own, link, views, probes });
        programs.push(Arc::clone(&program));
        Ok(program)
    }

    /// Whether this process loaded it, and its descriptors are still open here: if not, their numbers may be other files'.
    fn is_whole(&self) -> bool {
        self.owner == ThisProcess::now()
            && [&self.lost, &self.records, &self.program].into_iter().all(OwnFd::is_ours)
            && self.link().as_ref().is_none_or(|link| link.fd.is_ours())
    }

    /// The keys of all records; none if its descriptors were closed.
    fn keys(&self) -> Vec<[u64; 2]> {
        if self.records.is_ours() { bpf::keys(&self.records) } else { Vec::new() }
    }

    /// When what the record says was done.
    fn time_of(&self, key: &[u64; 2]) -> Option<u64> {
        if self.records.is_ours() { bpf::lookup(&self.records, key) } else { None }
    }

    fn link(&self) -> MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn probes(&self) -> MutexGuard<'_, HashSet<[u64; 2]>> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an object and closes it. None if it cannot be told from what this process makes meanwhile, or if the class has
    /// none that costs little.
    fn probe(&self, class: BpfClass) -> Option<Probe> {
        let own = || {
            let mine = |key: &[u64; 2]| key[0] == u64::from(std::process::id()) && what(key[1]) == objects(class)[0];
            self.keys().into_iter().filter(mine).collect::<HashSet<_>>()
        };
        let mut probes = self.probes();
        let before = own();
        let object = match class {
            BpfClass::Map => bpf::create_hash(8, 1),
            // r0 = 0; exit
            BpfClass::Prog => bpf::load_raw_tracepoint(&[0xb7, 0x95]),
            BpfClass::Link => return None,
        };
        let id = bpf::id_of(&object.ok()?)?;
        let after = own();
        let mut new = after.difference(&before);
        let (Some(key), None) = (new.next(), new.next()) else { return None };
        probes.insert(*key);
        Some(Probe { class, id, time: self.time_of(key)? })
    }

    fn attach(&self) -> Result<(), Errno> {
        let mut link = self.link();
        if link.is_none() {
            let fd = bpf::open_raw_tracepoint(SYS_EXIT, &self.program)?;
            let fd = OwnFd::new(fd)?;
            *link = Some(Link { id: bpf::id_of(&fd), fd });
        }
        Ok(())
    }
}

const SYS_EXIT: &CStr = c"sys_exit";

/// The cgroups of an arena's PID 1.
pub(crate) fn cgroups_of_init(proc: &OwnedFd) -> Vec<u8> {
    read_file(format!("/proc/self/fd/{}/1/cgroup", proc.as_raw_fd())).unwrap_or_default()
}
