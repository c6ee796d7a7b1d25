//! Calls that a filter reports to another process, and that wait for its answer (seccomp_unotify(2)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::check;
use crate::trace::{Call, Instruction, seccomp};

/// A thread that waits before a call.
#[derive(Clone, Copy, Debug)]
pub struct Notification {
    /// Names it in its answer.
    pub id: u64,
    /// The thread.
    pub pid: i32,
    /// What it is about to do.
    pub call: Call,
}

/// Adds a filter as [`crate::trace::add_filter`] does; its reports come to the listener that it returns, which an exec
/// closes. What a thread has reported only a kill interrupts (Linux 5.19), not a signal.
pub fn add_reporting_filter(program: &[Instruction]) -> io::Result<OwnedFd> {
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    let fd = seccomp(program, flags | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
        .or_else(|_| seccomp(program, flags))
        .and_then(|fd| i32::try_from(fd).map_err(io::Error::other))?;
    // SAFETY: the kernel made this descriptor for us, and it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets a report run this process at once, on the CPU of the thread that waits for it (Linux 6.6).
pub fn wake_at_once(listener: BorrowedFd<'_>) -> io::Result<()> {
    const SYNC_WAKE_UP: u64 = 1;
    // SAFETY: it takes a number.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) }.into())
}

/// Returns the next report, if there is one; an error once all that have the filter have ended.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Option<Notification>> {
    let mut set = [PollFd::from_borrowed_fd(listener, PollFlags::IN)];
    poll(&mut set, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    let ready = set[0].revents();
    // Without a report, the next call would wait for one.
    if !ready.contains(PollFlags::IN) {
        return if ready.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
    }
    let mut found = MaybeUninit::<libc::seccomp_notif>::zeroed();
    // SAFETY: the kernel writes a structure of this size, which has to be zero before.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, found.as_mut_ptr()) };
    match check(result.into()) {
        // It was killed meanwhile.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => return Ok(None),
        other => other?,
    }
    // SAFETY: zero is valid for all its fields, and the kernel wrote them.
    let found = unsafe { found.assume_init() };
    let call = Call { arch: found.data.arch, number: found.data.nr.cast_unsigned().into(), arguments: found.data.args };
    Ok(Some(Notification { id: found.id, pid: found.pid.cast_signed(), call }))
}

/// Whether the thread still waits: then all that was read of it since the report is its own.
#[must_use]
pub fn waits(listener: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: the kernel reads a number.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) };
    result == 0
}

/// Lets the call happen, or return a result without happening: a negative one is an error. The thread may have been killed
/// meanwhile (`ENOENT`).
pub fn answer(listener: BorrowedFd<'_>, id: u64, result: Option<i64>) -> io::Result<()> {
    #[allow(clippy::cast_possible_truncation, reason = "the flag is 1")]
    let flags = if result.is_none() { libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32 } else { 0 };
    let result = result.unwrap_or(0);
    let error = i32::try_from(result.min(0)).map_err(io::Error::other)?;
    let response = libc::seccomp_notif_resp { id, val: result.max(0), error, flags };
    // SAFETY: the kernel reads a structure of this size.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const response) }.into())
}
