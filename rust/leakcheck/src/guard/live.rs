//! What is known about the run beyond the looks.

use std::path::Path;

use super::options::Options;
use crate::arena::ArenaView;
use crate::judge::attribute::{Membership, Provenance};
use crate::kind::KindSet;
use crate::observe::mount_table::Mounts;
use crate::observe::{self, Calls, ObservedArena, reach};
use crate::resource::{Bpf, Process, Resource};
use crate::snapshot::Snapshot;
use crate::token::TOKEN_NAME;
use crate::watch::Watch;

/// What all looks after one run share.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) baseline: &'a Snapshot,
    pub(super) options: &'a Options,
    pub(super) asked: KindSet,
    pub(super) live: &'a Live<'a>,
}

/// What the watch, the token and `/proc` say about the run.
pub(super) struct Live<'a> {
    pub(super) watch: Option<&'a Watch>,
    /// Follows the processes of a `tree:` scope.
    pub(super) tree: Option<&'a Watch>,
    pub(super) token: Option<&'a str>,
    /// Who made keys, loop devices and BPF objects on the host.
    pub(super) calls: Option<&'a Calls>,
    /// The arena whose pids they are.
    pub(super) arena: Option<&'a ObservedArena>,
}

impl Live<'_> {
    /// The arena's descriptors and paths.
    pub(super) fn view(&self) -> Option<&ArenaView> {
        self.arena.map(|arena| &arena.view)
    }
}

impl Provenance for Live<'_> {
    fn watched(&self) -> bool {
        self.watch.is_some()
    }

    fn process(&self, process: &Process) -> Membership {
        if self.arena.is_none() && process.pid == std::process::id() {
            return Membership::Run;
        }
        self.watch.map_or(Membership::Unknown, |w| w.descends(process.pid, process.start))
    }

    fn token(&self, pid: u32) -> bool {
        let Some(token) = self.token else { return false };
        let entry = format!("{TOKEN_NAME}={token}");
        let environ = observe::environment(pid, self.view()).unwrap_or_default();
        environ.split(|b| *b == 0).any(|e| e == entry.as_bytes())
    }

    fn ever(&self, pid: u32) -> Membership {
        self.watch.map_or(Membership::Unknown, |w| w.was_run_pid(pid))
    }

    fn creator(&self, path: &[u8]) -> Membership {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        if let Some(arena) = self.view() {
            // A path that only the arena has.
            let root = arena.root().ok();
            let inside = reach::open(path, root.as_ref(), true, &mut Mounts::of(Some(arena))).is_ok();
            let outside = reach::at(path) != reach::At::Nothing;
            return if inside && !outside { Membership::Run } else { Membership::Unknown };
        }
        self.watch.and_then(|w| w.creator(path)).map_or(Membership::Unknown, |m| m.membership)
    }

    fn mount(&self, id: u64) -> Membership {
        self.watch.and_then(|w| w.mount_creator(id)).map_or(Membership::Unknown, |m| m.membership)
    }

    fn maker_of_file(&self, path: &[u8]) -> Option<u32> {
        use std::os::unix::ffi::OsStrExt;
        self.watch?.creator(Path::new(std::ffi::OsStr::from_bytes(path))).map(|maker| maker.pid)
    }

    fn maker_of_mount(&self, id: u64) -> Option<u32> {
        self.watch?.mount_creator(id).map(|maker| maker.pid)
    }

    fn parent_of_stranger(&self, pid: u32) -> Option<u32> {
        self.watch?.parent_of_stranger(pid)
    }

    fn watches_mounts(&self, ns: u64) -> bool {
        self.watch.is_some_and(|w| w.watches_namespace(ns))
    }

    fn made(&self, resource: &Resource) -> Membership {
        if let Some(arena) = self.arena {
            return arena.calls.as_ref().map_or(Membership::Unknown, |calls| calls.made(resource));
        }
        let Some(makers) = self.calls.and_then(|calls| calls.makers(resource)) else { return Membership::Unknown };
        // The kernel makes keys on behalf of a process, which no call returns.
        let nobody = if matches!(resource, Resource::Key(_)) { Membership::Unknown } else { Membership::Stranger };
        let made: Vec<Membership> = makers.into_iter().map(|pid| self.ever(pid)).collect();
        let any = |which| made.contains(&which).then_some(which);
        let any_of = [Membership::Run, Membership::Unknown, Membership::Stranger].into_iter().find_map(any);
        any_of.unwrap_or(nobody)
    }

    fn made_this(&self, object: &Bpf) -> Option<Membership> {
        let made: Vec<Membership> = self.calls?.makers_of_this(object)?.into_iter().map(|pid| self.ever(pid)).collect();
        let alike = made.iter().all(|other| Some(other) == made.first());
        Some(if alike { *made.first()? } else { Membership::Unknown })
    }

    fn makes(&self, pid: u32, resource: &Resource) -> u64 {
        let makers = self.calls.and_then(|calls| calls.makers(resource)).unwrap_or_default();
        makers.into_iter().filter(|maker| *maker == pid).count() as u64
    }

    fn makes_keys(&self) -> bool {
        self.arena.and_then(|arena| arena.calls.as_ref().ok()).is_none_or(|calls| calls.keys())
    }

    fn uid(&self, pid: u32) -> Option<u32> {
        observe::uid_of(pid, self.view())
    }

    fn cgroups(&self, pid: u32) -> Vec<(String, String)> {
        observe::cgroups_of(pid, self.view())
    }
}
