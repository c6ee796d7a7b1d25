//! An owner of a warden, like leakcheck.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};

/// Time limit: more than a machine under load needs for any step here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Each test has its own warden. The tests run one at a time, since they share a cgroup.
pub(crate) struct Owner {
    pub(crate) socket: OwnedFd,
    pub(crate) warden: Child,
    _turn: MutexGuard<'static, ()>,
}

impl Owner {
    /// Whether this machine allows arenas. The warden of an unprivileged user needs rights that some machines deny.
    pub(crate) fn can_have_arenas() -> bool {
        rustix::process::geteuid().is_root()
    }

    pub(crate) fn new() -> Self {
        let own = std::process::id().to_string();
        Self::of(Command::new(env!("CARGO_BIN_EXE_warden")).arg(own))
    }

    /// Starts it by a command that gets the socket as standard input.
    pub(crate) fn of(command: &mut Command) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let (socket, theirs) = pair();
        let warden = command.stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Owner { socket, warden, _turn: turn }
    }

    pub(crate) fn ask(&self, request: &Value) -> Value {
        ask(&self.socket, request.to_string().as_bytes(), &[]).0
    }

    /// Brings up an arena.
    pub(crate) fn up(&self, options: &Value) -> Result<Arena, String> {
        let (commands, theirs) = pair();
        let request = json!({"op": "up", "options": options}).to_string();
        let (answer, fds) = ask(&self.socket, request.as_bytes(), &[theirs.as_fd()]);
        match answer.get("up") {
            Some(up) => Ok(Arena { up: up.clone(), commands, fds }),
            None => Err(answer["error"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()),
        }
    }

    /// The warden's own children, including zombies (proc(5), `task/TID/children`).
    pub(crate) fn children(&self) -> String {
        let pid = self.warden.id();
        std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.warden.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        let pidfd = pidfd_open(Pid::from_child(&self.warden), PidfdFlags::empty()).unwrap();
        // Without its owner's socket, it takes all arenas down and exits.
        self.socket = pair().0;
        let ended = ready(pidfd.as_fd(), PATIENCE);
        let _ = self.warden.kill();
        let _ = self.warden.wait();
        assert!(ended || std::thread::panicking(), "the warden went on without an owner");
    }
}

/// An arena that is up.
pub(crate) struct Arena {
    pub(crate) up: Value,
    /// The socket for requests to its spawner.
    pub(crate) commands: OwnedFd,
    /// The first is the pidfd of its PID 1.
    pub(crate) fds: Vec<OwnedFd>,
}

impl Arena {
    pub(crate) fn dirs(&self) -> Vec<String> {
        let dirs = self.up["cgroups"].as_array().unwrap();
        dirs.iter().map(|dir| dir[1].as_str().unwrap().to_owned()).collect()
    }

    /// Whether PID 1 ends within the time limit.
    pub(crate) fn ends(&self, within: Duration) -> bool {
        ready(self.fds[0].as_fd(), within)
    }

    /// Starts a command in `/`; the wait status arrives on the pipe.
    pub(crate) fn start(&self, words: &[&str]) -> (Value, std::io::PipeReader) {
        let (status, pipe) = std::io::pipe().unwrap();
        let null = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
        let strings = strings(&[&["/"], words, &["PATH=/usr/bin:/bin"]].concat());
        let fds = [null.as_fd(), null.as_fd(), null.as_fd(), pipe.as_fd(), strings.as_fd()];
        let request = json!({"argc": words.len()}).to_string();
        let (answer, _) = ask(&self.commands, request.as_bytes(), &fds);
        (answer, status)
    }

    /// Runs a command and returns its wait status.
    pub(crate) fn run(&self, words: &[&str]) -> i32 {
        let (answer, mut status) = self.start(words);
        // Outside and inside.
        assert!((0..2).all(|at| answer["pid"][at].as_i64().is_some_and(|pid| pid > 1)), "{answer}");
        assert!(ready(status.as_fd(), PATIENCE), "no status of {words:?}");
        let mut report = [0u8; 12];
        status.read_exact(&mut report).unwrap();
        i32::from_ne_bytes(report[..4].try_into().unwrap())
    }
}

/// A memory file with strings, each with a zero byte at its end.
pub(crate) fn strings(all: &[&str]) -> OwnedFd {
    let file = rustix::fs::memfd_create(c"strings", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = std::fs::File::from(file);
    for text in all {
        file.write_all(text.as_bytes()).unwrap();
        file.write_all(b"\0").unwrap();
    }
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).unwrap();
    file.into()
}

pub(crate) fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

pub(crate) fn ready(fd: BorrowedFd<'_>, within: Duration) -> bool {
    let time = Timespec::try_from(within).unwrap();
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&time)).unwrap() > 0
}

/// Sends one packet and returns the answer: an object, or `{"WORD": true}` for a word.
pub(crate) fn ask(socket: &OwnedFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> (Value, Vec<OwnedFd>) {
    send(socket, message, fds);
    receive(socket).expect("an answer")
}

pub(crate) fn send(socket: &OwnedFd, message: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
    sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// The next packet; none if the other side is gone.
pub(crate) fn receive(socket: &OwnedFd) -> Option<(Value, Vec<OwnedFd>)> {
    assert!(ready(socket.as_fd(), PATIENCE), "no answer");
    let mut text = vec![0u8; 1 << 20];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let slices = &mut [IoSliceMut::new(&mut text)];
    let got = match recvmsg(socket, slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
        Err(rustix::io::Errno::CONNRESET) => return None,
        other => other.unwrap().bytes,
    };
    if got == 0 {
        return None;
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    let answer: Value = serde_json::from_slice(&text[..got]).unwrap();
    let word = answer.as_str().map(|word| json!({ word: true }));
    Some((word.unwrap_or(answer), fds))
}
