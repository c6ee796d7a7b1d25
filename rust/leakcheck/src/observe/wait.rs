//! Waits until residue changes.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::proc_root::{self, read_file};
use crate::arena::{ArenaView, proc_path};
use crate::kind::Kind;
use crate::parse::stat;
use crate::resource::{Process, Resource};

/// Maximum number of descriptors to wait on.
const MOST: usize = 256;

/// A reaper's `wait` sends no event: zombies are checked at this interval.
const ZOMBIES: Duration = Duration::from_millis(5);

/// Returns when a process of the residue exits or is reaped, one of its cgroups changes, a mount is added or removed
/// (proc(5), mountinfo), or after `pause`. An arena's pids are other processes here, and a pidfd would be a stranger's:
/// arena processes are polled.
pub(crate) fn wait_for_change<'a>(
    residue: impl Iterator<Item = &'a Resource>,
    arena: Option<&ArenaView>,
    pause: Duration,
) {
    let read = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut fds: Vec<(OwnedFd, PollFlags)> = Vec::new();
    let mut mounts = false;
    let mut zombies = Vec::new();
    for resource in residue.take(MOST) {
        match resource {
            Resource::Process(p) if p.state != 'Z' && arena.is_none() => {
                let pid = i32::try_from(p.pid).ok().and_then(Pid::from_raw);
                let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
                fds.extend(pidfd.map(|fd| (fd, PollFlags::IN)));
            }
            Resource::Process(p) => zombies.push(p),
            Resource::Cgroup(c) => {
                let events = rustix::fs::open(c.dir.as_path().join("cgroup.events"), read, Mode::empty());
                // A kernfs file is ready until it has been read once (kernfs_generic_poll).
                let events = events.ok().filter(|fd| rustix::io::read(fd, &mut [0u8; 256]).is_ok());
                fds.extend(events.map(|fd| (fd, PollFlags::PRI)));
            }
            other => mounts |= matches!(other.kind(), Kind::Mount | Kind::Namespace),
        }
    }
    if mounts {
        let whose = if arena.is_some() { "1" } else { "self" };
        let table = proc_root::open(&proc_path(arena, format_args!("{whose}/mountinfo")), read);
        fds.extend(table.ok().map(|fd| (fd, PollFlags::PRI)));
    }
    let mut set: Vec<PollFd<'_>> = fds.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd.as_fd(), *flags)).collect();
    let until = Instant::now() + pause;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let step = if zombies.is_empty() { left } else { left.min(ZOMBIES) };
        // An interrupted wait is just shorter: the next look follows.
        let events = poll(&mut set, Some(&timespec(step))).unwrap_or(1);
        if events > 0 || step == left || zombies.iter().any(|p| !is_there(p, arena)) {
            return;
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: duration.subsec_nanos().into() }
}

/// Whether it still exists unchanged: a process that has become a zombie has exited since.
fn is_there(process: &Process, arena: Option<&ArenaView>) -> bool {
    let text = read_file(proc_path(arena, format_args!("{}/stat", process.pid))).unwrap_or_default();
    // A first thread that has exited while others run is not a zombie.
    let zombie = |s: &stat::Stat<'_>| s.state == b'Z' && s.num_threads <= 1;
    stat::parse(&text).is_ok_and(|s| s.start_time == process.start && zombie(&s) == (process.state == 'Z'))
}

/// Factor for the waiting time: 2 if tasks wait for CPU or memory, else 1. From pressure stall information if the
/// kernel has it enabled, else from the load average.
pub(crate) fn pressure() -> u32 {
    let some = |resource: &str| {
        let text = read_file(format!("/proc/pressure/{resource}")).ok()?;
        let text = String::from_utf8(text).ok()?;
        text.split_whitespace().find_map(|w| w.strip_prefix("avg10="))?.parse::<f64>().ok()
    };
    let stalled = match (some("cpu"), some("memory")) {
        (None, None) => {
            let cpus = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
            let load = read_file("/proc/loadavg").ok().and_then(|t| String::from_utf8(t).ok());
            load.and_then(|t| t.split(' ').next()?.parse::<f64>().ok()).is_some_and(|load| load > 1.5 * cpus)
        }
        (cpu, memory) => cpu.unwrap_or(0.0).max(memory.unwrap_or(0.0)) > 20.0,
    };
    if stalled { 2 } else { 1 }
}
