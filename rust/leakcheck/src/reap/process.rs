//! Ends processes, each through a pidfd whose start time was compared.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, test_kill_process};

use super::action::{Outcome, Status, Verb};
use crate::observe::{read_file, started_ns};
use crate::parse::stat;
use crate::resource::Process;

/// `PF_KTHREAD`, include/linux/sched.h.
const PF_KTHREAD: u32 = 0x0020_0000;
/// Maximum number of open pidfds: far below the usual limit of 1,024 descriptors.
const BATCH: usize = 256;
/// Time limit for a killed process to exit.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time limit for a parent to wait for a zombie.
const BURIAL: Duration = Duration::from_millis(500);
/// A start time is rounded down to a tick, and the time of the baseline to one of the kernel's.
const ROUNDED: i64 = 20_000_000;
/// No real chain of parents is longer than this.
const GENERATIONS: usize = 4096;

/// The needed fields of `/proc/PID/stat`.
struct Seen {
    start: u64,
    parent: i32,
    state: u8,
    threads: u32,
    flags: u32,
}

fn see(pid: u32) -> Option<Seen> {
    let text = read_file(format!("/proc/{pid}/stat")).ok()?;
    let s = stat::parse(&text).ok()?;
    Some(Seen { start: s.start_time, parent: s.ppid, state: s.state, threads: s.num_threads, flags: s.flags })
}

/// The processes of a report.
pub(super) struct Processes {
    apply: bool,
    /// Start of the baseline.
    baseline_ns: i64,
    /// This process and its ancestors.
    spared: HashSet<u32>,
    /// Processes that were killed, or would be.
    ended: HashSet<u32>,
}

impl Processes {
    pub(super) fn new(apply: bool, baseline_ns: i64) -> Self {
        let mut spared = HashSet::new();
        let mut pid = std::process::id();
        while pid > 0 && spared.len() < GENERATIONS && spared.insert(pid) {
            pid = see(pid).map_or(0, |s| s.parent.try_into().unwrap_or(0));
        }
        Processes { apply, baseline_ns, spared, ended: HashSet::new() }
    }

    /// Whether a process was killed, or would be.
    pub(super) fn ends(&self, pid: u32) -> bool {
        self.ended.contains(&pid)
    }

    /// Kills all of them and waits, with a time limit, until they have exited: then what they held is free.
    pub(super) fn kill(&mut self, processes: &[&Process]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(processes.len());
        let deadline = Instant::now() + PATIENCE;
        for batch in processes.chunks(BATCH) {
            let mut killed: Vec<(usize, OwnedFd)> = Vec::new();
            for process in batch {
                let outcome = match self.verify(process) {
                    Err(outcome) => outcome,
                    Ok(pidfd) => self.signal(process, &pidfd).unwrap_or_else(|| {
                        killed.push((outcomes.len(), pidfd));
                        Outcome::new(Verb::Kill, Status::Done, "")
                    }),
                };
                outcomes.push(outcome);
            }
            let (numbers, pidfds): (Vec<usize>, Vec<OwnedFd>) = killed.into_iter().unzip();
            for left in wait(&pidfds, PollFlags::IN, deadline) {
                let number = numbers[left];
                let state = see(processes[number].pid).map_or('?', |s| char::from(s.state));
                let why = format!("did not end within {} s of SIGKILL (state {state})", PATIENCE.as_secs());
                outcomes[number] = Outcome::new(Verb::Kill, Status::Failed, why);
            }
        }
        for (process, outcome) in processes.iter().zip(&outcomes) {
            if matches!(outcome.status, Status::Would | Status::Done) {
                self.ended.insert(process.pid);
            }
        }
        outcomes
    }

    /// A pidfd of exactly the process in the record. The pidfd is opened first: the process that it refers to cannot be
    /// replaced while the start time is read.
    fn verify(&self, process: &Process) -> Result<OwnedFd, Outcome> {
        let skip = |why: &str| Err(Outcome::skipped(Verb::Kill, why));
        let Some(pid) = i32::try_from(process.pid).ok().filter(|p| *p > 1).and_then(Pid::from_raw) else {
            return skip("a process of a run cannot have this id");
        };
        if self.spared.contains(&process.pid) {
            return skip("it is this process or one of its ancestors");
        }
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => return Err(Outcome::gone(Verb::Kill)),
            // The id of a thread: the process that had it is gone.
            Err(Errno::INVAL | Errno::NOENT) => return Err(Outcome::replaced(Verb::Kill)),
            Err(e) => return Err(Outcome::failed(Verb::Kill, "pidfd_open", e)),
        };
        match see(process.pid) {
            None => Err(Outcome::gone(Verb::Kill)),
            Some(seen) if seen.start != process.start => Err(Outcome::replaced(Verb::Kill)),
            Some(seen) if seen.flags & PF_KTHREAD != 0 => skip("it is a kernel thread"),
            // It may have been moved into the scope, or the report may be wrong.
            Some(seen) if started_ns(seen.start).saturating_add(ROUNDED) < self.baseline_ns => {
                skip("it existed before the run")
            }
            Some(seen) if seen.state == b'Z' && seen.threads <= 1 => Err(Outcome::new(
                Verb::Kill,
                Status::Gone,
                format!("it exited; its parent {} has not waited for it yet", seen.parent),
            )),
            Some(_) => Ok(pidfd),
        }
    }

    /// None if the signal was sent.
    fn signal(&self, process: &Process, pidfd: &OwnedFd) -> Option<Outcome> {
        let sent = match (self.apply, Pid::from_raw(process.pid.cast_signed())) {
            (true, _) => pidfd_send_signal(pidfd, Signal::KILL),
            // Sends nothing, but checks whether a signal would be permitted (kill(2)).
            (false, Some(pid)) => test_kill_process(pid),
            (false, None) => Err(Errno::SRCH),
        };
        match sent {
            Ok(()) if self.apply => None,
            Ok(()) => Some(Outcome::new(Verb::Kill, Status::Would, "")),
            Err(Errno::SRCH) => Some(Outcome::gone(Verb::Kill)),
            Err(e) => Some(Outcome::failed(Verb::Kill, "send SIGKILL", e)),
        }
    }

    /// A zombie: there is nothing to kill. It goes when its parent waits for it or exits.
    pub(super) fn bury(&mut self, process: &Process) -> Outcome {
        let Some(seen) = see(process.pid) else { return Outcome::gone(Verb::None) };
        if seen.start != process.start {
            return Outcome::replaced(Verb::None);
        }
        let parent = process.ppid;
        let by_parent = self.ends(parent);
        if by_parent && !self.apply {
            self.ended.insert(process.pid);
            return Outcome::new(Verb::None, Status::Would, format!("a zombie: it goes with its parent {parent}"));
        }
        if by_parent && let Some(pid) = Pid::from_raw(process.pid.cast_signed()) {
            // Since Linux 6.9 a pidfd hangs up when its process has been waited for.
            let pidfd: Vec<OwnedFd> = pidfd_open(pid, PidfdFlags::empty()).into_iter().collect();
            wait(&pidfd, PollFlags::empty(), Instant::now() + BURIAL);
        }
        match see(process.pid) {
            Some(seen) if seen.start == process.start => {
                let why =
                    format!("a zombie cannot be killed: it goes when its parent {} waits for it or exits", seen.parent);
                Outcome::skipped(Verb::None, why)
            }
            Some(_) | None => Outcome::new(Verb::None, Status::Gone, format!("went with its parent {parent}")),
        }
    }
}

/// Waits until each has one of `flags` (or has hung up); returns those that have not by `deadline`.
fn wait(pidfds: &[OwnedFd], flags: PollFlags, deadline: Instant) -> Vec<usize> {
    let mut left: Vec<usize> = (0..pidfds.len()).collect();
    while !left.is_empty() {
        let rest = deadline.saturating_duration_since(Instant::now());
        let mut set: Vec<_> = left.iter().map(|at| PollFd::from_borrowed_fd(pidfds[*at].as_fd(), flags)).collect();
        let timeout = Timespec { tv_sec: rest.as_secs().cast_signed(), tv_nsec: rest.subsec_nanos().into() };
        match poll(&mut set, Some(&timeout)) {
            Ok(0) => break,
            Err(Errno::INTR) if !rest.is_zero() => continue,
            Err(_) => break,
            Ok(_) => {}
        }
        let ended: Vec<bool> = set.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ended = ended.into_iter();
        left.retain(|_| !ended.next().unwrap_or(false));
    }
    left
}
