//! Chains of processes: each process forks a successor and exits, so that no two looks share an identity.
//!
//! A walk of `/proc` is not an atomic view, so it sees such a chain only by chance. This module therefore uses sources
//! that cannot miss it: the process connector, which reports a fork before the parent can exit; in an arena, one look
//! while its cgroup is frozen. Without both, a run that *every* look since its end saw alive has never stopped.

mod lineage;
mod seen;

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use lineage::{has_held_ancestor, is_free, is_in_session_of_parent, is_reaper, lives, of_run};
use seen::{Glimpse, Seen};

use super::live::{Live, Run};
use super::residue::Remnant;
use crate::arena::ArenaView;
use crate::error::Result;
use crate::freeze::{Frozen, holds_more, population};
use crate::judge::attribute::{Attribution, Attributor, Owner};
use crate::judge::class::Class;
use crate::kind::{Kind, KindSet};
use crate::observe::{self, detail};
use crate::resource::{Process, Resource};
use crate::scope::Scope;
use crate::snapshot::Snapshot;
use crate::watch;

/// Used instead of a process identity: no later look shares the identity of one of its processes.
const KEY: &str = "process:respawning";
/// Maximum number of processes remembered, and shown.
const REMEMBERED: usize = 256;
const SHOWN: usize = 8;
/// Maximum time between the exit of a process, which `/proc` shows, and the event that reports it (do_exit(),
/// kernel/exit.c).
const ENDING: Duration = Duration::from_millis(200);
/// How long to probe for the newest process if only pid numbers show that it exists: about ten generations of the
/// fastest chain.
const PROBING: Duration = Duration::from_millis(1);
/// How long to retry orphans that exit before they can be read. If they still come after this time, it counts as a sign
/// of a chain.
const CHASING: Duration = Duration::from_millis(20);
/// How long to watch a reaper for a vfork(2): at least several times what it takes to start a short program and to wait
/// for it, and at most so long if it has fewer new children meanwhile, as on a busy machine.
const STARTING: Duration = Duration::from_millis(20);
const STARTING_LATE: Duration = Duration::from_millis(250);
const STARTS: usize = 8;
/// How many pids before the newest are probed too.
const BEHIND: u32 = 16;

/// Children of the reapers that a look did not see.
enum Orphan {
    Alive(Glimpse),
    /// Each attempt found different ones, and none could be read.
    Restless,
    Nobody,
    /// The kernel does not list children.
    Unlisted,
}

/// What the looks saw of processes that no process holds.
#[derive(Default)]
pub(super) struct Adrift {
    looks: Vec<Seen>,
    seen: BTreeMap<(u32, u64), (Process, Attribution)>,
    /// Whether a process of the run lived at the end of the last look, by the connector; none without a connector.
    by_events: Option<bool>,
    /// Processes of the run that lived at the first look, by the connector.
    at_first: HashSet<u32>,
    /// Every process of the first look.
    in_first: HashSet<(u32, u64)>,
    /// Minor page faults of the reapers, at the first look and at the last one, where no connector reports forks.
    faults: BTreeMap<u32, (u64, u64)>,
    /// Reapers that were seen in a vfork(2), or that sleep as often as one that starts programs so, where no connector
    /// reports forks.
    starters: HashSet<u32>,
    /// Orphans of the run that have started and ended since the first look, and that no look saw alive.
    ended: BTreeMap<(u32, u64), (Process, Attribution)>,
}

/// The result.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) leak: Option<Remnant>,
    /// Why it is unknown whether something lives.
    pub(super) gap: Option<String>,
}

/// What the connector says about living processes.
enum Caught {
    Alive(Process),
    /// No exit was reported, and nothing could be read.
    Unread(u32),
    Nobody,
}

impl Adrift {
    /// Evaluates one look. True if something lives.
    pub(super) fn take_in(
        &mut self,
        run: &Run<'_>,
        observation: &Snapshot,
        attributor: &Attributor<'_, Live<'_>>,
    ) -> bool {
        if self.looks.is_empty() {
            self.in_first = observation.processes.iter().map(|p| (p.pid, p.start)).collect();
        }
        let mut free = Vec::new();
        for p in &observation.processes {
            let Some(by) = of_run(attributor.owner_of(p), p, run.baseline) else { continue };
            if is_free(p, observation, run.baseline) {
                free.push(Glimpse::of(p, by, observation));
                self.remember(p, by);
            }
        }
        for p in observation.processes.iter().filter(|p| !lives(p) && !self.in_first.contains(&(p.pid, p.start))) {
            // An orphan's parent is a reaper, which a scope does not contain.
            let adopted = observation.process(p.ppid).is_none_or(|parent| is_reaper(parent, observation));
            if let Owner::Run(by) = attributor.owner_of(p)
                && is_known(by)
                && adopted
                && self.ended.len() < REMEMBERED
            {
                self.ended.insert((p.pid, p.start), (p.clone(), by));
            }
        }
        let mut signs = false;
        match adrift(run, &HashSet::new()) {
            Some(adrift) => {
                signs |= !adrift.unknown.is_empty();
                // For the run's own processes, the events are more reliable.
                free.retain(|g| !is_known(g.by));
                self.by_events = Some(!adrift.run.is_empty());
                if self.looks.is_empty() {
                    self.at_first = adrift.run.into_iter().collect();
                }
            }
            None => {
                self.by_events = None;
                let host = observation.scope == Scope::Host;
                for p in observation.processes.iter().filter(|p| host && is_reaper(p, observation)) {
                    let Some(now) = observe::minor_faults(p.pid) else { continue };
                    self.faults.entry(p.pid).or_insert((now, now)).1 = now;
                }
                // In a scope, every process that came and went belongs to the run.
                signs |= !host && !observation.gone.is_empty();
                let living = observation.processes.iter().filter(|p| lives(p)).count();
                let more = match (&observation.scope, run.live.view()) {
                    // The look contains PID 1.
                    (_, Some(arena)) => population(arena).map(|n| n > living),
                    (Scope::Cgroup(path), None) => Some(holds_more(path, living)),
                    (Scope::Host | Scope::Arena, None) => None,
                    (Scope::Tree(_), None) => Some(false),
                };
                match more {
                    Some(more) => signs |= free.is_empty() && more,
                    None if !free.is_empty() => {}
                    None => match self.orphan(run, observation, attributor) {
                        Orphan::Alive(orphan) => free.push(orphan),
                        Orphan::Restless => signs = true,
                        Orphan::Unlisted if host => free.extend(self.newest(run, observation, attributor)),
                        Orphan::Nobody | Orphan::Unlisted => {}
                    },
                }
            }
        }
        let some = !free.is_empty() || signs || self.by_events == Some(true);
        self.looks.push(Seen { free, signs });
        some
    }

    fn remember(&mut self, p: &Process, by: Attribution) {
        if self.seen.len() < REMEMBERED {
            self.seen.insert((p.pid, p.start), (p.clone(), by));
        }
    }

    /// Whether it is a process that only passed by during settling, or the zombie of one.
    pub(super) fn knows(&self, resource: &Resource) -> bool {
        matches!(resource, Resource::Process(p) if !lives(p) || self.knows_id((p.pid, p.start)))
    }

    fn knows_id(&self, id: (u32, u64)) -> bool {
        self.seen.contains_key(&id)
    }

    /// An orphan that the look did not see. At every instant a reaper is the parent of what the run left, so the list
    /// of the reapers' children misses none, however short its life is.
    fn orphan(&mut self, run: &Run<'_>, observation: &Snapshot, attributor: &Attributor<'_, Live<'_>>) -> Orphan {
        let arena = run.live.view();
        let began = Instant::now();
        let mut known: HashSet<u32> = observation.processes.iter().map(|p| p.pid).collect();
        let mut before = Vec::new();
        while began.elapsed() < CHASING {
            let Some(mut children) = observe::children(1, arena) else { return Orphan::Unlisted };
            let above = observation.processes.iter().filter(|p| p.pid != 1 && is_reaper(p, observation));
            children.extend(above.flat_map(|p| observe::children(p.pid, arena).unwrap_or_default()));
            for pid in children.iter().rev().filter(|pid| known.insert(**pid)) {
                let Some(p) = observe::process(*pid, arena) else { continue };
                let Some(by) = of_run(attributor.owner_of(&p), &p, run.baseline) else { continue };
                if is_free(&p, observation, run.baseline) {
                    self.remember(&p, by);
                    return Orphan::Alive(Glimpse::of(&p, by, observation));
                }
            }
            // If a list lost an entry while it was read, it may lack another one.
            if before == children {
                return Orphan::Nobody;
            }
            before = children;
        }
        Orphan::Restless
    }

    /// Probes the newest processes until one is alive: a walk rarely meets a process that lives for less time than the
    /// walk takes.
    fn newest(
        &mut self,
        run: &Run<'_>,
        observation: &Snapshot,
        attributor: &Attributor<'_, Live<'_>>,
    ) -> Option<Glimpse> {
        let began = Instant::now();
        while began.elapsed() < PROBING {
            let newest = observe::newest_pid()?;
            // The threads of the look itself have used the most recent numbers since then.
            for pid in (newest.saturating_sub(BEHIND).max(2)..=newest).rev() {
                let Some(p) = observe::process(pid, None) else { continue };
                let Some(by) = of_run(attributor.owner_of(&p), &p, run.baseline) else { continue };
                if is_free(&p, observation, run.baseline) && observe::is_process(pid) {
                    self.remember(&p, by);
                    return Some(Glimpse::of(&p, by, observation));
                }
            }
        }
        None
    }

    /// What remains of the run besides `residue`. Removes from `residue` what is only the latest process of the chain.
    /// `alive` tells whether the last look saw something live.
    ///
    /// # Errors
    /// What [`observe::snapshot`] raises.
    pub(super) fn end(
        mut self,
        run: &Run<'_>,
        observation: &Snapshot,
        residue: &mut BTreeMap<String, Remnant>,
        alive: bool,
    ) -> Result<Outcome> {
        self.watch_reapers(observation, residue);
        // A reaper's children come and go, and leave a zombie for a moment: the last looks may share one.
        let mut passed = None;
        residue.retain(|_, f| match &f.resource {
            Resource::Process(p) if f.by == Attribution::None && self.is_of_reaper(p, observation) => {
                let stays = self.in_first.contains(&(p.pid, p.start));
                if !stays {
                    passed = Some(unclear(p));
                }
                stays
            }
            _ => true,
        });
        if !alive || !run.asked.contains(Kind::Process) {
            return Ok(passed.unwrap_or_default());
        }
        // A process that started as an orphan after the run's end, while another process lived that is gone now: it is
        // the next one of the chain.
        let first = self.looks.first();
        let at_first = |id: (u32, u64)| first.is_some_and(|seen| seen.free.iter().any(|g| g.id == id));
        let went = first.is_some_and(|seen| seen.signs || seen.free.iter().any(|g| !holds(residue, g.id)));
        let by_looks = |p: &Process| went && !at_first((p.pid, p.start)) && self.knows_id((p.pid, p.start));
        // The last looks follow each other so quickly that one process of a slow chain can be in all of them. The
        // connector still shows that it succeeded another one.
        let by_events = |p: &Process| {
            let watch = run.live.tree.or(run.live.watch).filter(|_| self.by_events.is_some());
            let n = watch.map_or(0, |watch| watch.successions(p.pid, p.start, p.ppid));
            n > 1 || n == 1 && !self.at_first.contains(&p.pid)
        };
        // For the run's own processes, the events are more reliable: other processes that come and go meanwhile do not
        // belong to the run.
        let known = |by: Attribution| self.by_events.is_some() && is_known(by);
        let succeeds = |p: &Process, by: Attribution| lives(p) && if known(by) { by_events(p) } else { by_looks(p) };
        let latest: Vec<String> = residue
            .iter()
            .filter(|(_, f)| matches!(&f.resource, Resource::Process(p) if succeeds(p, f.by)))
            .map(|(key, _)| key.clone())
            .collect();
        let taken: Vec<Remnant> = latest.iter().filter_map(|key| residue.remove(key)).collect();
        let outcome = self.decide(run, observation, residue, taken)?;
        if outcome.leak.is_some() {
            // The report of the chain includes its zombies that a slow init has not reaped yet.
            let dead = |p: &Process| {
                !lives(p) && observation.process(p.ppid).is_none_or(|parent| is_reaper(parent, observation))
            };
            residue.retain(|_, f| !matches!(&f.resource, Resource::Process(p) if dead(p)));
        }
        Ok(if outcome.leak.is_none() && outcome.gap.is_none() { passed.unwrap_or_default() } else { outcome })
    }

    fn decide(
        &mut self,
        run: &Run<'_>,
        observation: &Snapshot,
        residue: &BTreeMap<String, Remnant>,
        taken: Vec<Remnant>,
    ) -> Result<Outcome> {
        let held: HashSet<u32> = residue
            .values()
            .filter_map(
                |f| if let Resource::Process(p) = &f.resource { Some(p.pid).filter(|_| lives(p)) } else { None },
            )
            .collect();
        let every = self.looks.iter().all(|seen| seen.beside(&held));
        if let Some(found) = taken.into_iter().next_back() {
            return Ok(match &found.resource {
                Resource::Process(p) if found.by == Attribution::None && self.is_of_reaper(p, observation) => {
                    unclear(p)
                }
                _ => Outcome { leak: Some(self.report(found.resource, found.by, found.facts)), gap: None },
            });
        }
        if self.by_events.is_some() {
            match self.caught(run, &held) {
                Caught::Alive(process) => return Ok(self.found_by_events(process, observation, run.live.view())),
                Caught::Unread(pid) => {
                    let why = format!("process {pid} of the run still runs, but could not be read");
                    return Ok(Outcome { leak: None, gap: Some(why) });
                }
                Caught::Nobody => {}
            }
        }
        if let Some(arena) = run.live.view()
            && self.looks.last().is_some_and(|seen| seen.beside(&held))
            && let Some(frozen) = Frozen::whole(arena)
        {
            let kinds: KindSet = [Kind::Process].into_iter().collect();
            let still = observe::snapshot(&observe::Options { kinds: Some(kinds), ..run.options.observe.clone() })?;
            let new = |p: &&Process| {
                lives(p) && !held.contains(&p.pid) && run.baseline.process(p.pid).is_none_or(|old| old.start != p.start)
            };
            let free = still.processes.iter().filter(new).filter(|p| is_free(p, &still, run.baseline));
            let caught: Vec<&Process> = free.filter(|p| !has_held_ancestor(p, &still, &held)).collect();
            caught.iter().for_each(|p| self.remember(p, Attribution::Scope));
            let Some(p) = caught.last() else { return Ok(Outcome::default()) };
            let resource = Resource::Process((*p).clone());
            let facts = detail::evidence(&resource, &still, Some(arena)).facts;
            drop(frozen);
            return Ok(Outcome { leak: Some(self.report(resource, Attribution::Scope, facts)), gap: None });
        }
        if !every || self.looks.len() < run.options.policy.looks as usize {
            return Ok(Outcome::default());
        }
        if self.seen.is_empty() {
            // In each look something lived that could not be read: these orphans are what it was.
            self.seen.append(&mut self.ended);
        }
        let unheld = |((pid, _), _): &(&(u32, u64), &(Process, Attribution))| !held.contains(pid);
        // Of the processes seen, one that certainly belongs to the run, else any.
        let best = self.seen.iter().filter(unheld).max_by_key(|(_, (_, by))| *by != Attribution::None);
        let clear = |(_, (p, by)): &(&(u32, u64), &(Process, Attribution))| {
            *by != Attribution::None || !self.is_of_reaper(p, observation)
        };
        Ok(match best.map(|(_, (p, by))| (p.clone(), *by)) {
            Some((p, _)) if !self.seen.iter().filter(unheld).any(|found| clear(&found)) => unclear(&p),
            Some((p, by)) => {
                let resource = Resource::Process(p);
                let facts = detail::evidence(&resource, observation, run.live.view()).facts;
                Outcome { leak: Some(self.report(resource, by, facts)), gap: None }
            }
            None => Outcome {
                leak: None,
                gap: Some(format!(
                    "in each of {} looks, processes exited before they could be read: a chain of processes, each of which starts the next and exits, may still run",
                    self.looks.len()
                )),
            },
        })
    }

    /// Whether its parent, a reaper, may have started it instead of adopting it: it is in the reaper's session, and the
    /// reaper has forked since the first look.
    fn is_of_reaper(&self, p: &Process, observation: &Snapshot) -> bool {
        let forks = || self.faults.get(&p.ppid).is_some_and(|(first, last)| first != last);
        is_in_session_of_parent(p, observation) && (forks() || self.starters.contains(&p.ppid))
    }

    /// Watches the reapers that may have started what was seen. A vfork(2) causes no page faults in the parent, but
    /// stops it until the child has executed a program: state D (proc_pid_stat(5)), in which a reaper that only waits
    /// for children never is.
    fn watch_reapers(&mut self, observation: &Snapshot, residue: &BTreeMap<String, Remnant>) {
        let stays = residue
            .values()
            .filter_map(|f| if let Resource::Process(p) = &f.resource { Some((p, f.by)) } else { None });
        let all = self.seen.values().map(|(p, by)| (p, *by)).chain(stays);
        let candidates = all.filter(|(p, by)| {
            *by == Attribution::None && self.faults.contains_key(&p.ppid) && is_in_session_of_parent(p, observation)
        });
        let reapers: HashSet<u32> = candidates.map(|(p, _)| p.ppid).collect();
        let began = Instant::now();
        let mut children = HashSet::new();
        let mut sleeps: Vec<Sleeps> = Vec::new();
        sleeps.extend(reapers.iter().filter_map(|pid| Sleeps::of(*pid)));
        while reapers.len() > self.starters.len() {
            let starts = |pid: &&u32| observe::process(**pid, None).is_some_and(|p| p.state == 'D');
            self.starters.extend(reapers.iter().filter(starts));
            children.extend(reapers.iter().filter_map(|pid| observe::children(*pid, None)).flatten());
            let enough = if children.len() > STARTS { STARTING } else { STARTING_LATE };
            if began.elapsed() >= enough {
                break;
            }
        }
        // On a busy machine, this process may see no vfork(2) for it runs only while the reaper does not.
        self.starters.extend(sleeps.iter().filter(|before| before.exceed_exits()).map(|before| before.pid));
    }

    /// A process of the run that lives besides those in `held`, including by events since the last look.
    fn caught(&mut self, run: &Run<'_>, held: &HashSet<u32>) -> Caught {
        let mut before: Vec<u32> = Vec::new();
        let began = Instant::now();
        loop {
            let Some(living) = adrift(run, held).map(|adrift| adrift.run) else { return Caught::Nobody };
            if let Some(p) = living.iter().rev().filter_map(|pid| observe::process(*pid, None)).find(lives) {
                return Caught::Alive(p);
            }
            // Too fast to be read: then each attempt finds a different one.
            let next = living.iter().find(|pid| !before.is_empty() && !before.contains(pid));
            if let Some(pid) = next {
                let known = self.seen.values().next_back().map(|(p, _)| p.clone());
                let comm = crate::text::Text::from(&b"?"[..]);
                let unread = Process { pid: *pid, start: 0, ppid: 0, state: '?', pgrp: 0, session: 0, comm };
                return Caught::Alive(known.unwrap_or(unread));
            }
            let Some(pid) = living.last() else { return Caught::Nobody };
            if began.elapsed() > ENDING {
                return Caught::Unread(*pid);
            }
            std::thread::yield_now();
            before = living;
        }
    }

    fn found_by_events(&mut self, process: Process, observation: &Snapshot, arena: Option<&ArenaView>) -> Outcome {
        self.remember(&process, Attribution::Descent);
        let resource = Resource::Process(process);
        let facts = detail::evidence(&resource, observation, arena).facts;
        Outcome { leak: Some(self.report(resource, Attribution::Descent, facts)), gap: None }
    }

    fn report(&self, resource: Resource, by: Attribution, mut facts: Map<String, Value>) -> Remnant {
        let last = if let Resource::Process(p) = &resource { format!("{} ({})", p.pid, p.comm) } else { String::new() };
        let alive = self.looks.iter().filter(|seen| seen.beside(&HashSet::new())).count();
        let many = if self.seen.len() >= REMEMBERED { "or more " } else { "" };
        let label = format!(
            "a chain of processes, {} {many}seen, the last {last}: each starts the next and exits",
            self.seen.len().max(1)
        );
        let seen: Vec<Value> = self
            .seen
            .values()
            .rev()
            .take(SHOWN)
            .map(|(p, _)| json!({"pid": p.pid, "comm": p.comm.to_string(), "ppid": p.ppid, "session": p.session}))
            .collect();
        facts.insert("seen".to_owned(), seen.into());
        facts.insert("looks_alive".to_owned(), json!([alive, self.looks.len()]));
        for name in ["inspect", "look"] {
            facts.insert(name.to_owned(), "ps -eo pid,ppid,sid,lstart,args --sort=start_time | tail".into());
        }
        Remnant { key: KEY.to_owned(), resource, by, class: Class::Respawning, label, facts }
    }
}

/// How often a reaper had gone to sleep, and what it may have been woken for since.
struct Sleeps {
    pid: u32,
    count: u64,
    newest: u32,
    children: Vec<u32>,
}

impl Sleeps {
    fn of(pid: u32) -> Option<Self> {
        let (newest, children) = (observe::newest_pid()?, observe::children(pid, None)?);
        Some(Sleeps { pid, count: observe::sleeps(pid)?, newest, children })
    }

    /// Whether it has gone to sleep more often since than processes can have ended. A reaper that only waits is woken at
    /// most once by each. One that starts a program by vfork(2) sleeps twice: until the child has executed it, and until
    /// it has ended.
    fn exceed_exits(&self) -> bool {
        let Some((count, now)) = observe::sleeps(self.pid).zip(Self::of(self.pid)) else { return false };
        let gone = self.children.iter().filter(|pid| !now.children.contains(pid)).count() as u64;
        // Where the ids have begun again, this says nothing.
        let begun = now.newest.checked_sub(self.newest).map(u64::from);
        // It may have been awake at first.
        begun.is_some_and(|begun| count.saturating_sub(self.count) > begun + gone + 1)
    }
}

/// Living processes by the events of the scope: those of the run, or of the tree and what left it. None if not all
/// events are known.
fn adrift(run: &Run<'_>, held: &HashSet<u32>) -> Option<watch::Adrift> {
    let watch = match run.baseline.scope {
        Scope::Host => run.live.watch,
        Scope::Tree(_) => run.live.tree,
        Scope::Cgroup(_) | Scope::Arena => None,
    }?;
    watch.sync();
    let mut adrift = watch.adrift(held)?;
    // A tree has members from before the run.
    let old = |pid: u32| {
        run.baseline.process(pid).filter(|old| observe::process(pid, None).is_some_and(|now| now.start == old.start))
    };
    adrift.run.retain(|pid| old(*pid).is_none());
    Some(adrift)
}

/// Whether it certainly belongs to the run or the tree, so that the connector's events cover it.
fn is_known(by: Attribution) -> bool {
    matches!(by, Attribution::Descent | Attribution::Scope)
}

fn holds(residue: &BTreeMap<String, Remnant>, (pid, start): (u32, u64)) -> bool {
    residue.values().any(|f| matches!(&f.resource, Resource::Process(p) if (p.pid, p.start) == (pid, start)))
}

/// The outcome if there is nothing but processes like this one.
fn unclear(p: &Process) -> Outcome {
    let why = format!(
        "processes like {} ({}) come and go; process {} may have started or adopted them: the kernel tells which only to a user who may open perf events",
        p.pid, p.comm, p.ppid
    );
    Outcome { leak: None, gap: Some(why) }
}
