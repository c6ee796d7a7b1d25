//! Processes: fork, exec, wait.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::process::{Gid, Pid, PidfdFlags, Uid, pidfd_open};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::{Shared, check};

/// `libc` defines it as an int, which is too small.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// A child, as its parent sees it.
#[derive(Debug)]
pub struct Child {
    /// Its process id, which is greater than 1.
    pub pid: i32,
    /// The pidfd for signals and waiting.
    pub pidfd: OwnedFd,
}

/// Forks, with new namespaces by `flags` (`CLONE_NEW*`), and into `cgroup`, a v2 cgroup, if one is given (clone3(2),
/// `CLONE_INTO_CGROUP`, Linux 5.7); `None` in the child.
pub fn fork(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<Child>> {
    debug_assert!(std::fs::read_dir("/proc/self/task").map_or(true, |tasks| tasks.count() == 1), "one thread");
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
    match clone3(&args)? {
        0 => Ok(None),
        pid if pid > 1 => {
            // SAFETY: the kernel made this descriptor for us (CLONE_PIDFD), and it has no other owner.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some(Child { pid, pidfd }))
        }
        pid => Err(io::Error::other(format!("the child's process id is {pid}"))),
    }
}

/// Forks, with new namespaces, without a pidfd: the child's process id stays valid until its parent reaps it.
pub fn fork_unwatched(flags: i32) -> io::Result<Option<i32>> {
    // SAFETY: all-zero clone_args are valid (clone(2)).
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags.cast_unsigned().into();
    args.exit_signal = libc::SIGCHLD as u64;
    let pid = clone3(&args)?;
    Ok((pid != 0).then_some(pid))
}

/// Forks a sibling of this process: a child of its parent (`CLONE_PARENT`, clone(2)). Waits until the sibling has executed a
/// program or exited (`CLONE_VFORK`). `pid` contains its process id as soon as it exists; `None` in the sibling.
pub fn fork_sibling(pid: &Shared) -> io::Result<Option<()>> {
    // SAFETY: all-zero clone_args are valid (clone(2)).
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (libc::CLONE_PARENT | libc::CLONE_VFORK | libc::CLONE_PARENT_SETTID) as u64;
    // The kernel writes there before this process waits.
    args.parent_tid = pid.address();
    Ok((clone3(&args)? != 0).then_some(()))
}

fn clone3(args: &libc::clone_args) -> io::Result<i32> {
    // SAFETY: the callers do not set CLONE_VM, so this is fork(2): the child has a copy of the memory, in which no other thread
    // held a lock, since there is only one. The kernel writes only to variables of the caller or to mapped memory.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::from_ref(args), size_of::<libc::clone_args>()) };
    check(pid)?;
    i32::try_from(pid).map_err(io::Error::other)
}

/// Opens a process with an id greater than 1, so that no signal ever goes to another one.
pub fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    let pid = Some(pid).filter(|pid| *pid > 1).and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Ends this process at once, without running exit handlers that it inherited from its parent.
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit(2) does not return and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Ends only the calling thread; the other threads of its process continue (exit(2)).
pub fn exit_thread() -> ! {
    loop {
        // SAFETY: it does not return. The thread's stack stays mapped, and so does everything that other threads borrow
        // from it.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
}

/// Replaces this process (execve(2)); returns only the error.
pub fn exec(argv: &[impl AsRef<CStr>], env: &[impl AsRef<CStr>]) -> io::Error {
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end in a null pointer, and the caller's strings outlive the call. The kernel refuses an empty argv (EFAULT).
    unsafe { libc::execve(argv[0], argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// As [`exec`], but searches a name without a slash in this process's own `PATH` (execvpe(3)).
pub fn exec_by_path(argv: &[impl AsRef<CStr>], env: &[impl AsRef<CStr>]) -> io::Error {
    if argv.is_empty() {
        return io::ErrorKind::InvalidInput.into();
    }
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end in a null pointer, the first is not empty, and the caller's strings outlive the call.
    unsafe { libc::execvpe(argv[0], argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

fn pointers(strings: &[impl AsRef<CStr>]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ref().as_ptr()).chain([std::ptr::null()]).collect()
}

/// A child that has exited and was reaped.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Its process id.
    pub pid: i32,
    /// As wait(2) encodes it.
    pub status: i32,
    /// Processor time, including that of the children that it waited for (getrusage(2)).
    pub cpu: Duration,
    /// The largest resident set of any of them, in bytes.
    pub peak: u64,
}

/// Waits for one child, or for any child, and reaps it.
pub fn wait(child: Option<i32>) -> io::Result<Ended> {
    loop {
        match wait4(child.unwrap_or(-1), 0) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Reaps one exited child, if there is one.
pub fn reap() -> Option<Ended> {
    wait4(-1, libc::WNOHANG).ok().filter(|ended| ended.pid > 0)
}

pub(crate) fn wait4(pid: i32, flags: i32) -> io::Result<Ended> {
    let mut status = 0;
    // SAFETY: an all-zero rusage is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to our own variables.
    let pid = unsafe { libc::wait4(pid, &raw mut status, flags | libc::__WALL, &raw mut usage) };
    check(pid.into())?;
    let time = |t: libc::timeval| Duration::from_micros((t.tv_sec * 1_000_000 + t.tv_usec).unsigned_abs());
    let (cpu, peak) = (time(usage.ru_utime) + time(usage.ru_stime), usage.ru_maxrss.unsigned_abs() * 1024);
    Ok(Ended { pid, status, cpu, peak })
}

/// Lets a process, and what it creates, run only while no other of its control group or session needs the CPU (sched(7),
/// `SCHED_IDLE`).
pub fn run_last(pid: i32) -> io::Result<()> {
    schedule(pid, libc::SCHED_IDLE)
}

/// Undoes `run_last`.
pub fn run_as_usual(pid: i32) -> io::Result<()> {
    schedule(pid, libc::SCHED_OTHER)
}

fn schedule(pid: i32, policy: i32) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads our own variable.
    check(unsafe { libc::sched_setscheduler(pid, policy, &raw const parameters) }.into())
}

/// New namespaces for this process (unshare(2), `CLONE_NEW*`).
pub fn unshare(namespaces: i32) -> io::Result<()> {
    // SAFETY: it takes only flags; with one thread, nothing shares the descriptors and the memory.
    check(unsafe { libc::unshare(namespaces) }.into())
}

/// Permanently makes this process user and group `id`, in no other group (credentials(7)).
pub fn become_user(id: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    Ok(set_thread_res_uid(uid, uid, uid)?)
}

/// Overwrites what `/proc/PID/cmdline` and `/proc/PID/environ` show of this process: `text` replaces the arguments, as
/// far as there is room, and nothing replaces the environment. The process must read neither afterwards.
pub fn overwrite_arguments(text: &[u8]) -> io::Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<usize> = after_name.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    // proc_pid_stat(5): arg_start, arg_end, env_start and env_end are the fields 48 to 51; the third comes first here.
    let Some(&[arg_start, arg_end, env_start, env_end]) = fields.get(45..49) else {
        return Err(io::Error::other("/proc/self/stat has no argument addresses"));
    };
    // The kernel shows zeros to a process that must not trace this one.
    if arg_start == 0 || env_start == 0 || arg_end < arg_start || env_end < env_start {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    for (start, end) in [(arg_start, arg_end), (env_start, env_end)] {
        // SAFETY: the kernel put these writable strings on the stack of this process, which reads neither any more.
        unsafe { std::ptr::write_bytes(std::ptr::with_exposed_provenance_mut::<u8>(start), 0, end - start) };
    }
    let length = text.len().min((arg_end - arg_start).saturating_sub(1));
    // SAFETY: as above; the copy stays inside the arguments and leaves their last byte zero.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), std::ptr::with_exposed_provenance_mut(arg_start), length) };
    Ok(())
}
