//! The few system calls that rustix does not wrap safely: clone3 of this single-threaded program, exec, wait, signals, credentials.
#![allow(unsafe_code, reason = "fork, exec and credentials have no safe wrapper; each block says why it is sound")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// `libc` gives it as an int, in which it has no place.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// A child as its parent sees it.
pub(crate) struct Child {
    /// Its process id, which is over 1.
    pub(crate) pid: i32,
    /// The descriptor by which it is signalled and waited for.
    pub(crate) pidfd: OwnedFd,
}

/// How a process ended.
pub(crate) struct Ended {
    /// As wait(2) encodes it.
    pub(crate) status: i32,
    /// Processor time, with that of the children that it waited for.
    pub(crate) cpu: Duration,
    /// The largest resident set of any of them, in bytes.
    pub(crate) peak: u64,
}

/// Forks, with new namespaces by `flags` (`CLONE_NEW*`), into a v2 cgroup if one is given (Linux 5.7); `None` in the child.
pub(crate) fn fork(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<Child>> {
    let mut pidfd: i32 = -1;
    // SAFETY: all-zero clone_args are valid (clone(2)).
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(flags.cast_unsigned()) | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: without CLONE_VM this is fork(2); the program has one thread, so the child may go on as it likes.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match i32::try_from(pid).unwrap_or(-1) {
        0 => Ok(None),
        pid if pid > 1 => {
            // SAFETY: the kernel made this descriptor for us (CLONE_PIDFD), and it has no other owner.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some(Child { pid, pidfd }))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process at once, running nothing of its parent's.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: _exit(2) does not return and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Replaces this process (execve(2)); returns only the error.
pub(crate) fn exec(argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv_p, env_p) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end in a null pointer, and their strings outlive the call.
    unsafe { libc::execve(argv_p[0], argv_p.as_ptr(), env_p.as_ptr()) };
    io::Error::last_os_error()
}

/// Waits for a child, by its pid or, with -1, for any (wait4(2)).
pub(crate) fn wait(pid: i32) -> io::Result<(i32, Ended)> {
    let mut status = 0;
    // SAFETY: an all-zero rusage is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to our own variables.
        let ended = unsafe { libc::wait4(pid, &raw mut status, libc::__WALL, &raw mut usage) };
        if ended > 0 {
            let time = |t: libc::timeval| Duration::from_micros((t.tv_sec * 1_000_000 + t.tv_usec).unsigned_abs());
            let cpu = time(usage.ru_utime) + time(usage.ru_stime);
            return Ok((ended, Ended { status, cpu, peak: usage.ru_maxrss.unsigned_abs() * 1024 }));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// New namespaces for this process (unshare(2)).
pub(crate) fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: takes flags only; descriptors and memory stay shared as they were.
    check(unsafe { libc::unshare(flags) })
}

/// Blocks the signals that ask a program to end, and gives a descriptor that tells them (signalfd(2)).
pub(crate) fn signal_fd(numbers: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is ours; the descriptor is new and has no other owner.
    unsafe {
        let mut told: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut told);
        for number in numbers {
            libc::sigaddset(&raw mut told, *number);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const told, std::ptr::null_mut()))?;
        let fd = libc::signalfd(-1, &raw const told, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        check(fd)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The number of the signal that a [`signal_fd`] has to tell.
pub(crate) fn told_signal(fd: &OwnedFd) -> Option<i32> {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    rustix::io::read(fd, &mut info).ok()?;
    // ssi_signo is the first field.
    Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
}

/// Unblocks every signal and gives each its default action, as a program expects it.
pub(crate) fn default_signals() {
    // SAFETY: the set is ours, and SIG_DFL is no function of ours.
    unsafe {
        for number in 1..=64 {
            libc::signal(number, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Makes this process user and group `id` for good, in no other group (credentials(7)).
pub(crate) fn become_user(id: u32) -> io::Result<()> {
    // SAFETY: these take numbers only; the list of groups is empty. One thread: the raw calls need no broadcast.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(id, id, id))?;
        check(libc::setresuid(id, id, id))
    }
}

/// Makes `fd` this process' descriptor `number`, which outlives exec.
pub(crate) fn dup_onto(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // SAFETY: whatever `number` was is not used any more by this process, which is about to exec.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) })
}

/// Closes descriptors from 3 on but `kept`. Whatever owned them must not be dropped any more.
pub(crate) fn close_all_but(kept: &[RawFd]) {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.unsigned_abs()).filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    for last in kept.into_iter().chain([u32::MAX]) {
        if first < last {
            let end = if last == u32::MAX { last } else { last - 1 };
            // SAFETY: called right after a fork, in a process that goes on with `kept` alone and drops no owner of another.
            unsafe { libc::syscall(libc::SYS_close_range, first, end, 0) };
        }
        first = last.saturating_add(1);
    }
}

/// Makes a mount and all below it read-only, without set-uid and devices (mount_setattr(2), Linux 5.12).
pub(crate) fn make_read_only(tree: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all-zero attributes are valid.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    let size = size_of::<libc::mount_attr>();
    // SAFETY: the path is a static string, and the kernel reads `size` bytes of the attributes.
    let done = unsafe {
        libc::syscall(libc::SYS_mount_setattr, tree.as_raw_fd(), c"".as_ptr(), flags, &raw const attributes, size)
    };
    check(i32::try_from(done).unwrap_or(-1))
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
