//! Starts commands inside an arena, so that what still runs there from before gets nothing of the host by it.
//!
//! A process is seen in the arena's `/proc` from its birth on, and root there may open its root, its directory and its descriptors,
//! and trace it. So the **usher**, who is in no pid namespace of the arena, enters all of the arena and closes all but the command's
//! streams; only then is the command born, as the usher's sibling. What it is born with is the arena's, and its memory is that of
//! no file of the host (`go_on_in_memory`).

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use leakcheck_sys::{self as sys, Shared};
use rustix::fs::{FileType, fstat, makedev};
use rustix::process::{DumpableBehavior, Signal, pidfd_send_signal, set_dumpable_behavior};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::error::Doing;
use crate::process;

/// How long what runs in the arena may hold up a command's start: it can stop or trace whoever it sees.
const PATIENCE: Duration = Duration::from_secs(30);
/// Exit code of a command that could not be executed; nobody is told it.
const NOT_EXECUTED: i32 = 127;

/// The way into an arena.
pub(crate) struct Door {
    /// Its PID 1.
    pub(crate) init: OwnedFd,
    /// The namespaces to enter, that of processes among them.
    pub(crate) namespaces: ThreadNameSpaceType,
    /// The root directory.
    pub(crate) top: OwnedFd,
    /// `/dev/null` of the arena: the host's would let its mode be changed.
    pub(crate) null: OwnedFd,
}

/// What is to be started.
pub(crate) struct Command {
    pub(crate) argv: Vec<CString>,
    pub(crate) env: Vec<CString>,
    pub(crate) cwd: CString,
    pub(crate) streams: [OwnedFd; 3],
}

/// What usher and command tell whoever started them; the command can write to the second and third alone.
struct Told {
    pid: Shared,
    /// Error number of what it did not manage.
    errno: Shared,
    /// Whether that was the change of directory.
    in_cwd: Shared,
}

impl Door {
    /// Starts a command as a child of this process; returns its process id and descriptor when it has been executed.
    pub(crate) fn start(&self, command: &Command) -> io::Result<(i32, OwnedFd)> {
        let told = Told { pid: Shared::new()?, errno: Shared::new()?, in_cwd: Shared::new()? };
        let spawner = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        let Some(usher) = sys::fork(0, None)? else {
            process::die_with_parent(spawner);
            let failed = self.usher(command, &told);
            told.errno.set(failed.raw_os_error().unwrap_or(libc::EIO));
            sys::exit(NOT_EXECUTED)
        };
        let over = sys::wait_until(&[usher.pidfd.as_fd()], PATIENCE).unwrap_or(false);
        let child = match told.pid.get() {
            0 => None,
            pid => Some((pid, sys::open_pidfd(pid)?)),
        };
        if !over {
            for pidfd in child.iter().map(|(_, pidfd)| pidfd).chain([&usher.pidfd]) {
                let _ = pidfd_send_signal(pidfd, Signal::KILL);
            }
            let seconds = PATIENCE.as_secs();
            return Err(io::Error::other(format!("it was held up for {seconds} s by what runs in the arena")));
        }
        match (told.errno.get(), child) {
            (0, Some((pid, pidfd))) => Ok((pid, pidfd)),
            (0, None) => Err(io::Error::other("it could not be started in the arena")),
            (errno, _) if told.in_cwd.get() != 0 => {
                let cwd = OsStr::from_bytes(command.cwd.as_bytes());
                Err(io::Error::from_raw_os_error(errno)).doing("enter working directory", cwd)
            }
            (errno, _) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Returns only what failed, but in the usher, whose sibling was born, not at all.
    fn usher(&self, command: &Command, told: &Told) -> io::Error {
        let inside = || -> io::Result<()> {
            move_into_thread_name_spaces(self.init.as_fd(), self.namespaces)?;
            rustix::process::fchdir(&self.top)?;
            rustix::process::chroot(".")?;
            self.take_streams(&command.streams)?;
            sys::close_all_but(&[])?;
            // Until it executes a program, others of its user may not trace it.
            set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
            told.pid.keep_to_ourselves()?;
            match sys::fork_sibling(&told.pid)? {
                Some(()) => sys::exit(0),
                None => Ok(()),
            }
        };
        if let Err(e) = inside() {
            return e;
        }
        let _ = rustix::process::setsid();
        sys::default_signals();
        if let Err(e) = rustix::process::chdir(command.cwd.as_c_str()) {
            told.in_cwd.set(1);
            return e.into();
        }
        sys::exec_by_path(&command.argv, &command.env)
    }

    fn take_streams(&self, streams: &[OwnedFd; 3]) -> io::Result<()> {
        // Above 2 first: one of the three may be in another's place.
        let above =
            |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(if is_null(fd.as_fd()) { &self.null } else { fd }, 10);
        let [stdin, stdout, stderr] = streams;
        let above = [above(stdin)?, above(stdout)?, above(stderr)?];
        sys::set_streams(above.each_ref().map(AsFd::as_fd))?;
        // They are closed with all others.
        std::mem::forget(above);
        Ok(())
    }
}

fn is_null(fd: BorrowedFd<'_>) -> bool {
    fstat(fd)
        .is_ok_and(|st| FileType::from_raw_mode(st.st_mode) == FileType::CharacterDevice && st.st_rdev == makedev(1, 3))
}
