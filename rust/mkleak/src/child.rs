//! Helper processes: they start in a known state, hold nothing of the caller's, and end without a race.
//!
//! A child that has not been reaped keeps its pid, so no pidfd needs to stay open, which would be an extra FD of this
//! process: one is opened only for the signal.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use leakcheck_sys::{
    close_all_but, close_on_exec_above_streams, exit, exit_thread, fork_unwatched, open_pidfd, set_streams,
    unblock_signals,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitId, WaitIdOptions, getpid, kill_process, pidfd_send_signal, waitid};

use crate::error::{Doing, Error, Result};

/// What a helper does after its setup.
pub(crate) enum Then {
    /// Waits forever, with at most this one FD besides its `/dev/null`s.
    Pause(Option<OwnedFd>),
    /// Stops itself by SIGSTOP.
    Stop,
    /// Ends its first thread and waits forever in another one.
    LoseLeader,
    /// Forks a successor after each pause, and exits, until the other end of this socket is shut down.
    Respawn(OwnedFd, Timespec),
    Exit,
}

/// A direct child, not reaped.
#[derive(Clone, Copy)]
pub(crate) struct Child(i32);

impl Child {
    pub(crate) fn pid(self) -> i32 {
        self.0
    }

    /// One of its namespaces, e.g. `net`.
    pub(crate) fn namespace(self, entry: &str) -> PathBuf {
        format!("/proc/{}/ns/{entry}", self.pid()).into()
    }

    /// Waits until it is a zombie or stopped, and does not reap it.
    pub(crate) fn wait_unreaped(self, state: WaitIdOptions) -> Result<()> {
        waitid(WaitId::PidFd(self.pidfd()?.as_fd()), state | WaitIdOptions::NOWAIT)
            .map(drop)
            .during(format_args!("wait for child {}", self.pid()))
    }

    pub(crate) fn pidfd(self) -> Result<OwnedFd> {
        open_pidfd(self.0).during(format_args!("pidfd_open of child {}", self.pid()))
    }

    /// Kills it if it is alive, and reaps it.
    pub(crate) fn end(self) -> Result<()> {
        let pidfd = self.pidfd()?;
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            // A signal to a zombie has no effect, or fails.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).during(format_args!("kill child {}", self.pid())),
        }
        waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
            .map(drop)
            .during(format_args!("reap child {}", self.pid()))
    }
}

/// Forks a child in the given new namespaces (`CLONE_NEW*`), runs `setup` in it, and returns when that is done. If it
/// failed, the child is reaped.
pub(crate) fn spawn(namespaces: libc::c_int, setup: impl FnOnce() -> Result<Then>) -> Result<Child> {
    let (outcome, report) = pipe_with(PipeFlags::CLOEXEC).during("pipe")?;
    let Some(pid) = fork_unwatched(namespaces).during("clone3")? else {
        drop(outcome);
        run_child(report, setup);
    };
    let child = Child(pid);
    drop(report);
    let mut answer = Vec::new();
    let read = std::fs::File::from(outcome).read_to_end(&mut answer);
    if let Ok([]) = read.as_ref().map(|_| answer.as_slice()) {
        return Ok(child);
    }
    child.end()?;
    match answer.split_first_chunk() {
        Some((errno, operation)) => {
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(*errno))).during(String::from_utf8_lossy(operation))
        }
        None => Err(Error::Failed("the helper process sent no answer".into())),
    }
}

/// What the child runs. `report` closes, here or by exec, after its setup.
fn run_child(report: OwnedFd, setup: impl FnOnce() -> Result<Then>) -> ! {
    let outcome = detach().and_then(|()| setup()).and_then(|then| {
        let kept = match &then {
            Then::Pause(Some(fd)) | Then::Respawn(fd, _) => Some(fd.as_fd()),
            Then::Pause(None) | Then::Stop | Then::LoseLeader | Then::Exit => None,
        };
        let kept: Vec<_> = [report.as_fd()].into_iter().chain(kept).collect();
        close_all_but(&kept).during("close_range")?;
        Ok(then)
    });
    match outcome {
        Ok(then) => {
            drop(report);
            match then {
                Then::Pause(_kept) => pause(),
                Then::Stop => {
                    let _ = kill_process(getpid(), Signal::STOP);
                    pause()
                }
                Then::LoseLeader => lose_leader(),
                Then::Respawn(until, pace) => respawn(&until, &pace),
                Then::Exit => exit(0),
            }
        }
        Err(error) => {
            let (errno, text) = match error {
                Error::Os(failure) => {
                    (failure.cause().raw_os_error().unwrap_or(libc::EIO), failure.operation().to_owned())
                }
                other => (libc::EIO, other.to_string()),
            };
            let mut message = errno.to_ne_bytes().to_vec();
            message.extend_from_slice(text.as_bytes());
            let _ = std::fs::File::from(report).write_all(&message);
            exit(1)
        }
    }
}

/// Ends the first thread as soon as another one runs.
fn lose_leader() -> ! {
    std::thread::spawn(|| pause());
    exit_thread()
}

/// Each generation waits for `pace`, forks the next one, and exits.
fn respawn(until: &OwnedFd, pace: &Timespec) -> ! {
    loop {
        let mut over = [PollFd::new(until, PollFlags::IN)];
        if poll(&mut over, Some(pace)) != Ok(0) {
            exit(0);
        }
        match fork_unwatched(0) {
            // If the fork fails, this generation lives on.
            Ok(None) | Err(_) => {}
            Ok(Some(_)) => exit(0),
        }
    }
}

/// Releases the caller's terminal or pipes (a helper that holds one blocks its reader), its working directory, and this
/// program's signal mask.
fn detach() -> Result<()> {
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).doing("open", "/dev/null")?;
    set_streams([null.as_fd(); 3]).during("dup2")?;
    rustix::process::chdir("/").doing("chdir", "/")?;
    unblock_signals().during("sigprocmask")?;
    // Otherwise FDs that this process inherited without close-on-exec would survive an exec.
    close_on_exec_above_streams().during("close_range")
}

/// The argument that makes the copy which `deleted-exe` starts of this program only [`pause`].
pub(crate) const PAUSE: &str = "--pause";

/// Waits until a signal ends this process.
pub(crate) fn pause() -> ! {
    loop {
        rustix::event::pause();
    }
}
