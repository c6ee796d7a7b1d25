//! Signals: blocking, reading from a descriptor, restoring default actions.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use crate::check;

/// A set of signals.
fn set(numbers: &[i32]) -> libc::sigset_t {
    // SAFETY: an all-zero set is the empty one on Linux, and sigaddset only writes to it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        for number in numbers {
            libc::sigaddset(&raw mut set, *number);
        }
        set
    }
}

fn mask(how: i32, set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: reads a set, and changes only which signals this thread gets.
    check(unsafe { libc::sigprocmask(how, std::ptr::from_ref(set), std::ptr::null_mut()) }.into())
}

/// Blocks every signal (sigprocmask(2)).
pub fn block_signals() -> io::Result<()> {
    let mut all = set(&[]);
    // SAFETY: only writes to the set.
    unsafe { libc::sigfillset(&raw mut all) };
    mask(libc::SIG_SETMASK, &all)
}

/// Unblocks every signal.
pub fn unblock_signals() -> io::Result<()> {
    mask(libc::SIG_SETMASK, &set(&[]))
}

/// Blocks some signals, and returns a descriptor that is readable when one of them is pending (signalfd(2)).
pub fn signal_fd(numbers: &[i32]) -> io::Result<OwnedFd> {
    mask(libc::SIG_BLOCK, &set(numbers))?;
    open_signal_fd(numbers)
}

/// Likewise, but blocks nothing: an unblocked signal is not read but delivered.
pub fn open_signal_fd(numbers: &[i32]) -> io::Result<OwnedFd> {
    let wanted = set(numbers);
    // SAFETY: reads the set.
    let fd = unsafe { libc::signalfd(-1, &raw const wanted, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    check(fd.into())?;
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Reads the number of the next signal from a [`signal_fd`], if there is one.
pub fn next_signal(fd: &OwnedFd) -> Option<i32> {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    rustix::io::read(fd, &mut info).ok()?;
    // ssi_signo is the first field.
    Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
}

/// Reads all signals of a [`signal_fd`].
pub fn drain(fd: &OwnedFd) {
    while next_signal(fd).is_some() {}
}

/// Gives a signal its default action (signal(2)).
pub fn default_signal(number: i32) {
    // SAFETY: SIG_DFL is not a function of this program.
    unsafe { libc::signal(number, libc::SIG_DFL) };
}

/// Unblocks every signal and restores its default action, as a program expects.
pub fn default_signals() {
    (1..=64).for_each(default_signal);
    let _ = unblock_signals();
}
