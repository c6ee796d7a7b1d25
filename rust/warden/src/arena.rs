//! An arena from the warden's view: its cgroups, its first processes, and their teardown.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use leakcheck_sys as sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use crate::cgroups::Cgroups;
use crate::ending;

/// Its spawner, and PID 1 once it is up.
pub(crate) struct Arena {
    pub(crate) cgroups: Cgroups,
    pub(crate) socket: OwnedFd,
    pub(crate) spawner: OwnedFd,
    pub(crate) init: Option<OwnedFd>,
    /// Process ids of the spawner and of PID 1, if they exist.
    pub(crate) pids: Vec<i32>,
    pub(crate) kept: bool,
}

impl Arena {
    pub(crate) fn lives(&self) -> bool {
        self.init.as_ref().is_some_and(|init| !ended(init))
    }

    /// Begins to take it down: the kernel kills the whole pid namespace with init (pid_namespaces(7)).
    pub(crate) fn end(self) -> Ending {
        let arena = Ending { arena: self, since: Instant::now() };
        arena.kill();
        arena
    }

    fn processes(&self) -> impl Iterator<Item = &OwnedFd> {
        self.init.iter().chain([&self.spawner])
    }
}

/// Usual maximum time for killed processes to exit; after that, the teardown intervenes.
const AT_ONCE: Duration = Duration::from_millis(50);
/// Time limit for the wait: a process that hangs in the kernel does not exit.
const PATIENCE: Duration = Duration::from_secs(10);

/// An arena whose processes were killed.
pub(crate) struct Ending {
    arena: Arena,
    since: Instant,
}

impl Ending {
    fn kill(&self) {
        for pidfd in self.arena.processes() {
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }

    /// What is readable once a process has exited. Their orphans become our children, and a pid namespace ends only after all
    /// its processes were reaped (pid_namespaces(7)): so the signal of a child's end is to be waited for, too.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &OwnedFd> {
        self.arena.processes().filter(|pidfd| !ended(pidfd))
    }

    /// How long a wait for that may be.
    pub(crate) fn patience(&self) -> Duration {
        AT_ONCE.saturating_sub(self.since.elapsed()).max(ending::STEP)
    }

    /// Removes the cgroups once all processes have exited; returns nothing before.
    pub(crate) fn outcome(&mut self) -> Option<io::Result<()>> {
        while sys::reap().is_some() {}
        let (arena, deadline) = (&mut self.arena, self.since + PATIENCE);
        if arena.processes().all(ended) {
            return Some(arena.cgroups.remove(deadline));
        }
        if self.since.elapsed() >= AT_ONCE {
            arena.cgroups.let_end(&arena.pids);
        }
        if Instant::now() < deadline {
            return None;
        }
        let remaining = arena.cgroups.remaining();
        let left = arena.cgroups.remove(deadline).map_or_else(|e| format!("; {e}"), |()| String::new());
        let seconds = PATIENCE.as_secs();
        Some(Err(io::Error::other(format!("SIGKILL did not end {} in {seconds} s{left}", remaining.join(", ")))))
    }
}

/// Takes them down in parallel, and waits for it.
pub(crate) fn all_down(mut all: Vec<Ending>, children: &OwnedFd) -> io::Result<()> {
    let mut outcome = Ok(());
    loop {
        all.retain_mut(|one| {
            let ended = one.outcome();
            let remains = ended.is_none();
            outcome = std::mem::replace(&mut outcome, Ok(())).and(ended.unwrap_or(Ok(())));
            remains
        });
        let Some(patience) = all.iter().map(Ending::patience).min() else { return outcome };
        let fds: Vec<_> = all.iter().flat_map(Ending::processes).chain([children]).map(AsFd::as_fd).collect();
        let _ = sys::wait_until(&fds, patience);
        sys::drain(children);
    }
}

fn ended(pidfd: &OwnedFd) -> bool {
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&Timespec::default())).is_ok_and(|n| n > 0)
}
