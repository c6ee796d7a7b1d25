//! Descriptors: closing them after a fork, making them the standard streams, waiting for them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::check;

/// Closes all inherited descriptors except `kept` and the standard streams (close_range(2), Linux 5.9). Their owners
/// must not be dropped afterwards.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        if first < fd {
            close_range(first, fd - 1, 0)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX, 0)
}

/// Closes all descriptors except the standard streams on exec (`CLOSE_RANGE_CLOEXEC`, Linux 5.11).
pub fn close_on_exec_above_streams() -> io::Result<()> {
    close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: the closed descriptors are no longer used: the callers are in a new child, which uses only other
    // descriptors.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) })
}

/// Makes three descriptors the standard streams of this process; they survive exec.
pub fn set_streams(streams: [BorrowedFd<'_>; 3]) -> io::Result<()> {
    let [stdin, stdout, stderr] = streams;
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    Ok(rustix::stdio::dup2_stderr(stderr)?)
}

/// Waits until one of the descriptors is readable (a pidfd is as soon as its process has exited) or the time is over;
/// returns whether one is.
pub fn wait_until(fds: &[BorrowedFd<'_>], time: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + time;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut set: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        match poll(&mut set, Timespec::try_from(left).ok().as_ref()) {
            Err(Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

/// Gives this thread a descriptor table of its own, with copies of all descriptors (unshare(2), `CLONE_FILES`). What the
/// other threads open or close from now on does not change it, so this thread must use only what it opens itself.
pub fn unshare_descriptors() -> io::Result<()> {
    // SAFETY: the table of the other threads, which owns the descriptors, does not change; the copies close with this
    // thread.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FILES) }?)
}

/// An io_uring with two rings of some entries (io_uring_setup(2)).
pub fn io_uring(entries: u32) -> io::Result<OwnedFd> {
    let mut params = rustix::io_uring::io_uring_params::default();
    // SAFETY: without IORING_SETUP_ATTACH_WQ, no field of the parameters names a descriptor.
    Ok(unsafe { rustix::io_uring::io_uring_setup(entries, &mut params) }?)
}
