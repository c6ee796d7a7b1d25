//! The machine during settling, and what is known about the run beyond the looks.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Options;
use super::adrift::Adrift;
use super::coverage::{Reach, coverage, only_comparable, unlisted_queues};
use super::residue::{Remnant, residue};
use crate::arena::{ArenaView, proc_path};
use crate::error::Result;
use crate::judge::attribute::{Attribution, Attributor, Membership, Owner, Provenance};
use crate::judge::diff;
use crate::judge::settle::{Look, World};
use crate::kind::{Kind, KindSet};
use crate::observe::mount_table::Mounts;
use crate::observe::process_files::{Part, read_memory};
use crate::observe::{self, ObservedArena, reach};
use crate::resource::{Process, Resource};
use crate::scope::Scope;
use crate::snapshot::{CoverageMap, Snapshot};
use crate::token::TOKEN_NAME;
use crate::watch::Watch;

pub(super) struct LastLook {
    pub(super) look: Snapshot,
    pub(super) coverage: CoverageMap,
    pub(super) noise: u64,
    /// What other processes made, as far as a daemon may have made it for the run.
    pub(super) strange: Vec<Resource>,
}

pub(super) struct LiveWorld<'a> {
    pub(super) baseline: &'a Snapshot,
    pub(super) options: &'a Options,
    pub(super) asked: KindSet,
    pub(super) live: &'a Live<'a>,
    pub(super) reach: &'a Reach,
    pub(super) began: Instant,
    pub(super) last: Option<LastLook>,
    /// The worst coverage of all looks.
    pub(super) every: CoverageMap,
    pub(super) looks_ms: f64,
    pub(super) adrift: Adrift,
}

impl LiveWorld<'_> {
    /// One look. A scope that is gone after the run contains nothing but files.
    fn observe(&self) -> Result<Snapshot> {
        let options = &self.options.observe;
        let of_tree;
        let options = match self.live.tree {
            None => options,
            Some(tree) => {
                tree.sync();
                let was = |p: &&Process| observe::process(p.pid, None).is_some_and(|now| now.start == p.start);
                let old = self.baseline.processes.iter().filter(was).map(|p| p.pid);
                of_tree = observe::Options { members: old.chain(tree.live_run_pids()).collect(), ..options.clone() };
                &of_tree
            }
        };
        match observe::snapshot(options) {
            Err(e) if e.is_usage() && options.scope != Scope::Host && options.arena.is_none() => {
                let files: KindSet = [Kind::File, Kind::Lockfile].into_iter().collect();
                let files = files.and(self.baseline.kinds);
                let mut look = Snapshot::empty(options.scope.clone(), self.baseline.kinds);
                if files != KindSet::EMPTY {
                    let host = observe::Options { scope: Scope::Host, kinds: Some(files), ..options.clone() };
                    look = Snapshot { scope: options.scope.clone(), ..observe::snapshot(&host)? };
                }
                look.boot_id.clone_from(&self.baseline.boot_id);
                look.kinds = self.baseline.kinds;
                look.roots.clone_from(&self.baseline.roots);
                look.lock_paths.clone_from(&self.baseline.lock_paths);
                Ok(look)
            }
            other => other,
        }
    }
}

impl World<Remnant> for LiveWorld<'_> {
    fn look(&mut self) -> Result<Look<Remnant>> {
        let look = self.observe()?;
        if let Some(watch) = self.live.watch {
            // Everything the snapshot saw happened before now.
            watch.sync();
        }
        self.looks_ms += look.took_ns as f64 / 1e6;
        let mut appeared = diff::diff(self.baseline, &look)?.with_settings_as_changes(self.baseline).appeared;
        appeared.extend(unlisted_queues(self.baseline, &look));
        appeared.retain(|r| self.asked.contains(r.kind()));
        let own = self.options.own_pid();
        let attributor = Attributor::new(self.baseline, &look, self.live, own);
        let by_evidence = |r: &Resource| matches!(attributor.owner(r), Owner::Run(by) if by != Attribution::Scope);
        only_comparable(self.baseline, &look, &mut appeared, by_evidence);
        let all = appeared.len();
        let foreign = |r: &Resource| {
            attributor.owner(r) == Owner::Unknown && self.reach.is_foreign(r, self.baseline, &attributor)
        };
        appeared.retain(|r| !foreign(r));
        let foreign = (all - appeared.len()) as u64;
        let coverage = coverage(self.baseline, &look, self.asked, &attributor, self.reach);
        self.every.merge(&coverage);
        let residue = residue(appeared, &attributor);
        let (lives, running) = attributor.alive();
        let mut adrift = std::mem::take(&mut self.adrift);
        // A process that was in the scope before may act for the run a little later.
        let old = |p: &Process| self.baseline.process(p.pid).is_some_and(|old| old.start == p.start) && p.state != 'Z';
        let daemon = matches!(look.scope, Scope::Tree(_) | Scope::Cgroup(_)) && look.processes.iter().any(old);
        let run_lives = adrift.take_in(self, &look, &attributor) || lives || daemon;
        self.adrift = adrift;
        let found = residue
            .found
            .into_iter()
            .map(|(resource, by)| {
                (resource.settling_key(), Remnant::new(resource, by, &look, &attributor, self.live.view()))
            })
            .collect();
        self.last = Some(LastLook { look, coverage, noise: residue.noise + foreign, strange: residue.strange });
        Ok(Look { residue: found, run_lives, running })
    }

    fn wait(&mut self, residue: &BTreeMap<String, Remnant>, pause: Duration) {
        let zombie = |f: &Remnant| matches!(&f.resource, Resource::Process(p) if p.state == 'Z');
        // If only a reaper is missing, the wait itself notices when it has reaped.
        let pause = if residue.values().all(zombie) { pause.max(self.options.policy.at_least) } else { pause };
        observe::wait_for_change(residue.values().map(|f| &f.resource), self.live.view(), pause);
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    fn pressure(&self) -> u32 {
        observe::pressure()
    }
}

/// What the watch, the token and `/proc` say about the run.
pub(super) struct Live<'a> {
    pub(super) watch: Option<&'a Watch>,
    /// Follows the processes of a `tree:` scope.
    pub(super) tree: Option<&'a Watch>,
    pub(super) token: Option<&'a str>,
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
        let process = proc_path(self.view(), observe::task::task_of(pid, self.view()).0);
        let environ = read_memory(&process, Part::Environment).unwrap_or_default();
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
        let calls = self.arena.and_then(|arena| arena.calls.as_ref().ok());
        calls.map_or(Membership::Unknown, |calls| calls.made(resource))
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
