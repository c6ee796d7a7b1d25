//! Scope → resources. One file a kind; processes come from a [`source`].

mod born;
mod bound;
mod bpf;
pub(crate) mod calls;
mod cgroup;
pub(crate) mod detail;
pub(crate) mod door;
mod doors;
mod enter;
mod file;
mod in_flight;
mod ipc;
mod keys;
mod lock;
mod lock_file;
mod loops;
mod mount;
mod namespace;
mod net;
mod netlink;
mod overlay;
pub(crate) mod procfs;
pub(crate) mod reach;
pub(crate) mod read;
pub(crate) mod sockdiag;
mod source;
pub(crate) mod sys;
mod sysctl;
mod wait;

use std::collections::HashSet;
use std::os::fd::RawFd;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::{Instant, SystemTime};

use crate::arena::{ArenaView, proc_path};
use crate::error::{Error, Result};
use crate::gap::{lower_for_gaps, lower_for_unreadable};
use crate::kind::{Kind, KindSet};
use crate::parse::nslink::NsType;
use crate::scope::Scope;
use crate::snapshot::{Level, Snapshot, Submount, Unreadable};
pub(crate) use born::Born;
pub(crate) use bound::Bound;
pub(crate) use cgroup::{Hierarchy, hierarchies};
use door::Door;
pub(crate) use doors::Doors;
use enter::NsView;
pub use file::DEFAULT_ROOTS;
pub(crate) use file::class_name;
pub(crate) use mount::Listed;
use namespace::Namespaces;
pub(crate) use overlay::Judged;
use procfs::Procfs;
pub use reach::{At, at};
pub(crate) use reach::{local_mounts_below, numbers as mount_numbers};
pub(crate) use read::read_file;
use source::{NAMESPACES, NETWORK, ProcessSource, Sample, Selection, Wanted};
pub(crate) use wait::{pressure, wait_for_change};

/// What to observe.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to look at.
    pub scope: Scope,
    /// What to look for; none means every kind that the scope can delimit.
    pub kinds: Option<KindSet>,
    /// Roots of the file kind; none means [`DEFAULT_ROOTS`] in the host scope and no files elsewhere.
    pub roots: Option<Vec<PathBuf>>,
    /// Which of the file systems mounted below the roots are looked at too; none means all local ones. What appears later is a
    /// mount, and its files are no more than that.
    pub submounts: Option<Vec<Submount>>,
    /// Which mounts a path may lead into, by the numbers of statx(2); none means all that answer. What the run mounts over a path may
    /// not.
    pub old_mounts: Option<Arc<HashSet<u64>>>,
    /// Lock files, or directories of them.
    pub lock_files: Vec<PathBuf>,
    /// Threads for the process pass; 0 means as many as there are CPUs, at most four.
    pub threads: usize,
    /// Whether the calling process' own descriptors count.
    pub include_self: bool,
    /// In a `tree:` scope further processes that belong to it, with what descends from them: orphans have left the tree.
    pub members: Vec<u32>,
    /// Descriptors of the calling process that are the observer's.
    pub hidden_fds: Vec<RawFd>,
    /// The arena to look at, instead of what `scope` and `roots` say.
    pub arena: Option<Arc<ArenaView>>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            scope: Scope::Host,
            kinds: None,
            roots: None,
            submounts: None,
            old_mounts: None,
            lock_files: Vec::new(),
            threads: 0,
            include_self: false,
            members: Vec::new(),
            hidden_fds: Vec::new(),
            arena: None,
        }
    }
}

impl Options {
    /// The options that a snapshot was taken with.
    pub fn like(snapshot: &Snapshot, include_self: bool) -> Self {
        Options {
            scope: snapshot.scope.clone(),
            kinds: Some(snapshot.kinds),
            roots: (snapshot.kinds.contains(Kind::File) && snapshot.scope != Scope::Arena)
                .then(|| snapshot.roots.clone()),
            submounts: Some(snapshot.submounts.clone()),
            lock_files: snapshot.lock_paths.clone(),
            include_self,
            arena: snapshot.arena.clone(),
            ..Options::default()
        }
    }

    /// The kinds that a snapshot with these options looks for.
    ///
    /// # Errors
    /// [`Error::Usage`] when a kind was named that the scope cannot delimit.
    pub fn effective_kinds(&self) -> Result<KindSet> {
        match (&self.arena, &self.scope) {
            (None, Scope::Arena) => return Err(Error::usage("scope arena: which one? Give the arena itself")),
            (Some(_), Scope::Host | Scope::Arena) if self.roots.is_none() => {}
            (Some(_), Scope::Host | Scope::Arena) => {
                return Err(Error::usage("an arena's files are all looked at: declare no roots beside it"));
            }
            (Some(_), other) => return Err(Error::usage(format!("scope {other} and an arena exclude each other"))),
            (None, _) => {}
        }
        let mut possible: Vec<Kind> = self.scope.kinds().into();
        if self.roots.is_some() {
            possible.push(Kind::File);
        }
        if !self.lock_files.is_empty() {
            possible.push(Kind::Lockfile);
        }
        let possible: KindSet = possible.into_iter().collect();
        match self.kinds {
            // Of the whole machine, and nobody's: a guard looks at them all the same.
            None if self.arena.is_some() => Ok(possible.iter().filter(|kind| *kind != Kind::Sysctl).collect()),
            None => Ok(possible),
            Some(asked) if asked.and(possible) == asked => Ok(asked),
            Some(asked) => {
                let wrong: Vec<_> = asked.iter().filter(|k| !possible.contains(*k)).map(Kind::as_str).collect();
                Err(Error::usage(format!(
                    "scope {} cannot delimit {}: use scope host, or declare --roots or --lock-files",
                    self.scope,
                    wrong.join(" and ")
                )))
            }
        }
    }

    /// The roots of the file kind.
    pub fn effective_roots(&self) -> Vec<PathBuf> {
        match &self.roots {
            _ if self.arena.is_some() => Vec::new(),
            Some(roots) => roots.clone(),
            None if self.scope == Scope::Host => {
                let cgroups = file::is_tmpfs_of_cgroups().then_some(file::CGROUPS);
                DEFAULT_ROOTS.into_iter().chain(cgroups).map(PathBuf::from).collect()
            }
            None => Vec::new(),
        }
    }
}

/// One observation at a time in a process: another one's descriptors would be seen as leaks.
static OBSERVER: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    OBSERVER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Observes. Leaves nothing behind and changes nothing.
///
/// # Errors
/// [`Error::Usage`] for a scope that does not exist; [`Error::Io`] when `/proc` itself cannot be read. What else cannot be
/// seen is in the snapshot's coverage.
pub fn snapshot(options: &Options) -> Result<Snapshot> {
    let _alone = alone();
    let began = Instant::now();
    let door = Door::renew()?;
    let kinds = options.effective_kinds()?;
    let scope = if options.arena.is_some() { Scope::Arena } else { options.scope.clone() };
    let mut out = Snapshot::empty(scope, kinds);
    if let Some(arena) = &options.arena {
        arena.check()?;
        out.arena = Some(Arc::clone(arena));
    }
    out.boot_id = boot_id()?;
    out.taken_ns = now_ns();
    out.own_ns = procfs::own_namespaces();
    out.roots = match &options.arena {
        _ if !kinds.contains(Kind::File) => Vec::new(),
        Some(arena) => {
            arena.layers.iter().map(|l| &l.path).chain(arena.roots.iter().map(|(p, _)| p)).cloned().collect()
        }
        None => options.effective_roots(),
    };
    out.lock_paths.clone_from(&options.lock_files);
    out.old_mounts.clone_from(&options.old_mounts);
    let threads = if options.threads > 0 { options.threads } else { default_threads() };
    if let Some(why) = door.gap().filter(|_| out.arena.is_none()) {
        let of_processes = [Kind::Process, Kind::Fd, Kind::Mount, Kind::Ipc, Kind::Lock, Kind::Namespace, Kind::Net];
        for kind in of_processes.into_iter().filter(|kind| kinds.contains(*kind)) {
            out.coverage.lower(kind, Level::Partial, why);
        }
    }
    observe(options, kinds, threads, &door, &mut out)?;
    if kinds.contains(Kind::Ipc) {
        // A file directly in /dev/shm is POSIX shared memory: one resource, one kind.
        let shm: std::collections::HashSet<_> = out.ipc.iter().filter(|i| i.birth.is_some()).map(|i| i.id).collect();
        let directly = |f: &crate::resource::File| {
            f.path.as_ref().strip_prefix(b"/dev/shm/").is_some_and(|name| !name.contains(&b'/'))
        };
        out.files.retain(|f| !(directly(f) && shm.contains(&f.ino)));
    }
    out.normalise();
    out.beside = Some(out.coverage.clone());
    lower_for_unreadable(&out.unreadable.iter().collect::<Vec<_>>(), &mut out.coverage);
    lower_for_gaps(out.gaps.iter(), &mut out.coverage);
    out.took_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    Ok(out)
}

fn observe(options: &Options, kinds: KindSet, threads: usize, door: &Arc<Door>, out: &mut Snapshot) -> Result<()> {
    let wants_namespaces = kinds.any(&[Kind::Namespace, Kind::Mount, Kind::Ipc, Kind::Net]);
    let arena = out.arena.clone();
    // Of an arena everything is looked at too, and by its own pids.
    let whole_host = matches!(out.scope, Scope::Host | Scope::Arena);
    let wanted = Wanted {
        // Outside the host scope a lock is the scope's by the descriptors that are open on its file.
        fds: kinds.any(&[Kind::Fd, Kind::Mount, Kind::Namespace])
            || kinds.contains(Kind::Lock) && (!whole_host || lock::some_are_hidden(out))
            || wants_namespaces && whole_host,
        namespaces: if wants_namespaces {
            NAMESPACES
        } else if whole_host && kinds.contains(Kind::Fd) {
            // Where to ask which unix sockets have something in their queue, and so perhaps descriptors.
            &[NETWORK]
        } else {
            &[]
        },
        queues: !whole_host && kinds.contains(Kind::Fd),
        pins: kinds.contains(Kind::Mount),
        maps: kinds.contains(Kind::File),
        own: options.include_self && arena.is_none(),
    };
    let selection = match &out.scope.clone() {
        Scope::Host | Scope::Arena => Selection::All,
        Scope::Tree(pid) => Selection::Tree([&[*pid][..], &options.members].concat()),
        Scope::Cgroup(path) => {
            let scope = cgroup::CgroupScope::resolve(path)?;
            let pids = scope.pids(out);
            if !kinds.contains(Kind::Cgroup) {
                out.cgroups.clear();
            }
            Selection::Pids(pids)
        }
    };
    let needs_processes = kinds.any(&[
        Kind::Process,
        Kind::Fd,
        Kind::Mount,
        Kind::Lock,
        Kind::File,
        Kind::Ipc,
        Kind::Namespace,
        Kind::Net,
    ]);
    let selection = if needs_processes || !whole_host { selection } else { Selection::Pids(Vec::new()) };
    let hidden = [options.hidden_fds.as_slice(), &calls::own_fds()].concat();
    let procfs = Procfs::open(&hidden, Arc::clone(door), arena.as_deref())?;
    note_rights(&procfs, out);
    let pass = procfs.begin(&selection, wanted)?;
    let untied = Untied::of(out, options.submounts.as_deref());
    let threads = pass.worth(threads, if whole_host { 2 } else { 1 });
    std::thread::scope(|scope| {
        // Where no thread can be had, the others do its share.
        let thread = || std::thread::Builder::new().name("leakcheck-proc".into());
        // Processes first, and what they may leave afterwards: who was not seen any more has left what it will.
        let read_and_look = || {
            pass.read(threads);
            untied.look()
        };
        let second = (threads > 1).then(|| thread().spawn_scoped(scope, read_and_look).ok()).flatten();
        let more = (2..threads).filter_map(|_| thread().spawn_scoped(scope, || pass.read(threads)).ok());
        let more: Vec<_> = more.collect();
        pass.read(threads);
        out.gone = pass.gone();
        tied(pass.samples()?, options, wanted, out)?;
        let joined =
            |thread: ScopedJoinHandle<'_, Snapshot>| thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        out.absorb(second.map_or_else(|| untied.look(), joined));
        more.into_iter().for_each(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        Ok(())
    })
}

/// What is looked for once all processes were read, but without a word of them: a thread of its own can do it.
struct Untied<'a>(Snapshot, Option<&'a [Submount]>);

impl<'a> Untied<'a> {
    fn of(out: &Snapshot, submounts: Option<&'a [Submount]>) -> Self {
        let nothing = Snapshot::empty(out.scope.clone(), out.kinds);
        let (roots, arena, old_mounts) = (out.roots.clone(), out.arena.clone(), out.old_mounts.clone());
        Untied(Snapshot { roots, arena, old_mounts, ..nothing }, submounts)
    }

    fn look(&self) -> Snapshot {
        let mut out = self.0.clone();
        files(self.1, &mut out);
        let whole_host = matches!(out.scope, Scope::Host | Scope::Arena);
        if whole_host && out.kinds.contains(Kind::Loop) {
            loops::collect(&mut out);
        }
        if whole_host && out.kinds.contains(Kind::Key) {
            keys::collect(&mut out);
        }
        if whole_host && out.kinds.contains(Kind::Sysctl) {
            sysctl::collect(&mut out);
        }
        out
    }
}

/// Appends the files below the roots, or of the arena.
fn files(submounts: Option<&[Submount]>, out: &mut Snapshot) {
    let walk = match out.arena.as_deref() {
        None => file::walk(out, submounts),
        Some(_) if !out.kinds.contains(Kind::File) => return,
        Some(arena) => {
            let mut walk = file::walk_arena(arena, out, submounts);
            out.gauges.insert("touched_files".to_owned(), overlay::walk(arena, &mut walk));
            if !arena.bound.is_empty() {
                let new = arena.bound.iter().map(|bound| bound.compare(&mut walk)).sum();
                out.gauges.insert("bound_new_files".to_owned(), new);
            }
            arena.born.compare(&arena.roots, &mut walk);
            match read_file(proc_path(Some(arena), "1/mountinfo")) {
                Ok(text) => match crate::parse::mountinfo::parse(&text) {
                    Ok(now) => arena.born.compare_mounts(&now, &mut walk),
                    Err(e) => out.coverage.lower(Kind::File, Level::Partial, format!("the arena's mountinfo: {e}")),
                },
                Err(e) => out.coverage.lower(Kind::File, Level::Partial, e.to_string()),
            }
            walk
        }
    };
    out.files.extend(walk.files);
    out.submounts.extend(walk.submounts);
    out.gaps.extend(walk.unlisted);
    for gap in walk.gaps {
        out.coverage.lower(Kind::File, gap.level, gap.reason);
    }
}

/// Appends all else: what processes hold or lead to, and cgroups and BPF objects.
fn tied(mut samples: Vec<Sample>, options: &Options, wanted: Wanted, out: &mut Snapshot) -> Result<()> {
    let (kinds, arena) = (out.kinds, out.arena.clone());
    let whole_host = matches!(out.scope, Scope::Host | Scope::Arena);
    if let Scope::Tree(pid) = options.scope
        && options.members.is_empty()
        && !samples.iter().any(|s| s.process.pid == pid)
    {
        return Err(Error::usage(format!("scope tree:{pid}: no such process: it has ended, or is a kernel thread")));
    }
    note_refusals(&samples, out);
    if kinds.contains(Kind::File) {
        out.files.extend(file::mapped(&mut samples));
    }
    let held: &[Sample] = if wanted.namespaces.is_empty() { &[] } else { &samples };
    let mut namespaces = Namespaces::of(held, arena.as_ref());
    if kinds.any(&[Kind::Mount, Kind::Namespace, Kind::Net, Kind::Ipc]) {
        namespaces.mounts(out);
        if kinds.contains(Kind::Mount) {
            mount::collect_detached(&samples, arena.is_some(), out);
        } else {
            out.mounts.clear();
        }
    }
    take_processes(samples, kinds, options, out);
    let views = if whole_host { namespaces.views(&out.own_ns) } else { Vec::new() };
    if whole_host && kinds.contains(Kind::Fd) {
        in_flight::fill(&views, out);
    }
    if whole_host {
        host_kinds(kinds, &views, out);
    }
    if let Some(arena) = &arena {
        note_limits(arena, out);
    }
    if kinds.contains(Kind::Lock) {
        lock::collect(whole_host, out);
    }
    if kinds.contains(Kind::Lockfile) {
        lock_file::collect(&options.lock_files, out);
    }
    if kinds.contains(Kind::Namespace) {
        namespaces.collect(out);
    }
    if !kinds.contains(Kind::Fd) {
        out.fds.clear();
    }
    Ok(())
}

fn host_kinds(kinds: KindSet, views: &[NsView], out: &mut Snapshot) {
    if kinds.contains(Kind::Cgroup) {
        cgroup::collect(out);
    }
    let asked = |view: &&NsView| match view.ns_type {
        NsType::Ipc => kinds.contains(Kind::Ipc),
        NsType::Net => kinds.contains(Kind::Net),
        _ => false,
    };
    let asked: Vec<&NsView> = views.iter().filter(asked).collect();
    let (of_ipc, of_net) = doors::look(&asked, out.arena.as_deref());
    if kinds.contains(Kind::Ipc) {
        ipc::collect(of_ipc, out);
    }
    if kinds.contains(Kind::Net) {
        net::collect(of_net, out);
    }
    if kinds.contains(Kind::Bpf) {
        bpf::collect(out);
    }
}

/// What an arena cannot tell.
fn note_limits(arena: &ArenaView, out: &mut Snapshot) {
    let shared = [
        (Kind::Loop, "loop devices are the whole machine's: tied to the arena by their backing file, or by its calls"),
        (Kind::Key, "keys are the whole machine's: tied to the arena by its calls"),
        (
            Kind::Bpf,
            "BPF objects are the whole machine's: tied to the arena by the descriptors that hold them, or by its calls",
        ),
        (Kind::Sysctl, "settings are the whole machine's: nothing tells who changed one"),
    ];
    for (kind, why) in shared.into_iter().filter(|(kind, _)| out.kinds.contains(*kind)) {
        out.coverage.lower(kind, Level::Full, why);
    }
    if out.kinds.contains(Kind::File) && !arena.not_covered.is_empty() {
        let why = format!("not seen: {}", arena.not_covered.join(", "));
        out.coverage.lower(Kind::File, Level::Partial, why);
    }
}

fn take_processes(samples: Vec<Sample>, kinds: KindSet, options: &Options, out: &mut Snapshot) {
    // The pids of an arena are none of ours.
    let own = if out.arena.is_some() { 0 } else { std::process::id() };
    out.processes.reserve(samples.len());
    out.fds.reserve(samples.iter().map(|s| s.fds.len()).sum());
    for sample in samples {
        // The observer itself is no leak; its descriptors are dropped unless they are what is asked about.
        if sample.process.pid != own || options.include_self {
            out.fds.extend(sample.fds);
        }
        if sample.process.pid == own {
            out.observer = Some((own, sample.process.start));
        }
        out.processes.push(sample.process);
    }
    if !kinds.any(&[Kind::Process, Kind::Fd, Kind::Lock]) {
        out.processes.clear();
    }
}

fn note_refusals(samples: &[Sample], out: &mut Snapshot) {
    let by_table = matches!(out.scope, Scope::Host) && !lock::some_are_hidden(out);
    for sample in samples {
        if sample.covered {
            let why = format!("/proc/{} is covered by a mount", sample.process.pid);
            out.coverage.lower(Kind::Process, Level::Partial, why);
        }
        if let Some((what, hides)) = &sample.refused {
            out.unreadable.push(Unreadable {
                pid: sample.process.pid,
                start: sample.process.start,
                what: what.clone(),
                // `/proc/locks` lists them whoever holds them.
                hides: hides.iter().filter(|kind| *kind != Kind::Lock || !by_table).collect(),
            });
        }
    }
}

/// What the observer's rights keep from it, whichever process it looks at.
fn note_rights(procfs: &Procfs, out: &mut Snapshot) {
    let effective = rustix::thread::capabilities(None).map(|sets| sets.effective);
    out.may_trace = effective.is_ok_and(|set| set.contains(rustix::thread::CapabilitySet::SYS_PTRACE));
    if out.may_trace {
        return;
    }
    if let Some(option) = procfs.hides() {
        let why = format!("/proc is mounted with {option}: a process that may not be traced is not listed");
        for kind in [Kind::Process, Kind::Fd, Kind::Mount, Kind::Ipc, Kind::Namespace, Kind::Net] {
            if out.kinds.contains(kind) {
                out.coverage.lower(kind, Level::Partial, why.clone());
            }
        }
    }
}

fn default_threads() -> usize {
    // The standard library reads a dozen cgroup files for each answer.
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| std::thread::available_parallelism().map_or(1, |n| n.get().min(4)))
}

pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The clock that file systems stamp births with, which lags behind by at most a tick (clock_gettime(2),
/// `CLOCK_REALTIME_COARSE`): no file that is made from now on is older, and one that is a tick older at most looks as young.
pub(crate) fn file_clock_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

pub(crate) fn boot_id() -> Result<String> {
    static BOOT: OnceLock<String> = OnceLock::new();
    if let Some(known) = BOOT.get() {
        return Ok(known.clone());
    }
    let text = read_file("/proc/sys/kernel/random/boot_id")?;
    Ok(BOOT.get_or_init(|| String::from_utf8_lossy(&text).trim().to_owned()).clone())
}

/// Mount points of the cgroup hierarchies.
pub(crate) fn cgroup_mounts() -> Vec<PathBuf> {
    cgroup::hierarchies().map(|all| all.into_iter().map(|h| h.mount).collect()).unwrap_or_default()
}

/// Hierarchy and path of each cgroup of a process, named as in [`crate::resource::Cgroup`].
pub(crate) fn cgroups_of(pid: u32, arena: Option<&ArenaView>) -> Vec<(String, String)> {
    let text = read_file(proc_path(arena, format_args!("{pid}/cgroup"))).unwrap_or_default();
    let name = |e: &crate::parse::cgroup::CgroupEntry<'_>| match e.is_v2() {
        true => "v2".to_owned(),
        false => crate::text::Text::from(e.controllers).to_string(),
    };
    let entries = crate::parse::cgroup::parse(&text).unwrap_or_default();
    entries.iter().map(|e| (name(e), crate::text::Text::from(e.path).to_string())).collect()
}

/// Effective user id of a process.
pub(crate) fn uid_of(pid: u32, arena: Option<&ArenaView>) -> Option<u32> {
    let text = read_file(proc_path(arena, format_args!("{pid}/status"))).ok()?;
    crate::parse::status::parse(&text).ok()?.uid.map(|uids| uids[1])
}

/// The process that has this id now.
pub(crate) fn process(pid: u32, arena: Option<&ArenaView>) -> Option<crate::resource::Process> {
    let mut process = procfs::process(&read_file(proc_path(arena, format_args!("{pid}/stat"))).ok()?)?;
    if matches!(process.state, 'Z' | 'X' | 'x') {
        // Its first thread may have ended and others go on.
        let (task, first) = procfs::task_of(pid, arena);
        if !first {
            process.state = procfs::process(&read_file(proc_path(arena, format_args!("{task}/stat"))).ok()?)?.state;
        }
    }
    Some(process)
}

/// The children of a process' first thread, zombies as well (proc_tid_children(5)); none where the kernel does not list them. Each is read
/// under the lock that a birth, an end and an adoption take: whose parent ends is the child of its new one before that shows.
pub(crate) fn children(pid: u32, arena: Option<&ArenaView>) -> Option<Vec<u32>> {
    let text = read_file(proc_path(arena, format_args!("{pid}/task/{pid}/children"))).ok()?;
    Some(std::str::from_utf8(&text).ok()?.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect())
}

/// Whether a number is that of a process, and not of one of its threads, which `/proc` has as well but does not list (proc(5)).
pub(crate) fn is_process(pid: u32) -> bool {
    let text = read_file(format!("/proc/{pid}/status")).unwrap_or_default();
    crate::parse::status::parse(&text).is_ok_and(|status| status.tgid == Some(pid.cast_signed()))
}

/// The id that was given last in our pid namespace, to a process or a thread (proc_loadavg(5), the last field).
pub(crate) fn newest_pid() -> Option<u32> {
    let text = read_file("/proc/loadavg").ok()?;
    std::str::from_utf8(&text).ok()?.split_ascii_whitespace().next_back()?.parse().ok()
}
