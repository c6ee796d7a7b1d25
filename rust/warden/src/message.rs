//! The messages on the sockets: each packet is one JSON object (unix(7), SOCK_SEQPACKET), possibly with descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::trace;

/// Maximum number of descriptors in one packet (`SCM_MAX_FD`, unix(7)).
const MOST_FDS: usize = 253;
/// Maximum size of one packet in bytes.
const MOST_BYTES: usize = 1 << 20;

/// The properties of an arena.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Options {
    /// Size limit in bytes of the overlay and of each fresh tmpfs; 0 is the kernel's default.
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
    /// The first process inside gets the next process id after this one; 0 is the kernel's default.
    pub(crate) last_pid: i32,
    /// The step of the bring-up that must fail: for tests of the undoing.
    pub(crate) fail: Option<String>,
}

/// The steps of one bring-up. Tests make one of them fail.
pub(crate) struct Steps {
    /// The steps that began, in order.
    pub(crate) begun: Vec<String>,
    fail: Option<String>,
}

impl Steps {
    pub(crate) fn new(options: &Options) -> Self {
        Steps { begun: Vec::new(), fail: options.fail.clone() }
    }

    /// Records that a step begins; fails if it is the step that must fail.
    pub(crate) fn begin(&mut self, name: &str) -> io::Result<()> {
        self.begun.push(name.to_owned());
        if self.fail.as_deref() == Some(name) {
            return Err(io::Error::other("failed as asked"));
        }
        Ok(())
    }

    /// The message of an error, with the step at which it occurred.
    pub(crate) fn at(&self, e: &io::Error) -> String {
        format!("{}; at step {:?}", leakcheck_sys::in_words(e), self.begun.last().map_or("start", |s| s))
    }
}

/// The owner's requests to the warden.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(crate) enum Request {
    /// Bring an arena up.
    Up {
        #[serde(default)]
        options: Options,
    },
    /// Take it down. The answer goes to the socket that comes with it, if one does; meanwhile other requests are answered.
    Down { id: u64 },
    /// Leave it up when the owner is gone.
    Keep { id: u64 },
}

/// The owner's request to an arena's spawner. Its descriptors are stdin, stdout, stderr, a pipe for the wait status, a
/// memory file with the working directory, the arguments and the environment, and, for a traced command, a file for what
/// the tracer reports, and a pipe if the command waits for its owner at some instant. Each of these strings ends in a zero byte; they may be large and need not be UTF-8.
#[derive(Debug, Deserialize)]
pub(crate) struct Run {
    /// The number of arguments, including the command's name.
    pub(crate) argc: usize,
    /// How it is traced, if it is.
    #[serde(default)]
    pub(crate) trace: Option<trace::Request>,
}

/// An arena that is up. Init sends it to the spawner, the spawner to the warden, and the warden to the owner.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Up {
    pub(crate) id: u64,
    /// Process id of the arena's PID 1, as seen from outside.
    pub(crate) init: i32,
    /// Hierarchy, directory.
    pub(crate) cgroups: Vec<(String, String)>,
    /// The overlays' mount points; the descriptors of their upper layers follow that of `/proc`, in this order.
    pub(crate) layers: Vec<String>,
    /// Paths of the fresh tmpfs; their descriptors come next, in this order.
    pub(crate) roots: Vec<String>,
    /// Paths of those that have mounts in them; descriptors that show them without these come last, in this order.
    pub(crate) bare: Vec<String>,
    /// Paths of these mounts.
    pub(crate) covered: Vec<String>,
    /// Paths of the host that are missing or read-only in the arena, with the reason.
    pub(crate) not_covered: Vec<String>,
    /// The steps of the bring-up, in order.
    pub(crate) steps: Vec<String>,
}

/// The message that gives a spawner the owner's socket when its arena is requested.
pub(crate) const CLAIM: &str = "claim";

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    Up(Up),
    /// A command runs; these are its process id as seen from outside, and from inside.
    Pid(i32, i32),
    Done,
    /// What failed, and at which step.
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

/// Receives one packet; none if the other side is gone.
pub(crate) fn receive<T: for<'a> Deserialize<'a>>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    // Only as much memory as the packet needs: the kernel zeroes each page of a buffer, and a bring-up has eight packets.
    let size = loop {
        match recv(&socket, &mut [0u8; 0][..], RecvFlags::PEEK | RecvFlags::TRUNC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => break other?.1,
        }
    };
    let mut text = vec![0u8; size.min(MOST_BYTES)];
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
