//! Scope → resources. One file per kind; processes come from a [`source`].

mod arena;
mod born;
mod bound;
mod bpf;
mod calls;
mod cgroup;
mod changes;
mod context;
pub(crate) mod detail;

mod enter;
mod file;
mod in_flight;
mod ipc;
mod keys;
mod listings;
mod lock;
mod lock_file;
mod lookup;
mod loops;
mod mount;
pub(crate) mod mount_table;
mod namespace;
mod net;
mod netlink;
mod ns_cache;
mod open_settings;
mod options;
mod overlay;
mod pass;
pub(crate) mod proc_root;
pub(crate) mod process_files;
mod procfs;
pub(crate) mod reach;
pub(crate) mod read;
mod remote;
pub(crate) mod sockdiag;
pub(crate) mod sys;
mod sysctl;
pub(crate) mod task;
mod wait;
mod walk;

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use crate::arena::{ArenaView, proc_path};
use crate::coverage::{lower_for_gaps, lower_for_unreadable};
use crate::error::{Error, Result};
use crate::kind::{Kind, KindSet};
use crate::parse::nslink::NsType;
use crate::scope::Scope;
use crate::snapshot::{Level, Snapshot, Unreadable};
pub use arena::ObservedArena;
pub(crate) use calls::Calls;
pub(crate) use cgroup::{Hierarchy, directories_of as directories_of_cgroup, hierarchies};
use context::Context;
use enter::NsView;
pub use file::DEFAULT_ROOTS;
pub use listings::Remembered;
pub(crate) use lookup::{
    boot_id, cgroup_mounts, cgroups_of, children, file_clock_ns, is_process, minor_faults, newest_pid, process, sleeps,
    started_ns, uid_of,
};
pub(crate) use mount_table::{lasting_numbers as lasting_mount_numbers, numbers as mount_numbers};
use namespace::Namespaces;
pub use open_settings::OpenSettings;
pub use options::{Mappings, Options};
use pass::{NAMESPACES, NETWORK, ProcessSource, Sample, Selection, Wanted};
use proc_root::ProcRoot;
pub(crate) use proc_root::read_file;
use procfs::Procfs;
pub(crate) use reach::local_mounts_below;
pub use reach::{At, at};
pub use sysctl::prepare_settings;
pub(crate) use wait::{pressure, wait_for_change};
pub(crate) use walk::class_name;

/// The environment of a process, by its process id in the arena if there is one. None if it cannot be read, or not within
/// a second.
pub fn environment(pid: u32, arena: Option<&ArenaView>) -> Option<Vec<u8>> {
    let process = proc_path(arena, task::task_of(pid, arena).0);
    process_files::read_memory(&process, process_files::Part::Environment)
}

/// One observation at a time per process: the descriptors of another one would look like leaks.
static OBSERVER: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    OBSERVER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Observes. Leaves nothing behind and changes nothing.
///
/// # Errors
/// [`Error::Usage`] for a scope that does not exist; [`Error::Io`] when `/proc` itself cannot be read. The snapshot's
/// coverage lists everything else that could not be seen.
pub fn snapshot(options: &Options) -> Result<Snapshot> {
    let _alone = alone();
    let began = Instant::now();
    let root = ProcRoot::renew()?;
    let kinds = options.effective_kinds()?;
    let scope = if options.arena.is_some() { Scope::Arena } else { options.scope.clone() };
    let mut out = Snapshot::empty(scope, kinds);
    if let Some(arena) = &options.arena {
        arena.view.check()?;
        arena.begin_look(&root);
    }
    out.boot_id = boot_id()?;
    out.taken_ns = lookup::now_ns();
    out.own_ns = task::own_namespaces();
    out.roots = match &options.arena {
        _ if !kinds.contains(Kind::File) => Vec::new(),
        Some(arena) => {
            let (layers, roots) = (arena.view.layers.iter(), arena.view.roots.iter());
            layers.map(|l| &l.path).chain(roots.map(|(p, _)| p)).cloned().collect()
        }
        None => options.effective_roots(),
    };
    out.lock_paths.clone_from(&options.lock_files);
    let threads = if options.threads > 0 { options.threads } else { default_threads() };
    if let Some(why) = root.gap().filter(|_| options.arena.is_none()) {
        let of_processes = [Kind::Process, Kind::Fd, Kind::Mount, Kind::Ipc, Kind::Lock, Kind::Namespace, Kind::Net];
        for kind in of_processes.into_iter().filter(|kind| kinds.contains(*kind)) {
            out.coverage.lower(kind, Level::Partial, why);
        }
    }
    observe(options, kinds, threads, &root, &mut out)?;
    if let Some(arena) = &options.arena {
        // Otherwise what ended with it would count as gone by itself.
        arena.view.check()?;
    }
    if kinds.contains(Kind::Ipc) {
        // A file directly in /dev/shm is POSIX shared memory: one resource has one kind.
        let shm: std::collections::HashSet<_> = out.ipc.iter().filter(|i| i.birth.is_some()).map(|i| i.id).collect();
        let directly = |f: &crate::resource::File| {
            f.path.as_ref().strip_prefix(b"/dev/shm/").is_some_and(|name| !name.contains(&b'/'))
        };
        if out.files.iter().any(|f| directly(f)) {
            out.files.retain(|f| !(directly(f) && shm.contains(&f.ino)));
        }
    }
    out.normalise();
    out.beside = Some(out.coverage.clone());
    lower_for_unreadable(&out.unreadable.iter().collect::<Vec<_>>(), &mut out.coverage);
    lower_for_gaps(out.gaps.iter(), &mut out.coverage);
    out.took_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    Ok(out)
}

fn observe(options: &Options, kinds: KindSet, threads: usize, root: &Arc<ProcRoot>, out: &mut Snapshot) -> Result<()> {
    let wants_namespaces = kinds.any(&[Kind::Namespace, Kind::Mount, Kind::Ipc, Kind::Net]);
    let context = options.context();
    // An arena is observed completely too, with its own pids.
    let whole_host = matches!(out.scope, Scope::Host | Scope::Arena);
    let wanted = Wanted {
        // Outside the host scope, a lock belongs to the scope if the scope has a descriptor of its file.
        fds: kinds.any(&[Kind::Fd, Kind::Mount, Kind::Namespace])
            || kinds.contains(Kind::Lock) && (!whole_host || lock::some_are_hidden(context, out))
            || wants_namespaces && whole_host,
        namespaces: if wants_namespaces {
            NAMESPACES
        } else if whole_host && kinds.contains(Kind::Fd) {
            // Whether to ask which unix sockets have something in their queue, and so perhaps descriptors.
            &[NETWORK]
        } else {
            &[]
        },
        queues: !whole_host && kinds.contains(Kind::Fd),
        pins: kinds.contains(Kind::Mount),
        maps: kinds.contains(Kind::File),
        own: options.include_self && context.arena.is_none(),
    };
    let mut cgroups = None;
    let selection = match &out.scope.clone() {
        Scope::Host | Scope::Arena => Selection::All,
        Scope::Tree(pid) => Selection::Tree([&[*pid][..], &options.members].concat()),
        Scope::Cgroup(path) => {
            let scope = cgroups.insert(cgroup::CgroupScope::resolve(path)?);
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
    let mut hidden = [options.hidden_fds.as_slice(), &calls::own_fds()].concat();
    hidden.extend(options.remembered.own_fd());
    let procfs = Procfs::open(&hidden, options.mappings.clone(), Arc::clone(root), context.arena)?;
    note_rights(&procfs, out);
    let selection = match (selection, cgroups) {
        (Selection::Pids(before), Some(scope)) => {
            let zombies = procfs.zombies()?.into_iter().filter(|pid| !before.contains(pid));
            let ended: Vec<u32> = zombies.filter(|pid| scope.has(&lookup::cgroups_of(*pid, None))).collect();
            // In a chain, whoever lived before the zombies were looked for is one by now. Who lives now is read at once.
            let mut pids = scope.pids(&mut Snapshot::empty(out.scope.clone(), out.kinds));
            let others: Vec<u32> = before.into_iter().chain(ended).filter(|pid| !pids.contains(pid)).collect();
            pids.extend(others);
            Selection::Pids(pids)
        }
        (other, _) => other,
    };
    let pass = procfs.begin(&selection, wanted)?;
    let untied = Untied::of(out, options);
    let least = match options.arena.as_deref() {
        // The settings of the machine are a few hundred files.
        Some(arena) if kinds.contains(Kind::Sysctl) || arena.files.load(Ordering::Relaxed) > WORTH_A_THREAD => 2,
        // On a busy machine a thread waits for a processor for longer than a look takes that lists no directory.
        None if whole_host && untied.takes_long() => 2,
        _ => 1,
    };
    let threads = pass.worth(threads, least);
    std::thread::scope(|scope| {
        // If a thread cannot be started, the others do its share.
        let thread = || std::thread::Builder::new().name("leakcheck-proc".into());
        // Read processes before files: a process that has exited by then can leave nothing more.
        let read_and_observe = || {
            pass.read(threads);
            untied.observe()
        };
        let second = (threads > 1).then(|| thread().spawn_scoped(scope, read_and_observe).ok()).flatten();
        let more = (2..threads).filter_map(|_| thread().spawn_scoped(scope, || pass.read(threads)).ok());
        let more: Vec<_> = more.collect();
        pass.read(threads);
        out.gone = pass.gone();
        tied(pass.samples()?, options, wanted, out)?;
        out.absorb(untied.observe());
        if let Some(second) = second {
            out.absorb(second.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        more.into_iter().for_each(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        Ok(())
    })
}

/// Observes what comes after all processes were read but does not depend on them. Threads share it.
struct Untied<'a> {
    empty: Snapshot,
    options: &'a Options,
    /// The first of [`STEPS`] that no thread has started.
    next: AtomicUsize,
}

type Step = fn(&Options, &mut Snapshot);

/// Files first: they take the longest on a host.
const STEPS: [(Kind, Step); 4] = [
    (Kind::File, files),
    (Kind::Sysctl, |options, out| sysctl::collect(options.context(), out)),
    (Kind::Key, |_, out| keys::collect(out)),
    (Kind::Loop, |_, out| loops::collect(out)),
];

impl<'a> Untied<'a> {
    fn of(out: &Snapshot, options: &'a Options) -> Self {
        let empty = Snapshot { roots: out.roots.clone(), ..Snapshot::empty(out.scope.clone(), out.kinds) };
        Untied { empty, options, next: AtomicUsize::new(0) }
    }

    /// Whether a thread of its own for it is worthwhile on a host.
    fn takes_long(&self) -> bool {
        let much = !self.empty.roots.is_empty() || self.empty.kinds.contains(Kind::Sysctl);
        much && !self.options.remembered.is_listed()
    }

    /// Takes steps until none is left, and returns what they found.
    fn observe(&self) -> Snapshot {
        let mut out = self.empty.clone();
        let whole_host = matches!(out.scope, Scope::Host | Scope::Arena);
        while let Some((kind, step)) = STEPS.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            if *kind == Kind::File || whole_host && out.kinds.contains(*kind) {
                step(self.options, &mut out);
            }
        }
        out
    }
}

/// Appends the files below the roots, or those of the arena.
fn files(options: &Options, out: &mut Snapshot) {
    let (context, submounts) = (options.context(), options.submounts.as_deref());
    let mut walk = match options.arena.as_deref() {
        None if out.roots.is_empty() => return,
        None => file::walk(&out.roots, context, submounts, &options.remembered),
        Some(_) if !out.kinds.contains(Kind::File) => return,
        Some(arena) => {
            let table = arena.table.get(&arena.view);
            let mut walk = file::walk_arena(arena, context, submounts);
            out.gauges.insert("touched_files".to_owned(), overlay::walk(&arena.view, &mut arena.overlay(), &mut walk));
            if !arena.bound.is_empty() {
                let new = arena.bound.iter().map(|bound| bound.compare(&mut walk)).sum();
                out.gauges.insert("bound_new_files".to_owned(), new);
            }
            arena.born.compare(&arena.view.roots, &mut walk);
            match table.map(|table| arena.born.compare_mounts(&table.text, &mut walk)) {
                Ok(Ok(())) => {}
                Ok(Err(e)) => {
                    let why = format!("cannot read the arena's mountinfo: {e}");
                    out.coverage.lower(Kind::File, Level::Partial, why);
                }
                Err(e) => out.coverage.lower(Kind::File, Level::Partial, e.to_string()),
            }
            arena.files.store(walk.files.iter().count(), Ordering::Relaxed);
            walk
        }
    };
    out.files.append(&mut walk.files);
    out.root_directories.extend(walk.roots);
    out.submounts.extend(walk.submounts);
    out.gaps.extend(walk.unlisted);
    for gap in walk.gaps {
        out.coverage.lower(Kind::File, gap.level, gap.reason);
    }
}

/// Appends everything else: what processes hold or lead to, cgroups and BPF objects.
fn tied(mut samples: Vec<Sample>, options: &Options, wanted: Wanted, out: &mut Snapshot) -> Result<()> {
    let (kinds, context, arena) = (out.kinds, options.context(), options.arena.as_deref());
    let whole_host = matches!(out.scope, Scope::Host | Scope::Arena);
    if let Scope::Tree(pid) = options.scope
        && options.members.is_empty()
        && !samples.iter().any(|s| s.process.pid == pid)
    {
        return Err(Error::usage(format!("scope tree:{pid}: no such process: it has exited or is a kernel thread")));
    }
    note_refusals(&samples, context, out);
    if kinds.contains(Kind::File) {
        out.files.extend(file::mapped(&mut samples));
    }
    let held: &[Sample] = if wanted.namespaces.is_empty() { &[] } else { &samples };
    let mut namespaces = Namespaces::of(held, arena);
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
        in_flight::fill(&views, context, out);
    }
    if whole_host {
        host_kinds(kinds, &views, options, out);
    }
    if let Some(arena) = context.arena {
        note_limits(arena, out);
    }
    if kinds.contains(Kind::Lock) {
        lock::collect(whole_host, arena.map(|arena| &arena.host_devices), context, out);
    }
    if kinds.contains(Kind::Lockfile) {
        lock_file::collect(&options.lock_files, context, out);
    }
    if kinds.contains(Kind::Namespace) {
        namespaces.collect(out);
    }
    if !kinds.contains(Kind::Fd) {
        out.fds.clear();
    }
    Ok(())
}

fn host_kinds(kinds: KindSet, views: &[NsView], options: &Options, out: &mut Snapshot) {
    let context = options.context();
    if kinds.contains(Kind::Cgroup) {
        cgroup::collect(context, out);
    }
    let asked = |view: &&NsView| match view.ns_type {
        NsType::Ipc => kinds.contains(Kind::Ipc),
        NsType::Net => kinds.contains(Kind::Net),
        _ => false,
    };
    let asked: Vec<&NsView> = views.iter().filter(asked).collect();
    let (of_ipc, of_net) = {
        let mut cache = options.arena.as_deref().map(ObservedArena::ns);
        ns_cache::observe(&asked, context, cache.as_deref_mut())
    };
    if kinds.contains(Kind::Ipc) {
        ipc::collect(of_ipc, context, out);
    }
    if kinds.contains(Kind::Net) {
        net::collect(of_net, context, out);
    }
    if kinds.contains(Kind::Bpf) {
        bpf::collect(&calls::own_objects(), out);
    }
}

/// Limits of observing an arena.
fn note_limits(arena: &crate::arena::ArenaView, out: &mut Snapshot) {
    let shared = [
        (
            Kind::Loop,
            "loop devices belong to the whole machine: leakcheck attributes them to the arena by their backing file or by the arena's system calls",
        ),
        (
            Kind::Key,
            "keys belong to the whole machine: leakcheck attributes them to the arena by the arena's system calls",
        ),
        (
            Kind::Bpf,
            "BPF objects belong to the whole machine: leakcheck attributes them to the arena by the descriptors that hold them or by the arena's system calls",
        ),
        (Kind::Sysctl, "settings belong to the whole machine: nothing tells which process changed one"),
    ];
    for (kind, why) in shared.into_iter().filter(|(kind, _)| out.kinds.contains(*kind)) {
        out.coverage.lower(kind, Level::Full, why);
    }
    if out.kinds.contains(Kind::File) && !arena.not_covered.is_empty() {
        let why = format!("not covered: {}", arena.not_covered.join(", "));
        out.coverage.lower(Kind::File, Level::Partial, why);
    }
}

fn take_processes(samples: Vec<Sample>, kinds: KindSet, options: &Options, out: &mut Snapshot) {
    // An arena's pids are not our pids.
    let own = if options.arena.is_some() { 0 } else { std::process::id() };
    out.processes.reserve(samples.len());
    out.fds.reserve(samples.iter().map(|s| s.fds.len()).sum());
    for sample in samples {
        // The observer itself is not a leak; its descriptors are dropped unless they were requested.
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

fn note_refusals(samples: &[Sample], context: Context<'_>, out: &mut Snapshot) {
    let by_table = matches!(out.scope, Scope::Host) && !lock::some_are_hidden(context, out);
    for sample in samples {
        if sample.covered {
            let why = format!("a mount covers /proc/{}", sample.process.pid);
            out.coverage.lower(Kind::Process, Level::Partial, why);
        }
        if let Some((what, hides)) = &sample.refused {
            out.unreadable.push(Unreadable {
                pid: sample.process.pid,
                start: sample.process.start,
                what: what.clone(),
                // `/proc/locks` lists them whichever process holds them.
                hides: hides.iter().filter(|kind| *kind != Kind::Lock || !by_table).collect(),
            });
        }
    }
}

/// What the observer cannot see of any process because of its rights.
fn note_rights(procfs: &Procfs, out: &mut Snapshot) {
    let effective = rustix::thread::capabilities(None).map(|sets| sets.effective);
    out.may_trace = effective.is_ok_and(|set| set.contains(rustix::thread::CapabilitySet::SYS_PTRACE));
    if out.may_trace {
        return;
    }
    if let Some(option) = procfs.hides() {
        let why = format!("/proc is mounted with {option}, which hides processes that this user cannot trace");
        for kind in [Kind::Process, Kind::Fd, Kind::Mount, Kind::Ipc, Kind::Namespace, Kind::Net] {
            if out.kinds.contains(kind) {
                out.coverage.lower(kind, Level::Partial, why.clone());
            }
        }
    }
}

/// Number of files in an arena for which a second thread is worthwhile. Its start, its end and what two processors
/// that use the same memory cost is as much as a quarter of a look at a small arena.
const WORTH_A_THREAD: usize = 300;

fn default_threads() -> usize {
    // The standard library reads a dozen cgroup files for each call.
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| std::thread::available_parallelism().map_or(1, |n| n.get().min(4)))
}
