//! Processes that nothing of the run waits for any more, and chains of them.

use std::collections::HashSet;

use super::descent::{Descent, Span};
use crate::membership::Membership;

/// Living processes that no process holds: neither the process nor an ancestor of it is in a given set of processes,
/// and a process between it and the root has exited. A chain of processes has one of these at every instant, since the
/// kernel reports a fork before the parent can exit.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Adrift {
    /// Processes of the run.
    pub run: Vec<u32>,
    /// Processes that may belong to the run.
    pub unknown: Vec<u32>,
}

impl Descent {
    /// The processes that are adrift, sorted, except those in `held`.
    pub(super) fn adrift(&self, held: &HashSet<u32>) -> Adrift {
        let mut adrift = Adrift::default();
        for &pid in &self.live {
            let Some(span) = self.open(pid).filter(|_| !held.contains(&pid)) else { continue };
            let found = match span.membership {
                Membership::Run => &mut adrift.run,
                Membership::Unknown => &mut adrift.unknown,
                Membership::Stranger => continue,
            };
            if self.is_cut_off(span, held) {
                found.push(pid);
            }
        }
        adrift.run.sort_unstable();
        adrift.unknown.sort_unstable();
        adrift
    }

    fn is_cut_off<'a>(&'a self, mut span: &'a Span, held: &HashSet<u32>) -> bool {
        let mut cut = false;
        // A parent's span starts before its child's, so the way up ends.
        while span.parent != self.root {
            if held.contains(&span.parent) {
                return false;
            }
            let born = span.from;
            // A reaper's child, or a process with an unknown parent.
            let Some(parent) = self.parent_of(span) else { return true };
            cut |= parent.to.is_some();
            if parent.from >= born {
                return true;
            }
            span = parent;
        }
        cut
    }

    fn parent_of(&self, child: &Span) -> Option<&Span> {
        let was = |s: &&Span| s.from <= child.from && s.to.is_none_or(|end| end >= child.from);
        self.spans.get(&child.parent)?.iter().rev().find(was)
    }

    /// The length of the chain of orphans that led to the process that has this id, started at `start` and was seen
    /// with the parent `ppid`: each of them started the next and exited. At most two are counted. The process itself
    /// may have exited since it was seen. Starting a daemon gives none, since the process that forks it is waited for.
    /// A daemon that forks once and exits gives one.
    pub(super) fn successions(&self, pid: u32, start: u64, ppid: u32) -> u32 {
        let Some(mut span) = self.span_of(pid, start) else { return 0 };
        // An orphan's parent has exited, though the event that reports it may not have arrived yet.
        let mut ended = ppid != span.parent;
        for n in 0..2 {
            let Some(parent) = self.parent_of(span).filter(|parent| ended || parent.to.is_some()) else { return n };
            let orphan = |starter: &Span| starter.to.is_some_and(|end| end <= span.from);
            if span.parent == self.root || parent.parent == self.root || !self.parent_of(parent).is_some_and(orphan) {
                return n;
            }
            (span, ended) = (parent, false);
        }
        2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::test_events::{ROOT, after, exit, fork};

    #[test]
    fn a_chain_of_processes_is_adrift_at_every_instant_and_a_child_of_ours_never() {
        let held = HashSet::new();
        let mut descent = after(&[fork(1, ROOT, 101)]);
        assert_eq!(descent.adrift(&held).run, [0u32; 0], "the root itself made it and can wait for it");
        for at in 2..50u32 {
            let time = u64::from(at) * 10;
            descent.apply(fork(time, 99 + at, 100 + at), &|_| None);
            descent.apply(exit(time + 1, 99 + at, 99 + at), &|_| None);
            assert_eq!(descent.adrift(&held).run, [100 + at]);
        }
    }

    #[test]
    fn orphans_that_follow_each_other_are_counted_and_what_a_living_one_starts_is_not() {
        let mut descent = after(&[fork(1, ROOT, 101), fork(2, 101, 102), exit(3, 101, 101)]);
        assert_eq!(descent.successions(102, 2, 1), 0, "a daemon");
        for at in [10, 20, 30] {
            let link = 100 + at;
            let before = if at == 10 { 102 } else { link - 10 };
            descent.apply(fork(u64::from(at), before, link), &|_| None);
            let time = u64::from(at);
            assert_eq!(descent.successions(link, time, before), 0, "its parent lives still");
            assert_eq!(
                descent.successions(link, time, 1),
                (at / 10).min(2),
                "the event of its parent's end is to come"
            );
            descent.apply(exit(time + 1, before, before), &|_| None);
            assert_eq!(descent.successions(link, time, 1), (at / 10).min(2));
        }
        descent.apply(exit(40, 130, 130), &|_| None);
        assert_eq!(descent.successions(130, 30, 1), 2, "it ended since it was seen");
    }

    #[test]
    fn a_tower_of_starters_that_end_together_is_no_succession() {
        let descent = after(&[
            fork(1, ROOT, 101),
            fork(2, 101, 102),
            fork(3, 102, 103),
            fork(4, 103, 104),
            exit(5, 103, 103),
            exit(6, 102, 102),
            exit(7, 101, 101),
        ]);
        assert_eq!(descent.successions(104, 4, 1), 0);
    }

    #[test]
    fn what_a_held_process_starts_goes_with_it() {
        let descent = after(&[fork(1, ROOT, 101), fork(2, 101, 102), exit(3, 101, 101), fork(4, 102, 103)]);
        assert_eq!(descent.adrift(&HashSet::new()).run, [102, 103]);
        assert_eq!(descent.adrift(&HashSet::from([102])), Adrift::default());
    }
}
