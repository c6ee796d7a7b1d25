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

    /// Kills every process and removes the cgroups: the kernel kills the whole pid namespace with init
    /// (pid_namespaces(7)).
    pub(crate) fn down(&mut self, children: &OwnedFd, deadline: Instant) -> io::Result<()> {
        self.kill();
        let mut ended = self.ends_by(children, deadline.min(Instant::now() + AT_ONCE));
        while !ended && Instant::now() < deadline {
            self.cgroups.let_end(&self.pids);
            ended = self.ends_by(children, Instant::now() + ending::STEP);
        }
        let remaining = if ended { Vec::new() } else { self.cgroups.remaining() };
        let removed = self.cgroups.remove(deadline);
        if ended {
            return removed;
        }
        let left = removed.map_or_else(|e| format!("; {e}"), |()| String::new());
        let seconds = PATIENCE.as_secs();
        Err(io::Error::other(format!("SIGKILL did not end {} in {seconds} s{left}", remaining.join(", "))))
    }

    pub(crate) fn kill(&self) {
        for pidfd in self.init.iter().chain([&self.spawner]) {
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }

    /// Waits until the killed processes have exited. Meanwhile their orphans become our children, and a pid namespace
    /// ends only after all its processes were reaped (pid_namespaces(7)).
    fn ends_by(&self, children: &OwnedFd, deadline: Instant) -> bool {
        self.init.iter().chain([&self.spawner]).all(|pidfd| {
            loop {
                while sys::reap().is_some() {}
                if ended(pidfd) {
                    return true;
                }
                if Instant::now() >= deadline {
                    return false;
                }
                let left = deadline.saturating_duration_since(Instant::now());
                let _ = sys::wait_until(&[pidfd.as_fd(), children.as_fd()], left);
                sys::drain(children);
            }
        })
    }
}

/// Usual maximum time for killed processes to exit; after that, the teardown intervenes.
const AT_ONCE: Duration = Duration::from_millis(50);
/// Time limit for the wait: a process that hangs in the kernel does not exit.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Takes them down in parallel.
pub(crate) fn all_down(arenas: impl Iterator<Item = Arena>, children: &OwnedFd) -> io::Result<()> {
    let all: Vec<Arena> = arenas.inspect(Arena::kill).collect();
    let deadline = Instant::now() + PATIENCE;
    let mut outcome = Ok(());
    for mut arena in all {
        outcome = arena.down(children, deadline).and(outcome);
    }
    outcome
}

fn ended(pidfd: &OwnedFd) -> bool {
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&Timespec::default())).is_ok_and(|n| n > 0)
}
