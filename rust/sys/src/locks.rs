//! Locks that rustix does not know: fcntl(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::check;

/// Takes (`F_WRLCK`) or releases (`F_UNLCK`) a lock of the open file description on the first bytes of a file.
pub fn set_ofd_lock(file: impl AsFd, class: libc::c_int, bytes: i32) -> io::Result<()> {
    // SAFETY: an all-zero flock is valid, and SEEK_SET is 0.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = class as libc::c_short;
    range.l_len = bytes.into();
    // SAFETY: F_OFD_SETLK reads a flock, which outlives the call.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &raw const range) }.into())
}

/// Takes or releases a lease. A write lease needs the only open descriptor, and the file's owner or CAP_LEASE.
pub fn set_lease(file: impl AsFd, class: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_SETLEASE, class) }.into())
}
