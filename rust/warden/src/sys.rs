//! The few system calls that rustix does not wrap safely: fork and clone3 of this single-threaded program, exec, wait.
#![allow(unsafe_code, reason = "fork, clone3, exec and ioctl have no safe wrapper; each block says why it is sound")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// `libc` gives it as an int, in which it has no place.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// A child as its parent sees it.
pub(crate) struct Child {
    /// Its process id, which is over 1.
    pub(crate) pid: i32,
    /// The descriptor by which it is signalled and waited for.
    pub(crate) pidfd: OwnedFd,
}

/// Forks, with new namespaces by `flags` (`CLONE_NEW*`), into a v2 cgroup if one is given (`CLONE_INTO_CGROUP`, Linux 5.7); `None` in
/// the child.
pub(crate) fn fork(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<Child>> {
    let mut pidfd: i32 = -1;
    // SAFETY: all-zero clone_args are valid (clone(2)).
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
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

/// Forks a sibling of this process, which is not counted among its children (`CLONE_PARENT`, clone(2)), and waits until that one has
/// executed a program or ended (`CLONE_VFORK`). Its process id is in `told` as soon as it is there; `None` in the sibling.
pub(crate) fn fork_sibling(told: &Shared) -> io::Result<Option<()>> {
    // SAFETY: all-zero clone_args are valid. The kernel writes the id to `told`, which is mapped, before this process waits.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (libc::CLONE_PARENT | libc::CLONE_VFORK | libc::CLONE_PARENT_SETTID) as u64;
    args.parent_tid = told.0.as_ptr() as u64;
    // SAFETY: without CLONE_VM this is fork(2), as above.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) } {
        0 => Ok(None),
        pid if pid > 0 => Ok(Some(())),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A number in memory that this process shares with those that it forks (mmap(2)): so a child without any descriptor tells something.
pub(crate) struct Shared(std::ptr::NonNull<AtomicI32>);

/// Bytes of a page, at most; mappings are rounded up to one.
const PAGE: usize = 4096;

impl Shared {
    /// Zero.
    pub(crate) fn new() -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, which nothing else refers to.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, access, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        std::ptr::NonNull::new(page.cast()).map(Shared).ok_or_else(|| io::Error::other("memory at address 0"))
    }

    fn number(&self) -> &AtomicI32 {
        // SAFETY: it is mapped until this is dropped, aligned to a page, and zero is a number.
        unsafe { self.0.as_ref() }
    }

    pub(crate) fn get(&self) -> i32 {
        self.number().load(Ordering::SeqCst)
    }

    pub(crate) fn set(&self, number: i32) {
        self.number().store(number, Ordering::SeqCst);
    }

    /// Keeps it from what this process forks from now on (madvise(2), `MADV_DONTFORK`).
    pub(crate) fn keep_to_ourselves(&self) -> io::Result<()> {
        // SAFETY: the mapping is ours.
        check(unsafe { libc::madvise(self.0.as_ptr().cast(), PAGE, libc::MADV_DONTFORK) })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PAGE) };
    }
}

/// Takes away from others of the same user what a tracer may do to this process, until it executes a program (prctl(2),
/// `PR_SET_DUMPABLE`).
pub(crate) fn become_untraceable() {
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
}

/// Ends this process at once, running nothing of its parent's.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: _exit(2) does not return and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Enters namespaces of the process behind `pidfd` (setns(2), Linux 5.8).
pub(crate) fn setns(pidfd: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    // SAFETY: takes a descriptor and flags only.
    check(unsafe { libc::setns(pidfd.as_raw_fd(), flags) })
}

/// Whether this is root outside any user namespace that we made.
pub(crate) fn is_root() -> bool {
    ROOT.load(Ordering::Relaxed)
}

static ROOT: AtomicBool = AtomicBool::new(true);

/// Makes an ordinary user root of a user namespace of its own (user_namespaces(7)); nothing for root.
pub(crate) fn become_root_of_namespace() -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    if uid.is_root() {
        return Ok(());
    }
    ROOT.store(false, Ordering::Relaxed);
    // SAFETY: takes flags only; the program has one thread.
    check(unsafe { libc::unshare(libc::CLONE_NEWUSER) })?;
    std::fs::write("/proc/self/uid_map", format!("0 {} 1", uid.as_raw()))?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/gid_map", format!("0 {} 1", gid.as_raw()))
}

/// Goes on from a sealed copy of this program in memory (memfd_create(2)), if it does not yet: `/proc/PID/exe` and `map_files` of what
/// is seen in an arena then lead to no file of the host. Where programs in memory are forbidden (`vm.memfd_noexec`), from the file.
pub(crate) fn go_on_in_memory() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use std::os::unix::process::CommandExt;
    let go = || -> io::Result<()> {
        // As a text: a path's parts are compared whole.
        if std::fs::read_link("/proc/self/exe")?.to_string_lossy().starts_with("/memfd:") {
            return Ok(());
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut copy = std::fs::File::from(memfd_create(c"warden", flags)?);
        io::copy(&mut std::fs::File::open("/proc/self/exe")?, &mut copy)?;
        fcntl_add_seals(&copy, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        let mut again = std::process::Command::new(format!("/proc/self/fd/{}", copy.as_raw_fd()));
        let mut arguments = std::env::args_os();
        if let Some(name) = arguments.next() {
            again.arg0(name);
        }
        Err(again.args(arguments).exec())
    };
    let _ = go();
}

/// Replaces this process (execvpe(3)); returns only the error.
pub(crate) fn exec(argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv_p, env_p) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end in a null pointer, and their strings outlive the call.
    unsafe { libc::execvpe(argv_p[0], argv_p.as_ptr(), env_p.as_ptr()) };
    io::Error::last_os_error()
}

/// An ended child. `cpu` is in microseconds, with that of all the children that it waited for (getrusage(2)).
pub(crate) struct Ended {
    pub(crate) pid: i32,
    pub(crate) status: i32,
    pub(crate) cpu: i64,
}

/// Reaps one ended child, if there is one.
pub(crate) fn reap() -> Option<Ended> {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: writes an int and a rusage to which we hand valid pointers.
    let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG | libc::__WALL, usage.as_mut_ptr()) };
    // SAFETY: all zeroes is a rusage too.
    let usage = unsafe { usage.assume_init() };
    let micros = |time: libc::timeval| time.tv_sec * 1_000_000 + time.tv_usec;
    (pid > 0).then(|| Ended { pid, status, cpu: micros(usage.ru_utime) + micros(usage.ru_stime) })
}

/// SIGKILL at the parent's death (prctl(2)).
pub(crate) fn die_with_parent(parent: i32) {
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: has no arguments. Inside a new pid namespace the parent has no number: 0.
    let now = unsafe { libc::getppid() };
    if now != parent && now != 0 {
        exit(1);
    }
}

/// Orphans of our children become ours to reap (prctl(2)).
pub(crate) fn become_subreaper() {
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
}

/// The name in `/proc/PID/comm`.
pub(crate) fn set_name(name: &std::ffi::CStr) {
    // SAFETY: the kernel reads at most 16 bytes of a string that ends in a zero.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Blocks every signal (sigprocmask(2)).
pub(crate) fn block_signals() -> io::Result<()> {
    // SAFETY: the set is ours; sigfillset only writes to it.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut()))
    }
}

/// A descriptor that can be read when blocked signal `number` is pending (signalfd(2)).
pub(crate) fn signal_fd(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: the set is ours; the descriptor is new, and it has no other owner.
    unsafe {
        let mut told: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut told);
        libc::sigaddset(&raw mut told, number);
        let fd = libc::signalfd(-1, &raw const told, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        check(fd)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Unblocks every signal and gives each its default action, as a command expects it.
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

/// Takes what a [`signal_fd`] has to tell.
pub(crate) fn drain(fd: &OwnedFd) {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    while rustix::io::read(fd, &mut info).is_ok() {}
}

/// Brings the loopback interface up (netdevice(7)).
pub(crate) fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
}

/// Waits until one of the descriptors of processes says that it has ended, or some time is over; returns whether one has.
pub(crate) fn wait_until(pidfds: &[BorrowedFd<'_>], time: std::time::Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let until = std::time::Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(std::time::Instant::now());
        let mut set: Vec<PollFd<'_>> = pidfds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        match poll(&mut set, Timespec::try_from(left).ok().as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.is_ok_and(|n| n > 0),
        }
    }
}

/// Makes a descriptor survive exec as `number`, a standard stream.
pub(crate) fn dup_onto(fd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    // SAFETY: no owner of a standard stream is ever made here, so whatever `number` was is borrowed by nobody.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) })
}

/// Closes every descriptor above the standard streams (close_range(2), Linux 5.9). Whatever owned them must not be dropped any more.
pub(crate) fn close_all_above_streams() -> io::Result<()> {
    // SAFETY: called in a process that goes on with the streams alone and drops no owner of another.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) } as i32)
}

/// Takes the descriptor 0 that this program was started with, and puts standard output, `/dev/null`, in its place.
pub(crate) fn take_stdin() -> io::Result<OwnedFd> {
    // SAFETY: called once, at the start; nothing else owns descriptor 0, and it lives on.
    let stdin = unsafe { BorrowedFd::borrow_raw(0) };
    let taken = rustix::io::fcntl_dupfd_cloexec(stdin, 3)?;
    // SAFETY: as above for descriptor 1.
    dup_onto(unsafe { BorrowedFd::borrow_raw(1) }, 0)?;
    Ok(taken)
}

/// Closes what a fork inherited, all but `kept` and the standard streams. Whatever owned them must not be dropped any more.
pub(crate) fn close_all_but(kept: BorrowedFd<'_>) {
    let kept = kept.as_raw_fd().unsigned_abs();
    for (first, last) in [(3, kept.saturating_sub(1)), (kept + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: called right after a fork, in a process that goes on with `kept` alone and drops no owner of another.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

/// Makes a mount, or all below it too, read-only (mount_setattr(2), Linux 5.12).
pub(crate) fn make_read_only(tree: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    // SAFETY: all-zero attributes are valid.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = libc::MOUNT_ATTR_RDONLY;
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let size = size_of::<libc::mount_attr>();
    // SAFETY: the path is a static string, and the kernel reads `size` bytes of the attributes.
    let done = unsafe {
        libc::syscall(libc::SYS_mount_setattr, tree.as_raw_fd(), c"".as_ptr(), flags, &raw const attributes, size)
    };
    check(i32::try_from(done).unwrap_or(-1))
}

/// `pivot_root(".", ".")` (pivot_root(2)): the old root lies on top of the new one afterwards.
pub(crate) fn pivot_here() -> io::Result<()> {
    // SAFETY: both paths are static strings.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) } as i32)
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
