//! Descent by `/proc` alone: the chain of parents of a live process, for use without the process connector.

use std::collections::{HashMap, HashSet};
use std::fs;

use crate::membership::Membership;
use crate::observe::read_file;
use crate::parse;

/// What a walk needs of `/proc/PID/stat` (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) ppid: u32,
    /// Field `starttime`, in ticks after boot.
    pub(super) start: u64,
    /// A kernel thread.
    pub(super) kernel: bool,
}

/// `PF_KTHREAD`, include/linux/sched.h.
const PF_KTHREAD: u32 = 0x0020_0000;
/// The parent of all kernel threads, in the machine's first pid namespace.
const KTHREADD: u32 = 2;

/// The kernel threads; none in a pid namespace, where they are not visible.
pub(super) fn kernel_threads() -> HashSet<u32> {
    if !stat(KTHREADD).is_some_and(|s| s.kernel) {
        return HashSet::new();
    }
    let text = fs::read_to_string(format!("/proc/{KTHREADD}/task/{KTHREADD}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).chain([KTHREADD]).collect()
}

/// The current facts of a live process or zombie.
pub(super) fn stat(pid: u32) -> Option<Stat> {
    let bytes = read_file(format!("/proc/{pid}/stat")).ok()?;
    let stat = parse::stat::parse(&bytes).ok()?;
    let kernel = stat.flags & PF_KTHREAD != 0;
    Some(Stat { ppid: u32::try_from(stat.ppid).ok()?, start: stat.start_time, kernel })
}

/// No real chain of parents is longer; a loop through reused ids ends here.
const DEEPEST: usize = 1024;
/// Maximum number of cached results.
const REMEMBERED: usize = 1 << 16;

/// Whether this process can adopt orphans: pid 1, and every subreaper (`PR_SET_CHILD_SUBREAPER`, which only the process
/// itself can query).
fn may_reap(pid: u32) -> bool {
    pid == 1 || pid != std::process::id() || !matches!(rustix::process::child_subreaper(), Ok(None))
}

/// Whether it has children now; true if that cannot be read (`/proc/PID/task/TID/children` is a kernel option).
fn has_children(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().any(|t| fs::read(t.path().join("children")).map_or(true, |children| !children.is_empty()))
}

/// Walks chains of parents.
#[derive(Debug)]
pub(super) struct Ancestry {
    root: u32,
    root_start: u64,
    /// The tick in which the watch began.
    began: u64,
    /// Processes that can adopt orphans: pid 1 of our namespace and the root's ancestors at the start. Later ones are
    /// among them.
    reapers: Vec<u32>,
    /// Whether a child of the root may be a stranger's orphan.
    root_adopts: bool,
    verdicts: HashMap<(u32, u64), Membership>,
}

impl Ancestry {
    /// `began` is the tick of the start.
    pub(super) fn new(root: u32, began: u64) -> Ancestry {
        let mut reapers = vec![1];
        let mut pid = root;
        while let Some(stat) = stat(pid).filter(|s| s.ppid != 0 && reapers.len() < DEEPEST) {
            reapers.push(stat.ppid);
            pid = stat.ppid;
        }
        let root_start = stat(root).map_or(0, |s| s.start);
        let root_adopts = may_reap(root) && has_children(root);
        Ancestry { root, root_start, began, reapers, root_adopts, verdicts: HashMap::new() }
    }

    /// Processes that can adopt orphans of the run.
    pub(super) fn reapers(&self) -> &[u32] {
        &self.reapers
    }

    /// Whether a process that started in this tick existed before the watch.
    pub(super) fn is_older(&self, start: u64) -> bool {
        start < self.began
    }

    /// Membership of the process that has this id now. A process that exited is unknown: another process may have its
    /// id.
    pub(super) fn now(&mut self, pid: u32) -> Membership {
        stat(pid).map_or(Membership::Unknown, |s| self.of_process(pid, s.start))
    }

    /// Whether a process with this id was ever found to be a member.
    pub(super) fn remembers(&self, pid: u32) -> bool {
        self.verdicts.iter().any(|((p, _), m)| *p == pid && *m == Membership::Run)
    }

    /// Membership of one process, which may be gone.
    pub(super) fn of_process(&mut self, pid: u32, start: u64) -> Membership {
        if (pid, start) == (self.root, self.root_start) {
            return Membership::Run;
        }
        if self.is_older(start) {
            return Membership::Stranger;
        }
        if let Some(known) = self.verdicts.get(&(pid, start)) {
            return *known;
        }
        let verdict = self.walk(pid, start);
        if verdict != Membership::Unknown {
            if self.verdicts.len() >= REMEMBERED {
                self.verdicts.clear();
            }
            self.verdicts.insert((pid, start), verdict);
        }
        verdict
    }

    fn walk(&self, mut pid: u32, mut start: u64) -> Membership {
        for _ in 0..DEEPEST {
            if (pid, start) == (self.root, self.root_start) {
                return Membership::Run;
            }
            if self.reapers.contains(&pid) {
                return Membership::Unknown;
            }
            if self.is_older(start) {
                return Membership::Stranger;
            }
            if let Some(known) = self.verdicts.get(&(pid, start)) {
                return *known;
            }
            let Some(parent) = stat(pid).filter(|s| s.start == start).map(|s| s.ppid) else {
                return Membership::Unknown;
            };
            if parent == 0 {
                // Its parent is outside our pid namespace, where no member can be: orphans of ours go to our pid 1.
                return Membership::Stranger;
            }
            let Some(next) = stat(parent) else { continue };
            // If the parent is still the parent after it was read, it was not a stranger with a reused id.
            if stat(pid).is_some_and(|s| (s.ppid, s.start) == (parent, start)) {
                if parent == self.root && self.root_adopts {
                    return Membership::Unknown;
                }
                if next.kernel {
                    // The kernel does not tell for which process it started this one.
                    return Membership::Unknown;
                }
                (pid, start) = (parent, next.start);
            }
        }
        Membership::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_is_the_root_and_its_ancestors_are_strangers() {
        let me = std::process::id();
        let now = u64::MAX;
        let mut ancestry = Ancestry::new(me, now);
        assert_eq!(ancestry.now(me), Membership::Run);
        let parent = stat(me).expect("our own stat").ppid;
        if parent != 0 {
            assert!(ancestry.reapers().contains(&parent));
            assert_eq!(ancestry.now(parent), Membership::Stranger);
        }
    }

    #[test]
    fn a_new_child_is_a_member_and_a_dead_process_is_unknown() {
        let me = std::process::id();
        let began = stat(me).expect("our own stat").start;
        let mut ancestry = Ancestry::new(me, began);
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat");
        let start = stat(child.id()).expect("the child's stat").start;
        assert_eq!(ancestry.of_process(child.id(), start), Membership::Run);
        drop(child.stdin.take());
        child.wait().expect("wait for cat");
        assert_eq!(ancestry.now(child.id()), Membership::Unknown);
        assert!(ancestry.remembers(child.id()));
    }
}
