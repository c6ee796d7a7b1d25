//! A process inside the namespaces of an ordinary user's arena, which opens there what the observer reads.
//!
//! A namespace that belongs to the arena's user namespace is entered only from that one (setns(2)), and a user namespace
//! only by a process with a single thread: not by the observer. So a child with the observer's descriptor table enters
//! it, and what it opens is the observer's too. It is a copy of a process that may have threads, of which it must not need
//! a lock: it makes system calls and nothing else.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
use rustix::pipe::{PipeFlags, pipe_with};

use super::proc_root;

/// Files below `/proc` that show the namespace of the process that opened them.
pub(super) const FILES: [&std::ffi::CStr; 6] = [
    c"sysvipc/shm",
    c"sysvipc/sem",
    c"sysvipc/msg",
    c"self/net/ip_tables_names",
    c"self/net/ip6_tables_names",
    c"self/net/arp_tables_names",
];

/// Where to open what is of a namespace.
#[derive(Clone, Copy)]
pub(super) enum Inside<'a> {
    /// The calling thread is inside.
    Here,
    /// This process is.
    Remote(&'a Remote),
}

impl Inside<'_> {
    /// socket(2).
    pub(super) fn socket(
        self,
        family: AddressFamily,
        class: SocketType,
        protocol: Option<Protocol>,
    ) -> rustix::io::Result<OwnedFd> {
        match self {
            Inside::Here => socket_with(family, class, SocketFlags::CLOEXEC, protocol),
            Inside::Remote(remote) => {
                let protocol = protocol.map_or(0, |protocol| protocol.as_raw().get().cast_signed());
                remote.socket(family.as_raw().into(), class.as_raw().cast_signed(), protocol)
            }
        }
    }

    /// A file below `/proc`; of a remote process one of [`FILES`].
    pub(super) fn file(self, path: &str) -> rustix::io::Result<OwnedFd> {
        match self {
            Inside::Here => proc_root::open(Path::new(path), OFlags::RDONLY),
            Inside::Remote(remote) => remote.file(path),
        }
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Request {
    what: i32,
    arguments: [i32; 3],
}

const ENTER: i32 = 0;
const SOCKET: i32 = 1;
const FILE: i32 = 2;
const QUEUES: i32 = 3;

/// The child, until it is dropped.
pub(super) struct Remote {
    child: libc::pid_t,
    pidfd: OwnedFd,
    requests: OwnedFd,
    answers: OwnedFd,
    /// What the child uses: what is closed in one of the two processes is closed in both.
    _of_child: [OwnedFd; 3],
}

impl Remote {
    /// Starts it in a user and a mount namespace. `proc` is the observer's `/proc`.
    ///
    /// # Errors
    /// If the kernel refuses one of the steps.
    pub(super) fn start(user: &OwnedFd, mount: &OwnedFd, proc: OwnedFd) -> rustix::io::Result<Self> {
        let (take, requests) = pipe_with(PipeFlags::CLOEXEC)?;
        let (answers, answer) = pipe_with(PipeFlags::CLOEXEC)?;
        let parent = rustix::process::getpid().as_raw_nonzero().get();
        // The program's handlers must not run in the child.
        let mask = Blocked::all();
        let mut pidfd: RawFd = -1;
        let flags = libc::CLONE_FILES | libc::CLONE_PIDFD;
        // SAFETY: the child has memory of its own, and calls nothing but the system; the kernel writes to `pidfd`.
        let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
        if child == 0 {
            serve(take.as_raw_fd(), answer.as_raw_fd(), proc.as_raw_fd(), parent);
        }
        drop(mask);
        let child = libc::pid_t::try_from(child).ok().filter(|child| *child > 0).ok_or_else(last)?;
        // SAFETY: the kernel has just opened it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        let remote = Remote { child, pidfd, requests, answers, _of_child: [take, answer, proc] };
        remote.enter(user, libc::CLONE_NEWUSER)?;
        remote.enter(mount, libc::CLONE_NEWNS)?;
        Ok(remote)
    }

    /// Enters a namespace of this type.
    pub(super) fn enter(&self, namespace: &OwnedFd, which: i32) -> rustix::io::Result<()> {
        self.ask(ENTER, [namespace.as_raw_fd(), which, 0]).map(drop)
    }

    /// socket(2).
    pub(super) fn socket(&self, family: i32, class: i32, protocol: i32) -> rustix::io::Result<OwnedFd> {
        self.opened(SOCKET, [family, class, protocol])
    }

    /// One of [`FILES`].
    pub(super) fn file(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        let below = path.strip_prefix("/proc/").map(|path| path.replacen("thread-self/", "self/", 1));
        let known = below.and_then(|below| FILES.iter().position(|file| file.to_bytes() == below.as_bytes()));
        let number = known.and_then(|at| i32::try_from(at).ok()).ok_or(Errno::NOSYS)?;
        self.opened(FILE, [number, 0, 0])
    }

    /// The root of a mount of the message queues.
    pub(super) fn queues(&self) -> rustix::io::Result<OwnedFd> {
        self.opened(QUEUES, [0; 3])
    }

    fn opened(&self, what: i32, arguments: [i32; 3]) -> rustix::io::Result<OwnedFd> {
        let fd = self.ask(what, arguments)?;
        // SAFETY: the child has just opened it in the common table, and knows it no more.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn ask(&self, what: i32, arguments: [i32; 3]) -> rustix::io::Result<RawFd> {
        let request = Request { what, arguments };
        let mut bytes = Vec::from(request.what.to_ne_bytes());
        request.arguments.iter().for_each(|n| bytes.extend(n.to_ne_bytes()));
        retry_on_intr(|| rustix::io::write(&self.requests, &bytes))?;
        // If the child was killed, there is no answer.
        let mut either = [PollFd::new(&self.answers, PollFlags::IN), PollFd::new(&self.pidfd, PollFlags::IN)];
        retry_on_intr(|| poll(&mut either, None))?;
        if !either[0].revents().contains(PollFlags::IN) {
            return Err(Errno::PIPE);
        }
        let mut answer = [0; 4];
        match retry_on_intr(|| rustix::io::read(&self.answers, &mut answer))? {
            4 => {}
            _ => return Err(Errno::PIPE),
        }
        match i32::from_ne_bytes(answer) {
            error @ ..0 => Err(Errno::from_raw_os_error(-error)),
            fd => Ok(fd),
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let _ = self.ask(END, [0; 3]);
        let mut status = 0;
        // A child without an exit signal is waited for with __WALL alone, so that nobody else reaps it.
        // SAFETY: `status` outlives the call.
        while unsafe { libc::waitpid(self.child, &raw mut status, libc::__WALL) } < 0 && last() == Errno::INTR {}
    }
}

/// Ends the child, after an answer.
const END: i32 = 4;

fn last() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// All signals of this thread, blocked until it is dropped.
struct Blocked(libc::sigset_t);

impl Blocked {
    fn all() -> Self {
        // SAFETY: plain data; both calls write to what outlives them.
        unsafe {
            let (mut all, mut old) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
            Blocked(old)
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the set was filled by the kernel.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// The child's life. No allocation, no lock, no panic.
fn serve(take: RawFd, answer: RawFd, proc: RawFd, parent: libc::pid_t) -> ! {
    loop {
        let mut request = Request { what: END, arguments: [0; 3] };
        let size = size_of::<Request>();
        // SAFETY: `request` is as long as `size`, and consists of integers.
        let got = unsafe { libc::read(take, (&raw mut request).cast(), size) };
        let over = usize::try_from(got) != Ok(size) || request.what == END;
        let done = if over { 0 } else { perform(request, proc, parent) };
        let bytes = done.to_ne_bytes();
        // SAFETY: `bytes` has 4 bytes.
        let told = unsafe { libc::write(answer, bytes.as_ptr().cast(), 4) };
        if over || told != 4 {
            // SAFETY: the process ends without destructors or exit handlers of the program that it is a copy of.
            unsafe { libc::_exit(0) }
        }
    }
}

/// What the kernel answers: a descriptor or 0, or the negative error number.
fn perform(request: Request, proc: RawFd, parent: libc::pid_t) -> i32 {
    let [a, b, c] = request.arguments;
    // SAFETY: numbers, and constant strings that live forever.
    let result = unsafe {
        match request.what {
            ENTER => {
                let entered = libc::setns(a, b);
                // A change of the capabilities has cleared it. The observer may have ended before.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::getppid() != parent {
                    libc::_exit(0);
                }
                entered
            }
            SOCKET => libc::socket(a, b | libc::SOCK_CLOEXEC, c),
            FILE => match usize::try_from(a).ok().and_then(|a| FILES.get(a)) {
                Some(file) => libc::openat(proc, file.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC),
                None => -1,
            },
            _ => return queues(),
        }
    };
    if result < 0 { -errno() } else { result }
}

fn queues() -> i32 {
    // fsopen(2), fsconfig(2), fsmount(2): linux/mount.h.
    const CLOEXEC: i32 = 1;
    const CREATE: i32 = 6;
    const PLAIN: i32 = 2 | 4 | 8;
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: numbers, null and constant strings.
    unsafe {
        let context = libc::syscall(libc::SYS_fsopen, c"mqueue".as_ptr(), CLOEXEC) as i32;
        if context < 0 {
            return -errno();
        }
        let mut result = libc::syscall(libc::SYS_fsconfig, context, CREATE, none, none, 0) as i32;
        if result >= 0 {
            result = libc::syscall(libc::SYS_fsmount, context, CLOEXEC, PLAIN) as i32;
        }
        let mut answer = if result < 0 { -errno() } else { result };
        libc::close(context);
        if answer >= 0 {
            let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
            let root = libc::openat(answer, c".".as_ptr(), flags);
            let opened = if root < 0 { -errno() } else { root };
            libc::close(answer);
            answer = opened;
        }
        answer
    }
}

fn errno() -> i32 {
    // SAFETY: the thread's own variable.
    unsafe { *libc::__errno_location() }
}
