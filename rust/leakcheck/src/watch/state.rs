//! The state of the watch, and the one function that reads new events.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::observe::mount_table::Mounts;
use crate::snapshot::{Coverage, Level};

use super::adrift::Adrift;
use super::ancestry::{self, Ancestry};
use super::answer::{Levels, Maker};
use super::clock;
use super::connector::{Connector, Event};
use super::descent::Descent;
use super::fanotify::{self, Deed, Group};
use super::makers::{Makers, locate};
use super::options::Options;
use super::perf::Perf;
use crate::membership::Membership;
use crate::own_fd::OwnFd;

/// How many batches one pass reads before it releases the lock.
const BATCHES: usize = 4096;
const BATCH_BYTES: usize = 64 << 10;
/// A process younger than this may be in `/proc` before its fork event is sent.
const YOUNG: u64 = 1_000_000_000;

/// The source of fork and exit events.
enum Forks {
    Connector(Connector),
    Perf(Perf),
}

impl Forks {
    /// The first one that is available; else the reason.
    fn open() -> Result<Forks, String> {
        Connector::subscribe()
            .map(Forks::Connector)
            .or_else(|silent| Perf::open().map(Forks::Perf).map_err(|refused| format!("{silent}; {refused}")))
    }

    fn sources(&self) -> Vec<&OwnFd> {
        match self {
            Forks::Connector(connector) => vec![connector.source()],
            Forks::Perf(perf) => perf.sources().collect(),
        }
    }

    /// Passes on every event that was raised before `until`, in order.
    fn read(&mut self, until: u64, take: impl FnMut(Event)) {
        match self {
            Forks::Connector(connector) => connector.read(until, take),
            Forks::Perf(perf) => perf.read(take),
        }
    }

    fn lost(&self) -> Option<&'static str> {
        match self {
            Forks::Connector(connector) => connector.lost(),
            Forks::Perf(perf) => perf.lost(),
        }
    }
}

/// Descent as far as it is known: from the connector or perf events if there is one, else from `/proc`.
struct Kin {
    connector: Option<(Forks, Descent)>,
    ancestry: Ancestry,
    coverage: Coverage,
    /// Whether an event of our own threads arrived.
    heard_ourselves: bool,
}

/// See the module.
pub(super) struct State {
    root: u32,
    kin: Kin,
    entries: Option<Group>,
    mounts: Option<Group>,
    makers: Makers,
    levels_of_files: Vec<(PathBuf, Coverage)>,
    level_of_mounts: Coverage,
    /// Inodes of the other mount namespaces that are watched.
    namespaces: HashSet<u64>,
    /// What the sources promised when they were opened.
    at_start: Levels,
    /// The mounts here, until the next look.
    here: Mounts,
    buffer: Vec<u8>,
}

fn none(reason: String) -> Coverage {
    Coverage { level: Level::None, reason }
}

fn partial(reason: &str) -> Coverage {
    Coverage { level: Level::Partial, reason: reason.to_owned() }
}

impl State {
    /// Opens what can be opened.
    pub(super) fn open(options: &Options) -> State {
        let mut here = Mounts::of(None);
        let (entries, levels_of_files) = open_entries(&options.files, &mut here);
        let (mounts, level_of_mounts) = if !options.mounts {
            (None, none("mounts were not requested".to_owned()))
        } else {
            match Group::for_mounts() {
                Ok(group) => (Some(group), Coverage::full()),
                Err(reason) => (None, none(reason)),
            }
        };
        // Last, so that everything older than the subscription is older than the watch.
        let forks = Forks::open();
        let ancestry = Ancestry::new(options.root, clock::boottime() / clock::tick());
        let (connector, coverage) = match forks {
            Ok(forks) => {
                let kernel = ancestry::kernel_threads();
                let descent = Descent::new(options.root, ancestry.reapers().to_vec(), kernel);
                (Some((forks, descent)), Coverage::full())
            }
            Err(reason) => (None, partial(&format!("{reason}; leakcheck reads parents from /proc instead"))),
        };
        let at_start =
            Levels { descent: coverage.clone(), files: levels_of_files.clone(), mounts: level_of_mounts.clone() };
        State {
            root: options.root,
            kin: Kin { connector, ancestry, coverage, heard_ourselves: false },
            entries,
            mounts,
            makers: Makers::default(),
            levels_of_files,
            level_of_mounts,
            namespaces: HashSet::new(),
            at_start,
            here,
            buffer: vec![0; BATCH_BYTES],
        }
    }

    /// The FDs that are readable when there are events to read.
    pub(super) fn sources(&self) -> impl Iterator<Item = &OwnFd> {
        let groups = self.entries.iter().chain(&self.mounts).map(Group::source);
        groups.chain(self.kin.connector.iter().flat_map(|(forks, _)| forks.sources()))
    }

    /// Closes the sources.
    pub(super) fn close(&mut self) {
        (self.entries, self.mounts, self.kin.connector) = (None, None, None);
    }

    /// The numbers of the groups' FDs, which are slow to close, without those that the program has closed.
    pub(super) fn slow_to_close(&self) -> Vec<RawFd> {
        let groups = self.entries.iter().chain(&self.mounts).map(Group::source);
        groups.filter(|fd| fd.is_ours()).map(OwnFd::number).collect()
    }

    /// Lowers the level of descent if a thread that was certainly started was not reported.
    pub(super) fn expect_own_thread(&mut self) {
        if self.kin.connector.is_some() && !self.kin.heard_ourselves {
            self.kin.coverage.merge(partial("forks: an event that the kernel must have sent did not come"));
        }
    }

    /// Whether no source has lost an event since it was opened.
    pub(super) fn is_as_at_start(&self) -> bool {
        self.levels() == self.at_start
    }

    /// Forgets what happened before now, as if the sources had just been opened. False if they lost an event.
    pub(super) fn restart(&mut self) -> bool {
        self.take_in();
        if !self.is_as_at_start() {
            return false;
        }
        // As in `open`: after all older events, so that everything older than this is older than the watch.
        let ancestry = Ancestry::new(self.root, clock::boottime() / clock::tick());
        if let Some((_, descent)) = &mut self.kin.connector {
            *descent = Descent::new(self.root, ancestry.reapers().to_vec(), ancestry::kernel_threads());
        }
        (self.kin.ancestry, self.kin.heard_ourselves) = (ancestry, false);
        self.makers = Makers::default();
        // An inode of a namespace may be another one's by now. A mark on one that still exists does no harm.
        self.namespaces.clear();
        self.here = Mounts::of(None);
        true
    }

    /// Reads all events that were raised before the call.
    pub(super) fn take_in(&mut self) {
        let State { kin, entries, mounts, makers, buffer, levels_of_files, level_of_mounts, .. } = self;
        if let Some(group) = entries
            && let Some(lost) = drain(group, kin, makers, buffer)
        {
            for (_, level) in levels_of_files.iter_mut().filter(|(_, c)| c.level != Level::None) {
                level.merge(partial(&lost));
            }
        }
        if let Some(group) = mounts
            && let Some(lost) = drain(group, kin, makers, buffer)
        {
            level_of_mounts.merge(partial(&lost));
        }
        kin.take_in(clock::monotonic());
        let quiet = entries.iter().chain(mounts.iter()).map(|g| g.quiet).min().unwrap_or(u64::MAX);
        if let Some((_, descent)) = &mut kin.connector {
            descent.forget_gone_before(quiet);
        }
    }

    pub(super) fn levels(&self) -> Levels {
        Levels {
            descent: self.kin.coverage.clone(),
            files: self.levels_of_files.clone(),
            mounts: self.level_of_mounts.clone(),
        }
    }

    pub(super) fn descends(&mut self, pid: u32, start: u64) -> Membership {
        self.kin.of_process(self.root, pid, start)
    }

    pub(super) fn ever(&mut self, pid: u32) -> Membership {
        let lossless = self.kin.coverage.level == Level::Full;
        match &self.kin.connector {
            Some((_, descent)) if lossless || descent.ever(pid) == Membership::Run => descent.ever(pid),
            _ if self.kin.ancestry.remembers(pid) => Membership::Run,
            _ => self.kin.ancestry.now(pid),
        }
    }

    pub(super) fn live(&mut self) -> Vec<u32> {
        if let Some((_, descent)) = &self.kin.connector {
            return descent.live();
        }
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
        let mut live: Vec<u32> =
            pids.filter(|pid| *pid != self.root && self.kin.ancestry.now(*pid) == Membership::Run).collect();
        live.sort_unstable();
        live
    }

    pub(super) fn adopt(&mut self, pids: &[u32]) {
        if let Some((_, descent)) = &mut self.kin.connector {
            pids.iter().for_each(|pid| descent.adopt(*pid));
        }
    }

    pub(super) fn adrift(&self, held: &HashSet<u32>) -> Option<Adrift> {
        let (_, descent) = self.kin.connector.as_ref()?;
        if self.kin.coverage.level != Level::Full {
            return None;
        }
        let mut adrift = descent.adrift(held);
        // New kernel threads are in no look.
        adrift.unknown.retain(|pid| !ancestry::stat(*pid).is_some_and(|s| s.kernel));
        Some(adrift)
    }

    pub(super) fn successions(&self, pid: u32, start: u64, ppid: u32) -> u32 {
        self.kin.connector.as_ref().map_or(0, |(_, descent)| descent.successions(pid, monotonic_of(start), ppid))
    }

    pub(super) fn limit_to(&mut self, mounts: Arc<HashSet<u64>>) {
        self.here.limit_to(mounts);
    }

    /// Watches further mount namespaces, each given by its inode and a path that opens it.
    pub(super) fn watch_namespaces(&mut self, namespaces: &[(u64, PathBuf)]) {
        let Some(group) = &self.mounts else { return };
        for (ino, path) in namespaces {
            if self.namespaces.contains(ino) {
                continue;
            }
            let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty());
            // The pid in the path may have been reused.
            let same = |fd: &OwnedFd| rustix::fs::fstat(fd).is_ok_and(|st| st.st_ino == *ino);
            if let Ok(namespace) = opened
                && same(&namespace)
                && group.watch_namespace(namespace.as_fd()).is_ok()
            {
                self.namespaces.insert(*ino);
            }
        }
    }

    /// Whether every mount that was added to the namespace since then has its event.
    pub(super) fn watches_namespace(&self, ino: u64) -> bool {
        self.level_of_mounts.level == Level::Full && self.namespaces.contains(&ino)
    }

    /// The parent of this stranger.
    pub(super) fn parent(&self, pid: u32) -> Option<u32> {
        self.kin.connector.as_ref()?.1.parent(pid)
    }

    /// Before a new observation: the mounts here may have changed.
    pub(super) fn forget_mounts(&mut self) {
        self.here.forget();
    }

    pub(super) fn maker_of_file(&mut self, path: &std::path::Path) -> Option<Maker> {
        self.makers.of_file(&locate(path, &mut self.here)?)
    }

    pub(super) fn maker_of_mount(&self, id: u64) -> Option<Maker> {
        self.makers.of_mount(id)
    }
}

fn open_entries(paths: &[PathBuf], here: &mut Mounts) -> (Option<Group>, Vec<(PathBuf, Coverage)>) {
    if paths.is_empty() {
        return (None, Vec::new());
    }
    match Group::for_entries() {
        Err(reason) => (None, paths.iter().map(|path| (path.clone(), none(reason.clone()))).collect()),
        Ok(group) => {
            let level = |path: &PathBuf| match group.watch_filesystem(path, here) {
                Ok(()) => (path.clone(), Coverage::full()),
                Err(reason) => (path.clone(), none(reason)),
            };
            let levels = paths.iter().map(level).collect();
            (Some(group), levels)
        }
    }
}

/// The time of `CLOCK_MONOTONIC`, in nanoseconds, of one in ticks after boot.
fn monotonic_of(ticks: u64) -> u64 {
    ticks.saturating_mul(clock::tick()).saturating_sub(clock::boottime_ahead())
}

/// Reads a group until it is empty. Returns the reason if events are missing.
fn drain(group: &mut Group, kin: &mut Kin, makers: &mut Makers, buffer: &mut [u8]) -> Option<String> {
    let mut lost = None;
    for _ in 0..BATCHES {
        let asked = clock::monotonic();
        let batch = match group.read(buffer) {
            Ok([]) => {
                group.quiet = asked;
                break;
            }
            Ok(batch) => batch,
            Err(error) => return Some(format!("fanotify: read: {error}")),
        };
        let now = clock::monotonic();
        // A process is forked before it acts: the forks of all processes that acted in this batch are in the queue by
        // now.
        kin.take_in(now);
        for event in fanotify::parse(batch) {
            match event {
                Some(fanotify::Event { deed: Deed::Overflow, .. }) => {
                    lost = Some("fanotify: the queue overflowed".into())
                }
                Some(fanotify::Event { pid, deed }) => {
                    let membership = kin.within(pid, group.quiet, now);
                    makers.record(deed, Maker { pid, membership });
                }
                None => lost = Some("fanotify: an event has an unknown format".into()),
            }
        }
    }
    lost
}

impl Kin {
    fn take_in(&mut self, until: u64) {
        let Some((forks, descent)) = &mut self.connector else { return };
        // Perf events name the process that called fork. The connector names the process whose child it became, which
        // differs with CLONE_PARENT.
        let caller_is_known = matches!(forks, Forks::Perf(_));
        let me = std::process::id();
        let heard = &mut self.heard_ourselves;
        forks.read(until, |event| {
            *heard |= matches!(event, Event::Fork { child_pid, child_tgid, .. } if child_tgid == me && child_pid != me);
            descent.apply(event, &|pid| if caller_is_known { Some(0) } else { ancestry::stat(pid).map(|s| s.ppid) });
        });
        if let Some(lost) = forks.lost() {
            self.coverage.merge(partial(lost));
        }
    }

    /// Membership of the process that had this id in that interval and is or was alive just now.
    fn within(&mut self, pid: u32, from: u64, to: u64) -> Membership {
        if pid == 0 {
            // Outside our pid namespace, where we have no descendants.
            return Membership::Stranger;
        }
        let Some((_, descent)) = &self.connector else { return self.ancestry.now(pid) };
        let seen = descent.within(pid, from, to);
        if self.coverage.level == Level::Full {
            return seen;
        }
        match (seen, self.ancestry.now(pid)) {
            (Membership::Run, Membership::Run | Membership::Unknown) => Membership::Run,
            (Membership::Run, Membership::Stranger) => Membership::Unknown,
            (Membership::Stranger | Membership::Unknown, by_proc) => by_proc,
        }
    }

    fn of_process(&mut self, root: u32, pid: u32, start: u64) -> Membership {
        let Some((_, descent)) = &self.connector else { return self.ancestry.of_process(pid, start) };
        if pid != root && self.ancestry.is_older(start) {
            return Membership::Stranger;
        }
        let lives = || ancestry::stat(pid).is_some_and(|s| s.start == start);
        let seen = descent.of_process(pid, monotonic_of(start), clock::tick(), &lives);
        if self.coverage.level != Level::Full {
            return match seen {
                Some(Membership::Run) => Membership::Run,
                Some(Membership::Stranger | Membership::Unknown) | None => self.ancestry.of_process(pid, start),
            };
        }
        if let Some(seen) = seen {
            return seen;
        }
        let by_member = || {
            ancestry::stat(pid).is_some_and(|s| s.start == start && (s.ppid == root || descent.is_live_member(s.ppid)))
        };
        if clock::boottime().saturating_sub(start.saturating_mul(clock::tick())) < YOUNG && by_member() {
            return Membership::Unknown;
        }
        Membership::Stranger
    }
}
