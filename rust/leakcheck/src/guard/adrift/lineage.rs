//! Which processes live, and who is responsible for them: those from before, a reaper, or nobody.

use std::collections::HashSet;

use crate::judge::attribute::{Attribution, Owner};
use crate::resource::Process;
use crate::scope::Scope;
use crate::snapshot::Snapshot;

pub(super) fn lives(p: &Process) -> bool {
    !matches!(p.state, 'Z' | 'X' | 'x')
}

/// Why a living process is or may be the run's; none if it is not, or if it existed before.
pub(super) fn of_run(owner: Owner, p: &Process, baseline: &Snapshot) -> Option<Attribution> {
    if !lives(p) || baseline.process(p.pid).is_some_and(|old| old.start == p.start) {
        return None;
    }
    match owner {
        Owner::Run(Attribution::Own) | Owner::Stranger => None,
        Owner::Run(by) => Some(by),
        Owner::Unknown => Some(Attribution::None),
    }
}

pub(super) fn has_held_ancestor(p: &Process, observation: &Snapshot, held: &HashSet<u32>) -> bool {
    ancestors(p, observation).any(|a| held.contains(&a.pid))
}

pub(super) fn ancestors<'a>(p: &'a Process, observation: &'a Snapshot) -> impl Iterator<Item = &'a Process> {
    let parent = |p: &&'a Process| observation.process(p.ppid);
    std::iter::successors(observation.process(p.ppid), parent).take(observation.processes.len())
}

pub(super) fn is_in_session_of_parent(p: &Process, observation: &Snapshot) -> bool {
    observation.process(p.ppid).is_some_and(|parent| parent.session == p.session)
}

/// The processes that adopt the run's orphans: PID 1, or a subreaper among this process and its ancestors
/// (PR_SET_CHILD_SUBREAPER(2const)).
pub(super) fn is_reaper(p: &Process, observation: &Snapshot) -> bool {
    let me = std::process::id();
    let adopts = || p.pid == me && !matches!(rustix::process::child_subreaper(), Ok(None));
    let above = || observation.process(me).is_some_and(|own| ancestors(own, observation).any(|a| a.pid == p.pid));
    p.pid == 1 || observation.scope != Scope::Arena && (adopts() || above())
}

/// Whether no process from before, and no child of this process itself, is responsible for a process: it is an orphan
/// or an orphan's descendant. A process that a daemon started and waits for is not.
pub(super) fn is_free(p: &Process, observation: &Snapshot, baseline: &Snapshot) -> bool {
    let arena = observation.scope == Scope::Arena;
    let me = std::process::id();
    let Some(top) = ancestors(p, observation).find(|a| {
        !lives(a) || !arena && a.pid == me || baseline.process(a.pid).is_some_and(|old| old.start == a.start)
    }) else {
        return true;
    };
    if !lives(top) {
        return true;
    }
    // A process that adopts orphans may be the parent of any process. A process in its reaper's session was started by
    // that reaper.
    let reaps = is_reaper(top, observation);
    let of_session = || baseline.processes.iter().any(|old| old.session == p.session);
    if !arena && top.pid == me {
        return reaps && !of_session();
    }
    reaps || arena && !of_session()
}
