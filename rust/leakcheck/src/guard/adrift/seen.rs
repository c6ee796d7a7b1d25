//! What one look saw of processes that no process holds.

use std::collections::HashSet;

use super::lineage::ancestors;
use crate::judge::attribute::Attribution;
use crate::resource::Process;
use crate::snapshot::Snapshot;

/// A process that one look saw and that no process holds, with its new ancestors.
pub(super) struct Glimpse {
    pub(super) id: (u32, u64),
    pub(super) by: Attribution,
    line: Vec<u32>,
}

/// What one look saw.
pub(super) struct Seen {
    pub(super) free: Vec<Glimpse>,
    /// Whether there are signs of others that could not be read.
    pub(super) signs: bool,
}

impl Glimpse {
    pub(super) fn of(p: &Process, by: Attribution, observation: &Snapshot) -> Self {
        Glimpse { id: (p.pid, p.start), by, line: ancestors(p, observation).map(|a| a.pid).collect() }
    }
}

impl Seen {
    /// Whether something was alive besides the processes in `held` and their descendants.
    pub(super) fn beside(&self, held: &HashSet<u32>) -> bool {
        let by_held = |g: &Glimpse| held.contains(&g.id.0) || g.line.iter().any(|pid| held.contains(pid));
        self.signs || !self.free.iter().all(by_held)
    }
}
