//! A process that outlives its parent, and how to end it without keeping a pidfd open.

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, setsid};

use crate::child::{Then, spawn};
use crate::error::{Doing, Error, Result};
use crate::facts;

/// A process whose parent is dead. An open pidfd would be an extra FD, so this keeps what identifies the process when a
/// pidfd is opened later: the start time, and the inode of the pidfd, which since Linux 6.9 (pidfs) is unique until the next
/// boot.
pub(crate) struct Orphan {
    pid: Pid,
    start_time: u64,
    inode: u64,
}

/// Double fork and setsid: `first` runs in the process in the middle, which then exits, and `setup` in the orphan.
pub(crate) fn orphan(first: impl FnOnce() -> Result<()>, setup: impl FnOnce() -> Result<Then>) -> Result<Orphan> {
    let (here, there) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).during("socketpair")?;
    let middle = spawn(0, || {
        setsid().during("setsid")?;
        first()?;
        let child = spawn(0, setup)?;
        let sent = child.pidfd().and_then(|pidfd| send_fd(&there, pidfd.as_fd()));
        if let Err(error) = sent {
            child.end()?;
            return Err(error);
        }
        Ok(Then::Exit)
    })?;
    drop(there);
    let pidfd = receive_fd(&here);
    middle.end()?;
    let pidfd = pidfd?;
    let orphan = Orphan::of(&pidfd);
    if orphan.is_err() {
        // The pidfd is right, even if something could not be read through it.
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    }
    orphan
}

impl Orphan {
    fn of(pidfd: &OwnedFd) -> Result<Self> {
        let pid = facts::fdinfo(pidfd, "Pid")?
            .and_then(|pid| pid.parse().ok())
            .filter(|&pid: &i32| pid > 1)
            .and_then(Pid::from_raw)
            .ok_or_else(|| Error::Failed("the orphan's pid can't be read from its pidfd".into()))?;
        let start_time = start_time(pid)?;
        let inode = fstat(pidfd).during("fstat pidfd")?.st_ino;
        Ok(Self { pid, start_time, inode })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Kills it and waits until it is gone. If another process ended it, that is no error.
    pub(crate) fn end(self) -> Result<()> {
        let pidfd = match pidfd_open(self.pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(()),
            opened => opened.during(format_args!("pidfd_open of orphan {}", self.pid()))?,
        };
        // Read after opening the pidfd: this compares the process that would get the signal.
        let same = Self::of(&pidfd).is_ok_and(|now| now.start_time == self.start_time && now.inode == self.inode);
        if !same || pidfd_send_signal(&pidfd, Signal::KILL) == Err(Errno::SRCH) {
            return Ok(());
        }
        self.wait_until_gone(&pidfd)
    }

    /// Its exit makes the pidfd readable (Linux 5.3). After its new parent has reaped it, newer kernels report a hang-up, and
    /// since 5.5 the fdinfo has `Pid: -1`.
    fn wait_until_gone(&self, pidfd: &OwnedFd) -> Result<()> {
        let mut exited = [PollFd::new(pidfd, PollFlags::IN)];
        if poll(&mut exited, Some(&milliseconds(5000))).during("poll pidfd")? == 0 {
            return Err(Error::Failed(format!("orphan {} did not die of SIGKILL within 5 s", self.pid())));
        }
        for _ in 0..200 {
            if facts::fdinfo(pidfd, "Pid")?.as_deref() == Some("-1") {
                return Ok(());
            }
            let mut reaped = [PollFd::new(pidfd, PollFlags::empty())];
            poll(&mut reaped, Some(&milliseconds(10))).during("poll pidfd")?;
            if reaped[0].revents().contains(PollFlags::HUP) {
                return Ok(());
            }
        }
        Err(Error::Failed(format!("orphan {} is dead, but its new parent does not reap it", self.pid())))
    }
}

fn milliseconds(count: i64) -> Timespec {
    Timespec { tv_sec: count / 1000, tv_nsec: count % 1000 * 1_000_000 }
}

/// The 22nd field of proc_pid_stat(5), in clock ticks since boot.
fn start_time(pid: Pid) -> Result<u64> {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let stat = fs::read(&path).doing("read", &path)?;
    // The name before it may contain spaces and parentheses, so the search starts at the last parenthesis.
    stat.rsplit(|&byte| byte == b')')
        .next()
        .and_then(|rest| std::str::from_utf8(rest).ok()?.split_ascii_whitespace().nth(19)?.parse().ok())
        .ok_or_else(|| Error::Failed(format!("{path} contains no start time")))
}

/// Sends an FD over a unix socket (SCM_RIGHTS, unix(7)).
pub(crate) fn send_fd(socket: impl AsFd, fd: std::os::fd::BorrowedFd<'_>) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(socket, &[IoSlice::new(b".")], &mut control, SendFlags::NOSIGNAL).map(drop).during("send an FD")
}

/// Receives an FD that was already sent.
pub(crate) fn receive_fd(socket: impl AsFd) -> Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)
        .during("receive an FD")?;
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .ok_or_else(|| Error::Failed("no FD came over the socket".into()))
}
