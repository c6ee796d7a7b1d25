//! Starts commands inside an arena. Processes that already run there must not reach the host through them.
//!
//! The arena's `/proc` shows a process as soon as it exists. Root inside may then open its root, its working directory
//! and its descriptors, and may trace it. So the **usher**, which is not in the arena's pid namespace, enters everything
//! else of the arena and closes all descriptors except the command's streams. Only then does it clone the command, as its
//! sibling. The command thus starts with nothing but the arena's, and its memory maps no file of the host
//! (it runs from a copy in memory).

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use leakcheck_sys::{self as sys, Child, Shared};
use rustix::fs::{FileType, fstat, makedev};
use rustix::process::{
    DumpableBehavior, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_send_signal, set_dumpable_behavior,
};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::cgroups::Freezers;
use crate::error::Doing;
use crate::{process, trace};

/// Time limit of a command's start: processes in the arena can delay it, since they can stop or trace any process that
/// they see.
const PATIENCE: Duration = Duration::from_secs(30);
/// Interval of the check whether it is a frozen cgroup that delays it. A start takes some milliseconds.
const STEP: Duration = Duration::from_millis(100);
/// Exit code of a command that could not be executed; nobody reads it.
const NOT_EXECUTED: i32 = 127;

/// What is needed to enter an arena.
pub(crate) struct Entrance {
    /// Its PID 1.
    pub(crate) init: OwnedFd,
    /// The namespaces to enter, including the pid namespace.
    pub(crate) namespaces: ThreadNameSpaceType,
    /// The cgroups that this process is not in.
    pub(crate) freezers: Freezers,
    /// The root directory.
    pub(crate) top: OwnedFd,
    /// `/dev/null` of the arena: through a descriptor of the host's, root inside could change its mode.
    pub(crate) null: OwnedFd,
}

/// What to start.
pub(crate) struct Command {
    pub(crate) argv: Vec<CString>,
    pub(crate) env: Vec<CString>,
    pub(crate) cwd: CString,
    pub(crate) streams: [OwnedFd; 3],
    pub(crate) gate: Option<Gate>,
}

/// Where a command that is to be traced waits before its exec.
pub(crate) struct Gate {
    waits: Shared,
    is_traced: Shared,
    every: bool,
    /// The descriptor to which its filter reports, if it is to.
    listener: Option<Shared>,
}

impl Gate {
    pub(crate) fn new(request: &trace::Request) -> io::Result<Self> {
        let listener = request.notified.then(Shared::new).transpose()?;
        Ok(Gate { waits: Shared::new()?, is_traced: Shared::new()?, every: request.every(), listener })
    }

    /// In the command: waits until it is traced, and adds the filter.
    fn pass(&self) -> io::Result<()> {
        if let Some(listener) = &self.listener {
            // The exec closes it.
            listener.set(trace::report(self.every)?.into_raw_fd());
        }
        // Without rights over the user namespace in which this program was executed, the spawner can trace only what is dumpable.
        // Who else in the arena traces it now gets nothing that the arena does not have, and the start fails.
        set_dumpable_behavior(DumpableBehavior::Dumpable)?;
        self.waits.announce(1);
        if !self.is_traced.wait(1, PATIENCE) {
            return Err(rustix::io::Errno::TIMEDOUT.into());
        }
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        if self.listener.is_some() { Ok(()) } else { trace::install(self.every) }
    }

    /// What the filter of the command at the gate reports to.
    fn listener(&self, command: &OwnedFd) -> io::Result<Option<OwnedFd>> {
        let number = self.listener.as_ref().map(Shared::get);
        Ok(number.map(|fd| pidfd_getfd(command, fd, PidfdGetfdFlags::empty())).transpose()?)
    }
}

/// What the process that starts commands does meanwhile.
pub(crate) trait Parent {
    /// Traces the new command, or answers what it reports.
    fn seize(&mut self, pid: i32, listener: Option<OwnedFd>) -> io::Result<()>;
    /// Waits for the usher's end, and returns whether it came in `time`; other children may need something meanwhile.
    fn wait_for(&mut self, usher: BorrowedFd<'_>, time: Duration) -> bool;
}

/// A command that was started.
pub(crate) struct Started {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    /// Its process id in the arena, which is its session's too.
    pub(crate) inside: i32,
}

/// What the usher and the command report to the process that started them. The command can write to all but the first.
struct Report {
    pid: Shared,
    /// The command's process id in the arena.
    inside: Shared,
    /// Number of the error that prevented the start.
    errno: Shared,
    /// Whether changing the directory failed.
    in_cwd: Shared,
}

impl Entrance {
    /// Starts a command as a child of this process, and returns it after its exec.
    pub(crate) fn start(&self, command: &Command, parent: &mut impl Parent) -> io::Result<Started> {
        let [pid, inside, errno, in_cwd] = [Shared::new()?, Shared::new()?, Shared::new()?, Shared::new()?];
        let report = Report { pid, inside, errno, in_cwd };
        let spawner = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        let (usher, cloned_into) = self.freezers.fork(0)?;
        let Some(usher) = usher else {
            process::die_with_parent(spawner);
            let failed = match self.freezers.enter(cloned_into) {
                Ok(()) => self.usher(command, &report),
                Err(e) => e,
            };
            report.errno.set(failed.raw_os_error().unwrap_or(libc::EIO));
            sys::exit(NOT_EXECUTED)
        };
        // At the gate it cannot have ended yet; a traced command may be killed and reaped before its usher ends.
        let at_gate = match &command.gate {
            Some(gate) => Self::seized(gate, &report, &usher, parent).during("trace it"),
            None => Ok(None),
        };
        let (ended, frozen) = if at_gate.is_ok() { self.wait_for(&usher, &report, parent) } else { (false, false) };
        let child = match (&at_gate, report.pid.get()) {
            (_, 0) => None,
            (Ok(Some(pidfd)), pid) => Some((pid, pidfd.try_clone()?)),
            (_, pid) => Some((pid, sys::open_pidfd(pid)?)),
        };
        if !ended {
            for pidfd in child.iter().map(|(_, pidfd)| pidfd).chain([&usher.pidfd]) {
                let _ = pidfd_send_signal(pidfd, Signal::KILL);
            }
            at_gate?;
            if frozen {
                return Err(io::Error::other("the arena is frozen"));
            }
            let seconds = PATIENCE.as_secs();
            return Err(io::Error::other(format!("processes in the arena delayed it for {seconds} s")));
        }
        match (report.errno.get(), child) {
            (0, Some((pid, pidfd))) => Ok(Started { pid, pidfd, inside: report.inside.get() }),
            (0, None) => Err(io::Error::other("the usher ended without an error")),
            (errno, _) if report.in_cwd.get() != 0 => {
                let cwd = OsStr::from_bytes(command.cwd.as_bytes());
                Err(io::Error::from_raw_os_error(errno)).doing("enter working directory", cwd)
            }
            (errno, _) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Waits until the usher has exited; returns whether it has, and whether the arena was frozen instead.
    fn wait_for(&self, usher: &Child, report: &Report, parent: &mut impl Parent) -> (bool, bool) {
        let until = Instant::now() + PATIENCE;
        let mut frozen = false;
        while !parent.wait_for(usher.pidfd.as_fd(), STEP) {
            if report.pid.get() != 0 {
                // The command may have frozen the whole arena before the usher exits.
                self.freezers.free(usher.pid);
                if parent.wait_for(usher.pidfd.as_fd(), STEP) {
                    break;
                }
            }
            let before = std::mem::replace(&mut frozen, self.freezers.frozen());
            if before && frozen || Instant::now() >= until {
                return (false, frozen);
            }
        }
        (true, false)
    }

    /// Traces the command once it waits at its gate, and returns its pidfd; none if the usher ended without one.
    fn seized(gate: &Gate, report: &Report, usher: &Child, parent: &mut impl Parent) -> io::Result<Option<OwnedFd>> {
        let deadline = Instant::now() + PATIENCE;
        while !gate.waits.wait(1, STEP) {
            if sys::wait_until(&[usher.pidfd.as_fd()], Duration::ZERO)? || Instant::now() > deadline {
                return Ok(None);
            }
        }
        let pid = report.pid.get();
        let pidfd = sys::open_pidfd(pid)?;
        parent.seize(pid, gate.listener(&pidfd)?)?;
        gate.is_traced.announce(1);
        Ok(Some(pidfd))
    }

    /// Returns only if something failed. The usher itself exits after the clone.
    fn usher(&self, command: &Command, report: &Report) -> io::Error {
        let inside = || -> io::Result<()> {
            move_into_thread_name_spaces(self.init.as_fd(), self.namespaces)?;
            rustix::process::fchdir(&self.top)?;
            rustix::process::chroot(".")?;
            self.take_streams(&command.streams)?;
            sys::close_all_but(&[])?;
            // Until its exec, other processes of its user must not trace it.
            set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
            report.pid.keep_to_ourselves()?;
            match sys::fork_sibling(&report.pid)? {
                Some(()) => sys::exit(0),
                None => Ok(()),
            }
        };
        if let Err(e) = inside() {
            return e;
        }
        report.inside.set(i32::try_from(std::process::id()).unwrap_or_default());
        let _ = rustix::process::setsid();
        sys::default_signals();
        if let Err(e) = rustix::process::chdir(command.cwd.as_c_str()) {
            report.in_cwd.set(1);
            return e.into();
        }
        if let Some(Err(e)) = command.gate.as_ref().map(Gate::pass) {
            return e;
        }
        sys::exec_by_path(&command.argv, &command.env)
    }

    fn take_streams(&self, streams: &[OwnedFd; 3]) -> io::Result<()> {
        // First to numbers above 2, since one of the three may have the number of another.
        let above =
            |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(if is_null(fd.as_fd()) { &self.null } else { fd }, 10);
        let [stdin, stdout, stderr] = streams;
        let above = [above(stdin)?, above(stdout)?, above(stderr)?];
        sys::set_streams(above.each_ref().map(AsFd::as_fd))?;
        // `close_all_but` closes them.
        std::mem::forget(above);
        Ok(())
    }
}

fn is_null(fd: BorrowedFd<'_>) -> bool {
    fstat(fd)
        .is_ok_and(|st| FileType::from_raw_mode(st.st_mode) == FileType::CharacterDevice && st.st_rdev == makedev(1, 3))
}
