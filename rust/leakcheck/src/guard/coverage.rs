//! The coverage of the two observations, limited to places where the run could have made something.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use crate::coverage::{HIDDEN_KEYS, QUEUES, lower_for_gaps, lower_for_unreadable};
use crate::judge::attribute::{Attribution, Attributor, Owner, Provenance};
use crate::kind::{Kind, KindSet};
use crate::observe::ObservedArena;
use crate::parse::nslink::NsType;
use crate::resource::{File, Identified, Ipc, IpcClass, Lock, Resource};
use crate::rights::Rights;
use crate::scope::Scope;
use crate::snapshot::{CoverageMap, Directory, Gap, Level, Snapshot, Unreadable, Unseen};
use crate::text::Text;
use crate::watch::Elevation;

/// What is known about the run's rights.
#[derive(Default)]
pub(super) struct Reach {
    /// None if the run is not known: then it may have had any rights.
    rights: Option<Rights>,
    elevation: Option<Elevation>,
}

impl Reach {
    /// The rights of the runs of this process from now on. If they are not known, nothing that `baseline` did not see
    /// is excused.
    pub(super) fn of_own_runs(baseline: &Snapshot) -> Self {
        let rights = if baseline.scope == Scope::Host { Rights::own() } else { None };
        let programs = || {
            use std::os::unix::ffi::OsStrExt;
            let may_run = |f: &&Arc<File>| f.class == "file" && f.mapped_by.is_none() && f.mode & 0o111 != 0;
            baseline.files.iter().filter(may_run).map(|f| std::ffi::OsStr::from_bytes(f.path.as_ref()).into())
        };
        let elevation = rights.as_ref().filter(|r| r.more != 0).map(|r| Elevation::start(programs(), r.more));
        Reach { rights, elevation }
    }

    /// The rights of whatever runs in an arena. If they are not known, nothing is excused.
    pub(super) fn of_arena(arena: Option<&ObservedArena>) -> Self {
        Reach { rights: arena.and_then(|arena| Rights::of_arena(&arena.view)), elevation: None }
    }

    /// Descriptors of the observer.
    pub(super) fn own_fd(&self) -> Option<std::os::fd::RawFd> {
        self.elevation.as_ref()?.own_fd()
    }

    /// Whether it belongs to another user that the run could not become, so that it is not the run's.
    pub(super) fn is_foreign<P: Provenance>(
        &self,
        resource: &Resource,
        baseline: &Snapshot,
        attributor: &Attributor<'_, P>,
    ) -> bool {
        let Some(rights) = self.rights.as_ref().filter(|rights| rights.is_ordinary()) else { return false };
        // Older files may have been moved or linked there; the owner of other objects can give them away.
        let new = |birth: Option<i64>| birth.is_some_and(|birth| birth > baseline.taken_ns);
        let uid = match resource {
            Resource::Process(p) => attributor.uid(p.pid),
            Resource::File(f) if f.mapped_by.is_none() && f.link == 0 && new(f.birth) => Some(f.uid),
            Resource::Ipc(i) if i.class == IpcClass::PosixShm && new(i.birth) => Some(i.uid),
            Resource::Net(n) => n.uid,
            Resource::Key(k) => Some(k.uid),
            Resource::Cgroup(c) => std::fs::metadata(c.dir.as_path()).ok().map(|meta| meta.uid()),
            _ => None,
        };
        uid.is_some_and(|uid| !rights.uids.contains(&uid))
            && self.elevation.as_ref().is_none_or(|elevation| elevation.used().is_none())
    }

    /// Why nothing can be there, or why that is not known.
    fn excuse(&self, gap: &Gap, later: Option<&Gap>) -> Result<String, Option<String>> {
        let excuse = self.rights.as_ref().and_then(|rights| rights.excuse(gap, later)).ok_or(None)?;
        match self.elevation.as_ref().and_then(Elevation::used) {
            Some(more) => Err(Some(more)),
            None => Ok(excuse),
        }
    }
}

/// The worse coverage of both observations. It ignores gaps in which nothing of the run can hide: processes from before
/// that are not the run's, and places where the run could create nothing. The reason is recorded.
pub(super) fn coverage<P: Provenance>(
    before: &Snapshot,
    after: &Snapshot,
    asked: KindSet,
    attributor: &Attributor<'_, P>,
    reach: &Reach,
) -> CoverageMap {
    let beside = |s: &Snapshot| s.beside.as_ref().unwrap_or(&s.coverage).clone();
    let mut map = beside(before);
    map.merge(&beside(after));
    map.0.retain(|kind, _| asked.contains(*kind));
    let unreadable: Vec<&Unreadable> =
        after.unreadable.iter().filter(|u| matters(u, before, after, attributor, reach)).collect();
    lower_for_unreadable(&unreadable, &mut map);
    of_gaps(before, after, reach, &mut map);
    of_unmounted_cgroups(before, after, &mut map);
    of_locks_without_taker(before, after, &mut map);
    of_moved_roots(before, after, &mut map);
    for path in returned(before, after) {
        if map.0.contains_key(&Kind::File) {
            map.lower(
                Kind::File,
                Level::Partial,
                format!("{path} was missing when the baseline listed it, and has come back"),
            );
        }
    }
    map
}

/// How many more keys than before the quota counts beyond the list.
pub(super) fn new_hidden_keys(before: &Snapshot, after: &Snapshot) -> i64 {
    let hidden = |s: &Snapshot| s.gauges.get(HIDDEN_KEYS).copied().unwrap_or(0);
    hidden(after) - hidden(before)
}

/// Lowers `coverage` if there are `more` keys than before that nobody can view; `made` tells whether the run may have
/// made them.
pub(super) fn note_hidden_keys(more: i64, made: bool, coverage: &mut CoverageMap) {
    if more > 0 && coverage.0.contains_key(&Kind::Key) {
        let level = if made { Level::Partial } else { Level::Full };
        coverage.lower(Kind::Key, level, format!("cannot view {more} new keys"));
    }
}

/// Whether something of the run may hide in an unreadable process.
fn matters<P: Provenance>(
    u: &Unreadable,
    before: &Snapshot,
    after: &Snapshot,
    attributor: &Attributor<'_, P>,
    reach: &Reach,
) -> bool {
    let there_before = before.unreadable.iter().any(|old| (old.pid, old.start) == (u.pid, u.start));
    match after.scope {
        // It is a member of the scope, and everything in the scope is the run's.
        Scope::Tree(_) | Scope::Cgroup(_) => return true,
        Scope::Host | Scope::Arena => {}
    }
    match after.process(u.pid).map(|p| attributor.owner(&Resource::Process(p.clone()))) {
        // Between two snapshots everything that appeared counts, whichever process made it. Nobody can read a process
        // that is unreadable even with CAP_SYS_PTRACE.
        Some(Owner::Stranger) => !attributor.is_watched() && !after.may_trace,
        Some(Owner::Run(Attribution::Scope)) | None => !there_before,
        Some(Owner::Unknown) => {
            let process = after.process(u.pid).cloned().map(Resource::Process);
            !process.is_some_and(|process| reach.is_foreign(&process, before, attributor))
        }
        Some(Owner::Run(_)) => true,
    }
}

fn of_gaps(before: &Snapshot, after: &Snapshot, reach: &Reach, map: &mut CoverageMap) {
    let key = |gap: &Gap| match &gap.place {
        Unseen::Directory(Directory { path, .. }) => (gap.kind, Some(path.clone())),
        Unseen::Nftables | Unseen::Bpf | Unseen::Keys | Unseen::Queues => (gap.kind, None),
    };
    let later: HashMap<_, &Gap> = after.gaps.iter().map(|gap| (key(gap), gap)).collect();
    let earlier: HashSet<_> = before.gaps.iter().filter(|g| g.level != Level::Full).map(key).collect();
    let known = before.gaps.iter().map(|gap| (gap, later.get(&key(gap)).copied()));
    let known = known.map(|(gap, later)| (gap, if is_gone(gap, later, after) { Some(gap) } else { later }));
    // If only the later observation could not read a place, the run may have been in it before it was closed.
    let new = after.gaps.iter().filter(|gap| !earlier.contains(&key(gap)));
    let new = new.map(|gap| (gap, Some(gap).filter(|gap| is_newborn(gap, before, after))));
    let mut left: Vec<&Gap> = Vec::new();
    let asked: KindSet = map.0.keys().copied().collect();
    for (gap, later) in known.chain(new).filter(|(gap, _)| gap.level != Level::Full && asked.contains(gap.kind)) {
        let grew = gap.place == Unseen::Queues && unlisted_queues(before, after).is_some();
        match reach.excuse(gap, later).and_then(|why| if grew { Err(None) } else { Ok(why) }) {
            Ok(why) => map.lower(gap.kind, Level::Full, why),
            Err(why) => {
                left.push(gap);
                why.into_iter().for_each(|why| map.lower(gap.kind, gap.level, why));
            }
        }
    }
    lower_for_gaps(left.into_iter(), map);
}

/// Whether a directory that the baseline could not list has been removed since.
fn is_gone(gap: &Gap, later: Option<&Gap>, after: &Snapshot) -> bool {
    let is_there = |d: &Directory| after.files.iter().any(|f| (f.dev, f.ino) == (d.dev, d.ino));
    match (&gap.place, later) {
        (Unseen::Directory(directory), None) => !is_there(directory),
        (Unseen::Directory(_), Some(later)) => later.level == Level::Full,
        _ => false,
    }
}

/// Whether a directory that could not be listed was made after the baseline.
fn is_newborn(gap: &Gap, before: &Snapshot, after: &Snapshot) -> bool {
    let Unseen::Directory(d) = &gap.place else { return false };
    let mut itself = after.files.iter().filter(|f| (f.dev, f.ino) == (d.dev, d.ino));
    itself.next().is_some_and(|f| f.birth.is_some_and(|birth| birth > before.taken_ns))
}

/// A new cgroup in a hierarchy that is not mounted here may be the run's, which can have mounted it, or anybody's.
fn of_unmounted_cgroups(before: &Snapshot, after: &Snapshot, map: &mut CoverageMap) {
    let known: HashSet<_> = before.unmounted_cgroups.iter().map(Identified::id).collect();
    let new = after.unmounted_cgroups.iter().find(|cgroup| !known.contains(&cgroup.id()));
    if let Some(c) = new.filter(|_| map.0.contains_key(&Kind::Cgroup)) {
        let why = format!(
            "cgroup {} {} is new, in a hierarchy that is not mounted here: who made it is not known",
            c.hierarchy, c.path
        );
        map.lower(Kind::Cgroup, Level::Partial, why);
    }
}

/// A new flock(2) whose taker has ended, in a pid namespace: only there is its process id lost with it. It lives on with
/// whoever shares the open file, and the run may have been given the file.
fn of_locks_without_taker(before: &Snapshot, after: &Snapshot, map: &mut CoverageMap) {
    let known: HashSet<_> = before.locks.iter().map(Identified::id).collect();
    let lost = |lock: &&Lock| lock.class == "flock" && lock.pid == 0 && !known.contains(&lock.id());
    let is_asked = after.scope == Scope::Host && map.0.contains_key(&Kind::Lock);
    if let Some(lock) = after.locks.iter().find(lost).filter(|_| is_asked) {
        let why = format!(
            "the taker of the new flock on inode {} has ended: this pid namespace does not tell who it was",
            lock.ino
        );
        map.lower(Kind::Lock, Level::Partial, why);
    }
}

/// A root that is missing, or another directory: the files of the one that the baseline listed may be elsewhere now.
fn of_moved_roots(before: &Snapshot, after: &Snapshot, map: &mut CoverageMap) {
    let is_asked = map.0.contains_key(&Kind::File);
    for (old, new) in moved_roots(before, after).filter(|_| is_asked) {
        let what = if new.is_some() { "another directory than at" } else { "gone since" };
        let why = format!("root {} is {what} the baseline: its files may be elsewhere", old.path);
        map.lower(Kind::File, Level::Partial, why);
    }
}

/// The roots that were another directory at the baseline, and that one.
fn moved_roots<'a>(
    before: &'a Snapshot,
    after: &'a Snapshot,
) -> impl Iterator<Item = (&'a Directory, Option<&'a Directory>)> {
    let pairs = before.root_directories.iter().zip(&after.root_directories);
    let pairs = pairs.filter_map(|(old, new)| Some((old.as_ref()?, new.as_ref())));
    // What could not be opened is a gap already.
    let opened = pairs.filter(|(old, new)| old.dev != 0 && new.is_none_or(|new| new.dev != 0));
    opened.filter(|(old, new)| new.is_none_or(|new| (old.dev, old.ino) != (new.dev, new.ino)))
}

/// Directories that the baseline found but could not list because they were gone, and that exist again: moved away and
/// back.
fn returned(before: &Snapshot, after: &Snapshot) -> Vec<Text> {
    let gone: HashSet<&Text> = before.gaps.iter().filter(|gap| gap.level == Level::Full).filter_map(path).collect();
    if gone.is_empty() {
        return Vec::new();
    }
    let of = |s: &Snapshot| -> HashSet<(Text, u64, u64, Option<i64>)> {
        let all = s.files.iter().filter(|f| gone.contains(&f.path));
        all.map(|f| (f.path.clone(), f.dev, f.ino, f.birth)).collect()
    };
    of(before).intersection(&of(after)).map(|(path, ..)| path.clone()).collect()
}

fn path(gap: &Gap) -> Option<&Text> {
    match &gap.place {
        Unseen::Directory(directory) => Some(&directory.path),
        Unseen::Nftables | Unseen::Bpf | Unseen::Keys | Unseen::Queues => None,
    }
}

/// Removes what only looks new: files below directories that the baseline could not list, and below a root that is
/// another directory now. Files that the run made according to the evidence stay.
pub(super) fn only_comparable(
    before: &Snapshot,
    after: &Snapshot,
    appeared: &mut Vec<Resource>,
    is_made: impl Fn(&Resource) -> bool,
) {
    let unlisted = before.gaps.iter().filter(|gap| gap.level != Level::Full).filter_map(path).cloned();
    let moved = moved_roots(before, after).filter_map(|(_, new)| Some(new?.path.clone()));
    let unlisted: HashSet<Text> = unlisted.chain(returned(before, after)).chain(moved).collect();
    if unlisted.is_empty() {
        return;
    }
    let below = |file: &File| {
        let path = file.path.as_ref();
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at.max(1));
        ends.into_iter().any(|end| unlisted.contains(&Text::from(&path[..end])))
    };
    appeared.retain(|resource| match resource {
        Resource::File(file) if file.mapped_by.is_none() && below(file) => is_made(resource),
        _ => true,
    });
}

/// Message queues that no list shows, but that use bytes of their user's limit that were free at the baseline.
pub(super) fn unlisted_queues(before: &Snapshot, after: &Snapshot) -> Option<Resource> {
    let bytes = |s: &Snapshot| s.gauges.get(QUEUES).copied();
    let more = bytes(after)? - bytes(before)?;
    let ns = after.own_ns.get(&NsType::Ipc).copied().unwrap_or(0);
    let queue = || Ipc {
        ns,
        class: IpcClass::Mqueue,
        id: 0,
        birth: None,
        name: Text::from(&b"(name unknown: mount mqueue on /dev/mqueue to see it)"[..]),
        uid: rustix::process::geteuid().as_raw(),
        size: more.unsigned_abs(),
        creator: 0,
        attached: 0,
    };
    (more > 0 && after.kinds.contains(Ipc::KIND)).then(|| queue().into())
}
