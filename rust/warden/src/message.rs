//! What goes over the sockets: one JSON object a packet (unix(7), SOCK_SEQPACKET), with descriptors beside it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// Descriptors in one packet at most (`SCM_MAX_FD`, unix(7)).
const MOST_FDS: usize = 253;
/// Bytes of one packet at most: what a command line may hold.
const MOST_BYTES: usize = 1 << 20;

/// What an arena is to be like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Options {
    /// Bytes that may be written to the overlay and to each fresh tmpfs; 0 is the kernel's default.
    pub(crate) size: u64,
    /// Keep the caller's network instead of a new one.
    pub(crate) host_network: bool,
    /// Source, target, read-only.
    pub(crate) binds: Vec<(String, String, bool)>,
    /// Host name inside.
    pub(crate) hostname: String,
    /// Device nodes of the host beyond the usual ones, by name below `/dev`.
    pub(crate) devices: Vec<String>,
    /// Hierarchy's controller file and value, written before anything runs: `memory.limit_in_bytes`, `pids.max` …
    pub(crate) limits: Vec<(String, String)>,
    /// The step of the bring-up that is to fail: for tests of the undoing.
    pub(crate) fail: Option<String>,
}

/// The steps of one bring-up. In tests one of them is made to fail.
pub(crate) struct Steps {
    /// Those that were begun, in order.
    pub(crate) begun: Vec<String>,
    fail: Option<String>,
}

impl Steps {
    pub(crate) fn new(options: &Options) -> Self {
        Steps { begun: Vec::new(), fail: options.fail.clone() }
    }

    /// Notes that a step begins; fails if it is the one that is to fail.
    pub(crate) fn begin(&mut self, name: &str) -> io::Result<()> {
        self.begun.push(name.to_owned());
        if self.fail.as_deref() == Some(name) {
            return Err(io::Error::other("failed as asked"));
        }
        Ok(())
    }

    /// The step at which an error came, for its message.
    pub(crate) fn at(&self, e: &io::Error) -> String {
        format!("{}; at step {:?}", leakcheck_sys::in_words(e), self.begun.last().map_or("start", |s| s))
    }
}

/// What the owner asks the warden for.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(crate) enum Request {
    /// Bring an arena up.
    Up {
        #[serde(default)]
        options: Options,
    },
    /// Take it down.
    Down { id: u64 },
    /// Leave it up when the owner goes.
    Keep { id: u64 },
}

/// What the owner asks an arena's spawner for. With it come stdin, stdout, stderr, a pipe for the wait status, and a memory file: the
/// working directory, the arguments and the environment, each with a zero byte at its end. They need be no UTF-8, and may be large.
#[derive(Debug, Deserialize)]
pub(crate) struct Run {
    /// How many arguments there are, the command's name among them.
    pub(crate) argc: usize,
}

/// An arena that is up, as init tells the spawner, the spawner the warden and the warden the owner.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Up {
    pub(crate) id: u64,
    /// Process id of the arena's PID 1 outside.
    pub(crate) init: i32,
    /// Hierarchy, directory.
    pub(crate) cgroups: Vec<(String, String)>,
    /// Where overlays are; the descriptors of their upper layers come after that of `/proc`, in this order.
    pub(crate) layers: Vec<String>,
    /// Paths of the fresh tmpfs; their descriptors come last, in this order.
    pub(crate) roots: Vec<String>,
    /// What of the host is not in the arena, or can only be read there, with the reason.
    pub(crate) not_covered: Vec<String>,
    /// The steps of the bring-up, in order.
    pub(crate) steps: Vec<String>,
}

/// What comes to a spawner with the owner's socket, when its arena is wanted.
pub(crate) const CLAIM: &str = "claim";

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    Up(Up),
    /// A command runs, with this process id outside.
    Pid(i32),
    Done,
    /// What failed, at which step.
    Error(String),
}

/// Sends one packet.
pub(crate) fn send(socket: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one packet"));
    }
    sendmsg(socket, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one packet; none when the other side is gone.
pub(crate) fn receive<T: for<'a> Deserialize<'a>>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut text = vec![0u8; MOST_BYTES];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        let mut slice = [IoSliceMut::new(&mut text)];
        match recvmsg(&socket, &mut slice, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    if got.bytes == 0 {
        return Ok(None);
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok(Some((serde_json::from_slice(&text[..got.bytes])?, fds)))
}
