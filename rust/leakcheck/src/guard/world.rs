//! The machine during settling.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::thread::{MembarrierCommand, membarrier};

use super::adrift::Adrift;
use super::coverage::{Reach, coverage, new_hidden_keys, only_comparable, unlisted_queues};
use super::live::Run;
use super::residue::{Remnant, residue};
use crate::error::Result;
use crate::judge::attribute::{Attribution, Attributor, Owner, Provenance};
use crate::judge::diff;
use crate::judge::settle::{Observation, World};
use crate::kind::{Kind, KindSet};
use crate::observe;
use crate::resource::{BpfClass, Process, Resource};
use crate::scope::Scope;
use crate::snapshot::{CoverageMap, Snapshot};

/// Most teardowns take less.
const SHORT: Duration = Duration::from_millis(5);

pub(super) struct LastObservation {
    pub(super) observation: Snapshot,
    pub(super) coverage: CoverageMap,
    pub(super) noise: u64,
    /// What other processes made, as far as a daemon may have made it for the run.
    pub(super) strange: Vec<Resource>,
}

pub(super) struct LiveWorld<'a> {
    pub(super) run: Run<'a>,
    pub(super) reach: &'a Reach,
    pub(super) began: Instant,
    pub(super) last: Option<LastObservation>,
    /// The worst coverage of all looks.
    pub(super) every: CoverageMap,
    pub(super) looks_ms: f64,
    pub(super) adrift: Adrift,
    /// How many new keys that nobody can view the look with the fewest counted. As with what is seen, what goes away
    /// is no residue.
    pub(super) hidden_keys: i64,
    /// How many grace periods of RCU have passed while BPF objects were left that nobody holds.
    pub(super) grace_periods: u32,
}

impl LiveWorld<'_> {
    /// One look. A scope that is gone after the run contains nothing but files.
    fn snapshot(&self) -> Result<Snapshot> {
        let options = &self.run.options.observe;
        let of_tree;
        let options = match self.run.live.tree {
            None => options,
            Some(tree) => {
                tree.sync();
                let was = |p: &&Process| observe::process(p.pid, None).is_some_and(|now| now.start == p.start);
                let old = self.run.baseline.processes.iter().filter(was).map(|p| p.pid);
                of_tree = observe::Options { members: old.chain(tree.live_run_pids()).collect(), ..options.clone() };
                &of_tree
            }
        };
        match observe::snapshot(options) {
            Err(e) if e.is_usage() && options.scope != Scope::Host && options.arena.is_none() => {
                let files: KindSet = [Kind::File, Kind::Lockfile].into_iter().collect();
                let files = files.and(self.run.baseline.kinds);
                let mut observation = Snapshot::empty(options.scope.clone(), self.run.baseline.kinds);
                if files != KindSet::EMPTY {
                    let host = observe::Options { scope: Scope::Host, kinds: Some(files), ..options.clone() };
                    observation = Snapshot { scope: options.scope.clone(), ..observe::snapshot(&host)? };
                }
                observation.boot_id.clone_from(&self.run.baseline.boot_id);
                observation.kinds = self.run.baseline.kinds;
                observation.roots.clone_from(&self.run.baseline.roots);
                observation.lock_paths.clone_from(&self.run.baseline.lock_paths);
                Ok(observation)
            }
            other => other,
        }
    }
}

impl World<Remnant> for LiveWorld<'_> {
    fn observe(&mut self) -> Result<Observation<Remnant>> {
        let observation = self.snapshot()?;
        if let Some(watch) = self.run.live.watch {
            // Everything the snapshot saw happened before now.
            watch.sync();
        }
        self.looks_ms += observation.took_ns as f64 / 1e6;
        let mut appeared =
            diff::diff(self.run.baseline, &observation)?.with_settings_as_changes(self.run.baseline).appeared;
        appeared.extend(unlisted_queues(self.run.baseline, &observation));
        appeared.retain(|r| self.run.asked.contains(r.kind()));
        let own = self.run.options.own_pid();
        let attributor = Attributor::new(self.run.baseline, &observation, self.run.live, own);
        let by_evidence = |r: &Resource| matches!(attributor.owner(r), Owner::Run(by) if by != Attribution::Scope);
        only_comparable(self.run.baseline, &observation, &mut appeared, by_evidence);
        let all = appeared.len();
        let foreign = |r: &Resource| {
            attributor.owner(r) == Owner::Unknown && self.reach.is_foreign(r, self.run.baseline, &attributor)
        };
        appeared.retain(|r| !foreign(r));
        let foreign = (all - appeared.len()) as u64;
        let coverage = coverage(self.run.baseline, &observation, self.run.asked, &attributor, self.reach);
        self.every.merge(&coverage);
        let residue = residue(appeared, &attributor);
        let (lives, running) = attributor.alive();
        let mut adrift = std::mem::take(&mut self.adrift);
        // A process that was in the scope before may act for the run a little later.
        let old =
            |p: &Process| self.run.baseline.process(p.pid).is_some_and(|old| old.start == p.start) && p.state != 'Z';
        let daemon =
            matches!(observation.scope, Scope::Tree(_) | Scope::Cgroup(_)) && observation.processes.iter().any(old);
        let run_lives = adrift.take_in(&self.run, &observation, &attributor) || lives || daemon;
        self.hidden_keys = self.hidden_keys.min(new_hidden_keys(self.run.baseline, &observation));
        let unclear = self.hidden_keys > 0 && self.run.asked.contains(Kind::Key) && self.run.live.makes_keys();
        self.adrift = adrift;
        let unheld = residue.found.iter().any(|(r, _)| is_being_freed(r, &observation));
        let freed = unheld && self.grace_periods < GRACE_PERIODS && self.run.options.policy.looks > 1;
        // Each returns after a grace period, however long that is on a busy machine.
        for _ in 0..if freed { GRACE_PERIODS_A_LOOK } else { 0 } {
            self.grace_periods += u32::from(membarrier(MembarrierCommand::Global).is_ok());
        }
        let running = running || freed;
        let found = residue
            .found
            .into_iter()
            .map(|(resource, by)| {
                (resource.settling_key(), Remnant::new(resource, by, &observation, &attributor, self.run.live.view()))
            })
            .collect();
        self.last =
            Some(LastObservation { observation, coverage, noise: residue.noise + foreign, strange: residue.strange });
        Ok(Observation { residue: found, run_lives, running, unclear })
    }

    fn wait(&mut self, residue: &BTreeMap<String, Remnant>, pause: Duration) {
        if let Some(waiting) = self.run.options.waiting.as_ref().filter(|_| self.began.elapsed() > SHORT) {
            (waiting.0)();
        }
        let pause = pause_for(residue.values().map(|f| &f.resource), pause, self.run.options.policy.at_least);
        observe::wait_for_change(residue.values().map(|f| &f.resource), self.run.live.view(), pause);
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    fn pressure(&self) -> u32 {
        observe::pressure()
    }

    fn is_allowed(&self, residue: &Remnant) -> bool {
        residue.explained_by(&self.run.options.rules).is_some()
    }
}

/// After how many grace periods of RCU a BPF object that nobody has open is held by something else: it is pinned, or attached.
/// A program of a cgroup that was removed takes three and as many work queues.
const GRACE_PERIODS: u32 = 16;
/// So that they have passed before the last of the looks that there are in any case.
const GRACE_PERIODS_A_LOOK: u32 = 4;

/// Whether a BPF program or map may have lost its last holder: it ends after a grace period of RCU, on a busy machine after
/// more than the usual time.
fn is_being_freed(resource: &Resource, observation: &Snapshot) -> bool {
    match resource {
        Resource::Bpf(b) => b.class != BpfClass::Link && !observation.fds.iter().any(|fd| b.is_open_in(fd)),
        _ => false,
    }
}

/// If only a reaper is missing, the wait itself notices when it has reaped. Where nothing is left but something lives, only
/// another look tells.
fn pause_for<'a>(residue: impl Iterator<Item = &'a Resource>, pause: Duration, at_least: Duration) -> Duration {
    let mut zombies = residue.map(|r| matches!(r, Resource::Process(p) if p.state == 'Z')).peekable();
    if zombies.peek().is_some() && zombies.all(|is_one| is_one) { pause.max(at_least) } else { pause }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Text;

    #[test]
    fn only_the_reaping_of_zombies_is_waited_for_without_another_look() {
        let (pause, at_least) = (Duration::from_millis(1), Duration::from_millis(500));
        let process = |state| {
            let comm = Text::from(&b"made"[..]);
            Resource::Process(Process { pid: 7, start: 1, ppid: 1, state, pgrp: 7, session: 7, comm })
        };
        let paused = |residue: &[Resource]| pause_for(residue.iter(), pause, at_least);
        assert_eq!(paused(&[process('Z')]), at_least);
        assert_eq!(paused(&[process('Z'), process('S')]), pause);
        assert_eq!(paused(&[]), pause);
    }
}
