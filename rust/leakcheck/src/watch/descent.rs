//! The set of processes that descend from the root process, built from the connector's events. No I/O.

use std::collections::{HashMap, HashSet, VecDeque};

use super::connector::Event;
use crate::membership::Membership;

/// A process id during the time when it denoted one process. Times are `CLOCK_MONOTONIC` nanoseconds.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) membership: Membership,
    /// The time stamp of the fork event: not before the process's start time.
    pub(super) from: u64,
    /// The time stamp of the last thread's exit, or of the fork that reused the id.
    pub(super) to: Option<u64>,
    threads: u32,
    pub(super) parent: u32,
    /// When a stranger released this id, if that was so recent that its last actions may not be read yet.
    vacated: Option<u64>,
}

/// Tolerance between a process's start time and a fork event, for the reading of two clocks that compares them.
const CLOCK_SLACK: u64 = 2_000_000;
/// One tick, and the time that may pass in the kernel between setting the start time and the fork event on an
/// overloaded machine.
const START_TO_FORK: u64 = 1_000_000_000;

/// Maximum number of remembered forks of strangers.
const REMEMBERED: usize = 1 << 16;

/// Members of the run, dead or alive, and strangers that reuse a member's id.
#[derive(Debug)]
pub(super) struct Descent {
    pub(super) root: u32,
    pub(super) spans: HashMap<u32, Vec<Span>>,
    pub(super) live: HashSet<u32>,
    /// Processes that can adopt orphans of the run: pid 1 and the root's ancestors. All others that can are members
    /// themselves.
    reapers: Vec<u32>,
    /// Kernel threads: they may start processes for the run (a release agent, a core dump handler, modprobe).
    kernel: HashSet<u32>,
    /// Which stranger forked which: a hint, not a proof, since ids are reused.
    parents: HashMap<u32, u32>,
    gone: VecDeque<(u64, u32)>,
    late_exits: HashMap<u32, u32>,
    doubts: Vec<Doubt>,
}

/// A child of a reaper that may be one of these members', which ended before their parent could be asked for: the
/// events of their ends tell whether they had been adopted.
#[derive(Debug)]
struct Doubt {
    /// Its id, and the time stamp of its fork: the id may be reused.
    child: (u32, u64),
    members: Vec<u32>,
}

impl Descent {
    /// A run that consists only of `root`.
    pub(super) fn new(root: u32, reapers: Vec<u32>, kernel: HashSet<u32>) -> Descent {
        let mut descent = Descent {
            root,
            spans: HashMap::new(),
            live: HashSet::new(),
            reapers,
            kernel,
            parents: HashMap::new(),
            gone: VecDeque::new(),
            late_exits: HashMap::new(),
            doubts: Vec::new(),
        };
        // The number of the root's threads is not known; if its exit events do not end this span, the reuse of its id
        // does.
        let span = Span { membership: Membership::Run, from: 0, to: None, threads: u32::MAX, parent: 0, vacated: None };
        descent.spans.insert(root, vec![span]);
        descent
    }

    /// Adds a process from before the start to the run.
    pub(super) fn adopt(&mut self, pid: u32) {
        if self.open(pid).is_none() {
            // As with the root, the number of its threads is not known.
            let span =
                Span { membership: Membership::Run, from: 0, to: None, threads: u32::MAX, parent: 0, vacated: None };
            self.spans.entry(pid).or_default().push(span);
        }
    }

    pub(super) fn open(&self, pid: u32) -> Option<&Span> {
        self.spans.get(&pid)?.last().filter(|span| span.to.is_none())
    }

    fn open_mut(&mut self, pid: u32) -> Option<&mut Span> {
        self.spans.get_mut(&pid)?.last_mut().filter(|span| span.to.is_none())
    }

    /// Processes one event, in the order of the queue. `ppid_of` reads a live process's parent, `None` if it exited.
    pub(super) fn apply(&mut self, event: Event, ppid_of: &dyn Fn(u32) -> Option<u32>) {
        match event {
            Event::Fork { at, parent_tgid, child_pid, child_tgid } if child_pid == child_tgid => {
                self.fork(at, parent_tgid, child_tgid, ppid_of);
            }
            Event::Fork { child_tgid, .. } => {
                if let Some(span) = self.open_mut(child_tgid) {
                    span.threads = span.threads.saturating_add(1);
                }
            }
            Event::Exit { at, pid, tgid, parent_tgid } => self.exit(at, pid, tgid, parent_tgid),
            Event::Ack { .. } | Event::Other { .. } => {}
        }
    }

    fn fork(&mut self, at: u64, parent: u32, child: u32, ppid_of: &dyn Fn(u32) -> Option<u32>) {
        let membership = match self.open(parent) {
            Some(span) => span.membership,
            None if self.kernel.contains(&parent) => Membership::Unknown,
            None if self.reapers.contains(&parent) => self.of_reapers_child((child, at), ppid_of),
            None => Membership::Stranger,
        };
        if let Some(span) = self.open_mut(child) {
            // The parent may reap the process, and its id may be reused, before the kernel sends the exit event. This
            // event must not end the new process.
            span.to = Some(at);
            let owed = if span.threads == u32::MAX { 1 } else { span.threads };
            self.late_exits.insert(child, owed);
            self.live.remove(&child);
        }
        if membership == Membership::Stranger {
            if self.parents.len() >= REMEMBERED {
                self.parents.clear();
            }
            self.parents.insert(child, parent);
        }
        if membership != Membership::Stranger || self.spans.contains_key(&child) {
            let vacated = self.gone.iter().rev().find(|(_, pid)| *pid == child).map(|(at, _)| *at);
            let span = Span { membership, from: at, to: None, threads: 1, parent, vacated };
            self.spans.entry(child).or_default().push(span);
            self.live.insert(child);
        }
    }

    /// Whether a process that looks like a reaper's child may be a member's: with `CLONE_PARENT` a member that was orphaned
    /// gives birth to children of its reaper (runc's init does that).
    fn of_reapers_child(&mut self, child: (u32, u64), ppid_of: &dyn Fn(u32) -> Option<u32>) -> Membership {
        let mut ended = Vec::new();
        for pid in &self.live {
            let Some(span) = self.open(*pid) else { continue };
            if span.membership == Membership::Stranger || self.kernel.contains(&span.parent) {
                continue;
            }
            // A process is adopted before its parent's exit is told.
            let orphan = self.open(span.parent).is_none();
            match ppid_of(*pid) {
                Some(ppid) if self.reapers.contains(&ppid) && (orphan || ppid != span.parent) => {
                    return Membership::Unknown;
                }
                None if orphan => return Membership::Unknown,
                None => ended.push(*pid),
                Some(_) => {}
            }
        }
        if ended.is_empty() {
            return Membership::Stranger;
        }
        self.doubts.push(Doubt { child, members: ended });
        Membership::Unknown
    }

    /// Settles what was in doubt until the end of this member, whose parent was `ppid` then.
    fn ended(&mut self, pid: u32, ppid: u32) {
        let Some(span) = self.spans.get(&pid).and_then(|spans| spans.last()) else { return };
        let adopted = ppid == 0 || (ppid != span.parent && self.reapers.contains(&ppid));
        let mut strangers = Vec::new();
        self.doubts.retain_mut(|doubt| {
            let asked = doubt.members.len();
            doubt.members.retain(|member| *member != pid);
            if adopted {
                return doubt.members.len() == asked;
            }
            if doubt.members.is_empty() {
                strangers.push(doubt.child);
            }
            !doubt.members.is_empty()
        });
        while let Some((stranger, born)) = strangers.pop() {
            let itself =
                self.spans.get_mut(&stranger).and_then(|spans| spans.iter_mut().find(|span| span.from == born));
            let Some(span) = itself.filter(|span| span.membership == Membership::Unknown) else { continue };
            span.membership = Membership::Stranger;
            let (from, to) = (span.from, span.to.unwrap_or(u64::MAX));
            let is_child = |span: &&Span| span.parent == stranger && (from..=to).contains(&span.from);
            let children = self
                .spans
                .iter()
                .flat_map(|(pid, spans)| spans.iter().filter(is_child).map(|child| (*pid, child.from)));
            strangers.extend(children);
        }
    }

    fn exit(&mut self, at: u64, pid: u32, tgid: u32, ppid: u32) {
        if let Some(owed) = self.late_exits.get_mut(&tgid) {
            *owed -= 1;
            if *owed == 0 {
                self.late_exits.remove(&tgid);
            }
        } else if let Some(span) = self.open_mut(tgid) {
            if span.threads < u32::MAX {
                span.threads -= 1;
            }
            if span.threads == 0 {
                span.to = Some(at);
                self.live.remove(&tgid);
                self.ended(tgid, ppid);
            }
        } else if pid == tgid {
            self.kernel.remove(&tgid);
            self.gone.push_back((at, tgid));
        }
    }

    /// Forgets strangers' exits before `at`: everything they did has been read.
    pub(super) fn forget_gone_before(&mut self, at: u64) {
        while self.gone.front().is_some_and(|(gone, _)| *gone < at) {
            self.gone.pop_front();
        }
    }

    /// Membership of the process that had this id at some time between two times.
    pub(super) fn within(&self, pid: u32, from: u64, to: u64) -> Membership {
        let spans = self.spans.get(&pid).map_or(&[][..], Vec::as_slice);
        let mut possible = spans.iter().filter(|span| span.from <= to && span.to.is_none_or(|end| end >= from));
        let Some(first) = possible.next() else { return Membership::Stranger };
        let mut membership = first.membership;
        if first.from > from && first.vacated.is_some_and(|gone| gone >= from) {
            membership = membership.agree(Membership::Stranger);
        }
        possible.fold(membership, |all, span| all.agree(span.membership))
    }

    /// Membership of the process that has this id and started at `start` (rounded down by up to one `tick`). `None`: not
    /// seen. `lives`: whether a process of this id and start lives, after all events were read.
    ///
    /// Within one tick an id can be released and given to another process: the one that lives is the last. If none
    /// lives, it can be any of them.
    pub(super) fn of_process(&self, pid: u32, start: u64, tick: u64, lives: &dyn Fn() -> bool) -> Option<Membership> {
        let spans = self.spans.get(&pid)?;
        if pid == self.root && spans[0].to.is_none_or(|end| end > start) {
            return Some(spans[0].membership);
        }
        let span = self.span_of(pid, start)?;
        // Long before the fork, another process had the id; nothing is known about it any more.
        if span.from > start + START_TO_FORK {
            return Some(Membership::Unknown);
        }
        let mut others = spans.iter().filter(|s| s.from > span.from && s.from <= start + tick + CLOCK_SLACK);
        let agreed = others.clone().fold(span.membership, |all, other| all.agree(other.membership));
        if agreed == span.membership {
            return Some(agreed);
        }
        let last = others.next_back().filter(|_| lives());
        Some(last.map_or(agreed, |last| last.membership))
    }

    /// The first fork of this id that is not before `start`.
    pub(super) fn span_of(&self, pid: u32, start: u64) -> Option<&Span> {
        self.spans.get(&pid)?.iter().find(|span| span.from + CLOCK_SLACK >= start)
    }

    /// Whether any member had this id. Unknown when a stranger had it too.
    pub(super) fn ever(&self, pid: u32) -> Membership {
        let Some(spans) = self.spans.get(&pid) else { return Membership::Stranger };
        spans.iter().map(|span| span.membership).reduce(Membership::agree).unwrap_or(Membership::Stranger)
    }

    /// The parent of the stranger that last had this id, if remembered.
    pub(super) fn parent(&self, pid: u32) -> Option<u32> {
        self.parents.get(&pid).copied()
    }

    /// Whether this process lives and is not a stranger.
    pub(super) fn is_live_member(&self, pid: u32) -> bool {
        self.open(pid).is_some_and(|span| span.membership != Membership::Stranger)
    }

    /// Members other than the root whose exit was not seen, sorted.
    pub(super) fn live(&self) -> Vec<u32> {
        let is_run = |pid: &u32| self.open(*pid).is_some_and(|span| span.membership == Membership::Run);
        let mut live: Vec<u32> = self.live.iter().copied().filter(is_run).collect();
        live.sort_unstable();
        live
    }
}

#[cfg(test)]
mod tests {
    use super::Membership::{Run, Stranger, Unknown};
    use super::*;
    use crate::watch::test_events::{ROOT, after, exit, exit_of_child, fork, thread};

    const TICK: u64 = 10_000_000;

    #[test]
    fn an_orphan_stays_a_member_after_its_parents_death() {
        let descent = after(&[fork(1, ROOT, 101), fork(2, 101, 102), exit(3, 101, 101), fork(4, 102, 103)]);
        assert_eq!([101, 102, 103, 104].map(|pid| descent.ever(pid)), [Run, Run, Run, Stranger]);
        assert_eq!(descent.live(), [102, 103]);
    }

    #[test]
    fn a_process_lives_until_its_last_thread_ends() {
        let mut descent = after(&[fork(1, ROOT, 101), thread(2, ROOT, 102, 101), exit(3, 101, 101)]);
        assert_eq!(descent.live(), [101]);
        descent.apply(exit(4, 102, 101), &|_| None);
        assert_eq!(descent.live(), [0u32; 0]);
        assert_eq!(descent.ever(102), Stranger, "a thread id is no process id");
    }

    #[test]
    fn a_reused_id_is_distinguished_by_time() {
        let descent = after(&[fork(10, ROOT, 101), exit(20, 101, 101), fork(30, 7, 101), exit(40, 101, 101)]);
        assert_eq!(descent.within(101, 12, 18), Run);
        assert_eq!(descent.within(101, 32, 38), Stranger);
        assert_eq!(descent.within(101, 18, 35), Unknown);
        assert_eq!(descent.ever(101), Unknown);
    }

    #[test]
    fn a_start_time_chooses_between_the_processes_that_had_an_id() {
        let second = 1_000_000_000;
        let descent = after(&[fork(5 * second, ROOT, 101), exit(6 * second, 101, 101), fork(9 * second, 7, 101)]);
        let of = |pid, start| descent.of_process(pid, start, TICK, &|| false);
        assert_eq!(of(101, 5 * second - 9_000_000), Some(Run));
        assert_eq!(of(101, 9 * second - 9_000_000), Some(Stranger));
        assert_eq!(of(101, 12 * second), None);
        assert_eq!(of(101, 2 * second), Some(Unknown), "a process before any that was seen");
        assert_eq!(of(ROOT, 0), Some(Run));
    }

    #[test]
    fn an_id_that_is_reused_within_one_tick_belongs_to_the_process_that_lives() {
        let tick = 1000 * TICK;
        let reused = |gap| {
            after(&[
                fork(tick + 1_000_000, ROOT, 101),
                exit(tick + 2_000_000, 101, 101),
                fork(tick + 2_000_000 + gap, 7, 101),
            ])
        };
        assert_eq!(reused(500_000).of_process(101, tick, TICK, &|| true), Some(Stranger));
        assert_eq!(reused(500_000).of_process(101, tick, TICK, &|| false), Some(Unknown));
        assert_eq!(reused(5 * TICK).of_process(101, tick, TICK, &|| true), Some(Run), "another one started then");
        let back = after(&[fork(tick + 1, 7, 101), exit(tick + 2, 101, 101), fork(tick + 3, ROOT, 101)]);
        assert_eq!(back.of_process(101, tick, TICK, &|| true), Some(Run));
    }

    #[test]
    fn a_late_exit_event_does_not_end_the_process_that_reuses_the_id() {
        let mut descent = after(&[fork(1, ROOT, 101), fork(2, ROOT, 101), exit(3, 101, 101)]);
        assert_eq!(descent.live(), [101]);
        descent.apply(exit(4, 101, 101), &|_| None);
        assert_eq!(descent.live(), [0u32; 0]);
    }

    #[test]
    fn an_id_that_a_stranger_has_just_given_up_is_not_yet_the_members() {
        let mut descent = after(&[exit(10, 101, 101), fork(12, ROOT, 101)]);
        assert_eq!(descent.within(101, 5, 20), Unknown);
        assert_eq!(descent.within(101, 11, 20), Run);
        descent.forget_gone_before(11);
        assert!(descent.gone.is_empty());
    }

    #[test]
    fn what_the_kernel_starts_is_nobodys_for_sure() {
        let descent = after(&[fork(1, 2, 200), fork(2, 200, 201), exit(3, 200, 200), fork(4, 201, 202)]);
        assert_eq!([200, 201, 202].map(|pid| descent.ever(pid)), [Unknown; 3]);
        assert_eq!(descent.within(202, 4, 9), Unknown, "nor what it makes");
        let reused = after(&[exit(1, 3, 3), fork(2, 7, 3), fork(3, 3, 300)]);
        assert_eq!(reused.ever(300), Stranger, "the id of a kernel thread that ended");
    }

    #[test]
    fn a_reapers_new_child_is_unknown_only_while_it_has_adopted_a_member() {
        let orphaned = [fork(1, ROOT, 101), fork(2, 101, 102), exit(3, 101, 101)];
        let of = |events: &[Event], ppid: u32| {
            let mut descent = after(events);
            descent.apply(fork(9, 1, 900), &|_| Some(ppid));
            descent.ever(900)
        };
        assert_eq!(of(&orphaned, 1), Unknown);
        assert_eq!(of(&orphaned, 77), Stranger, "adopted inside a nested pid namespace");
        assert_eq!(of(&orphaned[..2], 101), Stranger, "nobody was orphaned");
        assert_eq!(of(&orphaned[..2], 1), Unknown, "adopted, and its parent's exit is not told yet");
        assert_eq!(of(&[], 1), Stranger);
    }

    #[test]
    fn the_end_of_a_member_that_ended_too_soon_tells_whose_a_reapers_new_child_is() {
        let of = |ppid: u32| {
            let mut descent = after(&[fork(1, ROOT, 101), fork(2, 101, 102)]);
            for event in [fork(3, 1, 900), fork(4, 900, 901), fork(5, 900, 902), exit(6, 902, 902)] {
                descent.apply(event, &|pid| (pid == 101).then_some(ROOT));
            }
            assert_eq!([900, 901, 902].map(|pid| descent.ever(pid)), [Unknown; 3], "102 may have been adopted");
            descent.apply(exit_of_child(7, 102, 102, ppid), &|_| None);
            [900, 901, 902].map(|pid| descent.ever(pid))
        };
        assert_eq!(of(101), [Stranger; 3], "102 was never adopted");
        assert_eq!(of(1), [Unknown; 3], "it was, though its parent's exit is not told yet");
        assert_eq!(of(0), [Unknown; 3], "nothing tells");
    }

    #[test]
    fn an_id_that_is_reused_before_a_doubt_is_settled_keeps_its_new_membership() {
        let mut descent = after(&[fork(1, ROOT, 101), fork(2, 101, 102)]);
        // Of the reaper, and later of a kernel thread.
        for event in [fork(3, 1, 900), exit(4, 900, 900), fork(5, 2, 900), exit_of_child(6, 102, 102, 101)] {
            descent.apply(event, &|pid| (pid == 101).then_some(ROOT));
        }
        assert_eq!(descent.within(900, 3, 3), Stranger);
        assert_eq!(descent.within(900, 5, 9), Unknown);
    }
}
